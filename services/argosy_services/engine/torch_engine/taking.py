"""What becomes of drawn tokens: which of them an answer takes, which drafted ones they confirm, and where it ends.

Each was drawn as if those drafted before it were right (speculative decoding, Leviathan et al., 2023).
A drafted token stands where the draw gave the same one; the first other one stands in its place, and what was computed
after it is void. As a draw depends on nothing but logits, seed and position, an answer has the tokens that it would
have without drafts, greedy or sampled.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from argosy_services.engine.base import Finish, TokenLogprobs
from argosy_services.engine.failures import not_numbers
from argosy_services.engine.torch_engine.grammar import Matcher
from argosy_services.engine.torch_engine.sampler import NO_TOKEN
from argosy_services.engine.torch_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Taken:
    """What an answer takes. The first `accepted` tokens are drafted ones, whose keys and values are computed."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    accepted: int
    finish: Finish | None


def take(sequence: Sequence, draft: tuple[int, ...], drawn: Items[tuple[int, TokenLogprobs | None]]) -> Taken:
    """Takes from `drawn`, the tokens after the sequence's own and after each of `draft`. Goes on in its grammar, but
    leaves its tokens as they are. Raises INVALID_GRAMMAR, or what `not_numbers` tells.
    """
    tokens: list[int] = []
    finish: Finish | None = None
    while finish is None and len(tokens) <= len(draft) and draft[: len(tokens)] == tuple(tokens):
        followed, finish = _follow(sequence, drawn[len(tokens)][0], len(tokens))
        tokens += followed
    # With log-probabilities nothing is forced: each token is one that was drawn.
    logprobs = tuple(described for _, described in drawn[: len(tokens)] if described is not None)
    accepted = next((at for at, token in enumerate(draft) if at >= len(tokens) or tokens[at] != token), len(draft))
    return Taken(tuple(tokens), logprobs, accepted, finish)


def _follow(sequence: Sequence, token: int, before: int) -> tuple[list[int], Finish | None]:
    """A drawn token, `before` others after the sequence's own, with those that its grammar forces after it, and why the
    sequence ends with them, if it does."""
    request, matcher = sequence.request, sequence.matcher
    if token == NO_TOKEN:
        raise not_numbers(request.adapter)
    tokens = [token]
    if isinstance(matcher, Matcher):
        if token in request.stop_token_ids:
            matcher.check()
        else:
            matcher.accept(token)
            # The logits of a forced token are never there when it is handed out, and log-probabilities come from them.
            if request.sampling.logprobs is None:
                tokens += matcher.accept_forced()
    room = request.max_tokens - sequence.generated - before
    for count, taken in enumerate(tokens[:room], 1):
        if taken in request.stop_token_ids:
            return tokens[:count], Finish.STOP
    if len(tokens) <= room and isinstance(matcher, Matcher) and matcher.finished:
        return tokens, Finish.STOP
    return tokens[:room], Finish.LENGTH if len(tokens) >= room else None

"""The library's log-probabilities in our words, checked where its documentation leaves room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from argosy_services.engine.base import TokenLogprobs
from argosy_services.errors import ArgosyError, Reason


def drawn(token_ids: Sequence[int], entries: Sequence[Mapping[int, Any]], top: int) -> tuple[TokenLogprobs, ...]:
    """One for each token; `entries` map ids to objects with `logprob`. Raises NOT_SUPPORTED where one is missing."""
    if len(entries) < len(token_ids):
        raise _incomplete(f"{len(entries)} log-probabilities came for {len(token_ids)} tokens")
    return tuple(_describe(token, entry, top) for token, entry in zip(token_ids, entries, strict=False))


def scored(
    prompt: Sequence[int], entries: Sequence[Mapping[int, Any] | None], first: int, top: int
) -> tuple[TokenLogprobs, ...]:
    """One for each token of the prompt from position `first` on.

    `entries` are one for each token that has a predecessor, with or without an empty one for the first token, or with
    one more for the token after the prompt. Raises NOT_SUPPORTED where one is missing.
    """
    if len(entries) == len(prompt) and not entries[0]:
        entries = entries[1:]
    if len(entries) not in (len(prompt) - 1, len(prompt)):
        raise _incomplete(f"{len(entries)} log-probabilities came for a prompt of {len(prompt)} tokens")
    return tuple(_describe(prompt[position], entries[position - 1], top) for position in range(first, len(prompt)))


def _describe(token: int, entry: Mapping[int, Any] | None, top: int) -> TokenLogprobs:
    if not isinstance(entry, Mapping) or token not in entry:
        raise _incomplete(f"token {token} has no log-probability")
    ranked = sorted(((other, float(value.logprob)) for other, value in entry.items()), key=lambda pair: -pair[1])
    return TokenLogprobs(token_id=token, logprob=float(entry[token].logprob), top=tuple(ranked[:top]))


def _incomplete(problem: str) -> ArgosyError:
    return ArgosyError(
        Reason.NOT_SUPPORTED,
        f"the TensorRT-LLM engine gave no complete log-probabilities ({problem}); use a server with the torch engine",
    )

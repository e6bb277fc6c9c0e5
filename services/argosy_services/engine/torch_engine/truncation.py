"""Which tokens top_k, top_p (nucleus sampling, Holtzman et al., 2020) and min_p leave, and with which weights.

A sort of a whole vocabulary costs more than a step of a small model. What is kept is nearly always among the few
hundred likeliest tokens, and whether it was can be told from them alone: only rows in which it was not are looked at
again, in more of their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch

from argosy_services.engine.base import Sampling

_NEVER = float("-inf")
# For so many tokens first, then for so many times as many, and so on until nothing is missing.
CANDIDATES = 256
WIDER = 16


def is_cut(sampling: Sampling) -> bool:
    """Whether a request rules out tokens by their rank."""
    return bool(sampling.top_k) or sampling.top_p < 1.0


def weights_of(logits: torch.Tensor, samplings: Items[Sampling]) -> torch.Tensor:
    """The weights `[rows, vocab]` of rows that are not cut, in place of their `logits`, which are divided by the
    temperature already.
    """
    return _drop_unlikely(logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_(), samplings)


def cut(
    logits: torch.Tensor, samplings: Items[Sampling], candidates: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is left of rows `[rows, vocab]` of which `logits` are divided by the temperature already.

    Looks at the likeliest `candidates` of each row. Gives their int64 ids `[rows, n]` in ascending order; their weights
    `[rows, n]`, 0 where one was cut off; and bool `[rows]`, whether that is all that is left of the row.
    """
    ordered, ids = _likeliest(logits, min(candidates, logits.shape[-1]))
    kept, complete = _kept(logits, ordered, samplings)
    weights = _drop_unlikely((ordered - ordered[:, :1]).exp_().masked_fill_(~kept, 0.0), samplings)
    ids, by_id = ids.sort(dim=-1)
    return ids, weights.gather(-1, by_id), complete


def _likeliest(logits: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `width` largest of each row, largest first, and their ids; equal ones in the order of their ids."""
    ids = logits.topk(width).indices.sort(dim=-1).values
    ordered, order = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return ordered, ids.gather(-1, order)


def _kept(logits: torch.Tensor, ordered: torch.Tensor, samplings: Items[Sampling]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bool `[rows, width]`: what top_k, then top_p leave of the likeliest; and bool `[rows]`: that it is all of it."""
    vocab, width = logits.shape[-1], ordered.shape[-1]
    most = column([min(sampling.top_k or vocab, vocab) for sampling in samplings], logits)
    ranked = torch.arange(width, device=logits.device) < most
    # Probabilities are those among what top_k leaves: all tokens, or some of the likeliest.
    total = ordered.masked_fill(~ranked, _NEVER).logsumexp(dim=-1, keepdim=True)
    total = torch.where(most == vocab, logits.logsumexp(dim=-1, keepdim=True), total)
    before = (ordered - total).exp().cumsum(dim=-1).roll(1, dims=-1)
    before[:, 0] = 0.0
    kept = ranked & (before < column([sampling.top_p for sampling in samplings], logits))
    kept[:, 0] = True
    # All of it, if the cut lies above the last candidate: there may be more of its value, and then the order counts.
    last = ordered.masked_fill(~kept, float("inf")).amin(dim=-1)
    above = (last > ordered[:, -1]) | (ordered[:, -1] == _NEVER)
    known = (most.squeeze(1) <= width) | (most.squeeze(1) == vocab)
    return kept, (above & known) | (width == vocab)


def _drop_unlikely(weights: torch.Tensor, samplings: Items[Sampling]) -> torch.Tensor:
    """min_p (Nguyen et al., 2024) on weights `[rows, n]` of which the largest of each row is 1."""
    if not any(sampling.min_p for sampling in samplings):
        return weights
    return weights.masked_fill_(weights < column([sampling.min_p for sampling in samplings], weights), 0.0)


def column(values: Items[float], like: torch.Tensor) -> torch.Tensor:
    """One value for each row, `[rows, 1]`, with type and device of another tensor."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]

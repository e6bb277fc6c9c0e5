"""Adds drafts to a step's work, where they are expected to pay."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from argosy_services.engine.torch_engine.grammar import Matcher
from argosy_services.engine.torch_engine.kv_cache import BlockAllocator
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.speculation.draft_model import DraftModel
from argosy_services.engine.torch_engine.speculation.lookup import PromptLookup
from argosy_services.engine.torch_engine.speculation.pace import (
    Chances,
    Prospect,
    StepTimes,
    lengths,
    likely_lengths,
)
from argosy_services.engine.torch_engine.step import Work

_LONGEST = 16
# In a fuller batch rows are too dear for all but perfect guesses, and looking for those costs time too.
_MOST_SEQUENCES = 16


@dataclass(slots=True)
class _Track:
    """A sequence's lookup, how its guesses fared, and the last one, which began at token `at`."""

    lookup: PromptLookup = field(default_factory=PromptLookup)
    looked_up: Chances = field(default_factory=Chances)
    modelled: Chances = field(default_factory=Chances)
    guess: tuple[int, ...] = ()
    at: int = 0
    by_model: bool = False

    def settle(self, tokens: Items[int]) -> None:
        """Compares the last guess with what came, whether it was drafted or not."""
        came = tokens[self.at : self.at + len(self.guess)]
        right = next((n for n, pair in enumerate(zip(self.guess, came, strict=False)) if pair[0] != pair[1]), len(came))
        (self.modelled if self.by_model else self.looked_up).learn(right, wrong=right < len(came))
        self.guess = ()


@dataclass(slots=True)
class _Option:
    """An item that could have a draft: `guess` looked up, or else to be made by the draft model."""

    place: int
    item: Work
    track: _Track
    guess: tuple[int, ...]
    most: int


class Speculator:
    """Drafts for the sequences of one engine. Lives on the engine's thread.

    With `lookup`, what a sequence repeats is guessed; with a `model`, the rest is. With `always`, cost does not count.
    """

    def __init__(
        self, blocks: BlockAllocator, step_tokens: int, *, lookup: bool, model: DraftModel | None, always: bool
    ) -> None:
        self._blocks = blocks
        self._step_tokens = step_tokens
        self._lookup = lookup
        self._model = model
        self._always = always
        self._tracks: dict[Sequence, _Track] = {}
        self._times = StepTimes()

    def forget(self, sequence: Sequence) -> None:
        """Drops what is known of a sequence."""
        self._tracks.pop(sequence, None)
        if self._model is not None:
            self._model.forget(sequence)

    def observe(self, work: Items[Work], seconds: float) -> None:
        """Takes in how long a step took; only decoding steps tell what a row costs."""
        if all(item.count == 1 + len(item.draft) for item in work):
            self._times.observe(sum(item.count for item in work), seconds)

    def extend(self, work: list[Work]) -> list[Work]:
        """The same work with drafts. Blocks for them are taken from those that are free, never from a sequence."""
        room = self._step_tokens - sum(item.count for item in work)
        if room <= 0 or (len(work) > _MOST_SEQUENCES and not self._always):
            return work
        if self._model is not None:
            self._model.begin_step()
        options = [option for place, item in enumerate(work) if (option := self._option(place, item)) is not None]
        if not options:
            return work
        extended = list(work)
        for option, draft in zip(options, self._drafts(options, work, room), strict=True):
            if draft:
                item = option.item
                extended[option.place] = Work(item.sequence, item.start, item.count + len(draft), draft)
        return extended

    def _option(self, place: int, item: Work) -> _Option | None:
        sequence = item.sequence
        if not item.completes or sequence.request.score_from is not None:
            return None
        # The step draws one token more than it confirms.
        most = min(_LONGEST, sequence.request.max_tokens - sequence.generated - 1)
        if most <= 0:
            return None
        track = self._tracks.setdefault(sequence, _Track())
        if track.guess:
            track.settle(sequence.tokens)
        guess = track.lookup.guess(sequence.tokens, most) if self._lookup else ()
        guess = _allowed(sequence, guess)
        if guess:
            track.guess, track.at, track.by_model = guess, len(sequence.tokens), False
            return _Option(place, item, track, guess, len(guess))
        return _Option(place, item, track, (), most) if self._can_model(sequence, most) else None

    def _can_model(self, sequence: Sequence, most: int) -> bool:
        model = self._model
        # The draft model has no adapters.
        if model is None or sequence.request.adapter is not None:
            return False
        return len(sequence.tokens) + most <= model.context and model.catch_up(sequence)

    def _drafts(self, options: list[_Option], work: Items[Work], room: int) -> list[tuple[int, ...]]:
        sizes = [self._fitting(option, size) for option, size in zip(options, self._sizes(options, work), strict=True)]
        while sum(sizes) > room:
            sizes[sizes.index(max(sizes))] -= 1
        drafts = [option.guess[:size] for option, size in zip(options, sizes, strict=True)]
        modelled = [at for at, option in enumerate(options) if sizes[at] and not option.guess]
        if self._model is not None and modelled:
            sequences = [options[at].item.sequence for at in modelled]
            guesses = self._model.guess(sequences, [sizes[at] for at in modelled])
            for at, guess in zip(modelled, guesses, strict=True):
                track, sequence = options[at].track, options[at].item.sequence
                track.guess, track.at, track.by_model = guess, len(sequence.tokens), True
                drafts[at] = _allowed(sequence, guess)
        return drafts

    def _sizes(self, options: list[_Option], work: Items[Work]) -> list[int]:
        """How many tokens to draft of each, as far as gain and cost go."""
        own = 0.0 if self._model is None else self._model.seconds
        prospects = [
            Prospect(option.most, option.track.looked_up.chance)
            if option.guess
            else Prospect(option.most, option.track.modelled.chance, own)
            for option in options
        ]
        if self._always:
            return likely_lengths(prospects)
        if not self._times.known:
            return [0] * len(options)
        return lengths(prospects, self._times, sum(item.completes for item in work), sum(item.count for item in work))

    def _fitting(self, option: _Option, size: int) -> int:
        """As much of a draft as there are blocks for, leaving one for every sequence that may need it next."""
        table, end = option.item.sequence.table, option.item.start + option.item.count
        spare = self._blocks.free - len(self._tracks)
        size = min(size, (len(table) + max(spare, 0)) * self._blocks.block_tokens - end)
        if size > 0:
            self._blocks.grow(table, end + size)
        return max(size, 0)


def _allowed(sequence: Sequence, guess: tuple[int, ...]) -> tuple[int, ...]:
    """The beginning of a guess to which the sequence's grammar keeps, and which ends where the answer would."""
    stop = next((at for at, token in enumerate(guess, 1) if token in sequence.request.stop_token_ids), len(guess))
    guess = guess[:stop]
    if guess and isinstance(sequence.matcher, Matcher):
        return guess[: sequence.matcher.valid(guess)]
    return guess

"""From the tokens of one choice to its text."""

from __future__ import annotations

from collections.abc import Sequence

from argosy_services.engine.base import Finish, StepOutput, TokenLogprobs
from argosy_services.generation.stops import StopMatcher
from argosy_services.generation.types import ChoiceFinished, Delta, FinishReason
from argosy_services.tokenization.detokenizer import Detokenizer


class ChoiceWriter:
    """Turns the engine's outputs for one choice into deltas.

    `finished` is set with the last output, with `may_stop_early` perhaps before the engine's last. After a stop string
    matched, further tokens are ignored: the answer does not depend on how many the engine draws in a step, nor on when
    it is told to stop.
    """

    def __init__(
        self, index: int, detokenizer: Detokenizer, stops: Sequence[str], stop_token_ids: frozenset[int]
    ) -> None:
        self.finished: ChoiceFinished | None = None
        self.may_stop_early = bool(stops)
        self.token_count = 0
        self._index = index
        self._detokenizer = detokenizer
        self._stops = StopMatcher(stops)
        self._stop_token_ids = stop_token_ids
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []

    def read(self, output: StepOutput) -> bool:
        """Takes the next output; gives whether the choice is complete."""
        if self.finished is None:
            taken = self._read(output, self._text)
            self._token_ids += output.token_ids[:taken]
            self._logprobs += output.logprobs[:taken]
            self.token_count += taken
        return self.finished is not None

    def write(self) -> Delta:
        """The delta that the outputs make together which were read since the last one."""
        delta = Delta(self._index, "".join(self._text), tuple(self._token_ids), tuple(self._logprobs))
        self._text.clear()
        self._token_ids.clear()
        self._logprobs.clear()
        return delta

    def _read(self, output: StepOutput, text: list[str]) -> int:
        """Appends the output's text and returns how many of its tokens belong to the answer."""
        stop_token_id = self._stop_token(output)
        shown = output.token_ids if stop_token_id is None else output.token_ids[:-1]
        for position, token_id in enumerate(shown):
            text.append(self._stops.push(self._detokenizer.push((token_id,))))
            if self._ends_with_stop_string():
                return position + 1
        if output.finish is not None:
            text.append(self._stops.push(self._detokenizer.flush()))
            if not self._ends_with_stop_string():
                text.append(self._stops.flush())
                reason = FinishReason.LENGTH if output.finish is Finish.LENGTH else FinishReason.STOP
                self.finished = ChoiceFinished(self._index, reason, stop_token_id=stop_token_id)
        return len(output.token_ids)

    def _stop_token(self, output: StepOutput) -> int | None:
        if output.finish is Finish.STOP and output.token_ids and output.token_ids[-1] in self._stop_token_ids:
            return output.token_ids[-1]
        return None

    def _ends_with_stop_string(self) -> bool:
        if self._stops.matched is None:
            return False
        self.finished = ChoiceFinished(self._index, FinishReason.STOP, stop_string=self._stops.matched)
        return True

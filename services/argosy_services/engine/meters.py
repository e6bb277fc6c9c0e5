"""The instruments of one engine, looked up once: its thread writes to them in every step."""

from __future__ import annotations

from argosy_services import metrics


class EngineMeters:
    """What an engine counts of its steps. `model` is the name of the model that it runs."""

    def __init__(self, model: str) -> None:
        self.steps = metrics.ENGINE_STEPS.labels(model=model)
        self.step_seconds = metrics.STEP_SECONDS.labels(model=model)
        self.batch_sequences = metrics.BATCH_SEQUENCES.labels(model=model)
        self.batch_tokens = metrics.BATCH_TOKENS.labels(model=model)
        self.preemptions = metrics.PREEMPTIONS.labels(model=model)
        self.cancel_to_free = metrics.CANCEL_TO_FREE.labels(model=model)
        self.drafted = metrics.DRAFTED_TOKENS.labels(model=model)
        self.accepted = metrics.ACCEPTED_TOKENS.labels(model=model)
        self._lost_to_preemption = metrics.LOST_TOKENS.labels(model=model, reason="preempted")
        self._lost_to_drafts = metrics.LOST_TOKENS.labels(model=model, reason="draft")

    def preempted(self, sequences: int, tokens: int) -> None:
        """So many sequences lost their places since the last step, with as many tokens that were computed."""
        if sequences:
            self.preemptions.inc(sequences)
            self._lost_to_preemption.inc(tokens)

    def stepped(self, sequences: int, tokens: int, seconds: float) -> None:
        """A step is over, in which so many tokens of so many sequences were computed."""
        self.steps.inc()
        self.step_seconds.observe(seconds)
        self.batch_sequences.observe(sequences)
        self.batch_tokens.observe(tokens)

    def guessed(self, drafted: int, accepted: int) -> None:
        """Of `drafted` tokens so many were right."""
        self.drafted.inc(drafted)
        self.accepted.inc(accepted)
        self._lost_to_drafts.inc(drafted - accepted)

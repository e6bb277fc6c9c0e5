"""What a strategy comes to."""

from __future__ import annotations

from dataclasses import dataclass

from argosy_services.agents.types import Outcome


@dataclass(frozen=True, slots=True)
class Result:
    """The answer, and whether it is one that the budget allowed to be well founded."""

    text: str
    outcome: Outcome = Outcome.ANSWERED

"""Where the sequences of this process are: a gateway writes it down for the router."""

from __future__ import annotations

from collections import Counter


class Flights:
    """Which replica took each sequence."""

    def __init__(self) -> None:
        self._replicas: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def routed(self, sequence: str, replica: str) -> None:
        """A replica has taken a sequence."""
        self._replicas[sequence] = replica
        self._counts[replica] += 1

    def ended(self, sequence: str) -> str | None:
        """A sequence is over; returns where it was."""
        replica = self._replicas.pop(sequence, None)
        if replica is not None:
            self._counts[replica] -= 1
            if not self._counts[replica]:
                del self._counts[replica]
        return replica

    def count(self, replica: str) -> int:
        """The sequences of this process in a replica."""
        return self._counts[replica]


FLIGHTS = Flights()
"""Those of this process."""

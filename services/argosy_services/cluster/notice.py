"""How a replica notices that Ray Serve stops it.

Nobody tells it: Ray Serve waits for the calls that run, as long as `cluster.drain_seconds`, and calls the destructor
after that. A watch may last for ever and would hold the replica all the time. But Ray Serve checks the health of the
replicas that it keeps, and of no others.
"""

from __future__ import annotations

import asyncio

from argosy_services.rpc.gate import Gate

HEALTH_CHECK_PERIOD_S = 2
# A controller that is made anew is back sooner. Watches that end for one that is not are only begun again.
_SILENCE_S = 15.0


class StopNotice:
    """Ends the watches of a replica whose health is checked no more. Lives on the event loop of its calls."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._timer: asyncio.TimerHandle | None = None

    def checked(self) -> None:
        """Ray Serve means to keep the replica."""
        self._gate.allow_watches()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_SILENCE_S, self._gate.end_watches)

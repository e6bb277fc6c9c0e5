"""The engine replicas that Ray Serve names to this process: its router writes them down for the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from argosy_services.cluster.placement import ReplicaView
from argosy_services.cluster.wire import Contact


@dataclass(frozen=True, slots=True)
class Member:
    """A replica that takes sequences: where, and what it last told about itself."""

    contact: Contact
    view: ReplicaView


class Roster:
    """The replicas that run, by id. Replaced as a whole, so that threads need no lock."""

    def __init__(self, members: Mapping[str, Member] | None = None) -> None:
        self.members: Mapping[str, Member] = members or {}


ENGINES = Roster()
"""Those that this process knows."""

"""A fleet without models: one service, whose one method a test can hold. Run as a program, a server of it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from argosy.api.adapters.v1 import adapters_service_pb2 as adapters_pb
from argosy.api.embeddings.v1 import embeddings_service_pb2 as pb
from argosy_services.embedded import serve
from argosy_services.errors import ArgosyError, Reason
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call
from argosy_services.rpc.dispatch import MethodTable
from argosy_services.rpc.endpoint import stream, unary
from argosy_services.rpc.gate import Gate
from argosy_services.settings import Settings


class HeldEmbeddings:
    """Answers once `go` is set, and model "slow" after as many seconds as the first text says."""

    SERVICE = "argosy.api.embeddings.v1.EmbeddingsService"

    def __init__(self, go: asyncio.Event, gate: Gate, auth: Authenticator) -> None:
        self.gate = gate
        self.auth = auth
        self._go = go

    @unary(pb.EmbedResponse)
    async def Embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        if request.model == "slow":
            await asyncio.sleep(float(request.texts[0]))
        await self._go.wait()
        return pb.EmbedResponse(model=request.model)


class EndlessAdapters:
    """Its watch never ends by itself."""

    SERVICE = "argosy.api.adapters.v1.AdaptersService"

    def __init__(self, gate: Gate, auth: Authenticator) -> None:
        self.gate = gate
        self.auth = auth

    @stream(adapters_pb.WatchAdaptersResponse, watch=True)
    async def WatchAdapters(self, request: Any, call: Call) -> AsyncIterator[adapters_pb.WatchAdaptersResponse]:
        yield adapters_pb.WatchAdaptersResponse(snapshot_complete=adapters_pb.SnapshotComplete(revision=1))
        await asyncio.Event().wait()


class SmallFleet:
    """What `bootstrap.build` would give."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.life: list[str] = []
        self.healthy = True

    def register(self, server: MethodTable, gate: Gate, auth: Authenticator) -> None:
        held, endless = HeldEmbeddings(self.go, gate, auth), EndlessAdapters(gate, auth)
        embed = grpc.unary_unary_rpc_method_handler(
            held.Embed, pb.EmbedRequest.FromString, pb.EmbedResponse.SerializeToString
        )
        watch = grpc.unary_stream_rpc_method_handler(
            endless.WatchAdapters,
            adapters_pb.WatchAdaptersRequest.FromString,
            adapters_pb.WatchAdaptersResponse.SerializeToString,
        )
        server.add_registered_method_handlers(held.SERVICE, {"Embed": embed})
        server.add_registered_method_handlers(endless.SERVICE, {"WatchAdapters": watch})

    async def start(self) -> None:
        self.life.append("started")

    async def close(self) -> None:
        self.life.append("closed")


def build(settings: Settings) -> SmallFleet:
    """Loads, by the name of the generation model: at once, never, not at all, or what is soon broken."""
    if settings.generation.model == "slow":
        time.sleep(600)
    if settings.generation.model == "missing":
        raise ArgosyError(Reason.MODEL_NOT_FOUND, "no model 'missing'; fetch it with `argosy models pull missing`")
    if settings.generation.model == "corrupt":
        raise ValueError("header too large")
    fleet = SmallFleet()
    fleet.healthy = settings.generation.model != "fatal"
    return fleet


if __name__ == "__main__":
    sys.exit(serve(Settings(), build))

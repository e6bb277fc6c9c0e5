"""A server of adapters alone, without a model, run as a program that tests may kill: `replica.py dsn directory root`.

It prints its port. HOLD names a state that no adapter gets beyond.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from tests.unit.adapters.conftest import ScriptedEngine

from argosy.api.adapters.v1.adapters_service_pb2_grpc import add_AdaptersServiceServicer_to_server
from argosy_services.adapters.service import AdaptersService
from argosy_services.adapters.servicer import AdaptersServicer
from argosy_services.adapters.tiers import AdapterTiers
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.gate import Gate
from argosy_services.storage.database import Database


def hold(state: str, engine: ScriptedEngine, service: AdaptersService) -> None:
    """Lets no adapter get beyond a state. DRAINING holds leases of all that are asked for it by the test itself."""
    if state == "fetching":
        fetch = service._carrier.sources.fetch

        def half(source: Any, target: Path, cancelled: threading.Event) -> None:
            (target / "adapter_config.json").write_text("{")
            threading.Event().wait()
            fetch(source, target, cancelled)

        service._carrier.sources.fetch = half  # type: ignore[method-assign]
    elif state == "validating":
        engine.read_adapter = lambda directory: threading.Event().wait()  # type: ignore[assignment, return-value]
    elif state == "loading":
        engine.holding = True
    elif state == "draining":
        unload: Callable[[str], Any] = engine.unload_adapter

        def never(key: str) -> Any:
            engine.holding = True
            return unload(key)

        engine.unload_adapter = never  # type: ignore[method-assign]


async def main(dsn: str, directory: Path, root: Path) -> None:
    engine = ScriptedEngine()
    tiers = AdapterTiers(engine, slots=4, memory_bytes=1 << 20)  # type: ignore[arg-type]
    service = AdaptersService(
        {"small": tiers}, Database(dsn), roots=[root], max_size_bytes=1 << 20, directory=directory
    )
    hold(os.environ.get("HOLD", ""), engine, service)
    await service.start()
    gate = Gate()
    gate.open()
    server = grpc.aio.server()
    add_AdaptersServiceServicer_to_server(AdaptersServicer(service, gate, Authenticator()), server)  # type: ignore[arg-type]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))

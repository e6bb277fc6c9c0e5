"""What every call carries, and where clients get their settings from."""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.unit.sdk import answers
from tests.unit.sdk.conftest import Face
from tests.unit.sdk.scripted import ScriptedServer

import argosy
from argosy._health import AREAS

USES = {
    "tokenization": lambda c: c.tokenization.encode("x"),
    "generation": lambda c: c.generation.generate("x"),
    "embeddings": lambda c: c.embeddings.embed("x"),
    "adapters": lambda c: c.adapters.get("pirate"),
    "agents": lambda c: c.agents.run("x").result(),
}


@pytest.mark.parametrize("area", AREAS)
async def test_metadata_of_every_area(face: Face, server: ScriptedServer, area: str) -> None:
    await face.call(USES[area])
    (call,) = server.calls
    assert call.path.startswith(f"/argosy.api.{area}.v1.")
    assert call.metadata["application"] == area
    assert re.fullmatch(r"[0-9a-f]{32}", call.metadata["x-request-id"])
    assert call.metadata["user-agent"].startswith(f"argosy-python/{argosy.__version__} ")
    assert "authorization" not in call.metadata
    assert call.time_remaining is not None
    assert int(call.metadata["x-argosy-timeout-ms"]) / 1000 == pytest.approx(
        call.time_remaining, rel=0.01
    )  # gRPC rounds up


async def test_every_call_has_an_id_of_its_own(face: Face, server: ScriptedServer) -> None:
    for _ in range(3):
        await face.call(lambda c: c.tokenization.encode("x"))
    assert len({call.metadata["x-request-id"] for call in server.calls}) == 3


@pytest.mark.parametrize("bad", ["", "spaces here", "x" * 65, "new\nline"])
async def test_a_request_id_that_the_server_would_replace_is_refused(face: Face, bad: str) -> None:
    with pytest.raises(ValueError, match="request_id"):
        await face.call(lambda c: c.tokenization.encode("x", request_id=bad))


async def test_infinity_means_no_deadline(face: Face, server: ScriptedServer) -> None:
    await face.call(lambda c: c.generation.generate("x", timeout=math.inf))
    (call,) = server.calls
    assert call.time_remaining is None
    assert "x-argosy-timeout-ms" not in call.metadata


@pytest.mark.parametrize("bad", [0, -1, math.nan])
async def test_a_timeout_must_be_positive(face: Face, bad: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        await face.call(lambda c: c.generation.generate("x", timeout=bad))
    with pytest.raises(ValueError, match="timeout"):
        argosy.Client(timeout=bad)


@pytest.mark.parametrize("kind", [argosy.Client, argosy.AsyncClient])
async def test_address_key_and_timeout_of_a_client(
    kind: Any, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARGOSY_ADDRESS", server.address)
    monkeypatch.setenv("ARGOSY_API_KEY", "from-environment")
    for arguments, key in (({}, "from-environment"), ({"api_key": "given"}, "given")):
        face = Face(kind(**arguments, timeout=7.0))
        await face.call(lambda c: c.generation.generate("x"))
        call = server.calls[-1]
        assert call.metadata["authorization"] == f"Bearer {key}"
        assert 2.0 < call.time_remaining < 7.2
        await face.close()


def test_default_address() -> None:
    with argosy.Client() as client:
        assert client.address == "127.0.0.1:50051"


@pytest.mark.parametrize("address", ["http://localhost:50051", "https://fleet.example:443"])
def test_a_url_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        argosy.Client(address)


def test_the_api_key_stays_out_of_reprs() -> None:
    with argosy.Client(api_key="very-secret") as client:
        assert "very-secret" not in repr(client._config)
        assert "very-secret" not in repr(client)


def test_a_file_of_roots_is_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        argosy.Client("localhost:1", tls=tmp_path / "missing.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("kind", [argosy.Client, argosy.AsyncClient])
@pytest.mark.parametrize("form", ["path", "bytes"])
async def test_tls_with_roots_of_our_own(kind: Any, form: str, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        *subject,
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    subprocess.run(command, check=True, capture_output=True)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    server = ScriptedServer(credentials=credentials)
    server.answers.update(answers.everything())
    server.start()
    address = f"localhost:{server.port}"
    face = Face(kind(address, tls=certificate if form == "path" else certificate.read_bytes(), api_key="k"))
    assert (await face.call(lambda c: c.generation.generate("x"))).text == " Paris."
    assert server.calls[0].metadata["authorization"] == "Bearer k"
    untrusting = Face(kind(address, tls=True, retry=argosy.RetryPolicy(max_attempts=1)))
    with pytest.raises(argosy.UnavailableError):
        await untrusting.call(lambda c: c.generation.generate("x"))
    await face.close()
    await untrusting.close()
    server.stop()


async def test_an_async_client_may_be_made_before_its_loop(server: ScriptedServer) -> None:
    def in_a_loop_of_its_own() -> str:
        client = argosy.AsyncClient(server.address)

        async def use() -> str:
            async with client:
                return (await client.generation.generate("x")).text

        return asyncio.run(use())

    assert await asyncio.to_thread(in_a_loop_of_its_own) == " Paris."


async def test_health(face: Face, server: ScriptedServer) -> None:
    assert await face.call(lambda c: c.health("generation")) is argosy.Health.SERVING
    (call,) = server.calls
    assert call.request == "argosy.api.generation.v1.GenerationService"
    assert call.metadata["application"] == "generation"
    server.health = 2
    assert await face.call(lambda c: c.health("generation")) is argosy.Health.NOT_SERVING


async def test_an_unknown_area_is_refused(face: Face) -> None:
    with pytest.raises(ValueError, match="area"):
        await face.call(lambda c: c.health("telepathy"))


async def test_wait_until_ready_waits_for_every_area(face: Face, server: ScriptedServer) -> None:
    server.health = 2
    asyncio.get_running_loop().call_later(0.5, lambda: setattr(server, "health", 1))
    await face.call(lambda c: c.wait_until_ready(10))
    assert {call.metadata["application"] for call in server.calls} == set(AREAS)


async def test_wait_until_ready_says_what_did_not_come(face: Face, server: ScriptedServer) -> None:
    server.health = 2
    with pytest.raises(argosy.DeadlineExceededError, match=r"tokenization at .* within 1 s: its health is not_serving"):
        await face.call(lambda c: c.wait_until_ready(1.0))


@pytest.mark.parametrize("kind", [argosy.Client, argosy.AsyncClient])
async def test_wait_until_ready_without_a_server(kind: Any) -> None:
    face = Face(kind("127.0.0.1:1"))
    with pytest.raises(argosy.DeadlineExceededError, match=r"no connection to 127\.0\.0\.1:1"):
        await face.call(lambda c: c.wait_until_ready(2.0))
    await face.close()

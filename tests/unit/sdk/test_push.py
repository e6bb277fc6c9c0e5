"""Pushing an adapter: what is sent after an interruption, its name, and what becomes of an alias."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.unit.sdk import answers
from tests.unit.sdk.scripted import Failure, ScriptedServer

import argosy
from argosy._push import LocalAdapter, with_share
from argosy.api.adapters.v1 import adapter_pb2
from argosy.api.adapters.v1 import adapters_service_pb2 as rpc

CONFIG, WEIGHTS = b'{"r": 2}', bytes(range(256)) * 10_000
WHOLE = CONFIG + WEIGHTS
VERSION = hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "my adapter"
    directory.mkdir()
    (directory / "adapter_config.json").write_bytes(CONFIG)
    (directory / "adapter_model.safetensors").write_bytes(WEIGHTS)
    return directory


class Receiver:
    """The server's side: keeps what comes in turn."""

    def __init__(self, server: ScriptedServer) -> None:
        self.data = b""
        self.targets: dict[str, int] = {}
        self.revision = 0
        self.others: list[dict[str, int]] = []
        server.answers["UploadAdapter"] = self.upload
        server.answers["LoadAdapter"] = self.load
        server.answers["GetAlias"] = self.get
        server.answers["SetAlias"] = self.set

    def upload(self, request: Any) -> Any:
        assert (request.version, request.config_bytes, request.weights_bytes) == (VERSION, len(CONFIG), len(WEIGHTS))
        assert request.offset == (len(self.data) if request.data else 0)
        self.data += request.data
        source = f"upload://{VERSION}" if len(self.data) == len(WHOLE) else ""
        return rpc.UploadAdapterResponse(received_bytes=len(self.data), source=source)

    def load(self, request: Any) -> Any:
        assert request.source == f"upload://{VERSION}"
        adapter = answers.adapter("READY", request.name)
        adapter.version = VERSION
        return rpc.LoadAdapterResponse(adapter=adapter)

    def get(self, _: Any) -> Any:
        if not self.targets:
            return Failure(grpc.StatusCode.NOT_FOUND, "ALIAS_NOT_FOUND")
        return rpc.GetAliasResponse(alias=self.alias())

    def set(self, request: Any) -> Any:
        if self.others:  # somebody is quicker
            self.targets, self.revision = self.others.pop(), self.revision + 1
        if request.expected_revision != self.revision:
            return Failure(grpc.StatusCode.FAILED_PRECONDITION, "ALIAS_CHANGED")
        self.targets = {target.adapter: target.weight for target in request.targets}
        self.revision += 1
        return rpc.SetAliasResponse(alias=self.alias())

    def alias(self) -> adapter_pb2.Alias:
        targets = [adapter_pb2.AliasTarget(version=key, weight=weight) for key, weight in self.targets.items()]
        return adapter_pb2.Alias(name="support@prod", targets=targets, revision=self.revision)


@pytest.fixture
def receiver(server: ScriptedServer) -> Receiver:
    return Receiver(server)


async def test_everything_is_sent_once_and_loaded(face: Any, receiver: Receiver, directory: Path) -> None:
    seen: list[tuple[int, int]] = []
    adapter = await face.call(
        lambda c: c.adapters.push(directory, on_progress=lambda sent, total: seen.append((sent, total)))
    )
    assert receiver.data == WHOLE
    assert adapter.name == f"my-adapter-{VERSION[:12]}"
    assert adapter.version == VERSION
    assert seen[0] == (0, len(WHOLE))
    assert seen[-1] == (len(WHOLE), len(WHOLE))


@pytest.mark.parametrize("there", [1, len(CONFIG), len(CONFIG) + 1, 1 << 20, len(WHOLE) - 1, len(WHOLE)])
async def test_what_is_there_is_not_sent_again(face: Any, receiver: Receiver, directory: Path, there: int) -> None:
    receiver.data = WHOLE[:there]
    await face.call(lambda c: c.adapters.push(directory, name="mine"))
    assert receiver.data == WHOLE


async def test_an_upload_goes_on_after_lost_connections_but_not_for_ever(
    face: Any, server: ScriptedServer, receiver: Receiver, directory: Path
) -> None:
    lost = Failure(grpc.StatusCode.UNAVAILABLE)
    server.failures["UploadAdapter"] = [lost, lost]
    await face.call(lambda c: c.adapters.push(directory))
    assert receiver.data == WHOLE
    server.failures["UploadAdapter"] = [lost] * 100
    with pytest.raises(argosy.UnavailableError):
        await face.call(lambda c: c.adapters.push(directory))


async def test_an_alias_is_made_and_shared(face: Any, receiver: Receiver, directory: Path) -> None:
    adapter = await face.call(lambda c: c.adapters.push(directory, alias="support@prod"))
    assert adapter.name == f"support-{VERSION[:12]}"
    assert receiver.targets == {VERSION: 1}
    receiver.targets = {"old": 1}
    await face.call(lambda c: c.adapters.push(directory, alias="support@prod", weight=10))
    assert receiver.targets == {"old": 9, VERSION: 1}


async def test_a_change_of_somebody_else_is_kept(face: Any, receiver: Receiver, directory: Path) -> None:
    receiver.targets, receiver.revision = {"old": 1}, 4
    receiver.others = [{"old": 1, "theirs": 1}]
    await face.call(lambda c: c.adapters.push(directory, alias="support@prod", weight=50))
    assert receiver.targets == {"old": 1, "theirs": 1, VERSION: 2}


async def test_weights_that_are_no_percentage_and_directories_without_an_adapter_send_nothing(
    face: Any, server: ScriptedServer, directory: Path, tmp_path: Path
) -> None:
    for weight in (0, -1, 100.5, float("nan")):
        with pytest.raises(ValueError, match="percentage"):
            await face.call(lambda c, weight=weight: c.adapters.push(directory, alias="a@b", weight=weight))
    with pytest.raises(FileNotFoundError):
        await face.call(lambda c: c.adapters.push(tmp_path))
    assert server.calls == []


def alias(**targets: int) -> argosy.Alias:
    return argosy.Alias("a@b", targets, 1, None)


@pytest.mark.parametrize(
    ("present", "percent", "expected"),
    [
        (None, 10, {"new": 1}),
        (alias(old=3), 100, {"new": 1}),
        (alias(old=1), 25, {"old": 3, "new": 1}),
        (alias(old=1), 0.5, {"old": 199, "new": 1}),
        (alias(a=1, b=2), 40, {"a": 1, "b": 2, "new": 2}),
        (alias(old=9, new=1), 50, {"old": 1, "new": 1}),
        (alias(new=1), 10, {"new": 1}),
        (alias(old=1, gone=0), 50, {"old": 1, "new": 1}),
    ],
)
def test_shares(present: argosy.Alias | None, percent: float, expected: dict[str, int]) -> None:
    assert with_share(present, "new", percent) == expected


def test_shares_stay_within_what_the_server_takes() -> None:
    targets = with_share(alias(a=999_983, b=999_979), "new", 33.333)
    assert max(targets.values()) <= 1_000_000
    assert targets["new"] / sum(targets.values()) == pytest.approx(0.33333, abs=1e-4)


def test_names_are_names(directory: Path) -> None:
    with LocalAdapter(directory) as local:
        assert local.name("support@prod") == f"support-{VERSION[:12]}"
    hidden = directory.rename(directory.parent / "..ünï.cödé")
    with LocalAdapter(hidden) as local:
        name = local.name("")
    assert name.isascii()
    assert name[0].isalnum()

"""Servers of adapters that are killed where they stand, in each state of an adapter, and started again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.unit.adapters.processes import Process, start

import argosy

S = argosy.AdapterState
WAIT_S = 20.0


@contextmanager
def replica(tmp_path: Path, hold: str = "") -> Iterator[Process]:
    with start(f"sqlite:///{tmp_path / 'argosy.db'}", tmp_path / "cache", tmp_path, hold=hold) as process:
        yield process


def until(client: argosy.Client, states: dict[str, S]) -> dict[str, argosy.Adapter]:
    give_up = time.monotonic() + WAIT_S
    while True:
        seen = {adapter.name: adapter for adapter in client.adapters.list()}
        if {name: adapter.state for name, adapter in seen.items()} == states:
            return seen
        assert time.monotonic() < give_up, f"wanted {states}, there is {seen}"
        time.sleep(0.02)


def files(tmp_path: Path) -> list[str]:
    """Everything that is kept of adapters, without the directory of what is being copied."""
    return sorted(path.name for path in (tmp_path / "cache").rglob("*.*") if path.is_file())


BOTH = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("state", ["pending", "fetching", "validating", "loading"])
def test_half_done_ones_are_resumed(tmp_path: Path, write_adapter: Any, state: str) -> None:
    source = write_adapter()
    # The first two of them take the turns, so that a third one stays pending.
    names = ["a"] if state != "pending" else ["x", "y", "a"]
    with replica(tmp_path, hold="validating" if state == "pending" else state) as process:
        for name in names:
            process.client.adapters.load(name, source, wait=False)
        rest = "validating" if state == "pending" else state
        until(process.client, {name: S(state if name == "a" else rest) for name in names})
        process.kill()
    with replica(tmp_path) as process:
        until(process.client, dict.fromkeys(names, S.READY))
        assert files(tmp_path) == sorted(BOTH * len(names))
        for name in names:
            process.client.adapters.unload(name)
        assert files(tmp_path) == []


def test_ready_and_failed_ones_are_as_they_were(tmp_path: Path, write_adapter: Any) -> None:
    source = write_adapter()
    with replica(tmp_path) as process:
        version = process.client.adapters.load("a", source, pinned=True).version
        with pytest.raises(argosy.AdapterInvalidError) as told:
            process.client.adapters.load("bad", tmp_path / "nothing")
        process.client.adapters.set_alias("a@prod", {"a": 1})
        process.kill()
    with replica(tmp_path) as process:
        seen = until(process.client, {"a": S.READY, "bad": S.FAILED})
        assert (seen["a"].version, seen["a"].pinned) == (version, True)
        assert seen["bad"].failure is not None
        assert seen["bad"].failure.message == str(told.value.message)
        assert process.client.adapters.get_alias("a@prod").targets == {version: 1}
        assert files(tmp_path) == BOTH


def test_leaving_ones_and_those_that_left_are_gone(tmp_path: Path, write_adapter: Any) -> None:
    source = write_adapter()
    with replica(tmp_path) as process:
        process.client.adapters.load("left", source)
        process.client.adapters.unload("left")
        process.kill()
    with replica(tmp_path, hold="draining") as process:
        process.client.adapters.load("a", source)
        process.client.adapters.unload("a", wait=False)
        until(process.client, {"a": S.DRAINING})
        process.kill()
    with replica(tmp_path) as process:
        until(process.client, {})
        assert files(tmp_path) == []
        assert process.client.adapters.load("a", source).state is S.READY


def test_a_server_that_is_killed_again_and_again_comes_back_whole(tmp_path: Path, write_adapter: Any) -> None:
    """Killed at any moment: whatever was accepted is there in the end."""
    source = write_adapter()
    accepted: set[str] = set()
    for number in range(5):
        with replica(tmp_path) as process:
            for each in range(3):
                name = f"n{number}-{each}"
                process.client.adapters.load(name, source, wait=False)
                accepted.add(name)
            time.sleep(0.01 * number)
            process.kill()
    with replica(tmp_path) as process:
        until(process.client, dict.fromkeys(accepted, S.READY))
        assert files(tmp_path) == sorted(BOTH * len(accepted))

"""Kernels are compiled once for a processor, and nobody else's code is run."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from argosy_services.engine.torch_engine.native import is_supported
from argosy_services.engine.torch_engine.native.compile import Machine, compiled
from argosy_services.engine.torch_engine.native.emit import I64, PTR, Body, Module
from argosy_services.engine.torch_engine.native.processor import X86_64

pytestmark = pytest.mark.skipif(not is_supported(), reason="the kernels are for Linux on x86-64")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "argosy" / "kernels"


class Writer:
    """Writes a module with one function, which stores a number; counts how often."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.times = 0

    def __call__(self) -> Module:
        self.times += 1
        module = Module("test", X86_64)
        body = Body(module, "give", [PTR])
        body.store(body.int(self.number), body.arguments[0])
        body.end()
        return module


def run(code: bytes) -> int:
    machine, out = Machine(code), ctypes.c_int64(0)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(machine.address("give"))(ctypes.addressof(out))
    return out.value


def test_a_second_start_compiles_nothing(kept: Path) -> None:
    writer = Writer(41)
    assert run(compiled(writer, "shape", X86_64)) == run(compiled(writer, "shape", X86_64)) == 41
    assert writer.times == 1
    assert kept.stat().st_mode & 0o077 == 0
    assert run(compiled(Writer(42), "another shape", X86_64)) == 42


def test_a_damaged_file_is_compiled_anew(kept: Path) -> None:
    writer = Writer(41)
    compiled(writer, "shape", X86_64)
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    assert run(compiled(writer, "shape", X86_64)) == 41
    assert writer.times == 2


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_is_not_run(kept: Path, mode: int) -> None:
    compiled(Writer(13), "shape", X86_64)
    (file,) = kept.iterdir()
    file.chmod(mode)
    writer = Writer(41)
    assert run(compiled(writer, "shape", X86_64)) == 41
    assert writer.times == 1


def test_a_directory_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert run(compiled(Writer(41), "shape", X86_64)) == 41


def test_a_function_that_is_not_there(kept: Path) -> None:
    with pytest.raises(KeyError):
        Machine(compiled(Writer(1), "shape", X86_64)).address("absent")


def test_integers_and_loops_are_those_of_python(kept: Path) -> None:
    module = Module("test", X86_64)
    body = Body(module, "give", [PTR])
    total = body.cell(I64, body.int(0))
    with body.loop(3, 20, 4) as index, body.when(body.less(5, index)):
        total.set(body.add(total.get(), body.mul(body.rem(index, 5), 10), body.div(index, 4), body.max(1, index)))
    body.store(total.get(), body.arguments[0])
    body.end()
    wanted = sum(index % 5 * 10 + index // 4 + max(1, index) for index in range(3, 20, 4) if index > 5)
    assert run(compiled(lambda: module, "loops", X86_64)) == wanted

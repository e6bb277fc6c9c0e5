"""Runs in the sandbox's process, before the code of a stranger: gives up everything, then runs it.

Only the standard library, and started as a file of its own: what the server has imported is not here. The order
matters: limits and capabilities first, then the file system (Landlock), then system calls (seccomp). Where a step fails
the process ends with `EX_CONFIG` and the code is not run.

Calls that make or remove files wait for the server's consent (see `sandbox_gate.py`), because neither Landlock nor a
limit of the process can bound how many files there are.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import socket
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

EX_CONFIG = 78
MEMORY_BYTES = 256 << 20
FILE_BYTES = 1 << 20
CPU_SECONDS = 5
OPEN_FILES = 32

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_SECCOMP_SET_FILTER, _SECCOMP_NEW_LISTENER = 1, 8
_CAPABILITIES_V3 = 0x20080522

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION = 1
# Before version 3, anybody may cut any file to nothing.
_LANDLOCK_NEEDED = 3
# How many rights over files each version knows (linux/landlock.h). All are taken, and the named ones are given back.
_RIGHTS = {3: 15, 4: 15, 5: 16}
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_TCP, _SCOPES = 0b11, 0b11

# The system calls that are left, each with its number on x86_64 and on arm64 ("-" where there is none). Whatever is not
# here is refused, so that a call of a newer kernel is no way out. None of them reaches another process, and those that
# name files are held by Landlock. Calls that change what Landlock does not hold (mode, owner, times, attributes) and
# those that can take room beyond a file's limit (fallocate) are missing on purpose.
_ALLOWED = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70
preadv2 327 286, pwritev2 328 287, close 3 57, close_range 436 436, lseek 8 62, ftruncate 77 46, truncate 76 45
fsync 74 82, fdatasync 75 83, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -
faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents 78 -, getdents64 217 61, getcwd 79 17
chdir 80 49, fchdir 81 50, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, umask 95 166
unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38, renameat2 316 276
brk 12 214, mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233, msync 26 227
clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101, gettimeofday 96 169, time 201 -
times 100 153, getitimer 36 102, setitimer 38 103, alarm 37 -, pause 34 -, poll 7 -, ppoll 271 73, select 23 -
pselect6 270 72, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136
rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, restart_syscall 219 128
getpid 39 172, getppid 110 173, gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177
getresuid 118 148, getresgid 120 150, getgroups 115 158, getpgrp 111 -, uname 63 160, sysinfo 99 179, getrusage 98 165
getrlimit 97 163, getrandom 318 278, sched_yield 24 124, sched_getaffinity 204 123, getcpu 309 168, futex 202 98
set_robust_list 273 99, set_tid_address 218 96, rseq 334 293, exit 60 93, exit_group 231 94
"""
# Removing is counted, because a removed file that is still open or mapped keeps its room and is seen by nobody.
_COUNTED = ("unlink", "unlinkat", "rename", "renameat", "renameat2")
# Those that depend on their arguments: number, and which argument it is.
_OPEN = {"x86_64": {2: 1, 257: 2}, "aarch64": {56: 2}}
_FCNTL = {"x86_64": 72, "aarch64": 25}
_PRLIMIT = {"x86_64": 302, "aarch64": 261}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_CAPSET = {"x86_64": 126, "aarch64": 91}
# To copy a descriptor, to read and set its flags, and locks. Not its owner, who would get signals, and no leases.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
_O_CREAT, _O_TMPFILE = 0o100, 0o20000000
# Libraries try another call where the kernel does not know one, but not where it refuses one.
_CLONE3, _FIRST_UNKNOWN = 435, 463
_IOCTL = {"x86_64": 16, "aarch64": 29}
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Of a seccomp program: load a word, compare it, test its bits, return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _REFUSE, _ASK, _ALLOW = 0x80000000, 0x00050000, 0x7FC00000, 0x7FFF0000
_NUMBER, _ARCHITECTURE = 0, 4

_Line = tuple[int, int, int, int]


def main() -> None:
    """Reads code from standard input and runs it, with nothing left to do harm with. The argument is a socket, for
    the listener by which the server consents to new files.
    """
    source = sys.stdin.read()
    try:
        machine = platform.machine()
        if machine not in _AUDIT:
            raise OSError(f"it does not know the system calls of {machine}")
        _limit()
        libc = ctypes.CDLL(None, use_errno=True)
        _drop_capabilities(libc, machine)
        _check("no_new_privs", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _close_files(libc, str(Path.cwd()))
        _count_files(libc, machine, int(sys.argv[1]))
        _close_calls(libc, machine)
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


def _drop_capabilities(libc: ctypes.CDLL, machine: str) -> None:
    """A server that runs as root has those that lift limits."""
    header = struct.pack("=Ii", _CAPABILITIES_V3, 0)
    _check("capset", libc.syscall(_CAPSET[machine], header, bytes(24)))


def _close_files(libc: ctypes.CDLL, scratch: str) -> None:
    """Leaves the interpreter's library to read, and the scratch directory to write. Everything else is closed."""
    version = _landlock_version(libc)
    handled = struct.pack("=Q", (1 << _RIGHTS[min(version, max(_RIGHTS))]) - 1)
    if version >= 4:
        handled += struct.pack("=Q", _TCP)
    if version >= 6:
        handled += struct.pack("=Q", _SCOPES)
    rules = _check("Landlock", libc.syscall(_LANDLOCK_CREATE, handled, len(handled), 0))
    readable = {path for path in (*sys.path, sys.base_prefix + "/lib", *_libraries()) if path and Path(path).is_dir()}
    for path in readable:
        _allow(libc, rules, path, _EXECUTE | _READ_FILE | _READ_DIR)
    _allow(libc, rules, scratch, _READ_FILE | _WRITE_FILE | _TRUNCATE | _READ_DIR | _MAKE_REG | _REMOVE_FILE)
    _check("Landlock", libc.syscall(_LANDLOCK_RESTRICT, rules, 0))
    os.close(rules)


def _landlock_version(libc: ctypes.CDLL) -> int:
    version: int = libc.syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)
    needed = f"it needs version {_LANDLOCK_NEEDED} of Landlock (Linux 6.2)"
    if version < 0:
        raise OSError(f"{needed}, and this kernel has none or may not use it: {os.strerror(ctypes.get_errno())}")
    if version < _LANDLOCK_NEEDED:
        raise OSError(f"{needed}, and this kernel has version {version}, which lets code truncate any file")
    return version


def _libraries() -> list[str]:
    """Where the dynamic linker finds what modules of the standard library are linked to."""
    return ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _check("Landlock", libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, place), 0))
    finally:
        os.close(place)


def _count_files(libc: ctypes.CDLL, machine: str, channel: int) -> None:
    """Has the kernel ask the server before a file is made or removed."""
    program: list[_Line] = [(_LOAD, 0, 0, _NUMBER)]
    for number, flags in _OPEN[machine].items():
        program += _when(
            number, (_LOAD, 0, 0, _low(flags)), (_ANY_BIT, 0, 1, _O_CREAT), (_RETURN, 0, 0, _ASK), _returns(_ALLOW)
        )
    numbers = _allowed(machine)
    for name in _COUNTED:
        if name in numbers:
            program += _when(numbers[name], _returns(_ASK))
    fields, _held = _compiled([*program, _returns(_ALLOW)])
    listener = libc.syscall(_SECCOMP[machine], _SECCOMP_SET_FILTER, _SECCOMP_NEW_LISTENER, fields)
    _check("seccomp with a listener (Linux 5.5)", listener)
    with socket.socket(fileno=channel) as server:
        socket.send_fds(server, [b"."], [listener])
    os.close(listener)


def _close_calls(libc: ctypes.CDLL, machine: str) -> None:
    """Has the kernel refuse all system calls but some, and end the process at one of another architecture."""
    denied, unknown = _returns(_REFUSE | errno.EPERM), _returns(_REFUSE | errno.ENOSYS)
    program: list[_Line] = [
        *[(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _AUDIT[machine]), _returns(_KILL)],
        # The numbers of x32 begin at bit 30; on arm64 there are none so high.
        *[(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, 0x40000000), _returns(_KILL)],
        *[(_AT_LEAST, 0, 1, _FIRST_UNKNOWN), unknown],
        *_when(_CLONE3, unknown),
        # What a file says that is no device. Python then sets flags of descriptors another way.
        *_when(_IOCTL[machine], _returns(_REFUSE | errno.ENOTTY)),
    ]
    for number in _allowed(machine).values():
        program += _when(number, _returns(_ALLOW))
    for number, flags in _OPEN[machine].items():
        # A file without a name could not be counted.
        nameless = _returns(_REFUSE | errno.EOPNOTSUPP)
        program += _when(number, (_LOAD, 0, 0, _low(flags)), (_ANY_BIT, 0, 1, _O_TMPFILE), nameless, _returns(_ALLOW))
    commands = [line for one in _FCNTL_COMMANDS for line in _when(one, _returns(_ALLOW))]
    program += _when(_FCNTL[machine], (_LOAD, 0, 0, _low(1)), *commands, denied)
    # Limits may be read, those of this process.
    zeros = [line for word in (_low(0), _low(2), _low(2) + 4) for line in _unless_zero(word, denied)]
    program += _when(_PRLIMIT[machine], *zeros, _returns(_ALLOW))
    fields, _held = _compiled([*program, denied])
    _check("seccomp", libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fields, 0, 0))


def _allowed(machine: str) -> dict[str, int]:
    column = 1 if machine == "x86_64" else 2
    entries = (entry.split() for entry in _ALLOWED.replace("\n", ",").split(",") if entry)
    return {entry[0]: int(entry[column]) for entry in entries if entry[column] != "-"}


def removing() -> frozenset[int]:
    """Numbers of the calls that remove files, on this machine."""
    machine = platform.machine()
    return frozenset(number for name, number in _allowed(machine).items() if name in _COUNTED)


def _when(value: int, *then: _Line) -> list[_Line]:
    """Lines for what was loaded where it is `value`; they end with a return."""
    return [(_EQUAL, 0, len(then), value), *then]


def _unless_zero(word: int, then: _Line) -> list[_Line]:
    return [(_LOAD, 0, 0, word), (_EQUAL, 1, 0, 0), then]


def _returns(what: int) -> _Line:
    return (_RETURN, 0, 0, what)


def _low(argument: int) -> int:
    """Where the lower half of an argument stands; both architectures put it first."""
    return 16 + 8 * argument


def _compiled(program: Iterable[_Line]) -> tuple[bytes, object]:
    """What the kernel takes, and what must live until it has."""
    lines = [struct.pack("=HBBI", *line) for line in program]
    buffer = ctypes.create_string_buffer(b"".join(lines), 8 * len(lines))
    return struct.pack("@HP", len(lines), ctypes.addressof(buffer)), buffer


def _check(what: str, result: int) -> int:
    if result < 0:
        raise OSError(f"it needs {what}: {os.strerror(ctypes.get_errno())}")
    return result


if __name__ == "__main__":
    main()

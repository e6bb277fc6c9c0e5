"""The sandbox holds what a hostile model may write."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from argosy_services.agents.tools import sandbox_child
from argosy_services.agents.tools.base import ToolResult, call
from argosy_services.agents.tools.python import PythonSandbox, SandboxUnavailableError


@pytest.fixture(scope="module")
async def sandbox() -> PythonSandbox:
    made = PythonSandbox()
    try:
        await made.check()
    except SandboxUnavailableError as error:
        pytest.skip(f"this kernel has no sandbox: {error}")
    return made


async def run(sandbox: PythonSandbox, code: str, seconds: float = 10.0) -> ToolResult:
    return await call(sandbox, {"code": code}, at_most_s=seconds)


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print(2**100)", "1267650600228229401496703205376\n"),
        ("import statistics, math\nprint(statistics.mean([1, 2, 6]), math.isqrt(99))", "3 9\n"),
        ("import json, decimal, datetime, re, itertools, random; print('fine')", "fine\n"),
        ("open('x', 'w').write('kept'); print(open('x').read())", "kept\n"),
        ("import os; print(set(os.environ) - {'LC_CTYPE'}, os.listdir('.'))", "set() []\n"),
        ("x = 1", "(nothing was printed)"),
    ],
)
async def test_what_it_is_for(sandbox: PythonSandbox, code: str, output: str) -> None:
    result = await run(sandbox, code)
    assert (result.status, result.text) == ("ok", output)


HOSTILE = {
    "socket": ("import socket; socket.socket()", "not permitted"),
    "unix socket": ("import socket; socket.socketpair()", "not permitted"),
    "dns": ("import socket; socket.getaddrinfo('localhost', 80)", "gaierror"),
    "fork": ("import os; os.fork()", "not permitted"),
    "fork bomb": ("import os\nwhile True: os.fork()", "not permitted"),
    "threads": ("import threading\nwhile True: threading.Thread(target=input).start()", "start new thread"),
    "program": ("import subprocess; subprocess.run(['/bin/ls'])", "not permitted"),
    "exec": ("import os; os.execv('/bin/ls', ['ls'])", "ermi"),
    "passwords": ("open('/etc/passwd').read()", "Permission denied"),
    "home": ("import os; os.listdir('/home')", "Permission denied"),
    "root": ("import os; os.listdir('/')", "Permission denied"),
    "other processes": ("open('/proc/1/environ').read()", "Permission denied"),
    "own process": ("open('/proc/self/maps').read()", "Permission denied"),
    "devices": ("open('/dev/zero', 'rb').read(1)", "ermi"),
    "elsewhere": ("open('/tmp/argosy-was-here', 'w')", "Permission denied"),
    "up and out": ("open('../argosy-was-here', 'w')", "Permission denied"),
    "links": ("import os; os.symlink('/etc/passwd', 'p'); open('p').read()", "not permitted"),
    "kill": ("import os; os.kill(os.getppid(), 9)", "not permitted"),
    "ptrace": (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); assert c.ptrace(0, 0, 0, 0) == 0",
        "AssertionError",
    ),
    "shell by libc": ("import ctypes; assert ctypes.CDLL(None).system(b'true') == 0", "AssertionError"),
    "memory": ("x = bytearray(10**9)", "MemoryError"),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytes(10**6))", "MemoryError"),
    "large file": ("open('big', 'wb').write(bytes(5 << 20))", "File too large"),
    "many open files": ("f = [open('x', 'a') for i in range(1000)]", "Too many open files"),
    "many files": ("for i in range(1000): open(str(i), 'wb').write(bytes(1 << 20))", "Disk quota exceeded"),
    "removed files": (
        "import os\nfor i in range(1000):\n  f = os.open('x', 66); os.write(f, bytes(1 << 20)); os.unlink('x')",
        "Disk quota exceeded",
    ),
    "replaced files": (
        "import os\nfor i in range(1000):\n  open('x', 'wb').write(bytes(1 << 20)); os.replace('x', 'y')",
        "Disk quota exceeded",
    ),
    "endless questions": (
        "import os\nfor i in range(10000):\n  try: os.unlink('x')\n  except FileNotFoundError: pass",
        "not implemented",
    ),
    "files without a name": ("import os; os.open('.', os.O_TMPFILE | os.O_RDWR)", "not supported"),
    "room beyond the end": ("import os; os.posix_fallocate(os.open('x', 66), 0, 1 << 19)", "not permitted"),
    "directories": ("import os; os.mkdir('x')", "not permitted"),
    "lifted limits": (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40,) * 2)",
        "not allowed to raise",
    ),
    "lifted limits by libc": (
        "import ctypes, struct; assert ctypes.CDLL(None).setrlimit(1, struct.pack('QQ', 1 << 40, 1 << 40)) == 0",
        "AssertionError",
    ),
    "signals to the session": ("import os; os.killpg(0, 9)", "not permitted"),
    "memory files": ("import os; os.memfd_create('x')", "not permitted"),
    "endless output": ("while True: print('x' * 1000)", "printed more than"),
    "recursion": ("def f(): f()\nf()", "RecursionError"),
    "crash": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "exit": ("import os; os._exit(3)", "status 3"),
    "syntax": ("def", "SyntaxError"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_code(sandbox: PythonSandbox, name: str) -> None:
    code, said = HOSTILE[name]
    result = await asyncio.wait_for(run(sandbox, code), 20)
    assert result.status == "error", result.text
    assert said in result.text
    assert not Path("/tmp/argosy-was-here").exists()


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)", "import signal; signal.pause()"])
async def test_endless_code_leaves_no_process(sandbox: PythonSandbox, code: str) -> None:
    before = set(_children())
    result = await asyncio.wait_for(run(sandbox, code, 0.5), 10)
    assert result.status == "timeout"
    assert set(_children()) <= before


async def test_nothing_is_left_in_the_temporary_directory(sandbox: PythonSandbox, tmp_path: Path) -> None:
    result = await run(sandbox, "import os; open('x', 'w'); print(os.getcwd())")
    assert result.status == "ok"
    assert not Path(result.text.strip()).exists()


OF_FILES = {
    "truncate": "os.truncate(PATH, 0)",
    "truncate by open": "os.open(PATH, os.O_RDONLY | os.O_TRUNC)",
    "truncate by libc": "assert libc.truncate(PATH.encode(), 0) == 0",
    "chmod": "os.chmod(PATH, 0)",
    "fchmod": "os.fchmod(os.open(PATH, os.O_PATH), 0)",
    "fchmodat2": "assert libc.syscall(452, -100, PATH.encode(), 0, 0) == 0",
    "chown": "os.chown(PATH, os.getuid(), os.getgid())",
    "utime": "os.utime(PATH, (1, 1))",
    "setxattr": "os.setxattr(PATH, 'user.x', b'x')",
    "setxattrat": "assert libc.syscall(463, -100, PATH.encode(), 0, b'user.x', b'', 0) == 0",
    "unlink": "os.unlink(PATH)",
    "rename": "os.rename(PATH, PATH + 'x')",
    "hard link": "os.link(PATH, 'x')",
    "write": "open(PATH, 'r+')",
    "watch": "assert libc.inotify_add_watch(libc.inotify_init(), PATH.encode(), 2) >= 0",
}


@pytest.mark.parametrize("name", OF_FILES)
async def test_files_of_the_server_stay_as_they_are(sandbox: PythonSandbox, tmp_path: Path, name: str) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    before = path.stat()
    code = f"import ctypes, os; libc = ctypes.CDLL(None); PATH = {str(path)!r}; {OF_FILES[name]}"
    result = await run(sandbox, code)
    after = path.stat()
    assert (path.read_text(), after.st_mode, after.st_mtime) == ("kept", before.st_mode, before.st_mtime)
    assert (result.status, [one.name for one in tmp_path.iterdir()]) == ("error", ["precious"]), result.text


# Numbers of x86_64 and arm64.
ON_PROCESSES = {
    "rt_sigqueueinfo": (129, 138, "PID, 9, ctypes.create_string_buffer(struct.pack('iii', 9, 0, -1), 128)"),
    "rt_tgsigqueueinfo": (297, 240, "PID, PID, 9, ctypes.create_string_buffer(struct.pack('iii', 9, 0, -1), 128)"),
    "kill": (62, 129, "PID, 9"),
    "tkill": (200, 130, "PID, 9"),
    "tgkill": (234, 131, "PID, PID, 9"),
    "pidfd_open": (434, 434, "PID, 0"),
    "prlimit64": (302, 261, "PID, 7, struct.pack('QQ', 3, 3), None"),
    "prlimit64 to read": (302, 261, "PID, 7, None, bytes(16)"),
    "setpriority": (141, 140, "0, PID, 19"),
    "sched_setaffinity": (203, 122, "PID, 8, struct.pack('Q', 1)"),
    "sched_setscheduler": (144, 119, "PID, 3, struct.pack('i', 0)"),
    "sched_setattr": (314, 274, "PID, struct.pack('IIQiIQQQ', 48, 3, 0, 0, 0, 0, 0, 0), 0"),
    "ioprio_set": (251, 30, "1, PID, 3 << 13"),
    "setpgid": (109, 154, "PID, PID"),
    "process_madvise": (440, 440, "0, 0, 0, 0, 0"),
}


@pytest.mark.parametrize("name", ON_PROCESSES)
async def test_other_processes_are_out_of_reach(sandbox: PythonSandbox, name: str) -> None:
    *numbers, given = ON_PROCESSES[name]
    number = numbers[platform.machine() == "aarch64"]
    async with _victim() as victim:
        code = f"import ctypes, struct; PID = {victim.pid}; libc = ctypes.CDLL(None, use_errno=True)\n"
        result = await run(sandbox, f"{code}print(libc.syscall({number}, {given}), ctypes.get_errno())")
        await asyncio.sleep(0.05)
        assert victim.returncode is None
        assert result.text == f"-1 {errno.EPERM}\n"
        assert resource.prlimit(victim.pid, resource.RLIMIT_NOFILE)[0] > 3
        assert os.sched_getscheduler(victim.pid) == os.SCHED_OTHER
        assert os.getpriority(os.PRIO_PROCESS, victim.pid) == os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.parametrize("command", ["F_SETOWN", "F_SETOWN_EX", "F_SETSIG", "F_SETLEASE", "F_NOTIFY"])
async def test_no_descriptor_sends_signals(sandbox: PythonSandbox, command: str) -> None:
    number = {"F_SETOWN": 8, "F_SETOWN_EX": 15, "F_SETSIG": 10, "F_SETLEASE": 1024, "F_NOTIFY": 1026}[command]
    async with _victim() as victim:
        given = f"struct.pack('ii', 1, {victim.pid})" if command == "F_SETOWN_EX" else str(victim.pid)
        code = (
            f"import fcntl, os, struct; r, w = os.pipe(); fcntl.fcntl(r, {number}, {given})\n"
            "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC); os.write(w, b'x'); print('armed')"
        )
        result = await run(sandbox, code)
        await asyncio.sleep(0.05)
        assert victim.returncode is None
    assert (result.status, "not permitted" in result.text) == ("error", True), result.text


async def test_the_scratch_directory_is_bounded(sandbox: PythonSandbox) -> None:
    """Also where files are held open, or mapped, and out of sight."""
    code = """
import mmap, os
held = 0
try:
    while True:
        f = os.open('x', os.O_CREAT | os.O_RDWR)
        os.ftruncate(f, 1 << 20)
        memory = mmap.mmap(f, 4096)
        globals()[f'm{held}'] = memory
        os.close(f)
        os.unlink('x')
        held += 1
except OSError as error:
    print(held, error.strerror)
"""
    assert (await run(sandbox, code)).text == "16 Disk quota exceeded\n"


@pytest.mark.parametrize(
    "code",
    [
        "import tempfile; f = tempfile.TemporaryFile(); f.write(b'x'); f.close()",
        "import tempfile\nwith tempfile.NamedTemporaryFile() as f: f.write(b'x')",
        "import sqlite3; c = sqlite3.connect('x.db'); c.execute('create table t (x)'); c.commit()",
        "import os; open('x', 'w').write('12'); os.truncate('x', 1); open('x', 'w'); os.replace('x', 'y')",
        "import collections, csv, dataclasses, fractions, hashlib, heapq, io, string, textwrap, typing, uuid, zlib",
        "import array, bisect, calendar, copy, enum, functools, operator, pprint, secrets, struct, time, zipfile",
        "import shutil; open('x', 'w').write('x'); shutil.copyfile('x', 'y'); assert open('y').read() == 'x'",
        "import resource; resource.getrlimit(resource.RLIMIT_AS); import os; os.cpu_count(); os.urandom(4)",
        "import fcntl; f = open('x', 'w'); fcntl.lockf(f, fcntl.LOCK_EX)",
        "import time; time.sleep(0.01); time.time(); time.process_time(); time.localtime()",
        "for i in range(1000): open('x', 'a').write('x')",
        "import ctypes; f = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1); assert f() == 1",
    ],
)
async def test_what_code_may_need(sandbox: PythonSandbox, code: str) -> None:
    result = await run(sandbox, code)
    assert (result.status, result.text) == ("ok", "(nothing was printed)")


@pytest.mark.parametrize(("version", "said"), [(-1, "has none or may not use it"), (1, "version 1"), (2, "version 2")])
def test_a_kernel_that_is_too_old_is_refused(version: int, said: str) -> None:
    class Old:
        def syscall(self, *_: object) -> int:
            return version

    with pytest.raises(OSError, match="needs version 3 of Landlock") as caught:
        sandbox_child._landlock_version(Old())  # type: ignore[arg-type]
    assert said in str(caught.value)


@contextlib.asynccontextmanager
async def _victim() -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of the same user that would do as the server."""
    process = await asyncio.create_subprocess_exec("/bin/sleep", "60")
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _children() -> list[str]:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()

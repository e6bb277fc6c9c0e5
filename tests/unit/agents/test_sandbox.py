"""The sandbox holds what a hostile model may write."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

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
    "links": ("import os; os.symlink('/etc/passwd', 'p'); open('p').read()", "Permission denied"),
    "kill": ("import os; os.kill(os.getppid(), 9)", "not permitted"),
    "ptrace": (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); assert c.ptrace(0, 0, 0, 0) == 0",
        "AssertionError",
    ),
    "shell by libc": ("import ctypes; assert ctypes.CDLL(None).system(b'true') == 0", "AssertionError"),
    "memory": ("x = bytearray(10**9)", "MemoryError"),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytes(10**6))", "MemoryError"),
    "large file": ("open('big', 'wb').write(bytes(5 << 20))", "File too large"),
    "many files": ("f = [open(str(i), 'w') for i in range(1000)]", "Too many open files"),
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


def _children() -> list[str]:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()

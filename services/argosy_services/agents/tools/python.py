"""Python that a model wrote, in a process that has nothing but a processor and a scratch directory.

What holds it: limits of memory, time, files and their size; Landlock, which leaves it the interpreter's own library to
read and the scratch directory to write; seccomp, which refuses every system call that a computation does not need, and
asks the server before a file is made. Off unless the operator turns it on, and refused where the kernel cannot do this.
See docs/agents.md for what it does not hold.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

from pydantic import Field

from argosy_services.agents.together import together
from argosy_services.agents.tools.base import Arguments, BuiltInTool, ToolError
from argosy_services.agents.tools.sandbox_child import EX_CONFIG
from argosy_services.agents.tools.sandbox_gate import FileGate

MAX_OUTPUT_BYTES = 64 << 10

_CHILD = Path(__file__).with_name("sandbox_child.py")


class SandboxUnavailableError(RuntimeError):
    """The machine cannot close a sandbox; the message says what is missing."""


class PythonArguments(Arguments):
    code: str = Field(min_length=1, max_length=4_000, description="Python; print what you want to know.")


class PythonSandbox(BuiltInTool):
    """Runs Python and gives what it prints."""

    name = "python"
    description = "Runs Python code without network or files and gives what it prints."
    arguments = PythonArguments
    timeout_s = 10.0
    per_minute = 120
    trusted = False

    async def check(self) -> None:
        """Raises SandboxUnavailableError where code could not be held."""
        status, _, problem = await _run("import socket\ntry:\n    socket.socket()\nexcept OSError:\n    print('held')")
        if status != 0 or problem:
            raise SandboxUnavailableError(problem.strip() or f"the sandbox ended with status {status}")

    async def run(self, arguments: PythonArguments) -> str:
        """What the code printed. Raises ToolError where it failed."""
        status, output, problem = await _run(arguments.code)
        if status == EX_CONFIG and "sandbox cannot be closed" in problem:
            raise SandboxUnavailableError(problem.strip())
        if status != 0:
            last = problem.strip().splitlines()[-1:] or [_reason(status)]
            raise ToolError(f"the code failed: {last[0][:500]}")
        return output or "(nothing was printed)"


async def _run(code: str) -> tuple[int, str, str]:
    """Status, output and complaints of code. However this ends, no process is left."""
    with tempfile.TemporaryDirectory(prefix="argosy-sandbox-") as scratch, FileGate(scratch) as gate:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            "-B",
            str(_CHILD),
            str(gate.channel),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=scratch,
            env={},
            start_new_session=True,
            pass_fds=(gate.channel,),
        )
        gate.started()
        try:
            async with together(ToolError) as group:
                output = group.create_task(_read(process.stdout))
                problem = group.create_task(_read(process.stderr))
                group.create_task(_feed(process.stdin, code.encode()))
            return await process.wait(), output.result(), problem.result()
        finally:
            _end(process)
            # Empties the pipes as well, without which it would not count as ended.
            await process.communicate()


async def _feed(stream: asyncio.StreamWriter | None, data: bytes) -> None:
    if stream is not None:
        stream.write(data)
        stream.close()


async def _read(stream: asyncio.StreamReader | None) -> str:
    """All that comes. Raises ToolError where that is too much."""
    kept = b""
    while stream is not None and (part := await stream.read(64 << 10)):
        kept += part
        if len(kept) > MAX_OUTPUT_BYTES:
            raise ToolError(f"the code printed more than {MAX_OUTPUT_BYTES} bytes; print less")
    return kept.decode(errors="replace")


def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)


def _reason(status: int) -> str:
    return f"it was ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"

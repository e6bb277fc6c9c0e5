"""Runs another program and waits for it, without leaving it behind."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_TICK_S = 0.2
_GRACE_S = 5.0


def run_child(
    arguments: Sequence[str], *, environment: Mapping[str, str], log: Path, on_tick: Callable[[], None]
) -> str | None:
    """Runs a program to its end and calls `on_tick` some times a second. None on success, else its last words.

    Where this process is interrupted, the program is ended before the interruption goes on.
    """
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: S603 - every argument is made here or checked by a pattern
            arguments, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while not _ended(child):
                on_tick()
        except BaseException:
            _end(child)
            raise
    return None if child.returncode == 0 else _last_words(log, child.returncode)


def _ended(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(_TICK_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _last_words(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line]
    return said[-1].removeprefix("ERROR: ")[:500] if said else f"it ended with code {code}"

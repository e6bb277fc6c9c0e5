"""Exit codes of the `argosy` command, so that scripts can branch on what went wrong."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What the shell gets to see."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4
    NOT_ALLOWED = 5
    DEADLINE = 6
    CONFLICT = 7
    SERVER_FAULT = 8
    NO_ANSWER = 9
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "success",
    ExitCode.FAILED: "any other failure",
    ExitCode.USAGE: "wrong use, or a request that must be changed",
    ExitCode.NOT_FOUND: "no such model, adapter or tool",
    ExitCode.UNAVAILABLE: "no server, or one that is starting, draining or full; try again",
    ExitCode.NOT_ALLOWED: "no valid API key",
    ExitCode.DEADLINE: "the deadline passed",
    ExitCode.CONFLICT: "something else must change first, for instance the name is taken",
    ExitCode.SERVER_FAULT: "a fault of the server",
    ExitCode.NO_ANSWER: "an agent used up its budget without an answer",
    ExitCode.INTERRUPTED: "Ctrl-C",
}


def describe() -> str:
    """All codes in one paragraph, for the help."""
    return "Exit codes: " + "; ".join(f"{code.value} {meaning}" for code, meaning in MEANINGS.items()) + "."

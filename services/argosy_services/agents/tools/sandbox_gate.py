"""The server's side of a sandbox: how many files code may make.

The kernel stops the code at each call that makes or removes a file, and asks here. The process has one thread, so
nothing changes while the files are counted. A file has at most `FILE_BYTES`, which bounds them all together.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import select
import socket
import struct
from pathlib import Path
from types import TracebackType

from argosy_services.agents.tools.sandbox_child import removing

# Files that there are and that were removed: one that is removed may still be open, and keeps its room.
MAX_FILES = 16
# So that code that asks without end does not keep the server busy; the kernel refuses what comes after.
MAX_QUESTIONS = 4_096

# Of linux/seccomp.h: take a question, answer it; let the call go on.
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_QUESTION_BYTES = 80


class FileGate:
    """Consents to new files of one sandbox, up to `MAX_FILES`. Belongs on one event loop."""

    def __init__(self, scratch: str) -> None:
        self._scratch = Path(scratch)
        self._removals = removing()
        self._removed = 0
        self._asked = 0
        self._listener: int | None = None
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> FileGate:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._loop.add_reader(self._ours, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hang_up()
        self._theirs.close()
        self._stop_listening()

    @property
    def channel(self) -> int:
        """The descriptor that the sandbox gets."""
        return self._theirs.fileno()

    def started(self) -> None:
        """The sandbox has its descriptor; it is of no use here."""
        self._theirs.close()

    def _hang_up(self) -> None:
        if self._ours.fileno() >= 0:
            self._loop.remove_reader(self._ours)
            self._ours.close()

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            self._loop.remove_reader(listener)
            os.close(listener)

    def _take(self) -> None:
        """Gets the listener, or learns that the process ended without one."""
        _, descriptors, _, _ = socket.recv_fds(self._ours, 1, 1)
        self._hang_up()
        if descriptors:
            self._listener = descriptors[0]
            os.set_inheritable(self._listener, False)
            self._loop.add_reader(self._listener, self._answer, self._listener)

    def _answer(self, listener: int) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        self._asked += 1
        # Readable without a question where nobody is left who could ask.
        if self._asked > MAX_QUESTIONS or not any(events & select.POLLIN for _, events in poll.poll(0)):
            self._stop_listening()
            return
        question = array.array("B", bytes(_QUESTION_BYTES))
        try:
            fcntl.ioctl(listener, _RECEIVE, question)
            identity, _, _, number = struct.unpack_from("=QIIi", question)
            refusal = self._refusal(number)
            answer = struct.pack("=QqiI", identity, 0, -refusal, 0 if refusal else _CONTINUE)
            fcntl.ioctl(listener, _SEND, answer)
        except OSError as error:
            # Who asked was ended meanwhile.
            if error.errno != errno.ENOENT:
                raise

    def _refusal(self, number: int) -> int:
        if number in self._removals:
            self._removed += 1
            return 0
        used = sum(1 for _ in self._scratch.iterdir()) + self._removed
        return 0 if used < MAX_FILES else errno.EDQUOT

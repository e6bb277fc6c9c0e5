"""A conversation on a terminal: history, commands, and answers that can be stopped."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import argosy
from argosy.generation import GenerationClient
from argosy_services.cli import failures
from argosy_services.cli.output import stderr, write

_HELP = """\
/reset           forget the conversation; the instructions stay
/system [TEXT]   set the instructions, or drop them, and start again
/adapter [NAME]  answer with a loaded adapter, or with the base model
/help            this list
/quit            leave; so does Ctrl-D
Ctrl-C           stop the running answer"""


class Conversation:
    """Messages so far, and how to ask for the next one."""

    def __init__(
        self,
        generation: GenerationClient,
        *,
        system: str = "",
        adapter: str = "",
        options: dict[str, Any] | None = None,
    ) -> None:
        self.messages: list[argosy.ChatMessage] = []
        self.system = system
        self.adapter = adapter
        self._generation = generation
        self._options = options or {}
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/system": self._set_system,
            "/adapter": self._set_adapter,
            "/help": lambda _: self._tell(_HELP),
        }

    def run(self) -> None:
        """Reads lines until /quit or the end of input. A failed answer is told and the conversation goes on."""
        if sys.stdin.isatty():
            importlib.import_module("readline")  # gives input() line editing and history
        self._tell("Type a message; /help lists the commands.")
        while (line := self._read()) is not None:
            name, _, argument = line.partition(" ")
            if name in ("/quit", "/exit"):
                return
            if name in self._commands:
                self._commands[name](argument.strip())
            elif name.startswith("/"):
                self._tell(f"no command {name}; /help lists them")
            elif line:
                self._answer_or_tell(line)

    def say(self, text: str) -> None:
        """Asks for the answer to a message and writes it as it comes. What was answered joins the history."""
        asked = argosy.ChatMessage("user", text)
        pieces: list[str] = []
        try:
            with self._stream([*self._context(), asked]) as stream:
                for piece in stream.text():
                    pieces.append(piece)
                    write(piece)
        finally:
            if pieces:
                write("\n")
                self.messages += [asked, argosy.ChatMessage("assistant", "".join(pieces))]

    def _answer_or_tell(self, text: str) -> None:
        try:
            self.say(text)
        except KeyboardInterrupt:
            self._tell("(stopped)")
        except argosy.ArgosyError as error:
            failure = failures.report(error)
            if failure is not None:
                failures.show(failure)
            if isinstance(error, argosy.PromptTooLongError):
                self._tell("the conversation is too long for the model; /reset starts a new one")

    def _stream(self, messages: list[argosy.ChatMessage]) -> argosy.TextStream:
        return self._generation.stream(messages, adapter=self.adapter, **self._options)

    def _context(self) -> list[argosy.ChatMessage]:
        system = [argosy.ChatMessage("system", self.system)] if self.system else []
        return [*system, *self.messages]

    def _read(self) -> str | None:
        prompt = "> " if sys.stdin.isatty() else ""
        while True:
            try:
                return input(prompt).strip()
            except EOFError:
                write("\n")
                return None
            except KeyboardInterrupt:
                self._tell("\n/quit or Ctrl-D leaves")

    def _reset(self, _argument: str) -> None:
        self.messages.clear()
        self._tell("forgotten")

    def _set_system(self, text: str) -> None:
        self.system = text
        self.messages.clear()
        self._tell("new instructions, new conversation" if text else "no instructions, new conversation")

    def _set_adapter(self, name: str) -> None:
        self.adapter = name
        self._tell(f"answers come from adapter {name}" if name else "answers come from the base model")

    def _tell(self, text: str) -> None:
        stderr().print(text, style="dim", markup=False)

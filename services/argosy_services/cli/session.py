"""What the global options say, and the client that they make."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import argosy


# Whoever types a command wants to hear soon that nothing listens.
_ATTEMPTS = 4


class UsageError(Exception):
    """Arguments that do not go together; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Session:
    """The global options."""

    address: str | None = None
    api_key: str | None = None
    timeout: float | None = None
    tls: bool = False

    @contextmanager
    def client(self) -> Iterator[argosy.Client]:
        """A client, closed at the end."""
        import argosy

        try:
            client = argosy.Client(
                self.address,
                api_key=self.api_key,
                timeout=self.timeout,
                tls=self.tls,
                retry=argosy.RetryPolicy(max_attempts=_ATTEMPTS),
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        with client:
            yield client


def session_of(context: typer.Context) -> Session:
    """The session that the root command made."""
    session = context.find_object(Session)
    return session if session is not None else Session()


def argument_or_stdin(given: str | None, what: str) -> str:
    """An argument, or all of standard input where it is `-` or missing and input is piped."""
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise UsageError(f"{what} is missing: give it as an argument, or through a pipe")
    return sys.stdin.read().rstrip("\n")

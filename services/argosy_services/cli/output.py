"""How commands print: tables for people, JSON for programs, model text as it comes."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

_NO_WIDTH = 10_000

# Text of models and tools may hold escape sequences, which a terminal would obey.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def stdout() -> Console:
    """For results."""
    return _console(sys.stdout)


def stderr() -> Console:
    """For everything else."""
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    # Where no terminal sets a width, lines stay whole for whatever reads them.
    return Console(file=file, highlight=False, width=None if file.isatty() else _NO_WIDTH)


def safe(text: str) -> str:
    """Text without control characters other than tab and line feed; U+FFFD stands in their places."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def write(text: str) -> None:
    """Writes model text as it is, or made safe where a terminal reads it, at once."""
    sys.stdout.write(safe(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_json(value: Any, *, indent: int | None = 2) -> None:
    """Writes a value, dataclasses included, as JSON."""
    sys.stdout.write(json.dumps(value, default=_plain, ensure_ascii=False, indent=indent) + "\n")
    sys.stdout.flush()


def write_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """Writes a table, or the words of `empty` where it has no rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    if table.row_count or not empty:
        stdout().print(table)
    else:
        stderr().print(empty)


def size(count: int) -> str:
    """A number of bytes for people."""
    amount, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def _cell(value: object) -> Any:
    from rich.text import Text

    return Text(safe(str(value))) if not isinstance(value, Text) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return str(value)

"""`argosy tokenize`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Annotated

import typer

from argosy_services.cli.session import argument_or_stdin, session_of

if TYPE_CHECKING:
    import argosy

_COLOURS = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text with the tokens that stand for it: several where they share a character, none for a stretch
    that the tokenizer drops.
    """

    text: str
    ids: tuple[int, ...]


def tokenize(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(help="The text; - or nothing reads standard input.")] = None,
    model: Annotated[str, typer.Option(help="Whose tokenizer.", show_default="the default model's")] = "",
    special: Annotated[bool, typer.Option(help="Add the tokenizer's special tokens.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how a text is cut into tokens."""
    from argosy_services.cli.output import write_json

    given = argument_or_stdin(text, "the text")
    with session_of(context).client() as client:
        encoding = client.tokenization.encode(
            given, model=model, add_special_tokens=special, byte_spans=True, tokens=True
        )
    if as_json:
        write_json({"text": given, "count": len(encoding.ids), **_fields(encoding)})
    else:
        _show(pieces(given, encoding), len(encoding.ids))


def pieces(text: str, encoding: argosy.Encoding) -> list[Piece]:
    """The text cut where its tokens end. Tokens that stand for no text show their vocabulary entry."""
    encoded = text.encode()
    found: list[Piece] = []
    covered = 0
    for token_id, token, (start, end) in zip(encoding.ids, encoding.tokens, encoding.byte_spans, strict=True):
        if start == end:
            found.append(Piece(token, (token_id,)))
        elif start < covered:
            shared = found[-1]
            found[-1] = Piece(shared.text + _text(encoded, covered, end), (*shared.ids, token_id))
        else:
            found += _dropped(encoded, covered, start)
            found.append(Piece(_text(encoded, start, end), (token_id,)))
        covered = max(covered, end)
    return [*found, *_dropped(encoded, covered, len(encoded))]


def _dropped(encoded: bytes, start: int, end: int) -> list[Piece]:
    return [Piece(_text(encoded, start, end), ())] if start < end else []


def _text(encoded: bytes, start: int, end: int) -> str:
    return encoded[start:end].decode(errors="replace")


def _show(found: list[Piece], count: int) -> None:
    from rich.text import Text

    from argosy_services.cli.output import safe, stdout

    texts, ids, colours = Text(), Text(), cycle(_COLOURS)
    for piece in found:
        colour = next(colours) if piece.ids else "dim"
        texts.append(safe(piece.text).replace("\n", "⏎\n"), style=colour)
        if piece.ids:
            ids.append(" ".join(map(str, piece.ids)), style=colour)
            ids.append(" ")
    console = stdout()
    console.print(texts, soft_wrap=True)
    console.print(ids, soft_wrap=True)
    console.print(f"{count} tokens", style="bold")


def _fields(encoding: argosy.Encoding) -> dict[str, object]:
    return {
        "ids": encoding.ids,
        "tokens": encoding.tokens,
        "byte_spans": encoding.byte_spans,
        "tokenizer_fingerprint": encoding.tokenizer_fingerprint,
    }

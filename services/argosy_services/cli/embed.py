"""`argosy embed`."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Annotated

import typer

from argosy_services.cli.session import argument_or_stdin, session_of


def embed(
    context: typer.Context,
    *,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; - or nothing reads one from each input line.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model to use.", show_default="the server's default")] = "",
    dimensions: Annotated[int | None, typer.Option(help="Keep only so many first dimensions.", min=1)] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Scale vectors to length 1.", show_default="the model's"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print whole vectors as JSON.")] = False,
) -> None:
    """Turn texts into vectors, and compare them."""
    from argosy_services.cli.output import write_json

    given = texts if texts and texts != ["-"] else argument_or_stdin("-" if texts else None, "a text").splitlines()
    with session_of(context).client() as client:
        result = client.embeddings.embed(given, model=model, dimensions=dimensions, normalize=normalize)
    if not as_json:
        _show(given, result.vectors, result.tokens)
        return
    rows = zip(given, result.vectors, result.tokens, result.truncated, strict=True)
    write_json(
        {
            "model": result.model,
            "dimensions": result.dimensions,
            "embeddings": [
                {"text": text, "vector": vector, "tokens": tokens, "truncated": truncated}
                for text, vector, tokens, truncated in rows
            ],
        }
    )


def _show(texts: Sequence[str], vectors: Sequence[Sequence[float]], tokens: Sequence[int]) -> None:
    from argosy_services.cli.output import stdout, write_table

    def first_values(vector: Sequence[float]) -> str:
        return " ".join(f"{value:+.4f}" for value in vector[:4]) + (" …" if len(vector) > 4 else "")

    write_table(
        ("#", "TEXT", "TOKENS", "DIMENSIONS", "NORM", "VALUES"),
        (
            (number, _short(text), count, len(vector), f"{math.hypot(*vector):.4f}", first_values(vector))
            for number, (text, vector, count) in enumerate(zip(texts, vectors, tokens, strict=True), 1)
        ),
    )
    if len(texts) < 2:
        return
    stdout().print("\ncosine similarity", style="bold")
    write_table(
        ("#", *map(str, range(1, len(texts) + 1))),
        ((number, *(f"{cosine(one, other):.3f}" for other in vectors)) for number, one in enumerate(vectors, 1)),
    )


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Cosine of the angle between two vectors; 0 where one of them is zero."""
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(map(operator.mul, one, other)) / lengths if lengths else 0.0


def _short(text: str, limit: int = 40) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"

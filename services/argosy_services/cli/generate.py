"""`argosy generate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argosy_services.cli.session import UsageError, argument_or_stdin, session_of

if TYPE_CHECKING:
    import argosy

Model = Annotated[str, typer.Option(help="Model to use.", show_default="the server's default")]
Adapter = Annotated[str, typer.Option(help="Loaded adapter to use.", show_default="none")]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy; higher is more varied.", show_default="the server's")
]
Seed = Annotated[int | None, typer.Option(help="Makes the draw repeatable.", show_default="random")]
Json = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")]


def generate(
    context: typer.Context,
    *,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - or nothing reads standard input.")] = None,
    model: Model = "",
    adapter: Adapter = "",
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.", min=1)] = 128,
    temperature: Temperature = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest tokens of this total probability.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep this many likeliest tokens.")] = None,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be given again.")] = None,
    json_schema: Annotated[str | None, typer.Option(help="JSON schema of the answer, or @FILE.")] = None,
    regex: Annotated[str | None, typer.Option(help="Regular expression that the whole answer matches.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="One possible answer; give it several times.")] = None,
    priority: Annotated[
        int, typer.Option(help="Higher goes before lower where there is not room for all.", min=-2, max=2)
    ] = 0,
    stats: Annotated[bool, typer.Option("--stats", help="Print tokens and times on standard error.")] = False,
    as_json: Json = False,
) -> None:
    """Continue a prompt. The text comes as it is written."""
    options: dict[str, Any] = {
        "model": model,
        "adapter": adapter,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or None,
        "json_schema": _schema(json_schema),
        "regex": regex,
        "choice": choice or None,
        "priority": priority,
    }
    if sum(options[form] is not None for form in ("json_schema", "regex", "choice")) > 1:
        raise UsageError("--json-schema, --regex and --choice exclude each other")
    from argosy_services.cli.output import write, write_json

    text = argument_or_stdin(prompt, "the prompt")
    with session_of(context).client() as client:
        if as_json:
            answer = client.generation.generate(text, **options)
            write_json(answer)
        else:
            with client.generation.stream(text, **options) as stream:
                for piece in stream.text():
                    write(piece)
                answer = stream.final
            write("\n")
    if stats:
        show_stats(answer)


def show_stats(answer: argosy.Generation) -> None:
    """Tokens and times of an answer, on standard error."""
    from argosy_services.cli.output import stderr

    usage, timings = answer.usage, answer.timings
    facts = [
        f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached)",
        f"{usage.completion_tokens} generated",
    ]
    if timings.decode and usage.completion_tokens > 1:
        facts.append(f"{(usage.completion_tokens - 1) / timings.decode:.1f} tokens/s")
    facts += [f"{name} {seconds * 1000:.0f} ms" for name, seconds in _stages(timings) if seconds is not None]
    facts.append(f"ended by {answer.finish_reason}")
    stderr().print(", ".join(facts), style="dim", soft_wrap=True)


def _stages(timings: argosy.Timings) -> list[tuple[str, float | None]]:
    return [("queue", timings.queue), ("prefill", timings.prefill), ("total", timings.total)]


def _schema(given: str | None) -> str | None:
    if given is None or not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {given[1:]}: {error}") from error

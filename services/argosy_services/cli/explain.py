"""`argosy explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from argosy_services.cli.session import session_of

if TYPE_CHECKING:
    import argosy


def explain(
    context: typer.Context,
    request_id: Annotated[str, typer.Argument(help="Id of a request that runs or ran lately.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell where the time of a request went, and what it waited for."""
    from argosy_services.cli.output import write_json

    with session_of(context).client() as client:
        explanation = client.generation.explain(request_id)
    if as_json:
        write_json(explanation)
    else:
        _show(explanation)


def _show(explanation: argosy.Explanation) -> None:
    from argosy_services.cli.output import safe, stdout, write_table

    of = f"{explanation.model} with {explanation.adapter}" if explanation.adapter else explanation.model
    stdout().print(
        safe(
            f"{explanation.request_id}: {explanation.state} {explanation.reason}".rstrip()
            + f", {explanation.seconds:.3f} s, {of}, {explanation.prompt_tokens} prompt tokens "
            f"({explanation.cached_tokens} cached), {explanation.completion_tokens} generated"
        ),
        markup=False,
    )
    whole = max(explanation.seconds, 1e-9)
    write_table(
        ("STAGE", "SECONDS", "SHARE"),
        (
            (part.stage.replace("_", " "), f"{part.seconds:.3f}", f"{part.seconds / whole:.0%}")
            for part in explanation.stages
        ),
    )
    write_table(
        ("WAITED FOR", "SECONDS", "BEHIND"),
        ((wait.cause, f"{wait.seconds:.3f}", _why(wait)) for wait in explanation.waits),
    )


def _why(wait: argosy.Wait) -> str:
    facts: list[str] = []
    if wait.ahead is not None:
        ahead = wait.ahead
        facts.append(f"{ahead.own} of the same key, {ahead.others} of others, {ahead.waiting_tokens} prompt tokens")
        if ahead.higher_priority:
            facts.append(f"{ahead.higher_priority} of a higher priority")
    if wait.short_of:
        facts.append(f"too few {wait.short_of}")
    if wait.adapter:
        facts.append(f"adapter {wait.adapter}")
    if wait.times:
        facts.append(f"{wait.times} times")
    return "; ".join(facts)

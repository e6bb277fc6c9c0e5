"""`argosy agent`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from argosy_services.cli.exit_codes import ExitCode
from argosy_services.cli.generate import Adapter, Model, Seed
from argosy_services.cli.session import argument_or_stdin, session_of

if TYPE_CHECKING:
    import argosy

app = typer.Typer(help="Let a model work on tasks in steps, with tools.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="The run, as `argosy agent list` shows it.", metavar="RUN")]
CallId = Annotated[str, typer.Argument(help="The call that waits.", metavar="CALL")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, of events an object a line.")]


@app.command()
def run(
    context: typer.Context,
    *,
    task: Annotated[str | None, typer.Argument(help="The task; - or nothing reads standard input.")] = None,
    tool: Annotated[
        list[str] | None, typer.Option(help="A tool to allow; may be given again.", show_default="all")
    ] = None,
    strategy: Annotated[
        Literal["react", "direct", "chain_of_thought", "tool_calling", "plan_and_execute"],
        typer.Option(help="How to go about it."),
    ] = "react",
    votes: Annotated[int | None, typer.Option(help="Chain of thought: how often to reason.", min=1, max=32)] = None,
    passages: Annotated[
        list[Path] | None,
        typer.Option(help="A text file whose paragraphs can be searched; may be given again.", exists=True),
    ] = None,
    approve: Annotated[list[str] | None, typer.Option(help="A tool whose calls wait for `approve`.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Most steps.", min=1, show_default="8")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens over all steps.", min=1, show_default="2048")
    ] = None,
    max_duration: Annotated[float | None, typer.Option(help="Most seconds.", min=0.001, show_default="120")] = None,
    max_tool_calls: Annotated[int | None, typer.Option(help="Most calls of tools.", min=0, show_default="32")] = None,
    model: Model = "",
    adapter: Adapter = "",
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", show_default="0")] = None,
    seed: Seed = None,
    detached: Annotated[bool, typer.Option("--detached", help="The run goes on when this command ends.")] = False,
    as_json: Json = False,
) -> None:
    """Work on a task, and watch the steps. Ctrl-C ends the run, unless it is detached."""
    import argosy
    from argosy_services.cli.agent_steps import follow

    budget = argosy.AgentBudget(max_steps, max_tokens, max_duration, max_tool_calls)
    given = argument_or_stdin(task, "the task")
    with (
        session_of(context).client() as client,
        client.agents.run(
            given,
            tools=tool or (),
            strategy=strategy,
            budget=budget,
            model=model,
            adapter=adapter,
            temperature=temperature,
            seed=seed,
            votes=votes,
            passages=_paragraphs(passages or []),
            approval=argosy.ApprovalPolicy(tools=approve) if approve else None,
            detached=detached,
        ) as events,
    ):
        follow(events, as_json=as_json)
    _end(events)


@app.command()
def resume(context: typer.Context, run_id: RunId, *, as_json: Json = False) -> None:
    """Go on with a run that was interrupted, from its last complete step."""
    from argosy_services.cli.agent_steps import follow

    with session_of(context).client() as client, client.agents.resume(run_id) as events:
        follow(events, as_json=as_json)
    _end(events)


@app.command()
def watch(
    context: typer.Context,
    run_id: RunId,
    *,
    after: Annotated[int, typer.Option(help="Number of the last event that is known.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Follow a run; going away does not end it."""
    from argosy_services.cli.agent_steps import follow

    with session_of(context).client() as client, client.agents.watch(run_id, after=after) as events:
        follow(events, as_json=as_json)


@app.command()
def replay(context: typer.Context, run_id: RunId, *, as_json: Json = False) -> None:
    """Show a run again from its record."""
    from argosy_services.cli.agent_steps import follow

    with session_of(context).client() as client, client.agents.replay(run_id) as events:
        follow(events, as_json=as_json)


@app.command()
def approve(
    context: typer.Context,
    run_id: RunId,
    call_id: CallId,
    *,
    refuse: Annotated[str | None, typer.Option(help="Refuse it, for this reason, which the model is told.")] = None,
) -> None:
    """Allow a call that waits for a person, or refuse it."""
    with session_of(context).client() as client:
        client.agents.approve(run_id, call_id, approved=refuse is None, reason=refuse or "")


@app.command()
def cancel(context: typer.Context, run_id: RunId, *, as_json: Json = False) -> None:
    """End a run for good."""
    with session_of(context).client() as client:
        _show_runs([client.agents.cancel(run_id)], as_json=as_json)


@app.command("list")
def list_runs(
    context: typer.Context,
    *,
    most: Annotated[int, typer.Option(help="Most runs, the newest first.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """List the runs that the server keeps."""
    from itertools import islice

    with session_of(context).client() as client:
        _show_runs(list(islice(client.agents.list(page_size=min(most, 1000)), most)), as_json=as_json)


@app.command()
def tools(context: typer.Context, *, as_json: Json = False) -> None:
    """List the tools that the server has."""
    from argosy_services.cli.output import write_json, write_table

    with session_of(context).client() as client:
        found = list(client.agents.list_tools())
    if as_json:
        write_json(found)
        return
    rows = (
        (tool.name, ", ".join(tool.parameters.get("properties", {})), str(tool.effect), tool.description)
        for tool in found
    )
    write_table(("NAME", "ARGUMENTS", "EFFECT", "DESCRIPTION"), rows, empty="the server has no tools")


def _show_runs(runs: list[argosy.RunInfo], *, as_json: bool) -> None:
    from argosy_services.cli.output import safe, write_json, write_table

    if as_json:
        write_json(runs)
        return
    rows = (
        (
            run.run_id,
            str(run.outcome or run.state),
            str(run.strategy),
            "" if run.created is None else f"{run.created:%Y-%m-%d %H:%M:%S}",
            safe(" ".join(run.task.split())[:60]),
        )
        for run in runs
    )
    write_table(("RUN", "STATE", "STRATEGY", "STARTED", "TASK"), rows, empty="the server keeps no runs")


def _paragraphs(files: list[Path]) -> list[str]:
    texts = [file.read_text(encoding="utf-8") for file in files]
    return [part.strip() for text in texts for part in text.split("\n\n") if part.strip()]


def _end(events: argosy.AgentRun) -> None:
    if events.answer is None:
        raise typer.Exit(ExitCode.NO_ANSWER)

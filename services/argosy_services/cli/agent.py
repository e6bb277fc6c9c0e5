"""`argosy agent`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from argosy_services.cli.exit_codes import ExitCode
from argosy_services.cli.generate import Adapter, Model, Seed
from argosy_services.cli.session import argument_or_stdin, session_of

if TYPE_CHECKING:
    import argosy


def agent(
    context: typer.Context,
    *,
    task: Annotated[str | None, typer.Argument(help="The task; - or nothing reads standard input.")] = None,
    tool: Annotated[
        list[str] | None, typer.Option(help="A tool to allow; may be given again.", show_default="all")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Most steps.", min=1, show_default="8")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens over all steps.", min=1, show_default="2048")
    ] = None,
    max_duration: Annotated[float | None, typer.Option(help="Most seconds.", min=0.001, show_default="120")] = None,
    model: Model = "",
    adapter: Adapter = "",
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", show_default="0")] = None,
    seed: Seed = None,
    list_tools: Annotated[bool, typer.Option("--list-tools", help="List the server's tools and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a JSON object a line.")] = False,
) -> None:
    """Let a model work on a task with tools, and watch its steps. Ctrl-C ends the run."""
    import argosy

    with session_of(context).client() as client:
        if list_tools:
            _show_tools(list(client.agents.list_tools()), as_json=as_json)
            return
        budget = argosy.AgentBudget(max_steps=max_steps, max_tokens=max_tokens, max_duration=max_duration)
        given = argument_or_stdin(task, "the task")
        with client.agents.run(
            given,
            tools=tool or (),
            budget=budget,
            model=model,
            adapter=adapter,
            temperature=temperature,
            seed=seed,
        ) as run:
            _follow(run, as_json=as_json)
    if run.answer is None:
        raise typer.Exit(ExitCode.NO_ANSWER)


def _follow(run: argosy.AgentRun, *, as_json: bool) -> None:
    from argosy_services.cli.output import write_json

    steps = _Steps()
    for event in run:
        if as_json:
            write_json({"event": type(event).__name__, "data": event}, indent=None)
        else:
            steps.show(event)


class _Steps:
    """Prints events: the way there on standard error, the answer on standard output."""

    def __init__(self) -> None:
        from argosy_services.cli.output import stderr

        self._console = stderr()
        self._thinking = False

    def show(self, event: argosy.AgentEvent) -> None:
        """Prints one event."""
        import argosy
        from argosy_services.cli.output import safe, write

        if isinstance(event, argosy.ThoughtDelta):
            self._think(event.text if self._thinking else f"[{event.step}] {event.text.lstrip()}")
            return
        self._end_thought()
        match event:
            case argosy.RunStarted():
                self._line(f"run {event.run_id} on {event.model}, tools: {', '.join(event.tools) or 'none'}", "dim")
            case argosy.ToolRequested():
                arguments = json.dumps(dict(event.arguments), ensure_ascii=False)
                self._line(f"[{event.step}] {event.tool} {arguments}", "cyan")
            case argosy.ToolReturned():
                self._line(f"    {event.observation}", "red" if event.is_error else "green")
            case argosy.Answer():
                write(safe(event.text) + "\n")
            case argosy.RunFinished():
                self._line(_summary(event), "dim" if event.outcome is argosy.RunOutcome.ANSWERED else "bold red")

    def _think(self, text: str) -> None:
        from argosy_services.cli.output import safe

        self._thinking = True
        self._console.print(safe(text), end="", style="italic", markup=False, soft_wrap=True)

    def _end_thought(self) -> None:
        if self._thinking:
            self._thinking = False
            self._console.print()

    def _line(self, text: str, style: str) -> None:
        from argosy_services.cli.output import safe

        self._console.print(safe(text), style=style, markup=False, soft_wrap=True)


def _summary(end: argosy.RunFinished) -> str:
    return (
        f"{end.outcome}: {end.steps} steps, {end.tool_calls} tool calls, "
        f"{end.usage.completion_tokens} tokens, {end.duration:.1f} s"
    )


def _show_tools(tools: list[argosy.ToolInfo], *, as_json: bool) -> None:
    from argosy_services.cli.output import write_json, write_table

    if as_json:
        write_json(tools)
        return
    rows = ((tool.name, ", ".join(tool.parameters.get("properties", {})), tool.description) for tool in tools)
    write_table(("NAME", "ARGUMENTS", "DESCRIPTION"), rows, empty="the server has no tools")

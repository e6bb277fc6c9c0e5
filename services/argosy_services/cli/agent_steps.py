"""How the events of an agent's run look on a terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argosy


def follow(run: argosy.AgentRun, *, as_json: bool) -> None:
    """Prints the events of a run as they come."""
    from argosy_services.cli.output import write_json

    steps = Steps()
    for event in run:
        if as_json:
            write_json({"event": type(event).__name__, "data": event}, indent=None)
        else:
            steps.show(event)


class Steps:
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
            case argosy.RunResumed():
                self._line(f"goes on behind step {event.step}", "dim")
            case argosy.ToolRequested():
                arguments = json.dumps(dict(event.arguments), ensure_ascii=False)
                self._line(f"[{event.step}] {event.tool} {arguments}", "cyan")
            case argosy.ApprovalRequested():
                self._line(f"    {event.call_id} waits: argosy agent approve RUN {event.call_id}", "bold yellow")
            case argosy.ApprovalDecided():
                self._line(f"    {'approved' if event.approved else f'refused: {event.reason}'}", "yellow")
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

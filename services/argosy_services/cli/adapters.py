"""`argosy adapters`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from argosy_services.cli.session import session_of

if TYPE_CHECKING:
    import argosy

app = typer.Typer(help="Load and unload LoRA adapters while requests run.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name that requests use.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Return only when it is done.")]


@app.command()
def load(
    context: typer.Context,
    *,
    name: Name,
    source: Annotated[str, typer.Argument(help="Directory on the server's machine, or its file:// URI.")],
    base_model: Annotated[str, typer.Option(help="Model that it changes.", show_default="the default model")] = "",
    wait: Wait = True,
    as_json: Json = False,
) -> None:
    """Load an adapter; the same one again changes nothing."""
    from argosy_services.cli.output import stderr

    place = source if "://" in source else Path(source)
    with session_of(context).client() as client, stderr().status(f"loading {name}"):
        adapter = client.adapters.load(name, place, base_model=base_model, wait=wait)
    _show([adapter], as_json=as_json)


@app.command()
def unload(
    context: typer.Context,
    name: Name,
    drain_timeout: Annotated[
        float | None, typer.Option(help="Seconds that running requests may take to finish.", min=0, show_default="60")
    ] = None,
    wait: Wait = True,
    as_json: Json = False,
) -> None:
    """Take an adapter out of service; running requests finish first."""
    from argosy_services.cli.output import stderr

    with session_of(context).client() as client, stderr().status(f"unloading {name}"):
        adapter = client.adapters.unload(name, drain_timeout=drain_timeout, wait=wait)
    _show([adapter], as_json=as_json)


@app.command("list")
def list_adapters(context: typer.Context, as_json: Json = False) -> None:
    """List the server's adapters."""
    with session_of(context).client() as client:
        adapters = list(client.adapters.list())
    _show(adapters, as_json=as_json)


@app.command()
def get(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Show one adapter and, where it failed, why."""
    from argosy_services.cli.output import stderr

    with session_of(context).client() as client:
        adapter = client.adapters.get(name)
    _show([adapter], as_json=as_json)
    if adapter.failure is not None and not as_json:
        stderr().print(
            f"{adapter.failure.reason}: {adapter.failure.message}", style="red", markup=False, soft_wrap=True
        )


@app.command()
def watch(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Names. All, where none is given.")] = None,
    until_settled: Annotated[
        bool, typer.Option("--until-settled", help="End once every named adapter is ready, unloaded or failed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Print adapters as they are, then each change, until Ctrl-C."""
    import argosy
    from argosy_services.cli.output import safe, stdout, write_json

    with (
        session_of(context).client() as client,
        client.adapters.watch(names or (), until_settled=until_settled) as events,
    ):
        for event in events:
            if not isinstance(event, argosy.Adapter):
                continue
            if as_json:
                write_json(event, indent=None)
            else:
                failure = f"  {event.failure.reason}: {event.failure.message}" if event.failure else ""
                line = safe(f"{event.revision:>6}  {event.name}  {event.state}{failure}")
                stdout().print(line, markup=False, soft_wrap=True)


def _show(adapters: list[argosy.Adapter], *, as_json: bool) -> None:
    from argosy_services.cli.output import size, write_json, write_table

    if as_json:
        write_json(adapters)
        return
    write_table(
        ("NAME", "STATE", "BASE MODEL", "RANK", "SIZE", "IN USE", "VERSION", "SOURCE"),
        (
            (a.name, a.state, a.base_model, a.rank, size(a.size_bytes), a.active_leases, a.version[:12], a.source)
            for a in adapters
        ),
        empty="no adapters; load one with `argosy adapters load NAME DIRECTORY`",
    )

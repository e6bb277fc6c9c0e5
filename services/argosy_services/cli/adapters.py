"""`argosy adapters`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from argosy_services.cli.session import UsageError, session_of

if TYPE_CHECKING:
    import argosy

app = typer.Typer(help="Load and unload LoRA adapters while requests run.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name that requests use.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Return only when it is done.")]
BaseModel = Annotated[str, typer.Option(help="Model that it changes.", show_default="the default model")]
Pin = Annotated[bool, typer.Option("--pin", help="Keep it in its slot until it is unloaded.")]
AliasName = Annotated[str, typer.Argument(help="An alias, such as support@prod.")]


@app.command()
def push(
    context: typer.Context,
    *,
    directory: Annotated[Path, typer.Argument(help="Directory on this machine, as PEFT saved it.", exists=True)],
    name: Annotated[str, typer.Option(help="Name that requests use.", show_default="made from its version")] = "",
    alias: Annotated[str, typer.Option(help="Alias that shall point at it, such as support@prod.")] = "",
    weight: Annotated[
        float, typer.Option(help="Percent of the alias's requests that it gets.", min=0.001, max=100)
    ] = 100.0,
    base_model: BaseModel = "",
    pin: Pin = False,
    as_json: Json = False,
) -> None:
    """Send an adapter from this machine and load it; a push that was interrupted goes on where it ended."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from argosy_services.cli.output import stderr

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with session_of(context).client() as client, Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task("pushing")

        def show(sent: int, total: int) -> None:
            bar.update(task, completed=sent, total=total, description="pushing" if sent < total else "loading")

        adapter = client.adapters.push(
            directory, name=name, alias=alias, weight=weight, base_model=base_model, pinned=pin, on_progress=show
        )
    _show([adapter], as_json=as_json)


@app.command()
def load(
    context: typer.Context,
    *,
    name: Name,
    source: Annotated[str, typer.Argument(help="Directory on the server's machine, or its file:// URI.")],
    base_model: BaseModel = "",
    pin: Pin = False,
    wait: Wait = True,
    as_json: Json = False,
) -> None:
    """Load an adapter; the same one again changes nothing."""
    from argosy_services.cli.output import stderr

    place = source if "://" in source else Path(source)
    with session_of(context).client() as client, stderr().status(f"loading {name}"):
        adapter = client.adapters.load(name, place, base_model=base_model, pinned=pin, wait=wait)
    _show([adapter], as_json=as_json)


@app.command("rm", help="The same as unload.")
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


@app.command()
def alias(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="An alias, such as support@prod. None: all of them.")] = None,
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="ADAPTER=WEIGHT each, by name or version; without =WEIGHT it is 1. None: show the alias."),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Forget the alias.")] = False,
    as_json: Json = False,
) -> None:
    """Show aliases, or point one at adapters; requests that come later go by it."""
    if delete and (targets or not name):
        raise UsageError("--delete takes an alias and no adapters")
    with session_of(context).client() as client:
        if name is None:
            aliases = list(client.adapters.list_aliases())
        elif delete:
            aliases = [client.adapters.delete_alias(name)]
        elif targets:
            aliases = [client.adapters.set_alias(name, dict(map(_target, targets)))]
        else:
            aliases = [client.adapters.get_alias(name)]
    _show_aliases(aliases, as_json=as_json)


@app.command()
def rollback(context: typer.Context, name: AliasName, as_json: Json = False) -> None:
    """Have an alias mean again what it meant before it was last set."""
    with session_of(context).client() as client:
        back = client.adapters.rollback_alias(name)
    _show_aliases([back], as_json=as_json)


def _tier(adapter: argosy.Adapter) -> str:
    known = adapter.tier != "unknown"
    return f"{adapter.tier}{', pinned' if adapter.pinned else ''}" if known else ""


def _target(given: str) -> tuple[str, int]:
    name, equals, weight = given.partition("=")
    if not name or (equals and not weight.isdecimal()):
        raise UsageError(f"'{given}' is not of the form ADAPTER=WEIGHT, with a whole number as its weight")
    return name, int(weight) if equals else 1


def _show_aliases(aliases: list[argosy.Alias], *, as_json: bool) -> None:
    from argosy_services.cli.output import write_json, write_table

    if as_json:
        write_json(aliases)
        return
    write_table(
        ("ALIAS", "VERSION", "SHARE", "REVISION"),
        (
            (alias.name, version, f"{100 * alias.share(version):.4g} %", alias.revision)
            for alias in aliases
            for version in alias.targets
        ),
        empty="no aliases; set one with `argosy adapters alias NAME ADAPTER`",
    )


def _show(adapters: list[argosy.Adapter], *, as_json: bool) -> None:
    from argosy_services.cli.output import size, write_json, write_table

    if as_json:
        write_json(adapters)
        return
    write_table(
        ("NAME", "STATE", "BASE MODEL", "RANK", "SIZE", "TIER", "IN USE", "VERSION", "SOURCE"),
        (
            (
                a.name,
                a.state,
                a.base_model,
                a.rank,
                size(a.size_bytes),
                _tier(a),
                a.active_leases,
                a.version[:12],
                a.source,
            )
            for a in adapters
        ),
        empty="no adapters; load one with `argosy adapters load NAME DIRECTORY`",
    )

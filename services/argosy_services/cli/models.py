"""`argosy models`: the model store of this machine, and what a server serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from argosy_services.cli.exit_codes import ExitCode
from argosy_services.cli.session import session_of

if TYPE_CHECKING:
    from argosy_services.models.progress import Progress, Stage
    from argosy_services.models.store import ModelStore

app = typer.Typer(help="Fetch, list, check and remove models.", no_args_is_help=True)

DataDir = Annotated[Path | None, typer.Option(help="Where models are kept.", show_default="~/.local/share/argosy")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def pull(
    models: Annotated[list[str], typer.Argument(help="Names (smollm2-135m-instruct) or sources (hf://, file://).")],
    data_dir: DataDir = None,
) -> None:
    """Fetch models and check them. An interrupted pull goes on where it stopped."""
    from argosy_services.cli.output import size, stdout

    store = _store(data_dir)
    for name in models:
        with _bar(name) as progress:
            model = store.pull(name, progress)
        stdout().print(f"{model.name}: {size(model.size_bytes)} in {model.path}", soft_wrap=True, markup=False)


@app.command("list")
def list_models(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the models in the store."""
    from argosy_services.cli.output import size, write_json, write_table

    models = _store(data_dir).list()
    if as_json:
        write_json(list(models))
        return
    rows = ((m.name, size(m.size_bytes), m.fingerprint[:12], m.source) for m in models)
    write_table(
        ("NAME", "SIZE", "FINGERPRINT", "SOURCE"), rows, empty="no models yet; fetch one with `argosy models pull`"
    )


@app.command()
def verify(
    models: Annotated[list[str] | None, typer.Argument(help="Names. All, where none is given.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Hash every file again and compare. Exit code 1 where something differs."""
    from argosy_services.cli.output import stdout

    store = _store(data_dir)
    sound = True
    for name in models or [model.name for model in store.list()]:
        with _bar(name) as progress:
            differences = store.verify(name, progress)
        problems = "; ".join(str(difference) for difference in differences)
        stdout().print(
            f"{name}: {problems or 'intact'}", style="red" if problems else None, markup=False, soft_wrap=True
        )
        sound = sound and not problems
    if not sound:
        raise typer.Exit(ExitCode.FAILED)


@app.command("remove")
@app.command("rm", hidden=True)
def remove(
    models: Annotated[list[str], typer.Argument(help="Names of models.")],
    data_dir: DataDir = None,
) -> None:
    """Remove models from the store. A server that has one loaded keeps it until it ends."""
    from argosy_services.cli.output import stdout

    store = _store(data_dir)
    for name in models:
        store.remove(name)
        stdout().print(f"{name}: removed", markup=False)


@app.command()
def served(context: typer.Context, as_json: Json = False) -> None:
    """List the language models that a server serves."""
    from argosy_services.cli.output import write_json, write_table

    with session_of(context).client() as client:
        models = list(client.generation.list_models())
    if as_json:
        write_json(models)
        return
    write_table(
        ("NAME", "ARCHITECTURE", "ENGINE", "TYPE", "PARAMETERS", "CONTEXT", "ADAPTERS"),
        (
            (
                f"{m.name} (default)" if m.is_default else m.name,
                m.architecture,
                f"{m.engine} on {m.device}",
                m.dtype,
                f"{m.parameter_count / 1e6:.0f} M",
                m.max_context_tokens,
                m.max_adapters,
            )
            for m in models
        ),
    )


def _store(data_dir: Path | None) -> ModelStore:
    from argosy_services import logs
    from argosy_services.models.store import ModelStore
    from argosy_services.settings import Settings

    settings = Settings(data_dir=data_dir) if data_dir is not None else Settings()
    logs.configure("warning", "console")
    return ModelStore(settings.models_dir)


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """One progress bar on standard error, which starts again at each stage and goes away at the end."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    from argosy_services.cli.output import stderr

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = stderr()
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(name, total=None)
        seen: Stage | None = None

        def report(stage: Stage, done: int, total: int) -> None:
            nonlocal seen
            if stage is not seen:
                seen = stage
                bars.reset(task, description=f"{name}: {stage}", total=total or None)
            bars.update(task, completed=done, total=total or None)

        yield report

"""`argosy health` and `argosy version`."""

from __future__ import annotations

from typing import Annotated

import typer

from argosy_services.cli.exit_codes import ExitCode
from argosy_services.cli.session import session_of

_STYLES = {"serving": "green", "not_serving": "red", "not_found": "yellow"}


def health(
    context: typer.Context,
    wait: Annotated[float, typer.Option(help="Seconds to wait until every service is ready.", min=0)] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask every service of a fleet whether it serves. Exit code 4 where one does not."""
    from rich.text import Text

    import argosy
    from argosy_services.cli.output import write_json, write_table

    with session_of(context).client() as client:
        if wait:
            client.wait_until_ready(wait)
        states = {area: client.health(area) for area in argosy.AREAS}
    if as_json:
        write_json(states)
    else:
        rows = [(area, Text(state, style=_STYLES.get(state, ""))) for area, state in states.items()]
        write_table(("SERVICE", "HEALTH"), rows)
    if any(state is not argosy.Health.SERVING for state in states.values()):
        raise typer.Exit(ExitCode.UNAVAILABLE)


def version() -> None:
    """Print versions, for bug reports."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    import argosy

    typer.echo(f"argosy {argosy.__version__}")
    typer.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("grpcio", "protobuf", "torch"):
        try:
            typer.echo(f"{package} {installed(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} is not installed")

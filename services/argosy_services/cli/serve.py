"""`argosy serve`."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class LogFormat(StrEnum):
    """Form of log lines."""

    JSON = "json"
    CONSOLE = "console"


def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address of the gRPC port.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port; 0 takes a free one.", show_default="50051")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Prometheus port; 0 takes a free one.", show_default="50052")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of settings; options and ARGOSY_* variables go before it.",
            exists=True,
            dir_okay=False,
            readable=True,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where models and adapters are kept.", show_default="~/.local/share/argosy")
    ] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="Form of log lines.", show_default="json")] = None,
) -> None:
    """Serve all models of the fleet in this process. SIGTERM and Ctrl-C drain it; a second one ends it at once."""
    from argosy_services.embedded import serve as run
    from argosy_services.settings import Settings

    if config is not None:
        os.environ["ARGOSY_CONFIG"] = str(config)
    given = {
        "host": host,
        "port": port,
        "metrics_port": metrics_port,
        "data_dir": data_dir,
        "log_format": log_format.value if log_format else None,
    }
    settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    raise typer.Exit(run(settings))

"""`argosy up`, `down`, `deploy` and `status`: the fleet on Ray Serve."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from argosy_services.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from rich.text import Text

    from argosy_services.cluster.control import ApplicationState, Control
    from argosy_services.settings import Settings

_READY_S = 300.0
_STYLES = {"RUNNING": "green", "DEPLOYING": "yellow", "DEPLOY_FAILED": "red", "UNHEALTHY": "red"}

Config = Annotated[
    Path | None,
    typer.Option(help="YAML file of settings, as for `argosy serve`.", exists=True, dir_okay=False, readable=True),
]
Cluster = Annotated[
    str | None,
    typer.Option(help="Address of a Ray dashboard.", envvar="RAY_DASHBOARD_ADDRESS", show_default="this machine's"),
]


def up(config: Config = None) -> None:
    """Start a Ray on this machine and the whole fleet on it. It runs until `argosy down`."""
    from argosy_services.cluster import local
    from argosy_services.cluster.control import Control
    from argosy_services.cluster.serve_config import serve_config

    settings = _settings(config)
    _check_models(settings)
    started = time.monotonic()
    ray = local.start(settings)
    try:
        control = Control(ray.dashboard, ray.token)
        control.deploy(serve_config(settings), lambda: ray.alive)
        _follow(control)
    except BaseException:
        # Half a fleet would only be in the way of the next attempt.
        local.stop(settings)
        raise
    typer.echo(f"ready after {time.monotonic() - started:.1f} s: gRPC {settings.host}:{settings.port}", err=True)
    typer.echo(f"dashboard {ray.dashboard}, metrics' addresses in {settings.metrics_targets}", err=True)


def down(config: Config = None) -> None:
    """Drain the fleet that `argosy up` started, and end its Ray."""
    from argosy_services.cluster import local
    from argosy_services.cluster.control import Control

    settings = _settings(config)
    ray = local.find(settings)
    if ray is None:
        typer.echo("no fleet runs here", err=True)
        return
    typer.echo("draining", err=True)
    Control(ray.dashboard, ray.token).shut_down()
    local.stop(settings)
    typer.echo("stopped", err=True)


def deploy(
    config: Annotated[Path, typer.Argument(help="YAML file of settings.", exists=True, dir_okay=False, readable=True)],
    cluster: Cluster = None,
    *,
    wait: Annotated[bool, typer.Option(help="Wait until every service is ready.")] = True,
    show: Annotated[bool, typer.Option("--show", help="Only print what Ray Serve would be told, as YAML.")] = False,
) -> None:
    """Make a Ray cluster run the fleet that CONFIG describes. What runs already is changed in place."""
    import yaml

    from argosy_services.cluster.serve_config import serve_config

    settings = _settings(config)
    if show:
        typer.echo(yaml.safe_dump(serve_config(settings), sort_keys=False), nl=False)
        return
    control = _control(cluster, settings)
    control.deploy(serve_config(settings))
    if wait:
        _follow(control)


def status(
    cluster: Cluster = None,
    config: Config = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every service of a fleet on Ray with its replicas. Exit code 4 where one is not ready."""
    from dataclasses import asdict

    from argosy_services.cli.output import write_json, write_table

    states = _control(cluster, _settings(config)).states()
    if as_json:
        write_json([asdict(state) for state in states])
    else:
        rows = [
            (
                state.name,
                deployment.name,
                _colored(state.status),
                _replicas(deployment.replicas),
            )
            for state in states
            for deployment in state.deployments
        ]
        write_table(("SERVICE", "DEPLOYMENT", "STATUS", "REPLICAS"), rows)
        for state in states:
            if state.message:
                typer.echo(f"{state.name}: {state.message}", err=True)
    if not states or not all(state.ready for state in states):
        raise typer.Exit(ExitCode.UNAVAILABLE)


def _colored(status: str) -> Text:
    from rich.text import Text

    return Text(status, style=_STYLES.get(status, ""))


def _replicas(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state.lower()}" for state, count in sorted(counts.items())) or "none"


def _settings(config: Path | None) -> Settings:
    from argosy_services.settings import Settings

    if config is not None:
        os.environ["ARGOSY_CONFIG"] = str(config.absolute())
    return Settings()


def _control(cluster: str | None, settings: Settings) -> Control:
    """Of the cluster at an address, else of this machine's."""
    from argosy_services.cluster import local
    from argosy_services.cluster.control import Control

    if cluster is None and (ray := local.find(settings)) is not None:
        return Control(ray.dashboard, ray.token)
    return Control(cluster or f"http://127.0.0.1:{settings.cluster.dashboard_port}")


def _check_models(settings: Settings) -> None:
    """A model that is missing is told before anything is started."""
    from argosy_services.models.store import ModelStore

    for model in (settings.generation.model, settings.embeddings.model):
        ModelStore(settings.models_dir).get(model)


def _follow(control: Control) -> None:
    """Shows the services on their way until all are ready."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("deploying") as line:
        for states in control.follow(_READY_S):
            line.update(_progress(states))


def _progress(states: list[ApplicationState]) -> str:
    waiting = [state.name for state in states if not state.ready]
    return f"{len(states) - len(waiting)} of {len(states)} services ready; waiting for {', '.join(waiting) or 'none'}"

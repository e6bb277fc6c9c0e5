"""The command tree. Commands import what they need when they run, so that help comes at once."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from argosy_services.cli import (
    adapters,
    agent,
    chat,
    cluster,
    compile,
    embed,
    explain,
    generate,
    models,
    serve,
    status,
    tokenize,
)
from argosy_services.cli.exit_codes import ExitCode, describe
from argosy_services.cli.session import Session


class _RootGroup(TyperGroup):
    """Turns the failures of every command into one line and an exit code."""

    # Untyped, because newer versions of typer bring a click of their own.
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            _forget_stdout()
            raise typer.Exit(ExitCode.OK) from None
        except Exception as error:
            from argosy_services.cli import failures

            failure = failures.report(error)
            if failure is None:
                raise
            failures.show(failure)
            raise typer.Exit(failure.code) from None


def _forget_stdout() -> None:
    """Whoever read our output has gone, as `head` does: nothing may be flushed to it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    cls=_RootGroup,
    name="argosy",
    help="A self-hosted LLM fleet: serve models, and use them from the command line.",
    epilog=describe(),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def root(
    context: typer.Context,
    address: Annotated[
        str | None, typer.Option(help="Server as host:port.", envvar="ARGOSY_ADDRESS", show_default="127.0.0.1:50051")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key that the server asks for; the variable keeps it out of shell histories.",
            envvar="ARGOSY_API_KEY",
            show_envvar=True,
        ),
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds until each call must be complete.", min=0.001)] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS, with the system's root certificates.")] = False,
) -> None:
    """Global options stand before the command: `argosy --address host:50051 chat`."""
    context.obj = Session(address=address, api_key=api_key, timeout=timeout, tls=tls)


app.command(rich_help_panel="Server")(serve.serve)
for command in (cluster.up, cluster.down, cluster.deploy, cluster.status):
    app.command(rich_help_panel="Cluster")(command)
app.add_typer(models.app, name="models", rich_help_panel="Server")
app.command("compile", rich_help_panel="Server")(compile.compile_model)
app.command(rich_help_panel="Server")(status.health)
app.command(rich_help_panel="Generation")(chat.chat)
app.command(rich_help_panel="Generation")(generate.generate)
app.command(rich_help_panel="Generation")(explain.explain)
app.add_typer(agent.app, name="agent", rich_help_panel="Generation")
app.add_typer(adapters.app, name="adapters", rich_help_panel="Generation")
app.command(rich_help_panel="Text")(embed.embed)
app.command(rich_help_panel="Text")(tokenize.tokenize)
app.command(rich_help_panel="Server")(status.version)

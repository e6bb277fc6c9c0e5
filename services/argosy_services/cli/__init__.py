"""The `argosy` command: runs a server, keeps models, and calls a fleet through the SDK."""

from __future__ import annotations

import sys

_EXTRAS = {"typer": "services", "rich": "services"}


def main() -> None:
    """Entry point of the `argosy` command."""
    try:
        from argosy_services.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        sys.exit(f'The argosy command needs {error.name}: pip install "argosy[services]"')
    app(prog_name="argosy")

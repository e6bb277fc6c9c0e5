"""Every `argosy ...` that the documentation shows is a command of the command line, with options that it has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from argosy_services.cli.app import app

ROOT = Path(__file__).parents[2]
# The changelog also names commands that are gone.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [ROOT / "bench/RESULTS.md", ROOT / "helm/argosy/README.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`argosy\s([^`]+)`")
# Behind variables, and within pipes.
SHELL = re.compile(r"(?:^|[|;&(]\s*)(?:[A-Z][A-Z0-9_]*=\S*\s+)*argosy\s+([^|;&)#]*)")


def shown(text: str) -> Iterator[str]:
    """The arguments of each `argosy` on a page."""
    for language, block in FENCED.findall(text):
        if language == "console":
            lines = [line[2:] for line in block.replace("\\\n", " ").splitlines() if line.startswith("$ ")]
            yield from (found for line in lines for found in SHELL.findall(re.sub(r"\$\([^)]*\)", "X", line)))
    yield from (" ".join(found.split()) for found in INLINE.findall(FENCED.sub("", text)))


def problem(arguments: str) -> str | None:
    """What the command line would not know."""
    command: Any = typer.main.get_command(app)
    path, names = ["argosy"], _options(command)
    for word in shlex.split(arguments):
        if word.startswith("-") and word != "-":
            if word.split("=")[0] not in names:
                return f"`{' '.join(path)}` has no option {word}"
        elif hasattr(command, "commands") and not _is_value(word, path):
            if word not in command.commands:
                return f"`{' '.join(path)}` has no command {word}"
            command = command.commands[word]
            names |= _options(command)
        path.append(word)
    return None


def _options(command: Any) -> set[str]:
    return {"--help", *(name for parameter in command.params for name in parameter.opts + parameter.secondary_opts)}


def _is_value(word: str, path: list[str]) -> bool:
    """Whether it belongs to a global option before it."""
    return path[-1] in {"--address", "--api-key", "--timeout"}


COMMANDS = [(page, arguments) for page in PAGES for arguments in shown(page.read_text())]


def test_there_is_something_to_check() -> None:
    shown_on = {page.name for page, _ in COMMANDS}
    assert {"README.md", "operations.md", "cluster.md", "agents.md"} <= shown_on
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(
    ("page", "arguments"), COMMANDS, ids=[f"{page.name}: {arguments}" for page, arguments in COMMANDS]
)
def test_a_command_that_is_shown_exists(page: Path, arguments: str) -> None:
    assert problem(arguments) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("agent 'TASK'", "`argosy agent` has no command TASK"),
        ("serve --prot 1", "`argosy serve` has no option --prot"),
        ("fly", "`argosy` has no command fly"),
        ("--address host:1 chat", None),
        ("agent run 'a b' --tool calculator", None),
    ],
)
def test_what_is_wrong_with_a_command_is_found(arguments: str, said: str | None) -> None:
    assert problem(arguments) == said


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    console = "```console\n$ A=1 argosy chat | argosy embed -  # argosy no\n```\n"
    page = f"Say `argosy\nhealth`.\n{console}```yaml\nargosy: 1\n```\n"
    assert [each.strip() for each in shown(page)] == ["chat", "embed -", "health"]

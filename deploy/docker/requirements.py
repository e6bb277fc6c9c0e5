"""Prints what extras of pyproject.toml ask for, so that an image can install it before the code is there.

usage: python requirements.py EXTRA... [--without NAME...]
"""

import argparse
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

OWN = re.compile(r"argosy\[([a-z,]+)\]")


def requirements(project: dict, extras: list[str]) -> Iterator[str]:
    """Those of the extras, of the extras that these name, and of the SDK."""
    yield from project["dependencies"]
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in project["optional-dependencies"][extra]:
            if own := OWN.fullmatch(requirement):
                waiting += own[1].split(",")
            else:
                yield requirement


def name(requirement: str) -> str:
    """The package that a requirement is about."""
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("extras", nargs="+")
    parser.add_argument("--without", nargs="*", default=[])
    arguments = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    print(*sorted(r for r in requirements(project, arguments.extras) if name(r) not in arguments.without), sep="\n")

"""Writes deploy/grafana/dashboards/*.json, or checks that they are what the code makes.

usage: PYTHONPATH=deploy/grafana python -m argosy_dashboards [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from argosy_dashboards import adapters, agents, capacity, embeddings, fleet, generation, tenants
from argosy_dashboards.board import Board, build

DASHBOARDS = Path(__file__).parents[1] / "dashboards"
BOARDS = tuple(module.BOARD for module in (fleet, generation, adapters, agents, embeddings, capacity, tenants))


def text(board: Board) -> str:
    """The board's file."""
    return json.dumps(build(board), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    """Returns 1 where a file has to be brought up to date while checking."""
    wanted = {DASHBOARDS / f"{board.uid}.json": text(board) for board in BOARDS}
    present = {path: path.read_text() for path in DASHBOARDS.glob("*.json")}
    if wanted == present:
        return 0
    changed = sorted(path.name for path in wanted.keys() | present if wanted.get(path) != present.get(path))
    if "--check" in sys.argv[1:]:
        print(f"{', '.join(changed)} in deploy/grafana/dashboards: run `make docs`", file=sys.stderr)
        return 1
    DASHBOARDS.mkdir(exist_ok=True)
    for path in present.keys() - wanted:
        path.unlink()
    for path, content in wanted.items():
        path.write_text(content)
    print("wrote", *changed)
    return 0


if __name__ == "__main__":
    sys.exit(main())

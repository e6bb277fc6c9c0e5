"""Argosy beside vLLM, llama.cpp, OpenVINO GenAI and transformers: the same load in one run, the sides in turn.

    make install-peers                                     each peer into an environment of its own
    python bench/peers.py                                  all sides, all shapes
    python bench/peers.py --shapes decode-8 --sides argosy-grpc openvino
    python bench/peers.py --resume                         goes on where a run was stopped
    python bench/peers.py --report                         table and picture into RESULTS.md and results/, and print

Every answer is greedy, ignores the end of text and is checked for its length. A variant is Argosy with other settings:

    python bench/peers.py --variant bf16 ARGOSY_GENERATION__DTYPE=bfloat16 --sides argosy-grpc argosy-grpc@bf16 vllm
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from side_by_side import machine
from side_by_side.report import section, write_report
from side_by_side.results import Results
from side_by_side.run import Pool, Run
from side_by_side.shapes import SHAPES
from side_by_side.sides import ARGOSY_GRPC, KINDS, Places, Spec

from argosy_services.models.store import ModelStore
from argosy_services.settings import Settings

_BENCH = Path(__file__).parent
_RESULTS = _BENCH / "results/peers.json"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sides", nargs="+", metavar="SIDE", help=f"of {', '.join(KINDS)} (all, and the variants)")
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=list(SHAPES),
        choices=list(SHAPES),
        metavar="SHAPE",
        help=f"of {', '.join(SHAPES)}",
    )
    parser.add_argument("--rounds", type=int, default=5, help="samples of each side; medians are reported (5)")
    parser.add_argument(
        "--patience",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="a side whose load takes longer is measured in one round only (20)",
    )
    parser.add_argument("--argosy-env", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all Argosy sides")
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        help="settings of the sides argosy@NAME and argosy-grpc@NAME",
    )
    parser.add_argument("--resume", action="store_true", help="keep the samples that the file has, add what is missing")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="the file of samples (bench/results/peers.json)")
    parser.add_argument(
        "--peers-dir",
        type=Path,
        default=Path(os.environ.get("PEERS_DIR", ".peers")),
        help="where the peers are installed (PEERS_DIR, else .peers)",
    )
    parser.add_argument("--report", action="store_true", help="measure nothing; write and print the report")
    return parser.parse_args()


def specs(sides: Sequence[str] | None, common: Sequence[str], variants: Sequence[Sequence[str]]) -> list[Spec]:
    """The sides by name, `KIND` or `KIND@VARIANT`. Raises ValueError."""
    settings = {name: pairs for name, *pairs in variants}
    sides = sides or [*KINDS, *(f"{ARGOSY_GRPC}@{name}" for name in settings)]
    found = []
    for side in sides:
        kind, _, variant = side.partition("@")
        if kind not in KINDS:
            raise ValueError(f"there is no side {kind}: {', '.join(KINDS)}")
        if variant and variant not in settings:
            raise ValueError(f"side {side} needs --variant {variant} KEY=VALUE")
        spec = Spec(kind, variant, _pairs([*common, *settings.get(variant, ())]))
        if variant and not spec.is_argosy:
            raise ValueError(f"only Argosy has variants, {kind} has none")
        found.append(spec if spec.is_argosy else Spec(kind))
    return found


def _pairs(settings: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs: dict[str, str] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        pairs[key] = value
    for key, value in pairs.items():
        if not key.startswith("ARGOSY_") or not value:
            raise ValueError(f"'{key}={value}' is no setting: give ARGOSY_NAME=VALUE")
    return tuple(sorted(pairs.items()))


def measure(options: argparse.Namespace) -> None:
    """Runs what the command line asks for."""
    settings = Settings()
    model = ModelStore(settings.models_dir).pull(settings.generation.model)
    peers = options.peers_dir.expanduser().absolute()
    with tempfile.TemporaryDirectory() as directory:
        run = Run(
            specs=specs(options.sides, options.argosy_env, options.variant),
            rounds=options.rounds,
            patience_s=options.patience,
            resume=options.resume,
            about=machine.about(),
            results=Results(options.results),
            pool=Pool(Places(peers, model.path, peers / "logs", Path(directory))),
        )
        asyncio.run(_until_stopped(run.measure([SHAPES[name] for name in options.shapes])))


async def _until_stopped(measuring: Coroutine[Any, Any, None]) -> None:
    """Runs it so that SIGTERM, as Ctrl-C does, ends the sides' processes before the driver's."""
    task = asyncio.ensure_future(measuring)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def main() -> int:
    """Measures, or reports."""
    options = arguments()
    try:
        if not options.report:
            measure(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped; --resume goes on from here", file=sys.stderr)
        return 130
    results = Results(options.results)
    print(write_report(results, _BENCH) if options.report else section(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

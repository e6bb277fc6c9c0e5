"""A table and a picture of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from side_by_side.results import Outcome, Results
from side_by_side.sides import ARGOSY, ARGOSY_GRPC, KINDS

_BEGIN, _END = "<!-- peers: begin -->", "<!-- peers: end -->"
_STREAMS = (1, 8, 32, 64)
_PICTURE = "peers.svg"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one shape. `bar` is what Argosy through gRPC must reach, in words."""

    text: str
    shape: str
    figure: str
    bar: str = ""
    lower_is_better: bool = False


_DECODE_BARS = {1: "1.5", 8: "1.5", 32: "1.5", 64: "1.4"}
ROWS = (
    *(Row(f"decode, {n} at once", f"decode-{n}", "decode", _DECODE_BARS[n]) for n in _STREAMS),
    *(Row(f"first token to last, {n} at once", f"decode-{n}", "first_to_last") for n in _STREAMS),
    *(Row(f"end to end, {n} at once", f"decode-{n}", "end_to_end") for n in _STREAMS),
    Row("prefill, 8 prompts of 1,024", "prefill", "prefill", "1.2"),
    Row("decode after them", "long-8", "decode"),
    Row("end to end with them", "long-8", "end_to_end"),
    Row("mix, 64 at once, end to end", "mix", "end_to_end"),
    Row("mix, first token, median, s", "mix", "first_token_s", lower_is_better=True),
    Row("mix, first token, 95th percentile, s", "mix", "first_token_p95_s", lower_is_better=True),
    Row("start of the process to the first token, s", "startup", "seconds", lower_is_better=True),
)


def write_report(results: Results, bench: Path) -> str:
    """Puts the section into RESULTS.md and the picture into results/, in place of those before; returns the section."""
    text = section(results)
    picture(results, bench / "results" / _PICTURE)
    page = bench / "RESULTS.md"
    before, found, rest = page.read_text().partition(_BEGIN)
    if not found:
        before, rest = before.rstrip() + "\n\n", ""
    after = rest.partition(_END)[2]
    page.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after or chr(10)}")
    return text


def section(results: Results) -> str:
    """The section in Markdown."""
    parts = [
        "## Beside other engines",
        _circumstances(results),
        f"![decode and prefill rates by engine](results/{_PICTURE})",
        _table(["tokens a second"], _peer_rows(results)),
        _EXPLAINED,
        _table(["tokens a second"], _own_rows(results)),
    ]
    return "\n\n".join(part for part in (*parts, _failures(results)) if part)


_EXPLAINED = """\
Medians of the rounds, whose samples are in results/peers.json. `decode` is the rate while every stream decodes; `first
token to last` counts the answers without their first tokens, from the first token of all to the last; `end to end`
counts from the call. argosy is the engine in process, argosy-grpc the server through the SDK. A variant after @ is
Argosy with other settings. A ratio is that of two medians; one in a round, whose sides ran one after the other, is the
median of the rounds' ratios: a machine that others share is as fast in both."""


def _circumstances(results: Results) -> str:
    """Machine, date, versions; runs that differ in them have a line each."""
    lines: dict[str, list[str]] = {}
    for name, outcome in results.outcomes.items():
        run = outcome.run
        told = f"{run['machine']}, {run['date']}, Argosy at {run['commit']}, Python {run['python']}"
        lines.setdefault(told, []).append(name)
    versions: dict[str, None] = {}
    for outcome in results.outcomes.values():
        for found in outcome.versions.values():
            versions.update(dict.fromkeys(f"{package} {version}" for package, version in found.items()))
    listed = [f"{told}: {', '.join(names)}." for told, names in lines.items()]
    return "\n".join(["SmolLM2-135M-Instruct, `make bench-peers`.", *listed, f"{', '.join(sorted(versions))}."])


def _labels(results: Results) -> list[str]:
    """Columns of the table of all sides, in the order of `KINDS` and each kind before its variants."""
    shapes = {row.shape for row in ROWS}
    found = {
        label
        for name, outcome in results.outcomes.items()
        if name in shapes
        for label in (*outcome.samples, *outcome.errors)
    }
    kinds = list(KINDS)
    return sorted(found, key=lambda label: (kinds.index(label.partition("@")[0]), label))


def _peer_rows(results: Results) -> list[list[str]]:
    labels = _labels(results)
    rows = [[*labels, f"{ARGOSY_GRPC} / best peer", "bar"]]
    peers = [label for label in labels if not label.startswith(ARGOSY)]
    for row in ROWS:
        outcome = results.outcomes.get(row.shape)
        if outcome is None:
            continue
        medians = {label: outcome.median(label, row.figure) for label in labels}
        others = [value for label in peers if (value := medians[label]) is not None]
        best = min(others, default=None) if row.lower_is_better else max(others, default=None)
        cells = [_cell(outcome, label, medians[label]) for label in labels]
        rows.append([row.text, *cells, _ratio(medians.get(ARGOSY_GRPC), best), row.bar])
    return rows


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure of one entry against another's, under one shape."""

    text: str
    shape: str
    figure: str
    one: str
    other: str
    bar: str


def _ratios() -> Iterator[Ratio]:
    """Argosy against itself, and exact weights against vLLM's."""
    yield Ratio("gRPC and SDK against in process, 32 streams", "decode-32", "end_to_end", ARGOSY_GRPC, ARGOSY, "0.95")
    for streams in (32, 64):
        text = f"exact bf16 weights against vLLM, {streams} streams"
        yield Ratio(text, f"decode-{streams}", "decode", f"{ARGOSY_GRPC}@bf16", "vllm", "2")
    for kind in (ARGOSY_GRPC, ARGOSY):
        text = f"{kind}: 32 requests with one prefix of 1,000 tokens, prefix cache on against off"
        yield Ratio(text, "prefix", "end_to_end", kind, f"{kind}, cache off", "5")
        for targets, layers in (("all", "all linear layers"), ("qv", "q and v")):
            text = f"{kind}: 16 adapters of rank 16 on {layers} over 32 streams, against base"
            yield Ratio(text, "adapters", "end_to_end", f"{kind}, adapters on {targets}", f"{kind}, base", "0.85")


def _own_rows(results: Results) -> list[list[str]]:
    rows = [["figure", "against", "ratio", "ratio in a round", "bar"]]
    for ratio in _ratios():
        outcome = results.outcomes.get(ratio.shape, Outcome())
        one, other = (outcome.median(label, ratio.figure) for label in (ratio.one, ratio.other))
        if one is not None:
            in_a_round = outcome.median_ratio(ratio.one, ratio.other, ratio.figure)
            cells = [_number(one), _number(other), _ratio(one, other), _number(in_a_round)]
            rows.append([ratio.text, *cells, ratio.bar])
    return rows


def _failures(results: Results) -> str:
    lines = [
        f"- {name}, {label}: {error.splitlines()[0]}"
        for name, outcome in results.outcomes.items()
        for label, error in outcome.errors.items()
    ]
    return "\n".join(["Not measured:", *lines]) if lines else ""


def _cell(outcome: Outcome, label: str, value: float | None) -> str:
    return "failed" if value is None and label in outcome.errors else _number(value)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _ratio(one: float | None, other: float | None) -> str:
    return "-" if one is None or not other else f"{one / other:.2f}"


def _table(corner: list[str], rows: list[list[str]]) -> str:
    head, *body = rows
    if not body:
        return ""
    return "\n".join(_lines([[*corner, *head], ["---"] * (len(head) + 1), *body]))


def _lines(rows: Iterable[list[str]]) -> Iterable[str]:
    return (f"| {' | '.join(row)} |" for row in rows)


def picture(results: Results, path: Path) -> None:
    """Rates by engine: decode over the streams, and prefill."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "argosy"
    from matplotlib import pyplot

    labels = _labels(results)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), width_ratios=(3, 2), layout="constrained")
    for number, label in enumerate(labels):
        points = [
            (streams, value)
            for streams in _STREAMS
            if (outcome := results.outcomes.get(f"decode-{streams}")) is not None
            and (value := outcome.median(label, "decode")) is not None
        ]
        if points:
            style = "-" if label.startswith(ARGOSY) else "--"
            left.plot(*zip(*points, strict=True), style, color=f"C{number}", marker="o", markersize=4, label=label)
    left.set(xscale="log", yscale="log", xlabel="streams", ylabel="decode, tokens a second")
    left.set_xticks(_STREAMS, [str(streams) for streams in _STREAMS])
    left.legend(fontsize="small")
    left.grid(visible=True, which="both", alpha=0.2)
    outcome = results.outcomes.get("prefill", Outcome())
    bars = [(label, value, f"C{n}") for n, label in enumerate(labels) if (value := outcome.median(label, "prefill"))]
    if bars:
        names, values, colours = zip(*reversed(bars), strict=True)
        right.barh(names, values, color=colours)
    right.set_xlabel("prefill of 1,024-token prompts, tokens a second")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)

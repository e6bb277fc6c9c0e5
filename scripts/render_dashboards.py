"""Draws every dashboard from its own queries and a fleet at work, as pictures for docs/images.

usage: python scripts/render_dashboards.py [SECONDS OF WORK]

They show what is asked and what comes back, in the places of the panels; Grafana's own look differs.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from observed_fleet import DEPLOY, ROOT, Observed, interpolate, observed_fleet

IMAGES = ROOT / "docs/images"
INK, PAPER, CARD, FAINT = "#d8dce4", "#111217", "#181b1f", "#3a3f4b"
COLOURS = ("#73bf69", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#fade2a", "#37872d", "#8ab8ff")
INCHES_WIDE, INCHES_A_ROW = 15.0, 0.36


def main() -> None:
    """Writes one picture a dashboard."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    IMAGES.mkdir(exist_ok=True)
    plt.rcParams.update(
        {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 8}
    )
    with observed_fleet(seconds) as observed:
        for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json")):
            picture = draw(json.loads(path.read_text()), observed)
            print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size // 1000} kB")


def draw(board: dict[str, Any], observed: Observed) -> Path:
    """One dashboard."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    height = (rows + 1.5) * INCHES_A_ROW
    figure = plt.figure(figsize=(INCHES_WIDE, height), facecolor=PAPER)
    figure.text(0.008, 1 - 0.3 / height, board["title"], fontsize=13, weight="bold", va="center")
    for panel in board["panels"]:
        place = panel["gridPos"]
        top = 1 - (place["y"] + 1.5) * INCHES_A_ROW / height
        if panel["type"] == "row":
            figure.text(
                0.008, top - 0.22 / height, panel["title"], fontsize=10, weight="bold", color="#9aa3b5", va="center"
            )
            continue
        _panel(
            figure,
            panel,
            (place["x"] / 24, top - place["h"] * INCHES_A_ROW / height),
            (place["w"] / 24, place["h"] * INCHES_A_ROW / height),
            observed,
        )
    picture = IMAGES / f"{board['uid']}.png"
    figure.savefig(picture, dpi=80, facecolor=PAPER, pil_kwargs={"optimize": True})
    plt.close(figure)
    return picture


def _panel(
    figure: Any, panel: dict[str, Any], corner: tuple[float, float], size: tuple[float, float], observed: Observed
) -> None:
    (left, bottom), (width, height) = corner, size
    inch = 1 / figure.get_figheight()
    card = figure.add_axes((left + 0.003, bottom + 0.04 * inch, width - 0.006, height - 0.08 * inch), facecolor=CARD)
    card.set(xticks=[], yticks=[])
    card.spines[:].set_color("#24272e")
    figure.text(left + 0.009, bottom + height - 0.2 * inch, panel["title"], fontsize=8.5, weight="bold", va="center")
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    if panel["type"] == "table":
        axes = figure.add_axes((left + 0.012, bottom + 0.2 * inch, width - 0.024, height - 0.7 * inch), facecolor=CARD)
        _table(axes, panel, observed)
        return
    series = _series(panel, observed)
    if panel["type"] == "stat":
        value = series[0][1][-1][1] if series else float("nan")
        figure.text(
            left + width / 2,
            bottom + height * 0.4,
            _text(value, unit),
            fontsize=20,
            ha="center",
            va="center",
            color=COLOURS[0],
        )
        return
    axes = figure.add_axes((left + 0.037, bottom + 0.78 * inch, width - 0.046, height - 1.18 * inch), facecolor=CARD)
    _lines(axes, panel, series, unit)


def _table(axes: Axes, panel: dict[str, Any], observed: Observed) -> None:
    """A row for each series, with its labels and its last value, the largest first."""
    (target,) = panel["targets"]
    found = observed.prometheus.query(interpolate(target["expr"]), observed.end)
    found.sort(key=lambda one: -float(one["value"][1]))
    labels = sorted({label for one in found for label in one["metric"]})
    rows = [
        [*(one["metric"].get(label, "") for label in labels), _text(float(one["value"][1]), "short")] for one in found
    ]
    axes.axis("off")
    drawn = axes.table(rows[:12], colLabels=[*labels, target["legendFormat"]], cellLoc="left", loc="upper center")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    drawn.scale(1, 1.3)
    for (row, _), cell in drawn.get_celld().items():
        cell.set(facecolor=CARD, edgecolor=FAINT, linewidth=0.4)
        cell.get_text().set(color="#9aa3b5" if row == 0 else INK)


def _series(panel: dict[str, Any], observed: Observed) -> list[tuple[str, list[tuple[float, float]]]]:
    """Names and points of what the panel's queries give; times in seconds since the start."""
    found = []
    for target in panel["targets"]:
        for one in observed.prometheus.query_range(interpolate(target["expr"]), observed.start, observed.end, 1):
            name = re.sub(r"{{(\w+)}}", lambda label, of=one: of["metric"].get(label[1], ""), target["legendFormat"])
            points = [(at - observed.start, float(value)) for at, value in one["values"]]
            found.append((name.strip() or "none", points))
    return found


def _lines(axes: Axes, panel: dict[str, Any], series: list[tuple[str, list[tuple[float, float]]]], unit: str) -> None:
    stacked = panel["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode") == "normal"
    if stacked and series:
        times = sorted({at for _, points in series for at, _ in points})
        heights = [[dict(points).get(at, 0.0) for at in times] for _, points in series]
        axes.stackplot(times, heights, labels=[name for name, _ in series], colors=COLOURS, alpha=0.75)
    else:
        for (name, points), colour in zip(series, itertools.cycle(COLOURS)):
            axes.plot(*zip(*points, strict=True), label=name, color=colour, linewidth=1.4)
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] < 1e-9 or not series:
        axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _text(value, unit)))
    axes.yaxis.set_major_locator(plt.MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.grid(color=FAINT, linewidth=0.4)
    axes.tick_params(length=0, labelsize=7)
    axes.spines[:].set_visible(False)
    if series:
        columns = 2 if len(series) > 3 else max(1, min(3, len(series)))
        handles, labels = axes.get_legend_handles_labels()
        labels = [textwrap.shorten(label, 44, placeholder="...") for label in labels]
        axes.legend(
            handles[:6],
            labels[:6],
            loc="upper center",
            bbox_to_anchor=(0.46, -0.13),
            ncols=columns,
            frameon=False,
            fontsize=6.5,
            handlelength=1,
            columnspacing=1,
            labelspacing=0.2,
        )


def _text(value: float, unit: str) -> str:
    """A value as Grafana words it, roughly."""
    if math.isnan(value):
        return "no data"
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if 0 < value < 1 else f"{number} s"
    if unit == "bytes":
        return f"{value / (1 << 20):.0f} MiB"
    return {"reqps": f"{number}/s", "ops": f"{number}/s", "currencyUSD": f"${value:.3g}"}.get(unit, number)


if __name__ == "__main__":
    main()

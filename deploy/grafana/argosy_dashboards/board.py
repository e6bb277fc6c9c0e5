"""What a dashboard is made of here, and its translation into Grafana's schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from argosy_dashboards.queries import Query

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24


@dataclass(frozen=True, slots=True)
class Panel:
    """One question and the queries that answer it.

    `action` says what to do when the panel looks wrong. `width` counts 24ths of a row. `warn` and `alarm` colour values
    from there on; where `alarm` is the smaller one, values below it are the bad ones.
    """

    title: str
    question: str
    action: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["lines", "stacked", "stat", "bars", "table"] = "lines"
    width: int = 8
    warn: float | None = None
    alarm: float | None = None

    @property
    def description(self) -> str:
        """What Grafana shows behind the panel's i."""
        return f"{self.question}\n\n**When it looks wrong:** {self.action}"


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard. `uid` is its address in Grafana and the name of its file."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]


def build(board: Board) -> model.Dashboard:
    """The board in Grafana's schema."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["argosy"])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .timezone("browser")
        .editable()
        .link(
            dashboard.DashboardLink("Argosy")
            .type("dashboards")
            .tags(["argosy"])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
        .variables(_variables())
    )
    for row in board.rows:
        built = built.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            built = built.with_panel(_panel(panel))
    return built.build()


def _variables() -> Sequence[Any]:
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        dashboard.TextBoxVariable("prefix")
        .label("Metric prefix")
        .description("Empty for pages of Argosy's own; ray_ where metrics come through Ray's agent.")
        .default_value(""),
        dashboard.TextBoxVariable("server_hour")
        .label("Cost of a server hour")
        .description("What one server costs an hour, in the currency of your bill.")
        .default_value("0.10"),
        _values("model", "Model", "label_values(${prefix}argosy_kv_blocks_total, model)"),
        _values("instance", "Instance", "label_values(${prefix}argosy_ready, instance)"),
    ]


def _values(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(panel: Panel) -> Any:
    built = _KINDS[panel.kind](panel)
    built = (
        built.title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(4 if panel.kind == "stat" else 8)
    )
    instant = panel.kind in ("bars", "table", "stat")
    for place, query in enumerate(panel.queries):
        built = built.with_target(_target(query, "ABCDEFGH"[place], instant=instant, rows=panel.kind == "table"))
    if panel.alarm is not None:
        built = built.thresholds(_thresholds(panel))
    return built


def _target(query: Query, ref: str, *, instant: bool, rows: bool) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(ref).expr(query.expr).legend_format(query.legend)
    target = target.instant() if instant else target.range()
    return target.format(PromQueryFormat.TABLE if rows else PromQueryFormat.TIME_SERIES)


def _lines(panel: Panel) -> timeseries.Panel:
    return (
        timeseries.Panel()
        .min(0)
        .line_width(2)
        .fill_opacity(8)
        .show_points(common_model.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_model.LegendDisplayMode.LIST)
            .placement(common_model.LegendPlacement.BOTTOM)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_model.TooltipDisplayMode.MULTI)
            .sort(common_model.SortOrder.DESCENDING)
        )
        .thresholds_style(
            common.GraphThresholdsStyleConfig().mode(
                common_model.GraphTresholdsStyleMode.LINE
                if panel.alarm is not None
                else common_model.GraphTresholdsStyleMode.OFF
            )
        )
    )


def _stacked(panel: Panel) -> timeseries.Panel:
    return (
        _lines(panel)
        .fill_opacity(40)
        .line_width(1)
        .stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    )


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _stat(panel: Panel) -> stat.Panel:
    coloured = common_model.BigValueColorMode.VALUE if panel.alarm is not None else common_model.BigValueColorMode.NONE
    return stat.Panel().reduce_options(_last()).color_mode(coloured).graph_mode(common_model.BigValueGraphMode.NONE)


def _bars(panel: Panel) -> bargauge.Panel:
    return (
        bargauge.Panel()
        .reduce_options(_last())
        .orientation(common_model.VizOrientation.HORIZONTAL)
        .display_mode(common_model.BarGaugeDisplayMode.BASIC)
        .min(0)
    )


def _table(panel: Panel) -> table.Panel:
    hidden = model.DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}})
    merged = model.DataTransformerConfig(id_val="merge", options={})
    names = {f"Value #{'ABCDEFGH'[place]}": query.legend for place, query in enumerate(panel.queries)}
    if len(panel.queries) == 1:
        names = {"Value": panel.queries[0].legend}
    hidden.options["renameByName"] = names
    return table.Panel().with_transformation(merged).with_transformation(hidden)


_KINDS = {"lines": _lines, "stacked": _stacked, "stat": _stat, "bars": _bars, "table": _table}


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    assert panel.alarm is not None
    warn = panel.alarm if panel.warn is None else panel.warn
    if warn <= panel.alarm:
        steps = [(None, "green"), (warn, "orange"), (panel.alarm, "red")]
    else:
        steps = [(None, "red"), (panel.alarm, "orange"), (warn, "green")]
    if panel.warn is None:
        steps.pop(1)
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=value, color=color) for value, color in steps])
    )

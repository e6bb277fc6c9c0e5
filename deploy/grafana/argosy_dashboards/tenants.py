"""Who uses the fleet, and what does it cost?"""

from argosy_dashboards.board import Board, Panel, Row
from argosy_dashboards.queries import MODEL, Query, rate, series

_SERVERS = f"count({series('argosy_ready')})"
_COST = f"$server_hour * {_SERVERS} / 3600"

BOARD = Board(
    uid="argosy-tenants",
    title="Argosy / Tenants and cost",
    description="Usage, and what a million tokens costs at the load of now. Set `Cost of a server hour` above.",
    rows=(
        Row(
            "Cost",
            (
                Panel(
                    "Cost of a million generated tokens",
                    "What does a token cost at the load of now, with every server paid for?",
                    "High at low load: lower cluster.engine.min, or serve more callers on the same machines.",
                    (Query(f"1e6 * {_COST} / {rate('argosy_generated_tokens_total', MODEL)}", "1M tokens"),),
                    unit="currencyUSD",
                    width=12,
                ),
                Panel(
                    "Cost of the fleet by the hour",
                    "What does the fleet cost now?",
                    "Flat through the night: the autoscaler's minimum is what you pay for.",
                    (Query(f"{_COST} * 3600", "by the hour"),),
                    unit="currencyUSD",
                    width=12,
                ),
            ),
        ),
    ),
)

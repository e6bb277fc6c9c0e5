"""Who uses the fleet, and what does it cost?"""

from argosy_dashboards.board import Board, Panel, Row
from argosy_dashboards.queries import MODEL, Query, rate

BOARD = Board(
    uid="argosy-tenants",
    title="Argosy / Tenants and cost",
    description="Usage by tenant, model and adapter, and what a million tokens costs at the load of now.",
    rows=(
        Row(
            "Usage",
            (
                Panel(
                    "Tokens by tenant",
                    "Who uses the fleet now?",
                    "One tenant far above its usual: call them before you scale. The queue is fair between tenants.",
                    (Query(rate("argosy_usage_tokens_total", MODEL, by="tenant"), "{{tenant}}"),),
                    unit="none",
                    kind="stacked",
                ),
            ),
        ),
    ),
)

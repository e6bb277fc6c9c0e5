"""Which adapters are there, which is hot, and do they come in time?"""

from argosy_dashboards.board import Board, Panel, Row
from argosy_dashboards.queries import Query, quantiles, series, total

BOARD = Board(
    uid="argosy-adapters",
    title="Argosy / Adapters",
    description="LoRA adapters: states, leases, loading.",
    rows=(
        Row(
            "Residency",
            (
                Panel(
                    "Adapters by state",
                    "How many can be used, how many are on their way, how many failed?",
                    "`argosy adapters get NAME` says why one failed. Runbook: ArgosyAdapterLoadsFail.",
                    (Query(total("argosy_adapters", 'state!="unloaded"', by="state"), "{{state}}"),),
                    kind="stacked",
                ),
                Panel(
                    "Leases",
                    "How many running sequences use an adapter?",
                    "An adapter that drains waits for its leases: long answers hold it.",
                    (Query(f"sum by (instance) ({series('argosy_adapter_leases')})", "{{instance}}"),),
                    kind="stacked",
                ),
                Panel(
                    "From acceptance to READY",
                    "How long does an adapter take to come?",
                    "Slow reading is slow storage: compare with the size of the adapter and where its source lies.",
                    quantiles("argosy_adapter_load_seconds"),
                    unit="s",
                ),
            ),
        ),
    ),
)

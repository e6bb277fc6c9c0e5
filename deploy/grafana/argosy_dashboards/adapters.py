"""Which adapters are there, which is hot, and do they come in time?"""

from argosy_dashboards.board import Board, Panel, Row
from argosy_dashboards.queries import COMPLETION, MODEL, Query, quantiles, rate, series, total

_HITS, _MISSES = (rate(f"argosy_adapter_{what}_total", MODEL, by="model") for what in ("hits", "misses"))

BOARD = Board(
    uid="argosy-adapters",
    title="Argosy / Adapters",
    description="LoRA adapters: which is hot, states, leases, loading, slots.",
    rows=(
        Row(
            "Heat",
            (
                Panel(
                    "Tokens by adapter",
                    "Which adapter is hot?",
                    "Pin an adapter that must never wait: `argosy adapters load --pin`.",
                    (
                        Query(
                            f"topk(10, {rate(*COMPLETION, by='adapter')})",
                            "{{adapter}}",
                        ),
                    ),
                    kind="stacked",
                ),
                Panel(
                    "Requests that found their adapter in a slot",
                    "Do adapters have to be brought for requests?",
                    "Low while slots are taken from each other: raise generation.max_adapters, or add engines. "
                    "Runbook: ArgosyAdaptersThrash.",
                    (Query(f"{_HITS} / ({_HITS} + {_MISSES})", "{{model}}"),),
                    unit="percentunit",
                ),
                Panel(
                    "Waiting for an adapter",
                    "How long do requests wait until theirs is in the engine?",
                    "Long with few misses: slots are held by long answers. Long with many: more adapters than slots.",
                    quantiles("argosy_adapter_wait_seconds", MODEL),
                    unit="s",
                ),
            ),
        ),
        Row(
            "Slots",
            (
                Panel(
                    "Slots of the engines",
                    "Is there room in the engines?",
                    "Full is normal: the adapters used last stay. See how often one has to leave for another.",
                    (
                        Query(total("argosy_adapter_slots_in_use", MODEL, by="model"), "in use {{model}}"),
                        Query(total("argosy_adapter_slots_total", MODEL, by="model"), "there {{model}}"),
                    ),
                ),
                Panel(
                    "Adapters that left their slot for others",
                    "Do adapters push each other out?",
                    "Each eviction is a load that comes again. Runbook: ArgosyAdaptersThrash.",
                    (Query(rate("argosy_adapter_evictions_total", MODEL, by="model"), "{{model}}"),),
                    unit="ops",
                ),
                Panel(
                    "Adapters that came and went",
                    "Who changes the fleet's adapters?",
                    "Failures: `argosy adapters list` says why. Runbook: ArgosyAdapterLoadsFail.",
                    (Query(rate("argosy_adapter_loads_total", by="result"), "{{result}}"),),
                    unit="ops",
                ),
            ),
        ),
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
        Row(
            "Where",
            (
                Panel(
                    "Where adapters are",
                    "Which server has which adapter, and how near to its engine?",
                    "An adapter that is on no server after a load: `argosy adapters get NAME` says why.",
                    (
                        Query(
                            total("argosy_adapter_resident", MODEL, by="adapter, tier, model, instance, replica"),
                            "adapters",
                        ),
                    ),
                    kind="table",
                    width=24,
                ),
            ),
        ),
    ),
)

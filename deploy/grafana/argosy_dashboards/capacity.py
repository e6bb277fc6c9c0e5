"""What is short, and what will break next?"""

from argosy_dashboards.board import Board, Panel, Row
from argosy_dashboards.queries import MODEL, Query, rate, series, total

_REFUSED = 'code="RESOURCE_EXHAUSTED"'

BOARD = Board(
    uid="argosy-capacity",
    title="Argosy / Capacity and autoscaling",
    description="What engines scale by: waiting prompt tokens and the key-value cache; preemptions, refusals, memory.",
    rows=(
        Row(
            "What engines scale by",
            (
                Panel(
                    "Prompt tokens that wait",
                    "How much work is ahead of a new request?",
                    "Above cluster.engine_waiting_tokens for one engine, Ray starts another: is max reached, or no "
                    "node free?",
                    (Query(total("argosy_waiting_tokens", MODEL, by="instance"), "{{instance}}"),),
                    kind="stacked",
                    alarm=2048,
                ),
                Panel(
                    "Key-value cache in use",
                    "How near is each engine to putting sequences back?",
                    "Raise generation.kv_cache_tokens where memory is left, else add engines. Runbook: "
                    "ArgosyKvCacheFull.",
                    (
                        Query(
                            f"{series('argosy_kv_blocks_in_use', MODEL)} / {series('argosy_kv_blocks_total', MODEL)}",
                            "{{model}} {{instance}}",
                        ),
                    ),
                    unit="percentunit",
                    warn=0.8,
                    alarm=0.95,
                ),
                Panel(
                    "Servers",
                    "How many are up, how many take calls?",
                    "Up and not ready for minutes: the log says which model is loading. Runbook: ArgosyNotReady.",
                    (
                        Query('count(up{job=~"argosy.*", instance=~"$instance"})', "known"),
                        Query('sum(up{job=~"argosy.*", instance=~"$instance"})', "up"),
                        Query(f"sum({series('argosy_ready')})", "ready"),
                    ),
                ),
            ),
        ),
        Row(
            "What breaks next",
            (
                Panel(
                    "Preemptions",
                    "How often is computed work thrown away for want of blocks?",
                    "Each costs a prefill. Lower generation.max_batch or grow the cache. Runbook: "
                    "ArgosyPreemptionStorm.",
                    (Query(rate("argosy_preemptions_total", MODEL, by="model"), "{{model}}"),),
                    unit="ops",
                    alarm=0.5,
                ),
                Panel(
                    "Calls refused for want of room",
                    "How many callers are told to come back later?",
                    "The SDK comes back when told. Lasting refusals are missing capacity. Runbook: ArgosyCallsRefused.",
                    (Query(f"{rate('argosy_rpc_total', _REFUSED, by='reason')} or on () vector(0)", "{{reason}}"),),
                    unit="reqps",
                ),
                Panel(
                    "Cache full in",
                    "When is the cache full, if its use goes on growing as in the last ten minutes?",
                    "Less than the time in which an engine starts: scale now, do not wait for the autoscaler.",
                    (
                        Query(
                            f"({series('argosy_kv_blocks_total', MODEL)} - "
                            f"{series('argosy_kv_blocks_in_use', MODEL)}) / "
                            f"clamp_min(deriv({series('argosy_kv_blocks_in_use', MODEL)}[10m]), 0.01)",
                            "{{model}} {{instance}}",
                        ),
                    ),
                    unit="s",
                    warn=600,
                    alarm=120,
                ),
            ),
        ),
        Row(
            "Machines",
            (
                Panel(
                    "Memory of the processes",
                    "Does memory grow without work?",
                    "Level within minutes of the start is right. Growth for hours: note the time and keep the metrics "
                    "of it.",
                    (Query('process_resident_memory_bytes{job=~"argosy.*", instance=~"$instance"}', "{{instance}}"),),
                    unit="bytes",
                    width=12,
                ),
                Panel(
                    "Cores in use",
                    "Is the processor the limit?",
                    "At the number of cores: more replicas need more machines. Far below with a queue: the cache is "
                    "the limit.",
                    (
                        Query(
                            'rate(process_cpu_seconds_total{job=~"argosy.*", instance=~"$instance"}[$__rate_interval])',
                            "{{instance}}",
                        ),
                    ),
                    width=12,
                ),
            ),
        ),
    ),
)

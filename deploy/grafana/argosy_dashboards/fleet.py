"""Is the fleet healthy, and how much of its error budget is left?"""

from argosy_dashboards.board import Board, Panel, Row
from argosy_dashboards.queries import FAULTS, MODEL, Query, named, quantile, quantiles, rate, series, total

_WINDOWS = ("5m", "1h", "6h", "3d")


def _burn(record: str, budget: float) -> tuple[Query, ...]:
    return tuple(Query(f"max({record}{window}) / {budget}", f"over {window}") for window in _WINDOWS)


BOARD = Board(
    uid="argosy-fleet",
    title="Argosy / Fleet",
    description="Start here: rate, errors, latency and saturation of all services, and how fast the SLOs burn.",
    rows=(
        Row(
            "Now",
            (
                Panel(
                    "Servers ready",
                    "How many servers take calls?",
                    "Compare with `up`: a server that is up and not ready is loading or draining. Runbook: "
                    "ArgosyNotReady.",
                    (Query(f"sum({series('argosy_ready')})", "ready"),),
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Calls",
                    "How many calls finish each second?",
                    "A sudden zero with ready servers points at what stands before the fleet: balancer, DNS, "
                    "certificates.",
                    (Query(rate("argosy_rpc_total"), "calls"),),
                    unit="reqps",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Failing",
                    "Which share of calls fails through a fault of the fleet?",
                    "See `Failures by code and reason`. Runbook: ArgosyCallsFail.",
                    (
                        Query(
                            f"({rate('argosy_rpc_total', FAULTS)} or vector(0)) / {rate('argosy_rpc_total')}", "failing"
                        ),
                    ),
                    unit="percentunit",
                    kind="stat",
                    width=4,
                    warn=0.001,
                    alarm=0.01,
                ),
                Panel(
                    "First token, p95",
                    "How long do callers wait until text appears?",
                    "Open Generation: queue or prefill? Runbook: ArgosyFirstTokenBudgetBurnsFast.",
                    (Query(quantile(0.95, "argosy_time_to_first_token_seconds", MODEL), "p95"),),
                    unit="s",
                    kind="stat",
                    width=4,
                    warn=1,
                    alarm=5,
                ),
                Panel(
                    "Tokens",
                    "How many tokens are generated each second?",
                    "Falling while sequences wait: look at Capacity for preemptions and a full cache.",
                    (Query(rate("argosy_generated_tokens_total", MODEL), "tokens"),),
                    unit="none",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Waiting sequences",
                    "How many sequences wait for a place?",
                    "More than a moment's worth: Capacity says whether by cache or by batch. Runbook: "
                    "ArgosyQueueGrows.",
                    (Query(total("argosy_sequences_waiting", MODEL), "waiting"),),
                    kind="stat",
                    width=4,
                    warn=16,
                    alarm=128,
                ),
            ),
        ),
        Row(
            "Rate, errors, latency, saturation",
            (
                Panel(
                    "Calls by service",
                    "Who is busy?",
                    "A service that dropped to nothing has lost its callers or its readiness: run `argosy health`.",
                    (Query(named(rate("argosy_rpc_total", by="service")), "{{service}}"),),
                    unit="reqps",
                    kind="stacked",
                ),
                Panel(
                    "Calls that were not OK, by code and reason",
                    "What fails, and whose fault is it?",
                    "docs/errors.md has each reason. RESOURCE_EXHAUSTED is a full fleet, INTERNAL a bug: its log line "
                    "has "
                    "the request id.",
                    (Query(rate("argosy_rpc_total", 'code!="OK"', by="code, reason"), "{{code}} {{reason}}"),),
                    unit="reqps",
                    kind="stacked",
                ),
                Panel(
                    "Duration of calls by service, p95",
                    "Which service became slow?",
                    "Streams last as long as their answers; for generation read the time to first token instead.",
                    (Query(named(quantile(0.95, "argosy_rpc_seconds", by="service")), "{{service}}"),),
                    unit="s",
                ),
                Panel(
                    "Time to first token",
                    "How long until a caller sees something?",
                    "Queue time and prefill time on the dashboard Generation tell which part grew.",
                    quantiles("argosy_time_to_first_token_seconds", MODEL),
                    unit="s",
                    alarm=1,
                ),
                Panel(
                    "Calls in progress",
                    "How much work is open at once?",
                    "A line that only rises is calls that do not end: compare with sequences running.",
                    (Query(named(total("argosy_rpc_running", by="service")), "{{service}}"),),
                    kind="stacked",
                ),
                Panel(
                    "Key-value cache in use",
                    "How full is the memory of the engines?",
                    "Above 0.95 sequences are put back to the queue. Runbook: ArgosyKvCacheFull.",
                    (
                        Query(
                            f"{total('argosy_kv_blocks_in_use', MODEL, by='model')} / "
                            f"{total('argosy_kv_blocks_total', MODEL, by='model')}",
                            "{{model}}",
                        ),
                    ),
                    unit="percentunit",
                    alarm=0.95,
                ),
            ),
        ),
        Row(
            "SLO burn",
            (
                Panel(
                    "Availability: burn rate",
                    "How fast is the budget of failed calls (0.1 %) of the worst service spent? At 1 it lasts 30 days.",
                    "Above 14.4 in 1 h and 5 m somebody is paged. Runbook: ArgosyAvailabilityBudgetBurnsFast.",
                    _burn("service:argosy_rpc_faults:ratio_rate", 0.001),
                    width=12,
                    alarm=14.4,
                    warn=1,
                ),
                Panel(
                    "First token within 1 s: burn rate",
                    "How fast is the budget of slow first tokens (1 %) of the worst model spent?",
                    "Above 14.4 in 1 h and 5 m somebody is paged. Runbook: ArgosyFirstTokenBudgetBurnsFast.",
                    _burn("model:argosy_slow_first_tokens:ratio_rate", 0.01),
                    width=12,
                    alarm=14.4,
                    warn=1,
                ),
            ),
        ),
    ),
)

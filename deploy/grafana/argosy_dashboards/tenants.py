"""Who uses the fleet, and what does it cost?"""

from argosy_dashboards.board import Board, Panel, Row
from argosy_dashboards.queries import COMPLETION, MODEL, Query, increase, rate, series

_SERVERS = f"count({series('argosy_ready')})"
_COST = f"$server_hour * {_SERVERS} / 3600"

BOARD = Board(
    uid="argosy-tenants",
    title="Argosy / Tenants and cost",
    description="Usage, and what a million tokens costs at the load of now. Set `Cost of a server hour` above.",
    rows=(
        Row(
            "Usage",
            (
                Panel(
                    "Generated tokens by tenant",
                    "Who uses the fleet now?",
                    "One tenant crowds the others out: give it a limit at your gateway, or others a higher priority. "
                    "Names instead of digests: metrics.tenant_names.",
                    (Query(rate(*COMPLETION, by="tenant"), "{{tenant}}"),),
                    kind="stacked",
                ),
                Panel(
                    "Prompt tokens by tenant",
                    "Who sends much to read?",
                    "Large prompts without cached parts: that tenant's prompts begin with what varies.",
                    (
                        Query(rate("argosy_usage_tokens_total", MODEL, 'kind="prompt"', by="tenant"), "{{tenant}}"),
                        Query(
                            rate("argosy_usage_tokens_total", MODEL, 'kind="cached"', by="tenant"),
                            "{{tenant}}, of it cached",
                        ),
                    ),
                ),
                Panel(
                    "Requests by tenant",
                    "Who asks how often?",
                    "Many small requests cost more than a few large ones: batch them.",
                    (Query(rate("argosy_usage_requests_total", MODEL, by="tenant"), "{{tenant}}"),),
                    unit="reqps",
                    kind="stacked",
                ),
                Panel(
                    "Tokens generated over the time that is shown",
                    "What is there to bill?",
                    "It counts from when a server was first scraped with the tenant: bill from the records of your "
                    "gateway where every token counts.",
                    (Query(increase(*COMPLETION, by="tenant, model, adapter"), "tokens"),),
                    kind="table",
                    width=12,
                ),
                Panel(
                    "Cost by tenant and hour",
                    "What does each tenant's part of the load cost?",
                    "The whole fleet's cost is shared out by generated tokens; an idle fleet has nobody to charge.",
                    (
                        Query(
                            f"scalar({_COST} * 3600 / {rate(*COMPLETION)}) * {rate(*COMPLETION, by='tenant')}",
                            "{{tenant}}",
                        ),
                    ),
                    unit="currencyUSD",
                    kind="stacked",
                    width=12,
                ),
            ),
        ),
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

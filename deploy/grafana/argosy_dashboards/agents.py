"""Do agents come to answers, and what do they spend on the way?"""

from argosy_dashboards.board import Board, Panel, Row
from argosy_dashboards.queries import Query, quantile, quantiles, rate, total

_ANSWERED = 'outcome="answered"'

BOARD = Board(
    uid="argosy-agents",
    title="Argosy / Agents",
    description="Runs, steps, tools and budgets of agents.",
    rows=(
        Row(
            "Runs",
            (
                Panel(
                    "Runs by outcome",
                    "How do runs end?",
                    "Budgets that end runs: read some with `argosy agent`, then raise the part that runs out or mend "
                    "the tool.",
                    (Query(rate("argosy_agent_runs_total", by="outcome"), "{{outcome}}"),),
                    unit="ops",
                    kind="stacked",
                ),
                Panel(
                    "Runs without an answer",
                    "Which share of runs ends without an answer?",
                    "Runbook: ArgosyAgentRunsFail.",
                    (
                        Query(
                            f"1 - ({rate('argosy_agent_runs_total', _ANSWERED)} or vector(0)) / "
                            f"{rate('argosy_agent_runs_total')}",
                            "without an answer",
                        ),
                    ),
                    unit="percentunit",
                    alarm=0.2,
                ),
                Panel(
                    "Steps of a run",
                    "How many times does a run ask the model?",
                    "Rising: the model repeats itself, or a tool answers with errors.",
                    (Query(f"{rate('argosy_agent_steps_total')} / {rate('argosy_agent_runs_total')}", "steps a run"),),
                ),
                Panel(
                    "Tool calls",
                    "Which tools are used, and do they answer?",
                    "Errors of one tool: its arguments' schema is too loose, or what it reaches is down.",
                    (Query(rate("argosy_tool_calls_total", by="tool, result"), "{{tool}} {{result}}"),),
                    unit="ops",
                    kind="stacked",
                    width=24,
                ),
            ),
        ),
        Row(
            "Time and budgets",
            (
                Panel(
                    "Duration of runs",
                    "How long does somebody wait for an answer?",
                    "Compare with steps of a run: more steps, or slower ones? Agents give way to other requests "
                    "(agents.priority).",
                    quantiles("argosy_agent_run_seconds"),
                    unit="s",
                ),
                Panel(
                    "Duration of tool calls, p95",
                    "Which tool holds runs up?",
                    "A tool near its time limit: what it reaches is slow, or down.",
                    (Query(quantile(0.95, "argosy_tool_seconds", by="tool"), "{{tool}}"),),
                    unit="s",
                ),
                Panel(
                    "Runs that are worked on",
                    "How near is the limit?",
                    "At agents.max_running new runs are refused: raise it, or start more servers.",
                    (Query(total("argosy_agent_runs_running", by="instance"), "{{instance}}"),),
                ),
            ),
        ),
    ),
)

"""Where does the time of an answer go?"""

from argosy_dashboards.board import Board, Panel, Row
from argosy_dashboards.queries import MODEL, Query, mean, quantiles, rate, total

BOARD = Board(
    uid="argosy-generation",
    title="Argosy / Generation",
    description="The parts of an answer's time: queue, prefill, decode; throughput, prefix cache and speculation.",
    rows=(
        Row(
            "Latency",
            (
                Panel(
                    "Time to first token",
                    "How long from submission to the first token?",
                    "If the queue panel beside grew as much, capacity is short; if not, prompts grew or the prefix "
                    "cache misses.",
                    quantiles("argosy_time_to_first_token_seconds", MODEL),
                    unit="s",
                ),
                Panel(
                    "Waiting for a place in the batch",
                    "How much of it is queue?",
                    "Add engines, or lower generation.max_waiting so that callers are refused early. Runbook: "
                    "ArgosyQueueGrows.",
                    quantiles("argosy_queue_seconds", MODEL),
                    unit="s",
                ),
                Panel(
                    "Between two tokens",
                    "How fluently does text come?",
                    "Long gaps with long prompts: lower generation.max_step_tokens, which makes prefill yield sooner.",
                    quantiles("argosy_inter_token_seconds", MODEL),
                    unit="s",
                ),
            ),
        ),
        Row(
            "Stages",
            (
                Panel(
                    "Prefill",
                    "How long from a place in the batch to the first token?",
                    "It grows with the part of prompts that no cache has. One long prompt yields to others after "
                    "generation.max_step_tokens.",
                    quantiles("argosy_prefill_seconds", MODEL),
                    unit="s",
                ),
                Panel(
                    "Decode",
                    "How long from the first token to the last?",
                    "Compare with the panel `Between two tokens`: longer answers, or slower ones?",
                    quantiles("argosy_decode_seconds", MODEL),
                    unit="s",
                ),
                Panel(
                    "From submission to the end",
                    "How long does an answer take in all?",
                    "The largest of the stages beside is the one to work on; `argosy explain REQUEST` tells it of one "
                    "request.",
                    quantiles("argosy_end_to_end_seconds", MODEL),
                    unit="s",
                ),
            ),
        ),
        Row(
            "Throughput",
            (
                Panel(
                    "Tokens by kind",
                    "What are the engines' steps spent on?",
                    "Much computed and little cached prompt: callers' shared beginnings differ, or the cache is too "
                    "small.",
                    (
                        Query(rate("argosy_generated_tokens_total", MODEL), "generated"),
                        Query(rate("argosy_prompt_tokens_total", MODEL), "prompt, computed"),
                        Query(rate("argosy_cached_prompt_tokens_total", MODEL), "prompt, from the cache"),
                    ),
                    unit="none",
                    kind="stacked",
                ),
                Panel(
                    "Sequences",
                    "How many are in the batch, how many wait?",
                    "Waiting while running is far below generation.max_batch: the cache is full, not the batch.",
                    (
                        Query(total("argosy_sequences_running", MODEL, by="model"), "running {{model}}"),
                        Query(total("argosy_sequences_waiting", MODEL, by="model"), "waiting {{model}}"),
                    ),
                ),
                Panel(
                    "Steps of the engine",
                    "Does the engine move?",
                    "Zero while sequences run is a stalled engine. Runbook: ArgosyEngineStalled.",
                    (Query(rate("argosy_engine_steps_total", MODEL, by="model, instance"), "{{model}} {{instance}}"),),
                    unit="ops",
                ),
            ),
        ),
        Row(
            "Steps",
            (
                Panel(
                    "A step",
                    "How long does a step of the engine take?",
                    "Every token of every answer waits for a step: compare with the sequences and tokens in it.",
                    quantiles("argosy_step_seconds", MODEL),
                    unit="s",
                ),
                Panel(
                    "In a step",
                    "How full is the batch?",
                    "Small while sequences wait: blocks are short, not places. Large and slow: the machine is at its "
                    "limit.",
                    (
                        Query(mean("argosy_batch_sequences", MODEL, by="model"), "sequences {{model}}"),
                        Query(mean("argosy_batch_tokens", MODEL, by="model"), "tokens {{model}}"),
                    ),
                ),
                Panel(
                    "Tokens computed for nothing",
                    "What does the engine throw away?",
                    "preempted: raise generation.kv_cache_tokens. draft: set generation.speculation to auto or off.",
                    (Query(rate("argosy_lost_tokens_total", MODEL, by="reason"), "{{reason}}"),),
                    kind="stacked",
                ),
            ),
        ),
        Row(
            "Reuse",
            (
                Panel(
                    "Prompt tokens found in the prefix cache",
                    "Which share of prompts was computed before?",
                    "A drop after a release: something that varies (a date, an id) moved to the beginning of the "
                    "prompt.",
                    (
                        Query(
                            f"{rate('argosy_cached_prompt_tokens_total', MODEL, by='model')} / "
                            f"({rate('argosy_cached_prompt_tokens_total', MODEL, by='model')} + "
                            f"{rate('argosy_prompt_tokens_total', MODEL, by='model')})",
                            "{{model}}",
                        ),
                    ),
                    unit="percentunit",
                ),
                Panel(
                    "Guessed tokens that were right",
                    "Does speculation pay?",
                    "Below a fifth for long: set generation.speculation to auto, which stops guessing where it costs.",
                    (
                        Query(
                            f"{rate('argosy_accepted_tokens_total', MODEL, by='model')} / "
                            f"{rate('argosy_drafted_tokens_total', MODEL, by='model')}",
                            "{{model}}",
                        ),
                    ),
                    unit="percentunit",
                ),
                Panel(
                    "From cancellation to freed blocks",
                    "How soon is memory back when a caller goes away?",
                    "It is one step at most: long times are long steps. Runbook: ArgosyCancellationSlow.",
                    quantiles("argosy_cancel_to_free_seconds", MODEL),
                    unit="s",
                ),
            ),
        ),
    ),
)

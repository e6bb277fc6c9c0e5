"""The one table of instruments. Every metric of the servers is defined here and nowhere else."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)

RPC_TOTAL = Counter("argosy_rpc", "Finished calls.", ["service", "method", "code", "reason"])
RPC_RUNNING = Gauge("argosy_rpc_running", "Calls in progress.", ["service", "method"])
RPC_SECONDS = Histogram("argosy_rpc_seconds", "Duration of calls.", ["service", "method"], buckets=_FAST)

READY = Gauge("argosy_ready", "1 while the server takes calls.")

PROMPT_TOKENS = Counter("argosy_prompt_tokens", "Prompt tokens computed.", ["model"])
CACHED_PROMPT_TOKENS = Counter(
    "argosy_cached_prompt_tokens", "Prompt tokens found in the prefix cache and not computed.", ["model"]
)
GENERATED_TOKENS = Counter("argosy_generated_tokens", "Tokens generated.", ["model"])
TIME_TO_FIRST_TOKEN = Histogram(
    "argosy_time_to_first_token_seconds", "From submission to the first token.", ["model"], buckets=_FAST
)
INTER_TOKEN = Histogram("argosy_inter_token_seconds", "Between two tokens of one sequence.", ["model"], buckets=_TOKEN)
QUEUE_SECONDS = Histogram("argosy_queue_seconds", "Waiting for a place in the batch.", ["model"], buckets=_FAST)
CANCEL_TO_FREE = Histogram(
    "argosy_cancel_to_free_seconds", "From cancellation to freed blocks.", ["model"], buckets=_FAST
)
SEQUENCES_RUNNING = Gauge("argosy_sequences_running", "Sequences in the batch.", ["model"])
SEQUENCES_WAITING = Gauge("argosy_sequences_waiting", "Sequences that wait for a place.", ["model"])
WAITING_TOKENS = Gauge("argosy_waiting_tokens", "Prompt tokens that wait to be computed.", ["model"])
KV_BLOCKS_IN_USE = Gauge("argosy_kv_blocks_in_use", "Blocks of the key-value cache in use.", ["model"])
KV_BLOCKS_TOTAL = Gauge("argosy_kv_blocks_total", "Blocks of the key-value cache.", ["model"])
PREEMPTIONS = Counter("argosy_preemptions", "Sequences put back to the queue for want of blocks.", ["model"])
DRAFTED_TOKENS = Counter("argosy_drafted_tokens", "Tokens that were guessed ahead of the model.", ["model"])
ACCEPTED_TOKENS = Counter("argosy_accepted_tokens", "Guessed tokens that were right.", ["model"])
ENGINE_STEPS = Counter("argosy_engine_steps", "Steps of the engine.", ["model"])

ADAPTERS = Gauge("argosy_adapters", "Adapters by state.", ["state"])
ADAPTER_LEASES = Gauge("argosy_adapter_leases", "Running sequences that use an adapter.")
ADAPTER_LOAD_SECONDS = Histogram("argosy_adapter_load_seconds", "From acceptance to READY.", buckets=_FAST)

EMBEDDED_TEXTS = Counter("argosy_embedded_texts", "Texts embedded.", ["model"])
EMBEDDED_TOKENS = Counter("argosy_embedded_tokens", "Tokens embedded.", ["model"])
EMBEDDING_BATCH_TOKENS = Histogram(
    "argosy_embedding_batch_tokens",
    "Tokens in a batch of texts.",
    ["model"],
    buckets=(16, 64, 256, 1024, 2048, 4096, 8192, 16384),
)

TOKENIZED_TEXTS = Counter("argosy_tokenized_texts", "Texts encoded, decoded or counted.", ["model"])

AGENT_RUNS = Counter("argosy_agent_runs", "Finished agent runs.", ["outcome"])
AGENT_STEPS = Counter("argosy_agent_steps", "Steps of agent runs.")
TOOL_CALLS = Counter("argosy_tool_calls", "Tool calls of agent runs.", ["tool", "result"])

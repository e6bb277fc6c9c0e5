"""The one table of instruments. Every metric of the servers is defined here and nowhere else; docs/metrics.md follows.

Labels hold names that the fleet itself knows: methods of the schema, served models, adapters that were found, tools
that are registered, tenants that have a key. What a caller merely says never becomes a label.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from argosy_services.instruments import Limits, Table
from argosy_services.settings import MetricsSettings

NO_ADAPTER = "_base"
"""The value of the label `adapter` where the base model answers."""
NO_TENANT = "_anonymous"
"""The value of the label `tenant` where calls carry no key."""

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_MICRO = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)

# How many values a label may have, of those whose number is not fixed by the code. `configure` changes some of them.
BOUNDS = {"adapter": 100, "tenant": 50, "model": 16, "tool": 64}
TABLE = Table(Limits(dict(BOUNDS), fleeting=frozenset({"adapter", "tenant"})))

_CALL = ("service", "method")
_MODEL = ("model",)

BUILD_INFO = TABLE.gauge("argosy_build_info", "1", "Always 1; the labels say what runs.", ("version", "runtime"))
READY = TABLE.gauge("argosy_ready", "boolean", "1 while the server takes calls.").only

RPC_TOTAL = TABLE.counter(
    "argosy_rpc", "calls", "Finished calls; `reason` is that of errors.", (*_CALL, "code", "reason")
)
RPC_RUNNING = TABLE.gauge("argosy_rpc_running", "calls", "Calls in progress.", _CALL)
RPC_SECONDS = TABLE.histogram("argosy_rpc_seconds", "seconds", "Duration of calls.", _CALL, buckets=_FAST)

USAGE_TOKENS = TABLE.counter(
    "argosy_usage_tokens",
    "tokens",
    "Tokens consumed, as the usage of answers says; `kind` is prompt (all of it), cached (the part of it that was not "
    "computed), completion or embedded.",
    ("tenant", "model", "adapter", "kind"),
)
USAGE_REQUESTS = TABLE.counter(
    "argosy_usage_requests", "requests", "Requests that reached a model.", ("tenant", "model", "adapter")
)

PROMPT_TOKENS = TABLE.counter("argosy_prompt_tokens", "tokens", "Prompt tokens computed.", _MODEL)
CACHED_PROMPT_TOKENS = TABLE.counter(
    "argosy_cached_prompt_tokens", "tokens", "Prompt tokens found in the prefix cache and not computed.", _MODEL
)
GENERATED_TOKENS = TABLE.counter("argosy_generated_tokens", "tokens", "Tokens generated.", _MODEL)
SEQUENCES_FINISHED = TABLE.counter(
    "argosy_sequences_finished",
    "sequences",
    "Sequences that ended; `finish` is stop, length, failed or cancelled.",
    (*_MODEL, "finish"),
)
SEQUENCE_PROMPT_TOKENS = TABLE.histogram(
    "argosy_sequence_prompt_tokens", "tokens", "Tokens of a sequence's prompt.", _MODEL, buckets=_TOKENS
)
SEQUENCE_GENERATED_TOKENS = TABLE.histogram(
    "argosy_sequence_generated_tokens", "tokens", "Tokens generated for a sequence.", _MODEL, buckets=_TOKENS
)

QUEUE_SECONDS = TABLE.histogram(
    "argosy_queue_seconds", "seconds", "Waiting for a place in the batch.", _MODEL, buckets=_FAST
)
ADAPTER_WAIT_SECONDS = TABLE.histogram(
    "argosy_adapter_wait_seconds", "seconds", "Waiting for an adapter to be in the engine.", _MODEL, buckets=_FAST
)
GRAMMAR_SECONDS = TABLE.histogram(
    "argosy_grammar_seconds", "seconds", "Compiling a grammar, part of the queue.", _MODEL, buckets=_FAST
)
PREFILL_SECONDS = TABLE.histogram(
    "argosy_prefill_seconds", "seconds", "From the place in the batch to the first token.", _MODEL, buckets=_FAST
)
DECODE_SECONDS = TABLE.histogram(
    "argosy_decode_seconds", "seconds", "From the first token to the last.", _MODEL, buckets=_LONG
)
TIME_TO_FIRST_TOKEN = TABLE.histogram(
    "argosy_time_to_first_token_seconds", "seconds", "From submission to the first token.", _MODEL, buckets=_FAST
)
INTER_TOKEN = TABLE.histogram(
    "argosy_inter_token_seconds", "seconds", "Between two tokens of one sequence.", _MODEL, buckets=_TOKEN
)
TIME_PER_OUTPUT_TOKEN = TABLE.histogram(
    "argosy_time_per_output_token_seconds",
    "seconds",
    "Mean time between the tokens of a finished sequence.",
    _MODEL,
    buckets=_TOKEN,
)
END_TO_END = TABLE.histogram(
    "argosy_end_to_end_seconds", "seconds", "From submission of a sequence to its end.", _MODEL, buckets=_LONG
)
CANCEL_TO_FREE = TABLE.histogram(
    "argosy_cancel_to_free_seconds", "seconds", "From cancellation to freed blocks.", _MODEL, buckets=_FAST
)

SEQUENCES_RUNNING = TABLE.gauge("argosy_sequences_running", "sequences", "Sequences in the batch.", _MODEL)
SEQUENCES_WAITING = TABLE.gauge("argosy_sequences_waiting", "sequences", "Sequences that wait for a place.", _MODEL)
WAITING_TOKENS = TABLE.gauge("argosy_waiting_tokens", "tokens", "Prompt tokens that wait to be computed.", _MODEL)
KV_BLOCKS_IN_USE = TABLE.gauge("argosy_kv_blocks_in_use", "blocks", "Blocks of the key-value cache in use.", _MODEL)
KV_BLOCKS_TOTAL = TABLE.gauge("argosy_kv_blocks_total", "blocks", "Blocks of the key-value cache.", _MODEL)
PREEMPTIONS = TABLE.counter(
    "argosy_preemptions", "sequences", "Sequences put back to the queue for want of blocks.", _MODEL
)
LOST_TOKENS = TABLE.counter(
    "argosy_lost_tokens",
    "tokens",
    "Tokens computed for nothing; `reason` is preempted (computed again later) or draft (guessed wrong).",
    (*_MODEL, "reason"),
)
DRAFTED_TOKENS = TABLE.counter(
    "argosy_drafted_tokens", "tokens", "Tokens that were guessed ahead of the model.", _MODEL
)
ACCEPTED_TOKENS = TABLE.counter("argosy_accepted_tokens", "tokens", "Guessed tokens that were right.", _MODEL)
ENGINE_STEPS = TABLE.counter("argosy_engine_steps", "steps", "Steps of the engine.", _MODEL)
STEP_SECONDS = TABLE.histogram(
    "argosy_step_seconds", "seconds", "Computing and drawing of one step.", _MODEL, buckets=_TOKEN
)
BATCH_SEQUENCES = TABLE.histogram(
    "argosy_batch_sequences", "sequences", "Sequences that a step worked on.", _MODEL, buckets=_SIZES
)
BATCH_TOKENS = TABLE.histogram("argosy_batch_tokens", "tokens", "Tokens that a step computed.", _MODEL, buckets=_TOKENS)

ADAPTERS = TABLE.gauge("argosy_adapters", "adapters", "Adapters by state.", ("state",))
ADAPTER_SLOTS_IN_USE = TABLE.gauge("argosy_adapter_slots_in_use", "slots", "Slots of the engine with adapters.", _MODEL)
ADAPTER_SLOTS_TOTAL = TABLE.gauge("argosy_adapter_slots_total", "slots", "Slots of the engine for adapters.", _MODEL)
ADAPTER_RESIDENT = TABLE.gauge(
    "argosy_adapter_resident",
    "boolean",
    "1 for each adapter that is here; `tier` is slot, memory or disk.",
    ("model", "adapter", "tier"),
)
ADAPTER_LEASES = TABLE.gauge("argosy_adapter_leases", "leases", "Running requests that use an adapter.").only
ADAPTER_HITS = TABLE.counter("argosy_adapter_hits", "requests", "Requests that found their adapter in a slot.", _MODEL)
ADAPTER_MISSES = TABLE.counter(
    "argosy_adapter_misses", "requests", "Requests that waited until their adapter was in a slot.", _MODEL
)
ADAPTER_EVICTIONS = TABLE.counter(
    "argosy_adapter_evictions", "adapters", "Adapters that left their slot for others.", _MODEL
)
ADAPTER_LOADS = TABLE.counter(
    "argosy_adapter_loads",
    "adapters",
    "Adapters that came or went; `result` is ready, failed or unloaded.",
    ("result",),
)
ADAPTER_LOAD_SECONDS = TABLE.histogram(
    "argosy_adapter_load_seconds", "seconds", "From acceptance to READY.", buckets=_FAST
).only

EMBEDDED_TEXTS = TABLE.counter("argosy_embedded_texts", "texts", "Texts embedded.", _MODEL)
EMBEDDED_TOKENS = TABLE.counter("argosy_embedded_tokens", "tokens", "Tokens embedded.", _MODEL)
EMBEDDING_WAITING = TABLE.gauge("argosy_embedding_waiting_texts", "texts", "Texts that wait to be embedded.").only
EMBEDDING_QUEUE_SECONDS = TABLE.histogram(
    "argosy_embedding_queue_seconds", "seconds", "From a call's texts to its first batch.", _MODEL, buckets=_FAST
)
EMBEDDING_SECONDS = TABLE.histogram(
    "argosy_embedding_batch_seconds", "seconds", "Computing a batch of texts.", _MODEL, buckets=_FAST
)
EMBEDDING_BATCH_TOKENS = TABLE.histogram(
    "argosy_embedding_batch_tokens",
    "tokens",
    "Tokens in a batch of texts.",
    _MODEL,
    buckets=(16, 64, 256, 1024, 2048, 4096, 8192, 16384),
)
EMBEDDING_BATCH_FILL = TABLE.histogram(
    "argosy_embedding_batch_fill", "ratio", "Tokens of a batch over those it may have.", _MODEL, buckets=_SHARES
)

TOKENIZED_TEXTS = TABLE.counter(
    "argosy_tokenized_texts",
    "texts",
    "Texts encoded, decoded or counted by the tokenization service.",
    _MODEL,
)
TOKENIZE_SECONDS = TABLE.histogram(
    "argosy_tokenize_seconds", "seconds", "Tokenizing one request, on its way to a model too.", _MODEL, buckets=_MICRO
)

AGENT_RUNS = TABLE.counter("argosy_agent_runs", "runs", "Agent runs that ended here.", ("outcome",))
AGENT_RUNS_RUNNING = TABLE.gauge("argosy_agent_runs_running", "runs", "Agent runs that are worked on.").only
AGENT_RUN_SECONDS = TABLE.histogram(
    "argosy_agent_run_seconds", "seconds", "Duration of agent runs, pauses aside.", ("outcome",), buckets=_LONG
)
AGENT_STEPS = TABLE.counter("argosy_agent_steps", "steps", "Steps of agent runs.").only
TOOL_CALLS = TABLE.counter("argosy_tool_calls", "calls", "Tool calls of agent runs.", ("tool", "result"))
TOOL_SECONDS = TABLE.histogram("argosy_tool_seconds", "seconds", "Duration of tool calls.", ("tool",), buckets=_FAST)
AGENT_BUDGET_STOPS = TABLE.counter(
    "argosy_agent_budget_stops",
    "runs",
    "Agent runs that a spent budget ended; `budget` is the part of it.",
    ("budget",),
)

_tenant_names: dict[str, str] = {}


def configure(settings: MetricsSettings) -> None:
    """Takes over whether to count, the bounds of labels and the names of tenants. Before anything is counted."""
    TABLE.limits.muted = not settings.enabled
    TABLE.limits.bounds |= {"adapter": settings.max_adapters, "tenant": settings.max_tenants}
    TABLE.limits.max_series = settings.max_series
    _tenant_names.clear()
    _tenant_names.update(settings.tenant_names)
    tenant_label.cache_clear()


@lru_cache(maxsize=4096)
def tenant_label(tenant: str) -> str:
    """How a tenant (`Call.tenant`) is called in labels: by its configured name, else by a digest.

    The digest is one of its own, so that a page of metrics does not tell what tenants are called inside the fleet.
    """
    if not tenant:
        return NO_TENANT
    digest = hashlib.blake2b(tenant.encode(), digest_size=4, person=b"argosy metrics").hexdigest()
    return _tenant_names.get(digest, digest)

"""The names of vLLM say what ours say."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from argosy_services import metrics
from argosy_services.metrics_page import registry
from argosy_services.vllm_names import ALIASES, AdaptersAtWork, watch_adapters

# Names and types of the metrics that vLLM's engine exports, as the Gateway API's inference extension, KEDA's recipes
# and vLLM's dashboards read them.
OF_VLLM = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:lora_requests_info": "gauge",
    "vllm:prompt_tokens": "counter",
    "vllm:generation_tokens": "counter",
    "vllm:prefix_cache_queries": "counter",
    "vllm:prefix_cache_hits": "counter",
    "vllm:num_preemptions": "counter",
    "vllm:request_success": "counter",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram",
    "vllm:iteration_tokens_total": "histogram",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:time_per_output_token_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_decode_time_seconds": "histogram",
}


def samples() -> dict[str, float]:
    """By name and labels, as they stand on the page."""
    page = generate_latest(registry(vllm_names=True)).decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_all_of_them_are_there_with_their_types() -> None:
    assert {alias.spec.name: alias.spec.kind for alias in ALIASES} == OF_VLLM


def test_they_say_what_ours_say(pretend: Callable[..., None]) -> None:
    pretend(metrics.SEQUENCES_RUNNING, "v", 4)
    pretend(metrics.SEQUENCES_WAITING, "v", 5)
    pretend(metrics.KV_BLOCKS_IN_USE, "v", 30)
    pretend(metrics.KV_BLOCKS_TOTAL, "v", 120)
    metrics.PROMPT_TOKENS.labels(model="v").inc(7)
    metrics.CACHED_PROMPT_TOKENS.labels(model="v").inc(3)
    metrics.GENERATED_TOKENS.labels(model="v").inc(11)
    metrics.SEQUENCES_FINISHED.labels(model="v", finish="cancelled").inc(2)
    metrics.TIME_TO_FIRST_TOKEN.labels(model="v").observe(0.3)
    watch_adapters("v", lambda: AdaptersAtWork(8, ("pirate", "poet"), ("cook",)))
    found = samples()
    labels = 'engine="0",model_name="v"'
    assert found[f"vllm:num_requests_running{{{labels}}}"] == 4
    assert found[f"vllm:num_requests_waiting{{{labels}}}"] == 5
    assert found[f"vllm:kv_cache_usage_perc{{{labels}}}"] == 0.25
    assert found[f"vllm:prompt_tokens_total{{{labels}}}"] == 10
    assert found[f"vllm:prefix_cache_hits_total{{{labels}}}"] == 3
    assert found[f"vllm:generation_tokens_total{{{labels}}}"] == 11
    assert found['vllm:request_success_total{engine="0",finished_reason="abort",model_name="v"}'] == 2
    assert found[f"vllm:time_to_first_token_seconds_count{{{labels}}}"] == 1
    lora = 'max_lora="8",running_lora_adapters="pirate,poet",waiting_lora_adapters="cook"'
    assert found[f"vllm:lora_requests_info{{{lora}}}"] > 1e9

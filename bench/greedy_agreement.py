"""Greedy answers of the torch engine beside transformers in float32: the share of equal tokens, by type of weights.

64 prompts run at once. Each of the engine's tokens is compared with the one that transformers, having read the prompt
and the engine's own tokens before it, finds likeliest; so one different token does not spoil the count of those after.

usage: python bench/greedy_agreement.py [DTYPE ...]    (float32, bfloat16)
"""

from __future__ import annotations

import sys
import threading
import time

import torch

from argosy_services.engine.base import Request, Sampling, StepOutput
from argosy_services.engine.factory import create_engine
from argosy_services.models.store import ModelStore
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings, Settings
from argosy_services.tokenization.backend import Tokenizer

PROMPTS, TOKENS = 64, 24


def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """64 prompts of 2 to 128 tokens."""
    topics = ("harbours", "the tides", "a small boat", "old maps", "trade winds", "lighthouses", "salt", "the moon")
    texts = [
        f"Chapter {index}. What sailors know about {topics[index % 8]} and {topics[(index * 3 + 1) % 8]} is this: " * 8
        for index in range(PROMPTS)
    ]
    return [tokenizer.encode(text)[: 2 + index * 2] for index, text in enumerate(texts)]


def answers(
    model: LocalModel, tokenizer: Tokenizer, dtype: str, asked: list[list[int]]
) -> tuple[list[list[int]], float]:
    """The engine's greedy answers to all prompts at once, and the seconds they took."""
    settings = GenerationSettings(dtype=dtype, kv_cache_tokens=16_384)  # type: ignore[arg-type]
    engine = create_engine(model, settings, tokenizer.json)
    told: dict[str, list[int]] = {str(index): [] for index in range(len(asked))}
    left = set(told)
    done = threading.Event()

    def on_step(outputs: list[StepOutput]) -> None:
        for output in outputs:
            told[output.request_id] += output.token_ids
            if output.finish is not None:
                left.discard(output.request_id)
        if not left:
            done.set()

    engine.start(on_step)
    started = time.perf_counter()
    for index, prompt in enumerate(asked):
        engine.submit(Request(str(index), prompt, TOKENS, Sampling(temperature=0.0)))
    done.wait()
    seconds = time.perf_counter() - started
    engine.close()
    return [told[str(index)] for index in range(len(asked))], seconds


@torch.inference_mode()
def agreement(reference: torch.nn.Module, asked: list[list[int]], told: list[list[int]]) -> tuple[int, int]:
    """Tokens that agree, and answers that agree as a whole."""
    tokens = whole = 0
    for prompt, answer in zip(asked, told, strict=True):
        logits = reference(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        equal = (logits.argmax(-1) == torch.tensor(answer)).sum().item()
        tokens += int(equal)
        whole += equal == len(answer)
    return tokens, whole


if __name__ == "__main__":
    from transformers import AutoModelForCausalLM

    store = ModelStore(Settings().models_dir)
    local = store.pull("smollm2-135m-instruct")
    words = Tokenizer.load(local)
    questions = prompts(words)
    truth = AutoModelForCausalLM.from_pretrained(local.path, dtype=torch.float32).eval()
    for kind in sys.argv[1:] or ["float32", "bfloat16"]:
        given, took = answers(local, words, kind, questions)
        same, complete = agreement(truth, questions, given)
        total = PROMPTS * TOKENS
        print(
            f"{kind}: {same} of {total} tokens equal ({same / total:.2%}), {complete} of {PROMPTS} answers equal as a "
            f"whole; {total / took:.0f} tokens a second, prefill included"
        )

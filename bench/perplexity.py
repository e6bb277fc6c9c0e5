"""Perplexity of a fixed text under different settings of the engine, through its own scoring of prompts.

usage: python bench/perplexity.py [--tokens N] [--reference] [SETTINGS ...]

SETTINGS are settings of `generation`, `dtype=bfloat16,quantization=int8`. The first line is always exact bfloat16; the
others are divided by it. --reference adds transformers in float32 on the same windows.

The text is Python's language reference as `pydoc_data` has it, so it is the same wherever Python is: read in windows of
1,024 tokens, of which all but the first are scored. A step has 512 rows, as in the prefill of a server; where small
batches are computed in another way, `max_step_tokens=16` shows what that costs.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import queue
import sys
import time
from pydoc_data.topics import topics

from argosy_services.engine.base import Request, StepOutput
from argosy_services.engine.factory import create_engine
from argosy_services.models.store import ModelStore
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings, Settings
from argosy_services.tokenization.backend import Tokenizer

WINDOW = 1_024
# At once, so that a step is full and the queue is not.
WAITING = 64


def windows(tokenizer: Tokenizer, tokens: int) -> list[list[int]]:
    """The text's first `tokens` token ids in windows of 1,024; what is left over is left out."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = tokenizer.encode(text)[:tokens]
    digest = hashlib.sha256(repr(ids).encode()).hexdigest()[:12]
    found = [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]
    print(f"{len(found)} windows of {WINDOW} tokens, digest {digest}")
    return found


def settings_of(text: str) -> GenerationSettings:
    """`name=value,name=value` as settings. Raises ValueError."""
    given = dict(pair.split("=", 1) for pair in text.split(","))
    return GenerationSettings.model_validate(given)


def exact() -> str:
    """Bfloat16 without quantization, where there is such a setting."""
    quantization = ",quantization=none" if "quantization" in GenerationSettings.model_fields else ""
    return f"dtype=bfloat16{quantization}"


def perplexity(model: LocalModel, tokenizer: Tokenizer, settings: GenerationSettings, asked: list[list[int]]) -> float:
    """Exp of the mean negative log-likelihood of a token, over all windows."""
    engine = create_engine(model, settings, tokenizer.json)
    steps: queue.SimpleQueue[list[StepOutput]] = queue.SimpleQueue()
    engine.start(steps.put)
    total, running = 0.0, 0
    try:
        left = list(enumerate(asked))
        while left or running:
            while left and running < WAITING:
                number, window = left.pop()
                engine.submit(Request(str(number), window, max_tokens=0, score_from=1))
                running += 1
            for output in steps.get():
                if output.error is not None:
                    raise output.error
                total -= math.fsum(token.logprob for token in output.logprobs)
                running -= output.finish is not None
    finally:
        engine.close()
    return math.exp(total / sum(len(window) - 1 for window in asked))


def reference(model: LocalModel, asked: list[list[int]]) -> float:
    """The same by transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32).eval()
    total = 0.0
    with torch.inference_mode():
        for window in asked:
            ids = torch.tensor([window])
            total += torch.nn.functional.cross_entropy(
                network(ids).logits[0, :-1].double(), ids[0, 1:], reduction="sum"
            ).item()
    return math.exp(total / sum(len(window) - 1 for window in asked))


def main() -> None:
    """Measures and prints a line for each of the settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="SETTINGS", help="such as dtype=float32")
    parser.add_argument("--tokens", type=int, default=65_536, help="length of the text (65,536)")
    parser.add_argument("--reference", action="store_true", help="add transformers in float32")
    options = parser.parse_args()
    model = ModelStore(Settings().models_dir).pull(Settings().generation.model)
    tokenizer = Tokenizer.load(model)
    asked = windows(tokenizer, options.tokens)
    print("| settings | perplexity | against exact bfloat16 | seconds |\n| --- | --- | --- | --- |")
    base = math.nan
    for text in (exact(), *options.settings):
        started = time.perf_counter()
        found = perplexity(model, tokenizer, settings_of(text), asked)
        base = found if math.isnan(base) else base
        print(f"| {text} | {found:.4f} | {found / base:.5f} | {time.perf_counter() - started:.0f} |", flush=True)
    if options.reference:
        found = reference(model, asked)
        print(f"| transformers, float32 | {found:.4f} | {found / base:.5f} | |")


if __name__ == "__main__":
    sys.exit(main())

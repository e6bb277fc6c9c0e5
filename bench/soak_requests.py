"""What `soak_engine.py` asks: requests that a seed and a number give, adapters, and what is wrong with an answer."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from structured import draw_schema, problem

import argosy

MODEL = "smollm2-135m-instruct"
KEYS = ("an-ordinary-key", "another-ordinary-key", "an-important-key")
ADAPTERS, LAYERS = 9, 30
SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (576, 192),
    "self_attn.v_proj": (576, 192),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (576, 1536),
    "mlp.up_proj": (576, 1536),
    "mlp.down_proj": (1536, 576),
}
REGEXES = ("[a-z]{3,12}", "(north|south)-[0-9]{1,4}", "[A-Z][a-z]{2,8}( [a-z]{2,8}){0,6}[.]", r"\d{4}-\d{2}-\d{2}")
CHOICES = ("port", "starboard", "full ahead", "full astern", "drop anchor")
STOPS = ("\n", ". ", " the", "an", ":", "ship")


def write_adapter(directory: Path, number: int) -> None:
    """A PEFT adapter of random rank, modules and weights."""
    random_, generator = random.Random(number), np.random.default_rng(number)
    rank = random_.choice((1, 2, 3, 4, 8, 12, 16, 24))
    modules = random_.sample(sorted(SHAPES), random_.randint(1, len(SHAPES)))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": MODEL,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [module.split(".")[1] for module in modules],
    }
    tensors: dict[str, np.ndarray] = {}
    for name, (inputs, outputs) in ((name, SHAPES[name]) for name in modules):
        for layer in range(LAYERS):
            path = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{path}.lora_A.weight"] = generator.standard_normal((rank, inputs), np.float32) / inputs**0.5
            tensors[f"{path}.lora_B.weight"] = generator.standard_normal((outputs, rank), np.float32) * 0.02
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: `items` to be scored, or else `prompt` to be continued."""

    number: int
    prompt: str | list[int] | list[dict[str, str]]
    options: dict[str, Any]
    items: list[tuple[list[int], list[int]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Requests:
    """All requests of a seed, made of pieces of a text and of its token ids."""

    seed: int
    text: str
    ids: list[int]

    def draw(self, number: int) -> Request:
        """The request with this number; always the same one."""
        random_ = random.Random(f"{self.seed} {number}")
        adapter = f"adapter-{random_.randrange(ADAPTERS)}" if random_.random() < 0.4 else ""
        if random_.random() < 0.06:
            items = [(self._tokens(random_, 300), self._tokens(random_, 40)) for _ in range(random_.randint(1, 6))]
            return Request(number, "", {"adapter": adapter}, items)
        at = random_.randrange(len(self.text) - 400)
        piece = self.text[at : at + random_.randint(1, 400)]
        ids = self._tokens(random_, 1_500)
        prompt = random_.choice((ids, ids, piece, [{"role": "user", "content": piece}]))
        return Request(number, prompt, {"adapter": adapter, **_options(random_)})

    def _tokens(self, random_: random.Random, most: int) -> list[int]:
        length = random_.randint(1, most) if random_.random() < 0.4 else int(most ** random_.random())
        # Few beginnings, so that many prompts share theirs.
        first = random_.choice((0, 500, 1_000)) if random_.random() < 0.5 else random_.randrange(len(self.ids) - most)
        shared = random_.randint(0, length)
        own = random_.randrange(len(self.ids) - most)
        return self.ids[first : first + shared] + self.ids[own : own + length - shared]


@dataclass(frozen=True, slots=True)
class Manner:
    """How a request is made: by which key, with which `priority` and `timeout`, and for how long its caller waits."""

    key: int
    standing: dict[str, Any]
    streams: bool
    cancel_s: float | None

    @classmethod
    def draw(cls, random_: random.Random) -> Manner:
        """Most callers have patience."""
        key = random_.randrange(len(KEYS))
        standing: dict[str, Any] = {"priority": random_.randint(-2, 2 if key == len(KEYS) - 1 else 0)}
        if random_.random() < 0.08:
            standing["timeout"] = random_.uniform(0.01, 4.0)
        cancel_s = random_.expovariate(0.5) if random_.random() < 0.15 else None
        return cls(key, standing, random_.random() < 0.5, cancel_s)

    def expected(self, request: Request) -> set[str]:
        """The reasons for which it may fail."""
        late = {"DEADLINE_EXCEEDED"} if "timeout" in self.standing else set()
        left = {"ADAPTER_NOT_FOUND", "ADAPTER_NOT_READY"} if request.options["adapter"] else set()
        return {"QUEUE_FULL"} | late | left


def _options(random_: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"max_tokens": int(200 ** random_.random()), "temperature": 0.0}
    chances = iter([random_.random() for _ in range(12)])
    if next(chances) < 0.5:
        options |= {"temperature": random_.uniform(0.2, 1.5), "seed": random_.getrandbits(64)}
        options |= random_.choice(({}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.05}, {"top_k": 5, "top_p": 0.7}))
    if next(chances) < 0.15:
        options |= {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.3}
    if next(chances) < 0.1:
        options["logit_bias"] = {random_.randrange(49_152): random_.uniform(-20, 5) for _ in range(9)}
    if next(chances) < 0.2:
        options["logprobs"] = random_.randint(0, 5)
    if next(chances) < 0.12:
        options["n"] = random_.randint(2, 4)
    if next(chances) < 0.3:
        form = {"json_schema": draw_schema(random_, 2), "regex": random_.choice(REGEXES), "choice": list(CHOICES)}
        name = random_.choice(list(form))
        return options | {name: form[name]}
    if next(chances) < 0.25:
        options["stop"] = random_.sample(STOPS, 2)
    if next(chances) < 0.3:
        options["ignore_eos"] = True
    if next(chances) < 0.2:
        options["min_tokens"] = random_.randint(0, options["max_tokens"])
    return options


def faults(request: Request, answer: argosy.Generation) -> Iterator[str]:
    """What is wrong with an answer's form."""
    options = request.options
    if [choice.index for choice in answer.choices] != list(range(options.get("n", 1))):
        yield "the choices are not those that were asked for"
    if answer.usage.completion_tokens != sum(len(choice.token_ids) for choice in answer.choices):
        yield "the usage counts other tokens than there are"
    for choice in answer.choices:
        count, stopped = len(choice.token_ids), choice.finish_reason is argosy.FinishReason.STOP
        if count > options["max_tokens"] or (count < options["max_tokens"] and not stopped):
            yield f"{choice.finish_reason} after {count} tokens"
        if any(stop in choice.text for stop in options.get("stop", ())):
            yield f"a stop string in {choice.text!r}"
        wanted = options.get("logprobs")
        if len(choice.logprobs) != (0 if wanted is None else count):
            yield f"{len(choice.logprobs)} log-probabilities for {count} tokens"
        for token_id, given in zip(choice.token_ids, choice.logprobs, strict=False):
            if (
                given.chosen.token_id != token_id
                or len(given.top) != wanted
                or not -math.inf < given.chosen.logprob <= 0
            ):
                yield f"log-probabilities {given} for token {token_id}"
        if "json_schema" in options and stopped and (found := problem(choice.text, options["json_schema"])):
            yield f"{found}: {choice.text!r}"
        if "regex" in options and stopped and not re.fullmatch(options["regex"], choice.text):
            yield f"{options['regex']} is not {choice.text!r}"
        if "choice" in options and stopped and choice.text not in options["choice"]:
            yield f"no choice: {choice.text!r}"


def differences(before: Iterable[Any], after: Iterable[Any]) -> Iterator[str]:
    """Where two answers to one request differ: choices, or scores. Log-probabilities are rounded: they are sums over
    the vocabulary, whose order depends on how many rows there are."""
    for old, new in zip(before, after, strict=True):
        for name in old.__dataclass_fields__:
            pairs = list(zip_longest(_flat(getattr(old, name)), _flat(getattr(new, name))))
            wrong = next((at for at, pair in enumerate(pairs) if not _alike(*pair)), None)
            if wrong is not None:
                yield f"{name} differs at {wrong} of {len(pairs)}: {pairs[wrong]}"


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for part in value:
            yield from _flat(part)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _flat(getattr(value, name))
    else:
        yield value


def _alike(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, abs_tol=1e-3)
    return old == new

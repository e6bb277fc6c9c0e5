"""Work for all five services at once, with everything in it that shows on a dashboard: errors, queues, cancelling."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file

import argosy

# One for each tenant; they open the server of one test.
KEYS = ("harbour-office-key", "lighthouse-crew-key")
GOOD, BROKEN = "good", "broken"
# One more than the slots of the fleet.
ADAPTERS = ("ships-log", "cook-book", "night-watch")
_QUESTION = "You are the log of a ship under sail. Answer in the words of a sailor, and do not hurry. " * 3


def write_adapters(root: Path) -> None:
    """An adapter that loads and one that does not, below `root`."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(30):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj."
        tensors[name + "lora_A.weight"] = torch.randn(4, 576, generator=generator) * 0.02
        tensors[name + "lora_B.weight"] = torch.randn(576, 4, generator=generator) * 0.02
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "smollm2-135m-instruct",
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    for name in (GOOD, BROKEN):
        directory = root / name
        directory.mkdir(parents=True)
        (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, root / GOOD / "adapter_model.safetensors")
    (root / BROKEN / "adapter_model.safetensors").write_bytes(b"this is no safetensors file")


def run_load(address: str, adapters: Path, seconds: float) -> None:
    """Calls every service for so many seconds. Raises what a caller did not expect."""
    end = time.monotonic() + seconds
    with (
        argosy.Client(address, api_key=KEYS[0], timeout=60) as first,
        argosy.Client(address, api_key=KEYS[1], timeout=60) as second,
    ):
        for name in ADAPTERS:
            first.adapters.load(name, adapters / GOOD)
        # Before the crowd comes, which has some of it refused; twice, for a counter that begins has not grown yet.
        for _ in range(2):
            for steps in (1, 8):
                budget = argosy.AgentBudget(max_steps=steps)
                first.agents.run("What is 17 * 23 + 4?", tools=["calculator"], temperature=0.0, budget=budget).result()
            for name in ADAPTERS:
                second.generation.generate("Anchors", adapter=name, max_tokens=4)
            time.sleep(1.5)
        work: list[Callable[[random.Random], object]] = [
            *[lambda dice, client=client: _talk(client, dice) for client in (first, first, second) for _ in range(6)],
            lambda dice: _talk(second, dice, adapter=dice.choice(ADAPTERS)),
            lambda dice: _go_away(first, dice),
            lambda _: _ask_wrongly(second),
            lambda dice: second.embeddings.embed(["a ship " * dice.randint(1, 60) for _ in range(dice.randint(1, 24))]),
            lambda dice: first.tokenization.encode_batch(["Anchors aweigh " * dice.randint(1, 40)] * 8),
            lambda dice: _run_agent(first, dice),
            lambda dice: _change_adapters(first, adapters, dice),
        ]
        with ThreadPoolExecutor(len(work)) as pool:
            runs = [pool.submit(_repeat, one, end, seed) for seed, one in enumerate(work)]
        for run in runs:
            run.result()


def _repeat(work: Callable[[random.Random], object], end: float, seed: int) -> None:
    dice = random.Random(seed)
    while time.monotonic() < end:
        try:
            work(dice)
        except argosy.ResourceExhaustedError:
            time.sleep(0.2)
        time.sleep(dice.uniform(0.02, 0.3))


def _talk(client: argosy.Client, dice: random.Random, adapter: str = "") -> None:
    prompt = _QUESTION + f"Tell of day {dice.randint(1, 500)}: one, two, three, four, one, two, three, four, one, two"
    client.generation.generate(prompt, max_tokens=dice.randint(8, 160), adapter=adapter, temperature=0.0)


def _go_away(client: argosy.Client, dice: random.Random) -> None:
    with client.generation.stream(_QUESTION, max_tokens=200, temperature=0.0) as stream:
        for count, _ in enumerate(stream.text()):
            if count > dice.randint(1, 6):
                return


def _ask_wrongly(client: argosy.Client) -> None:
    try:
        client.generation.generate("hello", max_tokens=8, adapter="no-such-adapter")
    except argosy.NotFoundError:
        time.sleep(0.3)


def _run_agent(client: argosy.Client, dice: random.Random) -> None:
    budget = argosy.AgentBudget(max_steps=dice.randint(1, 3), max_tokens=400)
    for _ in client.agents.run(
        f"What is {dice.randint(2, 99)} * {dice.randint(2, 99)}?", tools=["calculator"], budget=budget
    ):
        pass


def _change_adapters(client: argosy.Client, adapters: Path, dice: random.Random) -> None:
    name = f"visitor-{dice.randint(1, 3)}"
    client.adapters.load(name, adapters / GOOD)
    try:
        client.adapters.load("wreck", adapters / BROKEN)
    except argosy.AdapterInvalidError:
        client.adapters.unload("wreck")
    client.adapters.unload(name)

"""Random loads, unloads, flips and evictions while 32 streams run on changing adapters: every answer is compared with
what PEFT gives, in float32, for the version that the answer reports.

    python bench/adapter_churn.py [operations, 1000]
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from adapters import fleet
from peft import PeftModel
from soak_requests import MODEL, write_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

import argosy
from argosy_services import logs
from argosy_services.models.store import ModelStore
from argosy_services.settings import Settings

STREAMS, SLOTS, ADAPTERS, STABLE, TOKENS = 32, 4, 12, 3, 8
PROMPTS = ("The harbour at night is", "Once upon a time there was a", "To make good bread you need", "The answer is")
ALIASES = ("ship@prod", "ship@canary")
# What a request may meet that names an adapter which comes and goes.
GONE = (argosy.AdapterNotFoundError, argosy.AdapterNotReadyError)


class References:
    """What PEFT answers, by version and prompt."""

    def __init__(self, model: Path, roots: Path) -> None:
        self.tokens: dict[tuple[str, str], tuple[int, ...]] = {}
        tokenizer = AutoTokenizer.from_pretrained(model)
        for number in range(ADAPTERS):
            base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
            tuned = PeftModel.from_pretrained(base, roots / str(number)).eval()
            for prompt in PROMPTS:
                ids = tokenizer(prompt, return_tensors="pt").input_ids
                with torch.inference_mode():
                    out = tuned.generate(input_ids=ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
                self.tokens[str(number), prompt] = tuple(out[0, ids.shape[1] :].tolist())


class Churn:
    """The operations and the streams beside them."""

    def __init__(self, client: argosy.AsyncClient, roots: Path, references: References, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.refused: list[str] = []
        self._client = client
        self._roots = roots
        self._references = references
        self._random = random.Random(seed)
        self._numbers: dict[str, str] = {}
        self._over = False

    async def prepare(self) -> None:
        """Loads the adapters that stay, and those that aliases begin with."""
        for number in range(STABLE):
            await self._load(number)
        for alias in ALIASES:
            await self._client.adapters.set_alias(alias, {"0": 1})

    async def run(self, operations: int) -> None:
        """All operations one after another, and the streams until they are over."""
        streams = [asyncio.create_task(self._stream(number)) for number in range(STREAMS)]
        for _ in range(operations):
            await self._operate()
            await asyncio.sleep(self._random.random() * 0.05)
        self._over = True
        await asyncio.gather(*streams)

    async def _load(self, number: int) -> None:
        adapter = await self._client.adapters.load(str(number), self._roots / str(number))
        self._numbers[adapter.version] = str(number)

    async def _operate(self) -> None:
        what = self._random.choice(("load", "load", "unload", "flip", "roll back"))
        number, alias = self._random.randrange(STABLE, ADAPTERS), self._random.choice(ALIASES)
        try:
            if what == "load":
                await self._load(number)
            elif what == "unload":
                await self._client.adapters.unload(str(number), drain_timeout=self._random.choice((0.0, 0.2, 10.0)))
            elif what == "flip":
                targets = self._random.sample(range(STABLE), self._random.randint(1, STABLE))
                weights = {str(each): self._random.randint(1, 9) for each in targets}
                await self._client.adapters.set_alias(alias, weights)
            else:
                await self._client.adapters.rollback_alias(alias)
        except (*GONE, argosy.NothingToRollBackError):
            what += " of nothing"
        self.done[what] += 1

    async def _stream(self, seed: int) -> None:
        choice = random.Random(seed)
        while not self._over:
            stable = choice.random() < 0.5
            lasting = (*ALIASES, *map(str, range(STABLE)))
            name = choice.choice(lasting) if stable else str(choice.randrange(STABLE, ADAPTERS))
            prompt = choice.choice(PROMPTS)
            options: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True, "adapter": name}
            try:
                answer = await self._client.generation.stream(prompt, **options).result()
            except GONE as error:
                if stable:
                    self.refused.append(f"{name}: {error}")
                self.answers["of an adapter that was not there"] += 1
                await asyncio.sleep(0.02)
                continue
            except argosy.ArgosyError as error:
                self.refused.append(f"{name}: {type(error).__name__}: {error}")
                continue
            number = self._numbers.get(answer.origin.adapter_version, answer.origin.adapter)
            self.answers["compared"] += 1
            if answer.choices[0].token_ids != self._references.tokens[number, prompt]:
                self.wrong.append(f"{name} answered by {number}: {answer.choices[0].token_ids}")


async def main(operations: int) -> None:
    warnings.simplefilter("ignore")
    logs.configure("error", "json")
    model = ModelStore(Settings().models_dir).get(MODEL).path
    with tempfile.TemporaryDirectory() as directory:
        roots = Path(directory)
        for number in range(ADAPTERS):
            write_adapter(roots / str(number), number)
        references = await asyncio.to_thread(References, model, roots)
        own = {"dtype": "float32", "kv_cache_tokens": 16_384, "max_adapters": SLOTS}
        async with fleet(roots, **own) as (client, served, _):
            churn = Churn(client, roots, references, seed=3)
            await churn.prepare()
            started = time.monotonic()
            await churn.run(operations)
            took = time.monotonic() - started
            for alias in ALIASES:
                await client.adapters.delete_alias(alias)
            async for adapter in client.adapters.list():
                await client.adapters.unload(adapter.name, drain_timeout=0.0)
            tiers, stats = served.tiers, served.engine.stats()
            left = {
                "slots": stats.adapters,
                "blocks": stats.kv_blocks_in_use,
                "sequences": stats.running + stats.waiting,
                "leases": sum([adapter.active_leases async for adapter in client.adapters.list()]),
                "bytes in memory": tiers.in_memory_bytes,
                "adapters in any tier": len(tiers.keys),
            }
    print(f"{sum(churn.done.values())} operations in {took:.0f} s: {dict(churn.done)}")
    print(f"answers: {dict(churn.answers)}; wrong: {len(churn.wrong)}; refused without reason: {len(churn.refused)}")
    print(f"slots: {vars_of(tiers.counts)}; left in use: {left}")
    for each in (*churn.wrong[:5], *churn.refused[:5]):
        print(each)
    sys.exit(bool(churn.wrong or churn.refused or any(left.values())))


def vars_of(counts: Any) -> dict[str, int]:
    """The counts of a dataclass with slots."""
    return {name: getattr(counts, name) for name in ("hits", "misses", "evictions")}


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000))

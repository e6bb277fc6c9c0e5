"""Answers under JSON schemas that are drawn at random: does each parse, and is it valid?

    python bench/structured.py [answers] [seed]     200 and 0 unless given

All go to one server at once, 32 at a time, at temperature 1, where a small model left to itself writes hardly any
JSON. Exit code 1 unless every answer is valid.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

import jsonschema

import argosy
from argosy_services.settings import Settings
from argosy_services.testing import run_test_server_in_thread

CALLERS, MOST_TOKENS = 32, 1_500
SUBJECTS = ("a ship", "a harbour", "a sailor", "a lighthouse", "a cargo", "a voyage")
NAMES = ("name", "size", "kind", "flag", "crew", "route", "tags", "since", "open", "notes")


def draw_schema(random_: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema whose answers are all of limited length."""
    simple = [
        lambda: {"type": "string", "maxLength": random_.randint(1, 16)},
        lambda: {"type": "string", "pattern": random_.choice(["^[A-Z]{2}[0-9]{3}$", "^(north|south)-[a-z]{1,4}$"])},
        # No dates: that format has a year 0, which the validator does not.
        lambda: {"type": "string", "format": random_.choice(["ipv4", "uuid"])},
        lambda: {"type": "integer", "minimum": random_.randint(-50, 0), "maximum": random_.randint(1, 10**6)},
        lambda: {"type": "boolean"},
        lambda: {"enum": random_.sample(["red", "green", 3, None, True, 'ü"\\'], random_.randint(1, 4))},
        lambda: {"const": random_.choice([{"fixed": [1, 2]}, "only this", 0])},
    ]
    nested = [
        lambda: _object(random_, depth),
        lambda: {
            "type": "array",
            "items": draw_schema(random_, depth - 1),
            "minItems": random_.randint(0, 1),
            "maxItems": random_.randint(1, 3),
        },
        lambda: {"anyOf": [draw_schema(random_, depth - 1) for _ in range(2)]},
    ]
    return random_.choice(simple if depth <= 0 else nested + simple[:2])()


def _object(random_: random.Random, depth: int) -> dict[str, Any]:
    names = random_.sample(NAMES, random_.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: draw_schema(random_, depth - 1) for name in names},
        "required": [name for name in names if random_.random() < 0.7],
        "additionalProperties": False,
    }


def problem(text: str, schema: dict[str, Any]) -> str | None:
    """What is wrong with an answer; None where nothing is."""
    try:
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error).splitlines()[0]
    return None


async def answer(client: argosy.AsyncClient, number: int, schema: dict[str, Any]) -> tuple[str | None, int]:
    """What is wrong with one answer, and how many tokens it has."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    answered = await client.generation.generate(
        f"Describe {subject} as JSON, number {number}: ",
        json_schema=schema,
        max_tokens=MOST_TOKENS,
        temperature=1.0,
        seed=number,
    )
    choice = answered.choices[0]
    return problem(choice.text, schema), len(choice.token_ids)


async def ask_all(address: str, schemas: list[dict[str, Any]]) -> list[tuple[str | None, int]]:
    """The answers under all schemas."""
    places = asyncio.Semaphore(CALLERS)
    async with argosy.AsyncClient(address, timeout=600) as client:

        async def one(number: int) -> tuple[str | None, int]:
            async with places:
                return await answer(client, number, schemas[number])

        return await asyncio.gather(*map(one, range(len(schemas))))


def main(answers: int = 200, seed: int = 0) -> int:
    """Runs it and prints what it found."""
    random_ = random.Random(seed)
    schemas = [draw_schema(random_) for _ in range(answers)]
    with run_test_server_in_thread(Settings(log_level="warning")) as server:
        started = time.perf_counter()
        results = asyncio.run(ask_all(server.address, schemas))
        seconds = time.perf_counter() - started
    wrong = [(number, found) for number, (found, _) in enumerate(results) if found is not None]
    for number, found in wrong:
        print(f"{number}: {found}\n  {json.dumps(schemas[number])}")
    tokens = sum(count for _, count in results)
    print(f"{answers - len(wrong)} of {answers} answers parse and are valid; {tokens} tokens in {seconds:.1f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

"""Agents on the bundled model: do calls parse, are they right, and how far do the strategies get?

    python bench/agents.py calls [tasks]         200 unless given; needs the package bfcl-eval
    python bench/agents.py arithmetic [tasks]    100 unless given; needs the package reasoning-gym

`calls`: tasks of the Berkeley Function-Calling Leaderboard (Patil et al., 2025), half "simple" and half "multiple",
once under the tools' schemas and once with the same prompt and nothing enforced. `arithmetic`: word problems, by
strategy. Both are greedy, except for votes. A call counts as right where the name and all arguments are among the
answers of the set.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

import argosy
from argosy import FunctionTool, ToolEffect
from argosy_services import logs
from argosy_services.agents.prompt import load_texts
from argosy_services.settings import Settings
from argosy_services.testing import run_test_server_in_thread

CALLERS = 8
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def schema_of(node: Any) -> Any:
    """A JSON schema of what the set writes in the types of Python."""
    if isinstance(node, list):
        return [schema_of(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: schema_of(value) for key, value in node.items() if key not in ("default", "optional")}
    if isinstance(made.get("type"), str):
        made["type"] = _TYPES.get(made["type"], made["type"])
        if made["type"] == "any":
            del made["type"]
        if made.get("type") == "object" and "properties" in made:
            made["additionalProperties"] = False
    return made


def function_tasks(count: int) -> list[tuple[str, list[FunctionTool], list[dict[str, Any]]]]:
    """Task, tools and right answers."""
    tasks: list[tuple[str, list[FunctionTool], list[dict[str, Any]]]] = []
    for name in ("simple_python", "multiple"):
        data = files("bfcl_eval").joinpath("data")
        lines = data.joinpath(f"BFCL_v4_{name}.json").read_text(encoding="utf-8").splitlines()
        right = data.joinpath("possible_answer", f"BFCL_v4_{name}.json").read_text(encoding="utf-8").splitlines()
        for line, answers in list(zip(lines, right, strict=True))[: count // 2]:
            task = json.loads(line)
            tools = [
                FunctionTool(one["name"], one["description"], schema_of(one["parameters"]), ToolEffect.READ, print)
                for one in task["function"]
            ]
            tasks.append((task["question"][0][-1]["content"], tools, json.loads(answers)["ground_truth"]))
    return tasks


def constrained(client: argosy.Client, task: str, tools: Sequence[FunctionTool]) -> tuple[str, Any] | None:
    """The first call of a run."""
    budget = argosy.AgentBudget(max_steps=2, max_tokens=1_000, max_tool_calls=1)
    with client.agents.run(task, tools=tools, strategy="tool_calling", tool_required=True, budget=budget) as run:
        for event in run:
            if isinstance(event, argosy.ToolRequested):
                return event.tool, dict(event.arguments)
    return None


def free(client: argosy.Client, task: str, tools: Sequence[FunctionTool]) -> tuple[str, Any] | None:
    """The first call in what the model writes for the same prompt."""
    texts = load_texts("tool_calling")
    listed = "\n".join(
        json.dumps({"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)})
        for tool in tools
    )
    messages = [
        {"role": "system", "content": texts["system"] + texts["tools"].replace("{tools}", listed)},
        {"role": "user", "content": task},
    ]
    text = client.generation.generate(messages, max_tokens=400, temperature=0.0).text
    found = re.search(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", text, re.DOTALL)
    try:
        call = json.loads(found[1] if found else text)
        return str(call["name"]), call["arguments"]
    except (ValueError, KeyError, TypeError):
        return None


def is_valid(call: tuple[str, Any] | None, tools: Sequence[FunctionTool]) -> bool:
    """Whether a call is one of a tool that was offered, with arguments that its schema allows."""
    schemas = {tool.name: tool.parameters for tool in tools}
    return call is not None and call[0] in schemas and Draft202012Validator(schemas[call[0]]).is_valid(call[1])


def is_right(call: tuple[str, Any] | None, truths: Sequence[dict[str, Any]]) -> bool:
    """Whether name and arguments are among the right ones."""
    truth = truths[0].get(call[0]) if call is not None else None
    if truth is None or call is None or not isinstance(call[1], dict) or not set(call[1]) <= set(truth):
        return False
    return all(_essence(call[1].get(name, "")) in map(_essence, allowed) for name, allowed in truth.items())


def _essence(value: Any) -> str:
    if isinstance(value, str):
        return re.sub(r"[ ,./\-_*^'\"]", "", value).lower()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{float(value):g}"
    return json.dumps(value, sort_keys=True).lower()


def calls(client: argosy.Client, count: int) -> bool:
    """Prints a table; whether every constrained call was valid."""
    tasks = function_tasks(count)
    print("|  | parses and validates | name | name and arguments | s |\n| --- | --- | --- | --- | --- |")
    ways: dict[str, Callable[..., tuple[str, Any] | None]] = {"under the schema": constrained, "unconstrained": free}
    valid: dict[str, int] = {}
    for name, way in ways.items():
        start = time.monotonic()
        with ThreadPoolExecutor(CALLERS) as pool:
            made = list(pool.map(lambda task, way=way: way(client, task[0], task[1]), tasks))
        took = time.monotonic() - start
        valid[name] = sum(is_valid(call, task[1]) for call, task in zip(made, tasks, strict=True))
        named = sum(call is not None and call[0] in task[2][0] for call, task in zip(made, tasks, strict=True))
        right = sum(is_right(call, task[2]) for call, task in zip(made, tasks, strict=True))
        print(f"| {name} | {valid[name]}/{len(tasks)} | {named} | {right} | {took:.0f} |", flush=True)
    return valid["under the schema"] == len(tasks)


def arithmetic(client: argosy.Client, count: int) -> bool:
    """Prints a table of strategies."""
    import reasoning_gym

    tasks = [(entry["question"], entry["answer"]) for entry in _word_tasks(reasoning_gym, count)]
    ways: dict[str, dict[str, Any]] = {
        "direct": {"strategy": "direct"},
        "chain of thought": {"strategy": "chain_of_thought"},
        "self-consistency, 5 votes": {"strategy": "chain_of_thought", "votes": 5, "seed": 1},
        "tool calling": {"strategy": "tool_calling", "tools": ["calculator"], "tool_required": True},
        "ReAct": {"strategy": "react", "tools": ["calculator"]},
    }
    print("| strategy | right | of | completion tokens | s |\n| --- | --- | --- | --- | --- |")
    for name, options in ways.items():
        start = time.monotonic()
        with ThreadPoolExecutor(CALLERS) as pool:
            given = list(pool.map(lambda task, options=options: _solve(client, task[0], options), tasks))
        right = sum(_is_answer(answer, truth) for (answer, _), (_, truth) in zip(given, tasks, strict=True))
        tokens = sum(tokens for _, tokens in given)
        print(f"| {name} | {right} | {len(tasks)} | {tokens} | {time.monotonic() - start:.0f} |", flush=True)
    return True


def _word_tasks(reasoning_gym: Any, count: int) -> Any:
    return reasoning_gym.create_dataset(
        "basic_arithmetic",
        size=count,
        seed=7,
        min_terms=2,
        max_terms=3,
        min_digits=1,
        max_digits=3,
        format_style="natural",
    )


def _solve(client: argosy.Client, task: str, options: dict[str, Any]) -> tuple[str, int]:
    budget = argosy.AgentBudget(max_steps=4, max_tokens=1_600, max_duration=600)
    run = client.agents.run(task, budget=budget, **options)
    answer = run.result() or ""
    return answer, run.finished.usage.completion_tokens if run.finished is not None else 0


def _is_answer(answer: str, truth: str) -> bool:
    numbers = [number.replace(",", "").rstrip(".") for number in _NUMBER.findall(answer)]
    return bool(numbers) and float(numbers[-1]) == float(truth)


def main() -> int:
    """Runs what the first argument names."""
    what = {"calls": (calls, 200), "arithmetic": (arithmetic, 100)}
    if len(sys.argv) < 2 or sys.argv[1] not in what:
        print(__doc__)
        return 2
    measure, count = what[sys.argv[1]]
    logs.configure("error", "json")
    settings = Settings(log_level="error", agents={"max_running": 64})  # type: ignore[arg-type]
    with run_test_server_in_thread(settings) as running, argosy.Client(running.address, timeout=3_600) as client:
        return 0 if measure(client, int(sys.argv[2]) if len(sys.argv) > 2 else count) else 1


if __name__ == "__main__":
    sys.exit(main())

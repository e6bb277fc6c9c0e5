"""Encode through gRPC against `tokenizers.encode_batch` in process, both in one run: 64 texts of 1 kB a call.

    python bench/tokenization.py [rounds] [calls]

Each round makes that many calls on each side, one after another; both give their caller the ids of every text. The
tokenizer is that of the default generation model, from the file that the server serves.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import tokenizers
from serving import ratio, rounds, served, texts_of

import argosy
from argosy_services.settings import default_data_dir

MODELS = ("smollm2-135m-instruct", "all-minilm-l6-v2")
TEXTS = 64
TEXT_BYTES = 1000


def batches(calls: int) -> list[list[str]]:
    """Other texts for each call, so that nobody answers from a cache."""
    words = texts_of(default_data_dir() / "models" / MODELS[1], range(300, 301), calls * TEXTS)
    texts = [text[:TEXT_BYTES] for text in words]
    return [texts[first : first + TEXTS] for first in range(0, len(texts), TEXTS)]


def library(client: argosy.Client, model: str) -> tokenizers.Tokenizer:
    """The tokenizer that the server uses."""
    with tempfile.TemporaryDirectory() as directory:
        client.tokenization.download_tokenizer(directory, model=model)
        return tokenizers.Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))


def main(count: int, calls: int) -> None:
    """Measures and prints."""
    given = batches(calls)
    print("| tokenizer | Argosy through gRPC | tokenizers.encode_batch | ratio |\n| --- | --- | --- | --- |")
    with served() as client:
        for model in MODELS:
            peer = library(client, model)

            def remote(texts: list[str], model: str = model) -> list[tuple[int, ...]]:
                return [encoding.ids for encoding in client.tokenization.encode_batch(texts, model=model)]

            def local(texts: list[str], peer: tokenizers.Tokenizer = peer) -> list[tuple[int, ...]]:
                return [tuple(encoding.ids) for encoding in peer.encode_batch(texts)]

            if remote(given[0]) != local(given[0]):
                raise RuntimeError(f"the ids of {model} differ")
            sides: dict[str, Callable[[], object]] = {
                "Argosy": lambda remote=remote: [remote(texts) for texts in given],
                "tokenizers": lambda local=local: [local(texts) for texts in given],
            }
            seconds = rounds(count, sides)
            rates = {name: calls * TEXTS / statistics.median(values) for name, values in seconds.items()}
            cells = " | ".join(f"{rate:,.0f} texts/s" for rate in rates.values())
            print(f"| {model} | {cells} | {ratio(seconds['Argosy'], seconds['tokenizers']):.2f} |", flush=True)


if __name__ == "__main__":
    arguments = [int(value) for value in sys.argv[1:]]
    main(*arguments, *(9, 20)[len(arguments) :])

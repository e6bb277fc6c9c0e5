"""all-MiniLM-L6-v2 on onnxruntime, the peer of `embeddings.py`. It runs in an environment of its own:

    python bench/onnx_embedder.py MODEL.onnx TOKENIZER.json TEXTS.json VECTORS.npy BATCH

Each line on standard input has it embed all texts, answer with a line, and write the vectors. Texts are
sorted by length, and padded within their batch of BATCH texts only.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers


class Embedder:
    """Texts to vectors of length 1, float32 [texts, 384]."""

    def __init__(self, model: str, tokenizer: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._tokenizer = tokenizers.Tokenizer.from_file(tokenizer)
        self._tokenizer.enable_truncation(256)
        self._tokenizer.no_padding()

    def __call__(self, texts: list[str], batch: int) -> np.ndarray:
        """The vectors, computed in batches of `batch` texts of similar length."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        vectors = np.empty((len(ids), 384), np.float32)
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            vectors[places] = self._embed([ids[place] for place in places])
        return vectors

    def _embed(self, batch: list[list[int]]) -> np.ndarray:
        width = max(map(len, batch))
        ids = np.zeros((len(batch), width), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (states, *_) = self._session.run(None, given)
        pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def main(model: str, tokenizer: str, texts_file: str, vectors_file: str, batch: int) -> None:
    """Answers until standard input ends."""
    embedder, texts = Embedder(model, tokenizer), json.loads(Path(texts_file).read_text())
    embedder(texts[:64], batch)
    print("ready", flush=True)
    for _ in sys.stdin:
        vectors = embedder(texts, batch)
        print("done", flush=True)
        np.save(vectors_file, vectors)


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))

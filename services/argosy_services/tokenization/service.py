"""Tokenization for callers: limits, choice of the model, and work off the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argosy_services import metrics, tracing
from argosy_services.errors import model_not_found
from argosy_services.rpc import validate
from argosy_services.tokenization.backend import Tokenizer
from argosy_services.tokenization.portions import portions
from argosy_services.tokenization.types import Chat, Encoding, FileStart, TokenizerInfo, TruncationSide

T = TypeVar("T")
S = TypeVar("S", bound=Sequence[object])

MAX_INPUTS = 4096
MAX_TEXT_BYTES = 4 << 20
CHUNK_BYTES = 256 << 10

# One batch is spread over all cores already: several threads only let short calls overtake long ones.
_THREADS = 4


class TokenizationService:
    """Tokenizers by model name. Its coroutines belong on one event loop; the work is done on its own threads."""

    def __init__(self, tokenizers: Sequence[Tokenizer], default: str) -> None:
        """`default` is the model of requests that name none; it is one of `tokenizers`."""
        self._tokenizers = {tokenizer.model: tokenizer for tokenizer in tokenizers}
        if default not in self._tokenizers:
            raise model_not_found(default, sorted(self._tokenizers))
        self._default = default
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenization")

    def close(self) -> None:
        """Ends the threads; calls that wait are cancelled."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def info(self, model: str) -> TokenizerInfo:
        """One tokenizer, the default one for an empty name. Raises MODEL_NOT_FOUND."""
        return self._tokenizer(model).info

    async def encode(
        self,
        model: str,
        texts: Sequence[str],
        *,
        add_special_tokens: bool = True,
        byte_spans: bool = False,
        tokens: bool = False,
        max_tokens: int | None = None,
        side: TruncationSide = TruncationSide.RIGHT,
    ) -> list[Encoding]:
        """One encoding for each text; see `Tokenizer.encode_batch`.

        Raises MODEL_NOT_FOUND, INVALID_FIELD, TOO_MANY_INPUTS or INPUT_TOO_LARGE.
        """
        tokenizer = self._tokenizer(model)
        _check_texts("texts", texts)

        def work(portion: Sequence[str]) -> list[Encoding]:
            return tokenizer.encode_batch(
                portion,
                add_special_tokens=add_special_tokens,
                byte_spans=byte_spans,
                tokens=tokens,
                max_tokens=max_tokens,
                side=side,
            )

        return await self._in_portions(tokenizer, texts, work)

    async def decode(
        self, model: str, inputs: Sequence[Sequence[int]], *, skip_special_tokens: bool = True
    ) -> list[str]:
        """One text for each list of ids. Raises MODEL_NOT_FOUND, INVALID_FIELD or TOO_MANY_INPUTS."""
        tokenizer = self._tokenizer(model)
        validate.count("inputs", len(inputs), limit=MAX_INPUTS)

        def check() -> None:
            for place, ids in enumerate(inputs):
                tokenizer.check_ids(f"inputs[{place}].ids", ids)

        def work(portion: Sequence[Sequence[int]]) -> list[str]:
            return tokenizer.decode_batch([list(ids) for ids in portion], skip_special_tokens=skip_special_tokens)

        await self._on_thread(check)
        return await self._in_portions(tokenizer, inputs, work)

    async def count(self, model: str, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[int]:
        """The number of tokens of each text. Raises what `encode` raises."""
        tokenizer = self._tokenizer(model)
        _check_texts("texts.texts", texts)

        def work(portion: Sequence[str]) -> list[int]:
            return tokenizer.count_batch(portion, add_special_tokens=add_special_tokens)

        return await self._in_portions(tokenizer, texts, work)

    async def render(self, model: str, chat: Chat) -> str:
        """A chat as the model sees it.

        Raises MODEL_NOT_FOUND, CHAT_TEMPLATE_MISSING, CHAT_TEMPLATE_FAILED, or INPUT_TOO_LARGE for more than a text
        may have.
        """
        tokenizer = self._tokenizer(model)

        def work() -> str:
            text = tokenizer.render_chat(chat)
            validate.text_size("chat", text, limit_bytes=MAX_TEXT_BYTES)
            return text

        with tracing.span("render chat"):
            return await self._on_thread(work)

    async def files(self, model: str) -> AsyncIterator[FileStart | bytes]:
        """The tokenizer's files: for each its start, then its bytes in order. Raises MODEL_NOT_FOUND."""
        tokenizer = self._tokenizer(model)
        for path in tokenizer.files():
            content = await self._on_thread(lambda path=path: tokenizer.read_file(path))
            yield FileStart(path.name, len(content), hashlib.sha256(content).hexdigest())
            for start in range(0, len(content), CHUNK_BYTES):
                yield content[start : start + CHUNK_BYTES]

    def _tokenizer(self, model: str) -> Tokenizer:
        found = self._tokenizers.get(model or self._default)
        if found is None:
            raise model_not_found(model, sorted(self._tokenizers))
        return found

    async def _in_portions(
        self, tokenizer: Tokenizer, inputs: Sequence[S], work: Callable[[Sequence[S]], list[T]]
    ) -> list[T]:
        results: list[T] = []
        start = time.perf_counter()
        with tracing.span("tokenize", {"argosy.texts": len(inputs)}):
            for portion in portions(inputs):
                results += await self._on_thread(lambda portion=portion: work(portion))
        metrics.TOKENIZE_SECONDS.labels(model=tokenizer.model).observe(time.perf_counter() - start)
        metrics.TOKENIZED_TEXTS.labels(model=tokenizer.model).inc(len(inputs))
        return results

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _check_texts(field: str, texts: Sequence[str]) -> None:
    validate.count(field, len(texts), limit=MAX_INPUTS)
    for place, text in enumerate(texts):
        validate.text_size(f"{field}[{place}]", text, limit_bytes=MAX_TEXT_BYTES)

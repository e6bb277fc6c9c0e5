"""Limits, choice of the model, fairness and the files that clients load."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import tokenizers

from argosy_services import metrics
from argosy_services.errors import ArgosyError, Reason
from argosy_services.tokenization.backend import Tokenizer
from argosy_services.tokenization.service import CHUNK_BYTES, MAX_INPUTS, MAX_TEXT_BYTES, TokenizationService
from argosy_services.tokenization.types import Chat, ChatMessage, FileStart, Role


@pytest.fixture(scope="module")
async def service(byte_level: Tokenizer, word_piece: Tokenizer) -> AsyncIterator[TokenizationService]:
    service = TokenizationService([byte_level, word_piece], default=byte_level.model)
    yield service
    service.close()


async def refused(call: object) -> ArgosyError:
    with pytest.raises(ArgosyError) as caught:
        await call  # type: ignore[misc]
    return caught.value


async def test_a_model_is_chosen_by_name(
    service: TokenizationService, byte_level: Tokenizer, word_piece: Tokenizer
) -> None:
    assert service.info("") == byte_level.info
    assert service.info(word_piece.model) == word_piece.info
    (default,) = await service.encode("", ["word"])
    (other,) = await service.encode(word_piece.model, ["word"])
    assert (default.ids, other.ids) == (byte_level.encode("word"), word_piece.encode("word"))


async def test_an_unknown_model_is_named(service: TokenizationService, byte_level: Tokenizer) -> None:
    error = await refused(service.encode("nonesuch", ["x"]))
    assert error.reason is Reason.MODEL_NOT_FOUND
    assert byte_level.model in error.message


def test_the_default_must_be_served(byte_level: Tokenizer) -> None:
    with pytest.raises(ArgosyError, match="nonesuch"):
        TokenizationService([byte_level], default="nonesuch")


async def test_results_keep_the_order_of_many_portions(service: TokenizationService, byte_level: Tokenizer) -> None:
    texts = [f"{number} " + "word " * 400 for number in range(400)]
    ids = [encoding.ids for encoding in await service.encode("", texts)]
    assert ids == [byte_level.encode(text) for text in texts]
    assert await service.decode("", ids) == texts
    assert await service.count("", texts) == [len(one) for one in ids]


@pytest.mark.parametrize("method", ["encode", "count"])
async def test_limits_of_texts(service: TokenizationService, method: str) -> None:
    call = getattr(service, method)
    field = {"encode": "texts", "count": "texts.texts"}[method]
    assert (await refused(call("", []))).metadata["field"] == field
    error = await refused(call("", ["x"] * (MAX_INPUTS + 1)))
    assert (error.reason, error.metadata["value"]) == (Reason.TOO_MANY_INPUTS, "4097")
    error = await refused(call("", ["fine", "x" * 10_000_000]))
    assert error.reason is Reason.INPUT_TOO_LARGE
    assert error.metadata == {"field": f"{field}[1]", "limit": str(MAX_TEXT_BYTES), "value": "10000000"}


async def test_limits_of_ids(service: TokenizationService) -> None:
    assert (await refused(service.decode("", []))).reason is Reason.INVALID_FIELD
    assert (await refused(service.decode("", [[1]] * (MAX_INPUTS + 1)))).reason is Reason.TOO_MANY_INPUTS
    assert (await refused(service.decode("", [[1], [2, 99_999]]))).metadata["field"] == "inputs[1].ids"


async def test_a_chat_that_renders_too_large_is_refused(service: TokenizationService) -> None:
    message = ChatMessage(Role.USER, "x" * (MAX_TEXT_BYTES - 10))
    assert (await refused(service.render("", Chat([message])))).reason is Reason.INPUT_TOO_LARGE


async def test_a_short_call_overtakes_long_ones(service: TokenizationService) -> None:
    long = [asyncio.create_task(service.count("", ["some words " * 40_000] * 8)) for _ in range(6)]
    await asyncio.sleep(0.05)
    start = time.perf_counter()
    await service.count("", ["short"])
    waited = time.perf_counter() - start
    assert not any(task.done() for task in long)
    for task in long:
        task.cancel()
    await asyncio.gather(*long, return_exceptions=True)
    assert waited < 5


async def test_finished_texts_are_counted(service: TokenizationService, word_piece: Tokenizer) -> None:
    counter = metrics.TOKENIZED_TEXTS.labels(model=word_piece.model)
    before = counter.now()
    await service.encode(word_piece.model, ["a", "b", "c"])
    await service.decode(word_piece.model, [[101]])
    assert counter.now() == before + 4


async def test_a_client_with_the_files_gets_the_same_ids(
    service: TokenizationService, word_piece: Tokenizer, tmp_path: Path
) -> None:
    digests: dict[str, str] = {}
    sizes: dict[str, int] = {}
    async for part in service.files(word_piece.model):
        if isinstance(part, FileStart):
            name, digests[part.name], sizes[part.name] = part.name, part.sha256, part.size_bytes
        else:
            assert len(part) <= CHUNK_BYTES
            with (tmp_path / name).open("ab") as file:
                file.write(part)
    for name, digest in digests.items():
        content = (tmp_path / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (digest, sizes[name])
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} == set(digests)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "word " * 200
    assert theirs.encode(text).ids == word_piece.encode(text)

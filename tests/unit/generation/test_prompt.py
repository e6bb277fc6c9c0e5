"""Which prompts get the tokenizer's special tokens, with a tokenizer that has some to add."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from argosy_services.generation.prompt import prompt_ids
from argosy_services.generation.scoring import sequences
from argosy_services.generation.types import ChatPrompt, ScoreItem
from argosy_services.models.types import LocalModel
from argosy_services.tokenization.backend import Tokenizer
from argosy_services.tokenization.types import Chat, ChatMessage, Role

from .conftest import engine_info

BEGIN = 1
INFO = engine_info()


@pytest.fixture(scope="module")
def beginning(smollm2: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The model's tokenizer, made to begin texts with <|im_start|>."""
    path = tmp_path_factory.mktemp("model")
    for file in smollm2.path.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copyfile(file, path / file.name)
    file = Path(path / "tokenizer.json")
    tokenizer = json.loads(file.read_text())
    begin = {"id": "<|im_start|>", "type_id": 0}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": begin}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [BEGIN], "tokens": ["<|im_start|>"]}},
    }
    file.write_text(json.dumps(tokenizer))
    return Tokenizer.load(replace(smollm2, path=path))


async def test_a_text_gets_them(beginning: Tokenizer, tokenizer: Tokenizer) -> None:
    assert await prompt_ids("Hello there", beginning, INFO) == [BEGIN, *tokenizer.encode("Hello there")]


async def test_a_chat_has_its_own(beginning: Tokenizer) -> None:
    chat = Chat([ChatMessage(Role.SYSTEM, "Be brief."), ChatMessage(Role.USER, "Hello")])
    ids = await prompt_ids(ChatPrompt(chat), beginning, INFO)
    assert ids[0] == BEGIN
    assert ids.count(BEGIN) == 3


async def test_token_ids_get_none(beginning: Tokenizer) -> None:
    assert await prompt_ids((5, 6), beginning, INFO) == [5, 6]


async def test_a_scored_context_gets_them_and_its_continuation_none(beginning: Tokenizer, tokenizer: Tokenizer) -> None:
    ((context, continuation),) = await sequences([ScoreItem("Hello", " there")], beginning, INFO)
    assert (context, continuation) == ([BEGIN, *tokenizer.encode("Hello")], tokenizer.encode(" there"))

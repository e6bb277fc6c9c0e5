"""The files of a checkpoint that say how text becomes tokens: what is in them, and one fingerprint over all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.types import LocalModel

TOKENIZER_JSON = "tokenizer.json"
_CHAT_TEMPLATE = "chat_template.jinja"
_FILES = (TOKENIZER_JSON, "tokenizer_config.json", "special_tokens_map.json", _CHAT_TEMPLATE)
# What transformers writes for "no limit" is far above this.
_NO_LIMIT = 1 << 31
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Checkpoint:
    """The tokenizer files of one model.

    `text` is tokenizer.json without its stored truncation and padding: those are settings of a training script that
    would silently shorten or lengthen every text. `digest` is the SHA-256 of its canonical form.
    """

    model: str
    path: Path
    text: str
    digest: str
    is_bpe: bool

    @classmethod
    def read(cls, model: LocalModel) -> Checkpoint:
        """Raises NOT_SUPPORTED where tokenizer.json is missing or is not a tokenizer."""
        path = model.path / TOKENIZER_JSON
        stored = _read_json(model.name, path)
        if not isinstance(stored.get("model"), Mapping):
            raise unusable(model.name, "it has no tokenizer.json of the tokenizers library; convert it and pull again")
        tokenizer = {**stored, "truncation": None, "padding": None}
        return cls(
            model=model.name,
            path=model.path,
            text=path.read_text(encoding="utf-8") if tokenizer == stored else json.dumps(tokenizer, ensure_ascii=False),
            digest=_digest(tokenizer),
            is_bpe=stored["model"].get("type") == "BPE",
        )

    @cached_property
    def named_tokens(self) -> dict[str, str]:
        """Special tokens by role, such as {"eos_token": "</s>"}, as the tokenizer's own configuration names them."""
        named: dict[str, str] = {}
        for role in _NAMED_TOKENS:
            entry = self._tokenizer_config.get(role, self._special_tokens_map.get(role))
            content = entry.get("content") if isinstance(entry, Mapping) else entry
            if isinstance(content, str):
                named[role] = content
        return named

    def token_id(self, role: str, vocabulary: Mapping[str, int]) -> int | None:
        """Id of the token with a role such as "eos_token".

        config.json is only asked where the tokenizer's own files say nothing: a null in them means "none".
        """
        if role in self.named_tokens:
            return vocabulary.get(self.named_tokens[role])
        if role in self._tokenizer_config or role in self._special_tokens_map:
            return None
        given = self._config.get(f"{role}_id")
        return given if isinstance(given, int) else None

    @cached_property
    def chat_templates(self) -> dict[str, str]:
        """Sources of the chat templates by name; a checkpoint with a single one has it under "default"."""
        file = self.path / _CHAT_TEMPLATE
        if file.is_file():
            return {"default": file.read_text(encoding="utf-8")}
        stored = self._tokenizer_config.get("chat_template")
        if isinstance(stored, str):
            return {"default": stored}
        return {entry["name"]: entry["template"] for entry in stored or ()}

    @property
    def cleans_up_spaces(self) -> bool:
        """Whether decoded text loses the spaces before punctuation.

        As transformers 5 has it: only where the configuration asks for it, and never for BPE, whose spaces are real.
        (A WordPiece decoder with `cleanup` does a smaller clean-up of its own, token by token.)
        """
        return not self.is_bpe and bool(self._tokenizer_config.get("clean_up_tokenization_spaces", False))

    @property
    def max_context_tokens(self) -> int:
        """Longest input of the model, 0 where the checkpoint does not tell.

        The tokenizer's own `model_max_length` counts for sentence-transformers models only: those set it on purpose.
        """
        limits = [self._config.get("max_position_embeddings")]
        if (self.path / "modules.json").is_file():
            sentence_config = _read_json(self.model, self.path / "sentence_bert_config.json")
            limits.append(sentence_config.get("max_seq_length") or self._tokenizer_config.get("model_max_length"))
        return min((limit for limit in limits if isinstance(limit, int) and 0 < limit < _NO_LIMIT), default=0)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal over all that decides ids and text, whatever the layout of the files."""
        decisive = [self.digest, self.named_tokens, self.chat_templates, self.cleans_up_spaces]
        return hashlib.sha256(_canonical(decisive)).hexdigest()

    def files(self) -> list[Path]:
        """The files that a client needs to tokenize by itself."""
        return [path for name in _FILES if (path := self.path / name).is_file()]

    @cached_property
    def _tokenizer_config(self) -> Mapping[str, Any]:
        return _read_json(self.model, self.path / "tokenizer_config.json")

    @cached_property
    def _special_tokens_map(self) -> Mapping[str, Any]:
        return _read_json(self.model, self.path / "special_tokens_map.json")

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        return _read_json(self.model, self.path / "config.json")


def unusable(model: str, detail: str) -> ArgosyError:
    """A model's files cannot be served; `detail` completes "cannot tokenize for model ...: "."""
    return ArgosyError(Reason.NOT_SUPPORTED, f"cannot tokenize for model '{model}': {detail}", detail=detail)


def _digest(tokenizer: Mapping[str, Any]) -> str:
    model = dict(tokenizer["model"])
    # Two spellings of one merge: "a b" in older files, ["a", "b"] in newer ones.
    model["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or ()]
    return hashlib.sha256(_canonical({**tokenizer, "model": model, "version": None})).hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _read_json(model: str, path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise unusable(model, f"{path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise unusable(model, f"{path.name} is not a JSON object")
    return content

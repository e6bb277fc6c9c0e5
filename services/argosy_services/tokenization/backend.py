"""A model's tokenizer: the same ids and the same text as the reference tokenizer of its checkpoint.

The work is done by the `tokenizers` library from tokenizer.json. Every method may be called from any thread; encoding
and decoding release the interpreter lock while they work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from argosy_services.errors import ArgosyError, invalid_field
from argosy_services.models.types import LocalModel
from argosy_services.tokenization.chat_template import ChatTemplates
from argosy_services.tokenization.checkpoint import TOKENIZER_JSON, Checkpoint, unusable
from argosy_services.tokenization.detokenizer import Detokenizer, detokenizer_factory
from argosy_services.tokenization.types import Chat, Encoding, SpecialToken, TokenizerInfo, TruncationSide

# The clean-up of decoded text that transformers does where a checkpoint's configuration asks for it, in its order.
_CLEAN_UPS = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"))
_CONTRACTIONS = tuple((f" '{ending}", f"'{ending}") for ending in ("m", "s", "ve", "re"))
_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """One model's tokenizer. Make it with `load`."""

    def __init__(self, checkpoint: Checkpoint, library: tokenizers.Tokenizer) -> None:
        self._checkpoint = checkpoint
        self._library = library
        self._templates = ChatTemplates(checkpoint.model, checkpoint.chat_templates, checkpoint.named_tokens)
        self._added_tokens = library.num_special_tokens_to_add(is_pair=False)
        self.info = _describe(checkpoint, library)
        special = frozenset(token.text for token in self.info.special_tokens)
        self._open_detokenizer = {
            skip: detokenizer_factory(
                library,
                leave_out=special if skip else frozenset(),
                decode=lambda ids, skip=skip: self.decode(ids, skip_special_tokens=skip),
                token_by_token=not checkpoint.cleans_up_spaces,
            )
            for skip in (True, False)
        }

    @classmethod
    def load(cls, model: LocalModel) -> Tokenizer:
        """Reads the tokenizer of a model. Raises NOT_SUPPORTED where its files cannot be used."""
        checkpoint = Checkpoint.read(model)
        try:
            library = tokenizers.Tokenizer.from_str(checkpoint.text)
        except Exception as error:  # the library raises plain Exception
            raise unusable(model.name, f"tokenizer.json is not usable: {error}") from error
        _mark_special(library, checkpoint.named_tokens.values())
        return cls(checkpoint, library)

    @property
    def model(self) -> str:
        """Name of the model that the tokenizer belongs to."""
        return self._checkpoint.model

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal; two tokenizers with one fingerprint give the same ids and the same text."""
        return self.info.fingerprint

    @property
    def json(self) -> str:
        """The tokenizer as the text of a tokenizer.json, without stored truncation and padding."""
        return self._checkpoint.text

    def files(self) -> list[Path]:
        """The files that a client needs to tokenize by itself."""
        return self._checkpoint.files()

    def read_file(self, path: Path) -> bytes:
        """The content of one of `files`, tokenizer.json as `json` has it: a client that loads it gets the same ids."""
        return self.json.encode() if path.name == TOKENIZER_JSON else path.read_bytes()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text."""
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        add_special_tokens: bool = True,
        byte_spans: bool = False,
        tokens: bool = False,
        max_tokens: int | None = None,
        side: TruncationSide = TruncationSide.RIGHT,
    ) -> list[Encoding]:
        """The encodings of many texts, computed on all cores.

        With `max_tokens` a longer text loses tokens at `side`; the special tokens that the tokenizer adds stay. Raises
        INVALID_FIELD where not even they fit, and for a text that UTF-8 cannot write.
        """
        if max_tokens is not None:
            self._check_room("max_tokens", max_tokens, add_special_tokens)
        encoded = self._encode(texts, add_special_tokens, spans=byte_spans)
        answers = []
        for text, encoding in zip(texts, encoded, strict=True):
            dropped = _overflow(encoding, max_tokens, side)
            answer = Encoding(
                ids=encoding.ids,
                byte_spans=_byte_spans(text, encoding.offsets) if byte_spans else [],
                tokens=encoding.tokens if tokens else [],
                truncated_tokens=dropped.stop - dropped.start,
            )
            for values in (answer.ids, answer.byte_spans, answer.tokens):
                del values[dropped]
            answers.append(answer)
        return answers

    def count_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[int]:
        """The number of tokens of each text."""
        return [len(encoding) for encoding in self._encode(texts, add_special_tokens, spans=False)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids. Bytes that form no character become U+FFFD; ids outside the vocabulary give nothing."""
        return self._cleaned(self._library.decode(ids, skip_special_tokens=skip_special_tokens))

    def decode_batch(self, inputs: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """The texts of many lists of ids, computed on all cores."""
        texts = self._library.decode_batch(inputs, skip_special_tokens=skip_special_tokens)
        return [self._cleaned(text) for text in texts]

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A new detokenizer for one stream of ids."""
        return self._open_detokenizer[skip_special_tokens]()

    def check_ids(self, field: str, ids: Sequence[int]) -> None:
        """Raises INVALID_FIELD unless every id is in the vocabulary."""
        if not ids or (min(ids) >= 0 and max(ids) < self.info.vocabulary_size):
            return
        wrong = next(token_id for token_id in ids if not 0 <= token_id < self.info.vocabulary_size)
        raise invalid_field(
            field, "holds a token id outside the vocabulary", limit=f"below {self.info.vocabulary_size}", value=wrong
        )

    @property
    def announces_tools(self) -> bool:
        """Whether the model's chat template has a place for tools."""
        return self._templates.announce_tools

    def render_chat(self, chat: Chat) -> str:
        """The prompt that the model's chat template makes of a conversation; it holds its own special tokens.

        Raises CHAT_TEMPLATE_MISSING or CHAT_TEMPLATE_FAILED.
        """
        return self._templates.render(chat)

    def _encode(self, texts: Sequence[str], add_special_tokens: bool, *, spans: bool) -> list[tokenizers.Encoding]:
        encode = self._library.encode_batch if spans else self._library.encode_batch_fast
        try:
            return encode(list(texts), add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise _not_unicode(texts) from error

    def _check_room(self, field: str, max_tokens: int, add_special_tokens: bool) -> None:
        least = max(1, self._added_tokens if add_special_tokens else 0)
        if max_tokens < least:
            problem = "is too small for the special tokens that are added" if least > 1 else "must be at least 1"
            raise invalid_field(field, problem, limit=f"at least {least}", value=max_tokens)

    def _cleaned(self, text: str) -> str:
        if self._checkpoint.cleans_up_spaces:
            for found, replacement in _CLEAN_UPS + _CONTRACTIONS:
                text = text.replace(found, replacement)
        return text


def _describe(checkpoint: Checkpoint, library: tokenizers.Tokenizer) -> TokenizerInfo:
    vocabulary = library.get_vocab(with_added_tokens=True)
    added = library.get_added_tokens_decoder()
    return TokenizerInfo(
        model=checkpoint.model,
        fingerprint=checkpoint.fingerprint,
        vocabulary_size=max(vocabulary.values(), default=-1) + 1,
        special_tokens=tuple(
            SpecialToken(text=token.content, id=token_id) for token_id, token in sorted(added.items()) if token.special
        ),
        has_chat_template=bool(checkpoint.chat_templates),
        bos_token_id=checkpoint.token_id("bos_token", vocabulary),
        eos_token_id=checkpoint.token_id("eos_token", vocabulary),
        pad_token_id=checkpoint.token_id("pad_token", vocabulary),
        max_context_tokens=checkpoint.max_context_tokens,
    )


def _mark_special(library: tokenizers.Tokenizer, named: Iterable[str]) -> None:
    """Makes the tokens that the configuration gives a role special, where tokenizer.json forgot to.

    A named token that the vocabulary lacks stays out: the model has no embedding for it.
    """
    known = {token.content for token in library.get_added_tokens_decoder().values()}
    missing = [token for token in named if token not in known and library.token_to_id(token) is not None]
    library.add_special_tokens(list(missing))


def _overflow(encoding: tokenizers.Encoding, max_tokens: int | None, side: TruncationSide) -> slice:
    """The positions that truncation drops; the special tokens at both ends were added by the tokenizer and stay."""
    excess = 0 if max_tokens is None else max(0, len(encoding) - max_tokens)
    if not excess:
        return slice(0, 0)
    added = encoding.special_tokens_mask
    if side is TruncationSide.LEFT:
        first = added.index(0)
        return slice(first, first + excess)
    last = len(added) - added[::-1].index(0)
    return slice(last - excess, last)


def _not_unicode(texts: Sequence[str]) -> ArgosyError:
    found = next((match[0] for text in texts if (match := _SURROGATE.search(text))), "")
    value = f"U+{ord(found):04X}" if found else "something else"
    return invalid_field("text", "is not Unicode text", limit="no surrogate code points", value=value)


def _byte_spans(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in characters as spans in bytes of UTF-8."""
    if text.isascii() or not spans:
        return list(spans)
    positions = _byte_positions(text)[np.asarray(spans)]
    return list(map(tuple, positions.tolist()))


def _byte_positions(text: str) -> NDArray[np.int64]:
    """Where each character starts, and the text's end, in bytes; int64 [characters + 1]."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(widths)))

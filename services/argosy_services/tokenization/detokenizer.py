"""Token ids to text while they arrive.

The pieces that come out, put together, are exactly the text that decoding all ids at once gives, and no piece ever ends
within a character. Each token is looked at once: the decoders that tokenizers use are few, and what one token adds to
the text depends on little (whether it is the first, which bytes are still open), so that little is kept. Decoding a
sliding window of ids again and again, as servers commonly do, costs more and is not exact after invalid bytes.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import tokenizers
from tokenizers.decoders import Decoder

T = TypeVar("T")

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_ANCHOR = "a"


class Detokenizer(Protocol):
    """Text out of a stream of token ids."""

    def push(self, ids: Sequence[int]) -> str:
        """The text that `ids` complete: whole characters only, possibly none."""
        ...

    def flush(self) -> str:
        """The rest, bytes that form no character as U+FFFD. What is pushed next starts a new text."""
        ...


class Pieces(dict[int, T | None], Generic[T]):
    """What each token adds to a text, worked out when the token is first met. None: the token adds nothing."""

    def __init__(self, token_of: Callable[[int], str | None], piece_of: Callable[[str], T]) -> None:
        super().__init__()
        self._token_of = token_of
        self._piece_of = piece_of

    def __missing__(self, token_id: int) -> T | None:
        token = self._token_of(token_id)
        piece = None if token is None else self._piece_of(token)
        self[token_id] = piece
        return piece

    def of(self, ids: Iterable[int]) -> Iterable[T]:
        """The pieces of `ids`, those without one left out."""
        return (piece for token_id in ids if (piece := self[token_id]) is not None)


class ByteLevelDetokenizer:
    """For tokens that are bytes (GPT-2 and most models since)."""

    def __init__(self, pieces: Pieces[bytes]) -> None:
        self._pieces = pieces
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        """See `Detokenizer`."""
        return self._characters.decode(b"".join(self._pieces.of(ids)))

    def flush(self) -> str:
        """See `Detokenizer`."""
        return self._characters.decode(b"", final=True)


class SpacedDetokenizer:
    """For tokens that are text, of which only the first one differs (WordPiece, SentencePiece's unigrams).

    A piece is what its token gives at the start of a text and what it gives later.
    """

    def __init__(self, pieces: Pieces[tuple[str, str]]) -> None:
        self._pieces = pieces
        self._started = False

    def push(self, ids: Sequence[int]) -> str:
        """See `Detokenizer`."""
        text: list[str] = []
        for first, later in self._pieces.of(ids):
            text.append(later if self._started else first)
            self._started = True
        return "".join(text)

    def flush(self) -> str:
        """See `Detokenizer`."""
        self._started = False
        return ""


class ByteFallbackDetokenizer:
    """For text tokens with bytes for what the vocabulary lacks (Llama 2, Gemma).

    The decoder gives a run of byte tokens as text only if the whole run is valid, otherwise one U+FFFD a byte: so a run
    is kept until it ends. `strip` is a character of which up to `strip_count` are dropped at the start of the text.
    """

    def __init__(self, pieces: Pieces[str | int], strip: str, strip_count: int) -> None:
        self._pieces = pieces
        self._strip = strip
        self._strip_count = strip_count
        self._to_strip = strip_count
        self._run = bytearray()

    def push(self, ids: Sequence[int]) -> str:
        """See `Detokenizer`."""
        text: list[str] = []
        for piece in self._pieces.of(ids):
            if isinstance(piece, int):
                self._run.append(piece)
            else:
                text.append(self._end_run())
                text.append(piece)
        return self._stripped("".join(text))

    def flush(self) -> str:
        """See `Detokenizer`."""
        rest = self._stripped(self._end_run())
        self._to_strip = self._strip_count
        return rest

    def _end_run(self) -> str:
        try:
            text = self._run.decode()
        except UnicodeDecodeError:
            text = "\ufffd" * len(self._run)
        self._run.clear()
        return text

    def _stripped(self, text: str) -> str:
        while self._to_strip and text:
            if text[0] != self._strip:
                self._to_strip = 0
                break
            text = text[1:]
            self._to_strip -= 1
        return text


class WholeTextDetokenizer:
    """For every other decoder: exact, but the text comes all at once, from `flush`."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        """See `Detokenizer`."""
        self._ids.extend(ids)
        return ""

    def flush(self) -> str:
        """See `Detokenizer`."""
        ids, self._ids = self._ids, []
        return self._decode(ids)


def detokenizer_factory(
    tokenizer: tokenizers.Tokenizer,
    *,
    leave_out: frozenset[str],
    decode: Callable[[list[int]], str],
    token_by_token: bool,
) -> Callable[[], Detokenizer]:
    """A maker of detokenizers that share what they learn about tokens.

    `leave_out` holds the special tokens that give no text and `decode` turns a whole text's ids into text, leaving out
    the same ones. `token_by_token` is False where `decode` changes the text after the tokens are joined.
    """

    def token_of(token_id: int) -> str | None:
        token = tokenizer.id_to_token(token_id)
        return None if token in leave_out else token

    decoder = tokenizer.decoder
    stages = _stages(decoder)
    kinds = [stage["type"] for stage in stages]
    if not token_by_token:
        return lambda: WholeTextDetokenizer(decode)
    if kinds == ["ByteLevel"]:
        levels = Pieces(token_of, byte_level_bytes)
        return lambda: ByteLevelDetokenizer(levels)
    if kinds in ([], ["WordPiece"], ["Metaspace"]):
        pairs = Pieces(token_of, lambda token: (_text(decoder, token), _later_text(decoder, token)))
        return lambda: SpacedDetokenizer(pairs)
    strip = _leading_strip(stages)
    if strip is not None:
        mixed = Pieces(token_of, lambda token: _byte_or_text(decoder, token))
        return lambda: ByteFallbackDetokenizer(mixed, *strip)
    return lambda: WholeTextDetokenizer(decode)


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for.

    Such vocabularies write each byte as one printable character (Radford et al. 2019, GPT-2); added tokens with other
    characters stand for themselves.
    """
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(0x100 + place): byte for place, byte in enumerate(hidden)}
    return {chr(byte): byte for byte in printable} | shifted


_BYTE_OF_CHARACTER = _byte_alphabet()


def _stages(decoder: Decoder | None) -> list[dict[str, Any]]:
    return [] if decoder is None else _flat(json.loads(decoder.__getstate__()))


def _flat(stage: dict[str, Any]) -> list[dict[str, Any]]:
    if stage["type"] != "Sequence":
        return [stage]
    return [inner for part in stage["decoders"] for inner in _flat(part)]


def _leading_strip(stages: list[dict[str, Any]]) -> tuple[str, int] | None:
    """What a byte-fallback decoder drops at the start of a text (character, count); None for any other decoder."""
    kinds = [stage["type"] for stage in stages]
    while kinds and kinds[0] == "Replace":
        del kinds[0]
    if kinds == ["ByteFallback", "Fuse"]:
        return "", 0
    if kinds == ["ByteFallback", "Fuse", "Strip"] and stages[-1]["stop"] == 0:
        return stages[-1]["content"], stages[-1]["start"]
    return None


def _text(decoder: Decoder | None, *tokens: str) -> str:
    return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))


def _later_text(decoder: Decoder | None, token: str) -> str:
    """What a token gives when it is not the first of its text."""
    return _text(decoder, _ANCHOR, token).removeprefix(_ANCHOR)


def _byte_or_text(decoder: Decoder | None, token: str) -> int | str:
    byte = _BYTE_TOKEN.fullmatch(token)
    return int(byte[1], 16) if byte else _later_text(decoder, token)

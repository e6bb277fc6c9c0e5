"""Turns a GGUF file into a safetensors checkpoint in bfloat16, once, when a model is pulled.

The work is done by transformers in a child process (`python -m argosy_services.models.gguf FILE DIRECTORY`), so that
neither its imports nor its memory stay with the caller.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from argosy_services.models.child import run_child
from argosy_services.models.errors import ConversionError
from argosy_services.models.gguf_config import GgufFile, complete, end_tokens, read_file
from argosy_services.models.progress import Meter, Progress, Stage
from argosy_services.models.staging import Staging, size_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# `tokenizer.ggml.pre` says how a byte-level vocabulary was trained to split text. The two groups are llama.cpp's
# (src/llama-vocab.cpp); transformers knows the other ones, but splits these as GPT-2 does.
_DIGITS_THEN_GPT2 = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
_GPT2 = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "jina-es", "jina-de", "roberta-bpe", "gigachat"})

_PROBES = (
    "It's 3 o'clock; the year is 2024, and 1,000.50 is 50% of 2001.",
    "def f(x):\n    y  =  10\n\n\treturn x + y  \n",
    " leading,  double   and trailing spaces  ",
    "Größe, naïveté, 東京タワー, привет, مرحبا, ½ ² ٣ \u200d👩\u200d🚀",
    "<|im_start|>user\nHi<|im_end|>\n<s></s>",
)


def convert(source: Path, staging: Staging, report: Progress) -> Path:
    """Converts a GGUF file in a child process; returns the new directory. Raises ConversionError."""
    target = staging.fresh("gguf")
    meter = Meter(report, Stage.CONVERTING)
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    problem = run_child(
        [sys.executable, "-P", "-m", "argosy_services.models.gguf", str(source), str(target)],
        environment=os.environ | quiet,
        log=staging.fresh("log") / "log",
        on_tick=lambda: meter.set(size_of(target)),
    )
    if problem is not None:
        raise ConversionError(f"the GGUF file cannot be converted: {problem}; pull a safetensors checkpoint instead")
    return target


def main(arguments: list[str]) -> None:
    """Converts `arguments[0]`, a GGUF file, into the directory `arguments[1]`."""
    source, target = Path(arguments[0]), Path(arguments[1])
    _parse_once()
    file = read_file(source)
    _save_tokenizer(source, target, file)
    _save_model(source, target, file)


def _parse_once() -> None:
    """Makes every part of transformers share one reader of the file: it would parse the vocabulary three times."""
    import gguf

    setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))  # noqa: B010 - a class is replaced by a function


def _save_model(source: Path, target: Path, file: GgufFile) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    complete(config, file)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.parent,
        config=config,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
        output_loading_info=True,
    )
    model, report = loaded
    # Tensors without a place are passed over in silence, and places without a tensor filled with random numbers.
    read = len(set(model.state_dict()) - set(model.all_tied_weights_keys)) - len(report["missing_keys"])
    if report["missing_keys"] or read != file.weights:
        raise ConversionError(
            f"{read} of its {file.weights} tensors are weights of a {config.model_type} model, "
            f"which lacks {len(report['missing_keys'])}"
        )
    ends = end_tokens(file)
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
    model.save_pretrained(target)


def _save_tokenizer(source: Path, target: Path, file: GgufFile) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    facts = {key: file.fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre", "tokens")}
    _correct_split(tokenizer.backend_tokenizer, facts)
    tokenizer.save_pretrained(target)
    _compare(tokenizer.backend_tokenizer, target / "tokenizer.json", facts)


def _correct_split(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    """Makes a byte-level tokenizer split text as the file says, or refuses the file.

    Raises ConversionError where the split is not known: it would give other ids than the model was trained on.
    """
    from tokenizers import pre_tokenizers

    pre = metadata["pre"]
    if metadata["model"] != "gpt2" or pre in _GPT2:
        return
    if pre in _DIGITS_THEN_GPT2:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        raise ConversionError(f"its tokenizer splits text in a way that is not known here ('{pre}')")


def _compare(tokenizer: Tokenizer, written: Path, metadata: dict[str, Any]) -> None:
    """Raises ConversionError unless the written tokenizer has the file's ids and encodes as the one in memory."""
    from tokenizers import Tokenizer

    reread = Tokenizer.from_file(str(written))
    vocabulary = reread.get_vocab(with_added_tokens=True)
    # SentencePiece writes a space as this character, and llama.cpp writes it back into tokens that are matched as text.
    space = "\u2581" if metadata["model"] == "llama" else " "
    spellings = ((index, {token, token.replace(" ", space)}) for index, token in enumerate(metadata["tokens"]))
    if any(index not in {vocabulary.get(spelling) for spelling in both} for index, both in spellings):
        raise ConversionError("the written tokenizer numbers its tokens otherwise than the file")
    for text in _PROBES:
        if reread.encode(text).ids != tokenizer.encode(text).ids:
            raise ConversionError("the written tokenizer encodes otherwise than the file's")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConversionError as refusal:
        sys.exit(str(refusal))

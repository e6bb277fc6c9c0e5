"""What a GGUF file says of its model beyond what transformers reads of it.

A file states what llama.cpp must know; some numbers stand in that program instead (src/llama-model.cpp), and are here.
What would be computed otherwise than there is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from argosy_services.models.errors import ConversionError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedConfig

ARCHITECTURES = ("gemma2", "gemma3", "llama", "qwen2", "qwen3")

# The rotation's frequencies, as divisors of those that follow from its base.
_FREQUENCIES = "rope_freqs.weight"
# All of Llama 3.1 to 3.3 stretch their positions by these, and a factor of their own.
_LLAMA3: Mapping[str, Any] = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# The sizes of Gemma whose scores are scaled by the size of a head as the hidden size would have it.
_GEMMA_27B = frozenset({("gemma2", 46), ("gemma3", 62)})
_YARN_KEYS = frozenset({"type", "factor", "original_context_length", "finetuned"})
# Not asked for, and slow to read.
_LARGE = frozenset({"tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"})
_ENDS_OF_TURN = frozenset({"<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>"})


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The metadata of a file by key, its tensors' names, and the divisors of the rotation's frequencies or None."""

    fields: Mapping[str, Any]
    tensors: frozenset[str]
    frequency_divisors: np.ndarray | None

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it."""
        return self.fields.get("general.architecture", "none")

    @property
    def weights(self) -> int:
        """Tensors that are weights of the model."""
        return len(self.tensors - {_FREQUENCIES})

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key that begins with the architecture's name."""
        return self.fields.get(f"{self.architecture}.{key}", default)


def read_file(source: Path) -> GgufFile:
    """Reads a file without its weights. Raises ConversionError for an architecture that cannot be served."""
    from gguf import GGUFReader

    reader = GGUFReader(str(source))
    divisors = next((tensor.data for tensor in reader.tensors if tensor.name == _FREQUENCIES), None)
    file = GgufFile(
        fields={key: field.contents() for key, field in reader.fields.items() if key not in _LARGE},
        tensors=frozenset(tensor.name for tensor in reader.tensors),
        frequency_divisors=divisors,
    )
    if file.architecture not in ARCHITECTURES:
        raise ConversionError(
            f"its architecture '{file.architecture}' is not among those that are converted: {', '.join(ARCHITECTURES)}"
        )
    return file


def complete(config: PreTrainedConfig, file: GgufFile) -> None:
    """Changes the configuration that transformers read into that of the file. Raises ConversionError."""
    config.head_dim = _head_size(config, file)
    if file.architecture != "qwen2":
        config.attention_bias = "blk.0.attn_output.bias" in file.tensors
    if file.architecture == "llama":
        config.mlp_bias = "blk.0.ffn_down.bias" in file.tensors
    if file.architecture in {"gemma2", "gemma3"}:
        _complete_gemma(config, file)
    ropes: dict[str, Any] = config.rope_parameters
    (ropes["full_attention"] if file.architecture == "gemma3" else ropes).update(_rope_scaling(config, file))


def end_tokens(file: GgufFile) -> list[int]:
    """The tokens that end an answer: llama.cpp finds the ends of turns by their text as well."""
    tokens: list[str] = file.fields["tokenizer.ggml.tokens"]
    given = {file.fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")}
    turns = {index for index, token in enumerate(tokens) if token in _ENDS_OF_TURN}
    return sorted(token for token in given | turns if token is not None)


def _head_size(config: PreTrainedConfig, file: GgufFile) -> int:
    size = file.get("attention.key_length", config.hidden_size // config.num_attention_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.get(key, size) != size:
            raise ConversionError(f"its {key} is {file.get(key)} where keys have {size}, which is not served")
    return size


def _complete_gemma(config: PreTrainedConfig, file: GgufFile) -> None:
    large = (file.architecture, config.num_hidden_layers) in _GEMMA_27B
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if large else config.head_dim
    config.final_logit_softcapping = file.get("final_logit_softcapping", config.final_logit_softcapping)
    if file.architecture == "gemma2":
        config.attn_logit_softcapping = file.get("attn_logit_softcapping", config.attn_logit_softcapping)
        return
    pattern = file.get("attention.sliding_window_pattern", 6)
    if not isinstance(pattern, int):
        raise ConversionError("its layers with a window follow no period, which is not served")
    config.layer_types = [
        "sliding_attention" if (index + 1) % pattern else "full_attention" for index in range(config.num_hidden_layers)
    ]
    config.rope_parameters["sliding_attention"]["rope_theta"] = file.get("rope.freq_base_swa", 10_000.0)


def _rope_scaling(config: PreTrainedConfig, file: GgufFile) -> dict[str, Any]:
    """What is added to the rotation's parameters."""
    factor = file.get("rope.scaling.factor", file.get("rope.scale_linear", 0.0))
    kind = file.get("rope.scaling.type", "linear") if factor else "none"
    if file.frequency_divisors is not None:
        if kind != "none":
            raise ConversionError(f"its positions are stretched in two ways, '{kind}' and {_FREQUENCIES}")
        return _llama3(config, file.frequency_divisors)
    if kind == "none":
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    strange = sorted(key for key in file.fields if ".rope.scaling." in key and key.rpartition(".")[2] not in _YARN_KEYS)
    if kind != "yarn" or strange:
        raise ConversionError(f"its positions are stretched as '{kind}'{' by ' if strange else ''}{', '.join(strange)}")
    trained = file.get("rope.scaling.original_context_length", config.max_position_embeddings)
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained}


def _llama3(config: PreTrainedConfig, divisors: np.ndarray) -> dict[str, Any]:
    """The parameters that give these divisors. Raises ConversionError where Llama 3's do not."""
    import numpy as np

    factor = float(divisors.max())
    if factor == 1.0:
        return {}
    theta: float = config.rope_parameters["rope_theta"]
    wavelengths = 2 * np.pi * theta ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = _LLAMA3["original_max_position_embeddings"] / wavelengths
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / (kept + (1.0 - kept) / factor)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise ConversionError(f"its {_FREQUENCIES} are not those of Llama 3")
    return {**_LLAMA3, "factor": factor}

"""Reads `adapter_config.json` as PEFT writes it and refuses what this engine would compute differently.

Options that only matter for training are ignored. Every other option must be off: one that is not known here may
change what the adapter computes, and a refused adapter is better than a wrong answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from argosy_services.engine.torch_engine.lora.patterns import PatternError, PatternTable
from argosy_services.errors import ArgosyError, Reason

_NO_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
_READ = frozenset(
    {"alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "use_rslora"}
)
# Initialisations that replace the base model's weights: without them the adapter belongs to another model.
_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
_ADVICE = {
    "use_dora": "train without DoRA, or merge the adapter into its base model",
    "modules_to_save": "whole modules cannot be exchanged per request; train with LoRA modules only",
    "lora_bias": "train without biases",
    "fan_in_fan_out": "the layers of the served models store their weights the other way round",
    "trainable_token_indices": "embeddings cannot be adapted; train with LoRA modules only",
    "layer_replication": "merge the adapter into its base model",
}
_LOCAL_PATH = re.compile(r"[./~\\]|[A-Za-z]:|.*/.*/")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The options of an adapter that its use depends on."""

    base_model: str
    rslora: bool
    r: int
    alpha: float
    ranks: PatternTable[int]
    alphas: PatternTable[float]

    def rank(self, path: str) -> int:
        """Rank of the module at `path`."""
        return self.ranks.get(path, self.r)

    def scaling(self, path: str) -> float:
        """What B @ A is multiplied with: alpha / r, or alpha / sqrt(r) for rsLoRA (https://arxiv.org/abs/2312.03732)."""
        rank = self.rank(path)
        return self.alphas.get(path, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def read_config(data: bytes | bytearray, *, paths: Collection[str], max_rank: int) -> PeftConfig:
    """Reads the bytes of `adapter_config.json`. `paths` are the modules that the model has. Raises ADAPTER_INVALID."""
    options = _parse(data)
    if options.get("peft_type") != "LORA":
        raise invalid(f"peft_type is {_show(options.get('peft_type'))}, only LORA can be served")
    _refuse_options(options)
    ranks = {key: _rank(f"rank_pattern[{key}]", value, max_rank) for key, value in _table(options, "rank_pattern")}
    alphas = {key: _number(f"alpha_pattern[{key}]", value) for key, value in _table(options, "alpha_pattern")}
    try:
        return PeftConfig(
            base_model=_text(options, "base_model_name_or_path"),
            rslora=_flag(options, "use_rslora"),
            r=_rank("r", options.get("r"), max_rank),
            alpha=_number("lora_alpha", options.get("lora_alpha")),
            ranks=PatternTable(ranks, paths),
            alphas=PatternTable(alphas, paths),
        )
    except PatternError as error:
        raise invalid(f"rank_pattern or alpha_pattern cannot be used: {error}") from error


def check_base_model(trained_for: str, served: str) -> None:
    """Raises WRONG_BASE_MODEL where the names tell that an adapter was trained for another model.

    Shapes decide in the end; names only add what shapes cannot show, such as another version of the same size. So a
    name is held against an adapter only when it is evident: it has the form `owner/name` of a published model (a local
    training run records a path, which says nothing), it shares a word with a digit ("135m", "qwen2") with the served
    model's name, and it lacks another word of it. Words that it has beyond those ("bnb", "4bit") are fine.
    """
    if not trained_for or _LOCAL_PATH.match(trained_for) or "/" not in trained_for:
        return
    theirs, ours = _words(trained_for), _words(served)
    telling = {word for word in ours if re.search(r"\d", word) and re.search(r"[a-z]", word)}
    if telling & theirs and ours - theirs:
        raise wrong_base(
            f"the adapter was trained for {trained_for[:200]}, the served model is {served}; "
            "if both have the same weights, empty base_model_name_or_path in adapter_config.json",
            expected=served,
            value=trained_for,
        )


def invalid(problem: str) -> ArgosyError:
    """The adapter's files cannot be served."""
    return ArgosyError(Reason.ADAPTER_INVALID, problem, detail=problem)


def wrong_base(problem: str, *, expected: object, value: object) -> ArgosyError:
    """The adapter was trained for another model."""
    return ArgosyError(Reason.WRONG_BASE_MODEL, problem, expected=expected, value=value)


def _parse(data: bytes | bytearray) -> dict[str, Any]:
    try:
        options = json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(f"adapter_config.json is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise invalid("adapter_config.json is not a JSON object")
    return options


def _refuse_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not a JSON number")


def _refuse_options(options: Mapping[str, Any]) -> None:
    bias = options.get("bias", "none")
    if bias != "none":
        raise invalid(f"bias is {_show(bias)}, only adapters without biases (bias: none) can be served")
    start = options.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise invalid(
            f"init_lora_weights is {_show(start)}, which changed the base model's weights before training; save the "
            "adapter as one for the original weights (path_initial_model_for_weight_conversion in PEFT)"
        )
    for name in sorted(options.keys() - _NO_EFFECT - _READ):
        if options[name]:
            advice = _ADVICE.get(name, "train with plain LoRA, or remove the option if it only matters for training")
            raise invalid(f"adapter_config.json sets {name[:100]}, which cannot be served: {advice}")


def _table(options: Mapping[str, Any], name: str) -> Collection[tuple[str, Any]]:
    value = options.get(name) or {}
    if not isinstance(value, dict):
        raise invalid(f"{name} must be a JSON object, given: {_show(value)}")
    return value.items()


def _rank(name: str, value: object, limit: int) -> int:
    if type(value) is not int or value < 1:
        raise invalid(f"{name[:200]} must be a whole number from 1 to {limit}, given: {_show(value)}")
    if value > limit:
        raise invalid(f"{name[:200]} is {_show(value)}, the largest rank that is served here is {limit}")
    return value


def _number(name: str, value: object) -> float:
    # A whole number beyond the range of floats is as bad as infinity.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise invalid(f"{name[:200]} must be a finite number, given: {_show(value)}")
    return float(value)


def _flag(options: Mapping[str, Any], name: str) -> bool:
    value = options.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(f"{name} must be true or false, given: {_show(value)}")
    return bool(value)


def _text(options: Mapping[str, Any], name: str) -> str:
    value = options.get(name)
    if value is not None and not isinstance(value, str):
        raise invalid(f"{name} must be a string, given: {_show(value)}")
    return value or ""


def _words(model: str) -> set[str]:
    # Of a source such as hf://owner/name@revision only the name counts.
    name = model.rstrip("/").rsplit("/", 1)[-1].split("@", 1)[0]
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def _show(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."

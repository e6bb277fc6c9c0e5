"""What a sentence-transformers checkpoint asks for. What cannot be computed exactly is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from argosy_services.embeddings.types import Pooling
from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.types import LocalModel

_LEGACY_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The shape of a BERT encoder (Devlin et al., 2018)."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    norm_eps: float
    max_positions: int
    token_types: int

    @property
    def head_dim(self) -> int:
        """Numbers of one head."""
        return self.hidden_size // self.heads


@dataclass(frozen=True, slots=True)
class SentenceConfig:
    """How texts become one vector each: the encoder and what stands around it.

    `lowercases` says that texts are lower-cased before they are tokenized.
    """

    bert: BertConfig
    pooling: Pooling
    normalizes: bool
    lowercases: bool


def read_config(local: LocalModel) -> SentenceConfig:
    """Reads config.json, modules.json and the files that it names. Raises NOT_SUPPORTED with the reason.

    Without modules.json the model is a bare encoder, for which sentence-transformers takes the mean.
    """
    bert = _bert(local, _read(local, "config.json"))
    modules = _read(local, "modules.json", default=[])
    folders = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    if folders and list(folders) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise unusable(local, f"modules.json lists {', '.join(folders)}; served: Transformer, Pooling, Normalize")
    if _read(local, "config_sentence_transformers.json", default={}).get("default_prompt_name"):
        raise unusable(local, "it puts a default prompt before every text")
    if folders.get("Transformer"):
        raise unusable(local, f"its encoder is in the folder {folders['Transformer']} instead of beside modules.json")
    transformer = _read(local, "sentence_bert_config.json", default={})
    pooling = _pooling(local, _read(local, f"{folders['Pooling']}/config.json")) if folders else Pooling.MEAN
    return SentenceConfig(
        bert=bert,
        pooling=pooling,
        normalizes="Normalize" in folders,
        lowercases=bool(transformer.get("do_lower_case", False)),
    )


def unusable(local: LocalModel, detail: str) -> ArgosyError:
    """A checkpoint cannot be served; `detail` says why."""
    return ArgosyError(Reason.NOT_SUPPORTED, f"cannot embed with model '{local.name}': {detail}", detail=detail)


def _bert(local: LocalModel, config: Mapping[str, Any]) -> BertConfig:
    architecture = (config.get("architectures") or ["none"])[0]
    served = {
        "architectures[0]": (architecture, "BertModel"),
        "hidden_act": (config.get("hidden_act", "gelu"), "gelu"),
        "position_embedding_type": (config.get("position_embedding_type", "absolute"), "absolute"),
        "is_decoder": (config.get("is_decoder", False), False),
        "quantization_config": (config.get("quantization_config"), None),
    }
    for key, (given, wanted) in served.items():
        if given != wanted:
            raise unusable(local, f"config.json has {key} {given}; served: {wanted}")
    try:
        bert = BertConfig(
            architecture=architecture,
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            norm_eps=config.get("layer_norm_eps", 1e-12),
            max_positions=config["max_position_embeddings"],
            token_types=config.get("type_vocab_size", 2),
        )
    except KeyError as error:
        raise unusable(local, f"config.json has no {error.args[0]}") from error
    if bert.hidden_size % bert.heads:
        raise unusable(local, f"its hidden size {bert.hidden_size} does not divide among {bert.heads} heads")
    return bert


def _pooling(local: LocalModel, config: Mapping[str, Any]) -> Pooling:
    # One name in newer files, a flag for each mode in older ones.
    modes = config.get("pooling_mode")
    if modes is None:
        flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        modes = [_LEGACY_MODES.get(flag, flag) for flag in flags]
    named = [modes] if isinstance(modes, str) else list(modes)
    served = [mode.value for mode in Pooling]
    if len(named) != 1 or named[0] not in served:
        raise unusable(local, f"it pools by {', '.join(named) or 'nothing'}; served: {' or '.join(served)}")
    return Pooling(named[0])


def _read(local: LocalModel, name: str, default: Any = None) -> Any:
    path = local.path / name
    if not path.is_file():
        if default is None:
            raise unusable(local, f"it has no {name}")
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise unusable(local, f"{name} is not JSON: {error}") from error

"""An engine on the stand-in of tests/fakes/tensorrt_llm, or, in tests marked `gpu`, on the library itself."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from argosy_services.engine.base import Request, Sampling, StepOutput
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings

FAKES = Path(__file__).parents[3] / "fakes"
EOS = 256
VOCABULARY = 257
SHAPES = {
    "self_attn.q_proj": (8, 8),
    "self_attn.v_proj": (8, 8),
    "mlp.down_proj": (8, 12),
}

_REAL = importlib.util.find_spec("tensorrt_llm") is not None
needs_library = pytest.mark.skipif(
    not (_REAL and torch.cuda.is_available()), reason="needs tensorrt_llm==1.2.1 and an NVIDIA GPU"
)


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts the stand-in in the library's place. A test in which it was misused fails."""
    _forget(monkeypatch)
    monkeypatch.syspath_prepend(str(FAKES))
    from tensorrt_llm import _control

    steering = _control.reset()
    steering.eos = (EOS,)
    yield steering
    assert steering.violations == []
    _forget(monkeypatch)


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def model(tmp_path: Path) -> LocalModel:
    """A checkpoint of two layers, with a tokenizer of bytes."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "eos_token_id": EOS,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    alphabet = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    weights = {
        f"model.layers.{layer}.{name}.weight": torch.zeros(shape)
        for layer in range(2)
        for name, shape in SHAPES.items()
    }
    save_file(weights, directory / "model.safetensors")
    return LocalModel("tiny", directory.as_uri(), directory, "f" * 64, 1000)


def settings(**changes: Any) -> GenerationSettings:
    own = {"restart_delay_s": 0.01, **changes.pop("own", {})}
    given = {"max_adapters": 2, "max_adapter_rank": 4, **changes}
    return GenerationSettings(engine="tensorrt_llm", tensorrt_llm=own, **given)


class Bench:
    """A started engine and everything that it handed out."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.steps: list[list[StepOutput]] = []
        self._news = threading.Condition()
        engine.start(self._on_step)

    def _on_step(self, outputs: list[StepOutput]) -> None:
        with self._news:
            self.steps.append(outputs)
            self._news.notify_all()

    @property
    def takes(self) -> bool:
        """Whether it takes requests now."""
        return self.engine._thread.takes

    def of(self, request_id: str) -> list[StepOutput]:
        return [output for step in list(self.steps) for output in step if output.request_id == request_id]

    def run(self, request: Request) -> list[StepOutput]:
        self.engine.submit(request)
        return self.wait(request.id)

    def wait(self, request_id: str, *, finished: bool = True, seconds: float = 10) -> list[StepOutput]:
        def there() -> bool:
            outputs = self.of(request_id)
            return bool(outputs) and (not finished or outputs[-1].finish is not None)

        with self._news:
            assert self._news.wait_for(there, timeout=seconds), f"{request_id} brought {self.of(request_id)}"
        return self.of(request_id)


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(control: Any, model: LocalModel) -> Iterator[MakeBench]:
    """Loads and starts engines in pytorch mode; keyword arguments change the settings."""
    made: list[Bench] = []

    def make(**changes: Any) -> Bench:
        from argosy_services.engine.factory import create_engine

        text = (model.path / "tokenizer.json").read_text()
        made.append(Bench(create_engine(model, settings(**changes), text)))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()


@pytest.fixture
def compiled(control: Any, model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeBench:
    """Compiles, loads and starts engines; `logprobs` compiles one that can tell them, `build` changes its options."""
    from argosy_services.engine.tensorrt_llm import compiler, device
    from argosy_services.engine.tensorrt_llm.library import load_library

    monkeypatch.setattr(device, "architecture", lambda: "sm_90")
    made: list[Bench] = []

    def make(
        *,
        logprobs: bool = False,
        build: dict[str, Any] | None = None,
        own: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Bench:
        from argosy_services.engine.factory import create_engine

        options = build_options(model, logprobs=logprobs, **(build or {}))
        root = tmp_path / "engines"
        compiler.compile_engine(load_library(), model, "h200", options, root=root, report=lambda *_: None)
        text = (model.path / "tokenizer.json").read_text()
        chosen = settings(own={"mode": "compiled", "engine_dir": root, **(own or {})}, **changes)
        made.append(Bench(create_engine(model, chosen, text)))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()


def build_options(model: LocalModel, **changes: Any) -> Any:
    from argosy_services.engine.tensorrt_llm import compiler

    options: dict[str, Any] = {
        "quantization": "none",
        "max_batch_size": 64,
        "max_input_len": 200,
        "max_seq_len": 256,
        "max_num_tokens": 512,
        "tensor_parallel_size": 1,
        "lora_max_rank": 4,
        "logprobs": False,
    }
    return compiler.build_for(model, "h200", **{**options, **changes})


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter of rank 2; each `seed` gives other weights."""

    def write(name: str, *, seed: int = 0, **options: Any) -> Path:
        directory = tmp_path / "adapters" / name
        directory.mkdir(parents=True)
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"], **options}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        path = "base_model.model.model.layers.0.self_attn.q_proj"
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"{path}.lora_A.weight": torch.randn(2, 8, generator=generator),
            f"{path}.lora_B.weight": torch.randn(8, 2, generator=generator),
        }
        save_file(tensors, directory / "adapter_model.safetensors")
        return directory

    return write


@pytest.fixture(params=["stand-in", pytest.param("library", marks=[pytest.mark.gpu, needs_library])])
def either(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """An engine on the stand-in, and one on the library where that and a GPU are present."""
    if request.param == "stand-in":
        yield request.getfixturevalue("bench")()
        return
    from argosy_services.engine.factory import create_engine

    local = request.getfixturevalue("smollm2")
    one = Bench(create_engine(local, settings(), (local.path / "tokenizer.json").read_text()))
    yield one
    one.engine.close()


def ask(request_id: str = "r", **changes: Any) -> Request:
    """A greedy request of five tokens that the model's end token ends."""
    given: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": 5, "sampling": Sampling(temperature=0.0)}
    return Request(id=request_id, **{**given, "stop_token_ids": frozenset({EOS}), **changes})


def tokens(outputs: list[StepOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def eventually(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.005)

"""Engines from checkpoints: made once, resumed, and refused where they do not fit."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.engine.tensorrt_llm.conftest import build_options, settings

from argosy_services.engine.tensorrt_llm import compiler, device
from argosy_services.engine.tensorrt_llm.compiler import Step
from argosy_services.engine.tensorrt_llm.errors import (
    BuildRequestError,
    DamagedEngineError,
    EngineMismatchError,
    LibraryError,
)
from argosy_services.engine.tensorrt_llm.library import Library, load_library
from argosy_services.engine.tensorrt_llm.locate import Wanted, find_engine
from argosy_services.engine.tensorrt_llm.manifest import EngineManifest, read_engine_manifest
from argosy_services.models.types import LocalModel


class Compile:
    """Compiles the tiny model below one root."""

    def __init__(self, model: LocalModel, root: Path, library: Library) -> None:
        self.model, self.root, self.library = model, root, library
        self.steps: list[Step] = []

    def __call__(self, **changes: Any) -> tuple[Path, EngineManifest]:
        gpu = changes.pop("gpu", "h200")
        build = build_options(self.model, **changes)
        return compiler.compile_engine(self.library, self.model, gpu, build, root=self.root, report=self._report)

    def _report(self, step: Step, done: int, total: int) -> None:
        if not self.steps or self.steps[-1] is not step:
            self.steps.append(step)


@pytest.fixture
def make(control: Any, model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compile:
    monkeypatch.setattr(device, "architecture", lambda: "sm_90")
    return Compile(model, tmp_path / "engines", load_library())


def wanted(model: LocalModel, **changes: Any) -> Wanted:
    chosen = settings(own={"mode": "compiled", "engine_dir": "/"}, max_context_tokens=256)
    return replace(Wanted.of(model, chosen, "sm_90", "1.2.1"), **changes)


def test_what_an_engine_consists_of(make: Compile, control: Any) -> None:
    """Fails when the manifest lacks what the engine was made from, or the library is left running."""
    directory, manifest = make()
    assert directory.parent == make.root / "tiny"
    assert manifest.key.fingerprint == make.model.fingerprint
    assert (manifest.key.architecture, manifest.key.version) == ("sm_90", "1.2.1")
    assert [file.name for file in manifest.files] == ["config.json", "rank0.engine"]
    assert read_engine_manifest(directory) == manifest
    assert make.steps == [Step.BUILDING, Step.SAVING, Step.CHECKING]
    assert control.llms[0].shut_down
    assert not any((make.root / ".staging").iterdir())


def test_limits_are_all_said(make: Compile) -> None:
    """Fails when a limit is left to the library, whose longest prompt is 1024 whatever the sequence length."""
    directory, _ = make()
    build = json.loads((directory / "config.json").read_text())["build_config"]
    named = ("max_input_len", "max_seq_len", "max_batch_size", "max_num_tokens")
    assert [build[name] for name in named] == [200, 256, 64, 512]


def test_adapters_are_built_in(make: Compile) -> None:
    """Fails when only the LLM is told about LoRA: no more than the rank reaches the build that way."""
    directory, _ = make()
    build = json.loads((directory / "config.json").read_text())["build_config"]
    assert build["lora_plugin"] == "auto"
    assert (build["lora_config"]["max_lora_rank"], len(build["lora_config"]["lora_target_modules"])) == (4, 7)
    directory, manifest = make(lora_max_rank=0)
    assert json.loads((directory / "config.json").read_text())["build_config"]["lora_plugin"] is None
    assert manifest.build.lora_modules == ()


def test_fp8(make: Compile) -> None:
    """Fails when weights or cache stay as they are: the cache's type cannot be chosen when the engine is loaded."""
    directory, _ = make(quantization="fp8")
    given = json.loads((directory / "config.json").read_text())["quantization"]
    assert given == {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}


def test_log_probabilities_are_built_in(make: Compile) -> None:
    """Fails when context logits are not gathered: the library refuses scoring without them."""
    directory, _ = make(logprobs=True)
    build = json.loads((directory / "config.json").read_text())["build_config"]
    assert (build["gather_context_logits"], build["gather_generation_logits"]) == (True, True)


def test_the_same_is_compiled_once(make: Compile, control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a repeated compilation builds again, as every restart of a cluster's job would.

    Fails also when `compile_engine` asks for the GPU and the lock before it looks: what is there needs neither.
    """
    first = make()
    assert make(max_batch_size=8)[0] != first[0]
    monkeypatch.setattr(device, "architecture", lambda: "none")
    monkeypatch.setattr(compiler, "_lock", None)
    assert make() == first
    assert len(control.llms) == 2


def test_everything_counts(make: Compile) -> None:
    """Fails when model, GPU or any option is missing from the key."""
    first = make()[0]
    changed = [
        {"quantization": "fp8"},
        {"max_input_len": 100},
        {"max_seq_len": 250},
        {"max_num_tokens": 400},
        {"tensor_parallel_size": 2},
        {"lora_max_rank": 8},
        {"logprobs": True},
    ]
    directories = {make(**change)[0] for change in changed}
    assert len(directories) == len(changed)
    assert first not in directories
    make.model = replace(make.model, fingerprint="e" * 64)
    assert make()[0] not in {first, *directories}


def test_an_interrupted_build_leaves_nothing_behind(make: Compile, control: Any) -> None:
    """Fails when an engine appears before it is complete, or what was left stands in the next one's way."""
    control.failing_constructions = 1
    with pytest.raises(RuntimeError, match="out of memory"):
        make()
    assert not (make.root / "tiny").exists()
    directory, manifest = make()
    assert read_engine_manifest(directory) == manifest


def test_what_was_saved_is_taken_up_again(make: Compile, control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when an interruption after the build throws the build away."""
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "describe_engine", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            make()
    make.steps.clear()
    directory, _ = make()
    assert make.steps == [Step.CHECKING]
    assert len(control.llms) == 1
    assert (directory / "rank0.engine").exists()


def test_what_was_saved_in_part_is_not(make: Compile, control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a half-saved engine is taken for a whole one."""
    import tensorrt_llm._tensorrt_engine

    def half(self: Any, engine_dir: str) -> None:
        Path(engine_dir).mkdir()
        (Path(engine_dir) / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tensorrt_llm._tensorrt_engine.LLM, "save", half)
        with pytest.raises(KeyboardInterrupt):
            make()
    directory, _ = make()
    assert (directory / "rank0.engine").exists()
    assert len(control.llms) == 2
    assert all(llm.shut_down for llm in control.llms)


def test_two_at_once_build_once(make: Compile, control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when there is no lock, or the second one does not look again after it."""
    entered, go = threading.Event(), threading.Event()
    build = compiler._build

    def slow(*arguments: Any) -> None:
        entered.set()
        assert go.wait(10)
        build(*arguments)

    monkeypatch.setattr(compiler, "_build", slow)
    found: list[Path] = []
    first = threading.Thread(target=lambda: found.append(make()[0]))
    other = Compile(make.model, make.root, make.library)
    second = threading.Thread(target=lambda: found.append(other()[0]))
    first.start()
    assert entered.wait(10)
    second.start()
    while Step.WAITING not in other.steps:
        assert second.is_alive()
    go.set()
    first.join()
    second.join()
    assert found[0] == found[1]
    assert len(control.llms) == 1


def test_a_damaged_engine_is_compiled_again(make: Compile, control: Any) -> None:
    """Fails when the manifest alone makes an engine complete."""
    directory, _ = make()
    (directory / "rank0.engine").write_bytes(b"cut")
    make()
    assert len(control.llms) == 2
    assert (directory / "rank0.engine").stat().st_size > 3


def test_the_gpu_must_be_the_one(make: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when an engine for another GPU is compiled here: it would not run there."""
    with pytest.raises(BuildRequestError, match="sm_80 and this machine has sm_90"):
        make(gpu="a100")
    monkeypatch.undo()
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    with pytest.raises(LibraryError, match="no NVIDIA GPU"):
        device.architecture()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_seq_len": 300}, "more than the model's 256"),
        ({"max_input_len": 256}, "leaves no room"),
        ({"max_num_tokens": 100}, "less than the longest prompt"),
        ({"tensor_parallel_size": 3}, "cannot be shared by 3 GPUs"),
    ],
)
def test_options_that_contradict(make: Compile, options: Any, words: str) -> None:
    """Fails when a contradiction is only found after minutes of building, or never."""
    with pytest.raises(BuildRequestError, match=words):
        make(**options)


def test_fp8_needs_a_gpu_that_has_it(model: LocalModel) -> None:
    """Fails when FP8 is promised for GPUs before compute capability 8.9."""
    options = {"max_batch_size": 8, "max_input_len": 0, "max_seq_len": 0, "max_num_tokens": 512}
    more = {"tensor_parallel_size": 1, "lora_max_rank": 0, "logprobs": False, "quantization": "fp8"}
    with pytest.raises(BuildRequestError, match="FP8"):
        compiler.build_for(model, "a100", **options, **more)
    build = compiler.build_for(model, "l4", **options, **more)
    assert (build.max_seq_len, build.max_input_len) == (256, 255)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fingerprint": "0" * 64}, "model fingerprint"),
        ({"architecture": "sm_80"}, "GPU architecture: the engine has sm_90, sm_80 is needed"),
        ({"version": "1.3.0"}, "TensorRT-LLM version: the engine has 1.2.1, 1.3.0 is needed"),
        ({"quantization": "fp8"}, "quantization: the engine has none, fp8 is needed"),
        ({"tensor_parallel_size": 2}, "tensor parallel size"),
        ({"max_batch": 65}, "batch size: the engine has 64, 65 is needed"),
        ({"max_context_tokens": 257}, "sequence length"),
        ({"max_adapter_rank": 8}, "LoRA rank: the engine has 4, 8 is needed"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(make: Compile, changes: Any, words: str) -> None:
    """Fails when this difference is not looked at, or not told."""
    directory, manifest = make()
    assert find_engine(wanted(make.model), directory) == (directory, manifest)
    with pytest.raises(EngineMismatchError, match=words):
        find_engine(wanted(make.model, **changes), directory)


def test_the_one_that_fits_is_found(make: Compile) -> None:
    """Fails when a directory of engines is not searched, or hidden ones are taken."""
    make(quantization="fp8")
    fitting = make()[0]
    (make.root / ".staging" / "x").mkdir(parents=True)
    (make.root / ".staging" / "x" / "argosy-engine.json").write_text("not JSON")
    assert find_engine(wanted(make.model), make.root)[0] == fitting
    assert find_engine(wanted(make.model), make.root / "tiny")[0] == fitting
    with pytest.raises(EngineMismatchError, match="argosy compile"):
        find_engine(wanted(make.model), make.root / "nothing")


def test_damage_is_found(make: Compile) -> None:
    """Fails when files are not held against the manifest, or the manifest not against itself."""
    directory, _ = make()
    (directory / "rank0.engine").unlink()
    with pytest.raises(DamagedEngineError, match=r"rank0\.engine is missing"):
        find_engine(wanted(make.model), directory)
    path = directory / "argosy-engine.json"
    path.write_text(path.read_text().replace('"max_batch_size": 64', '"max_batch_size": 65'))
    with pytest.raises(DamagedEngineError, match="digest"):
        find_engine(wanted(make.model), directory)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt

"""Every adapter that cannot be served is refused with its reason, whatever its bytes are."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from argosy_services.engine.torch_engine.lora.reader import LoraWeights, read_peft_adapter
from argosy_services.errors import ArgosyError, Reason

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"

Read = Callable[..., LoraWeights]


@pytest.fixture
def read(shapes: Mapping[str, tuple[int, int]]) -> Read:
    def read(directory: Path, *, dtype: torch.dtype = torch.float32, base_model: str = "small-2-layers") -> LoraWeights:
        return read_peft_adapter(directory, shapes=shapes, max_rank=4, dtype=dtype, base_model=base_model)

    return read


def refusal(read: Read, directory: Path, **options: Any) -> ArgosyError:
    with pytest.raises(ArgosyError) as caught:
        read(directory, **options)
    return caught.value


def replace_weights(directory: Path, data: bytes) -> Path:
    (directory / "adapter_model.safetensors").write_bytes(data)
    return directory


def file_with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_reads_what_was_written(write_adapter: Any, read: Read, shapes: Mapping[str, tuple[int, int]]) -> None:
    a, b = torch.randn(2, 8), torch.randn(8, 2)
    directory = write_adapter(tensors={A: a, B: b})
    weights = read(directory)
    pair = weights.modules["model.layers.0.self_attn.q_proj"]
    assert torch.equal(pair.a, a)
    assert torch.equal(pair.b, b * 2)  # lora_alpha 4 over rank 2
    assert weights.modules.keys() == shapes.keys()
    assert weights.rank == 2
    assert weights.target_modules == ("down_proj", "q_proj")
    assert weights.size_bytes == 4 * 2 * sum(out + inner for out, inner in shapes.values())
    both = (directory / "adapter_config.json").read_bytes() + (directory / "adapter_model.safetensors").read_bytes()
    assert weights.version == hashlib.sha256(both).hexdigest()


def test_converts_to_the_type_of_the_engine(write_adapter: Any, read: Read) -> None:
    stored = {A: torch.randn(2, 8, dtype=torch.float64), B: torch.randn(8, 2, dtype=torch.float16)}
    weights = read(write_adapter(tensors=stored), dtype=torch.bfloat16)
    assert {tensor.dtype for pair in weights.modules.values() for tensor in (pair.a, pair.b)} == {torch.bfloat16}
    assert weights.size_bytes == 2 * 2 * sum(8 + inner for inner in (8, 12, 8, 12))


@pytest.mark.parametrize("reverse", [False, True])
def test_tensors_may_lie_in_any_order(write_adapter: Any, read: Read, reverse: bool) -> None:
    directory = write_adapter()
    expected = read(directory)
    tensors = load_file(directory / "adapter_model.safetensors")
    header: dict[str, object] = {}
    data = b""
    for name in sorted(tensors, key=lambda name: (name.endswith("B.weight"), name), reverse=reverse):
        raw = tensors[name].numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": offsets}
        data += raw
    weights = read(replace_weights(directory, file_with_header(header, data)))
    for path, pair in expected.modules.items():
        assert torch.equal(weights.modules[path].a, pair.a)
        assert torch.equal(weights.modules[path].b, pair.b)


def test_a_tensor_of_odd_offset_is_read(write_adapter: Any, read: Read) -> None:
    """An empty tensor and odd header lengths shift data off their alignment; values must not change."""
    directory = write_adapter()
    expected = read(directory)
    data = (directory / "adapter_model.safetensors").read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    shifted = struct.pack("<Q", length + 1) + data[8 : 8 + length] + b" " + data[8 + length :]
    found = read(replace_weights(directory, shifted))
    for path, pair in expected.modules.items():
        assert torch.equal(found.modules[path].a, pair.a)
        assert torch.equal(found.modules[path].b, pair.b)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, 'bias is "all"'),
        ({"bias": 3}, "bias is 3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"some_future_option": True}, "some_future_option"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": None}, "peft_type"),
        ({"r": 5}, "largest rank that is served here is 4"),
        ({"r": 0}, "from 1 to 4"),
        ({"r": True}, "whole number"),
        ({"r": "2"}, "whole number"),
        ({"r": None}, "given: null"),
        ({"lora_alpha": "4"}, "finite number"),
        ({"lora_alpha": 10**400}, "finite number"),
        ({"use_rslora": "yes"}, "true or false"),
        ({"rank_pattern": [1]}, "JSON object"),
        ({"rank_pattern": {"q_proj": 9}}, "rank_pattern[q_proj] is 9"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern[q_proj]"),
        ({"alpha_pattern": {"(a+)+": 1}}, "repeated group"),
        ({"rank_pattern": {"*": 1}}, "not a regular expression"),
        ({"base_model_name_or_path": 5}, "must be a string"),
    ],
)
def test_options_that_change_the_result_are_refused(
    write_adapter: Any, read: Read, options: dict[str, object], said: str
) -> None:
    error = refusal(read, write_adapter(options=options))
    assert error.reason is Reason.ADAPTER_INVALID
    assert said in error.message
    assert error.metadata["detail"]


def test_options_of_training_are_ignored(write_adapter: Any, read: Read) -> None:
    training = {
        "lora_dropout": 0.1,
        "loftq_config": {"loftq_bits": 4},
        "eva_config": {"rho": 2.0},
        "init_lora_weights": "gaussian",
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
        "layers_to_transform": [0],
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
        "arrow_config": None,
        "use_dora": False,
    }
    assert read(write_adapter(options=training)).rank == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"peft_type": "LORA", "r": 2, "lora_alpha": NaN}', "NaN"),
        (b"[" * 200_000, "not JSON"),
        (b'{"r": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b" " * (1 << 20) + b"{}", "at most 1048576"),
    ],
)
def test_a_configuration_that_is_none_is_refused(write_adapter: Any, read: Read, text: bytes, said: str) -> None:
    directory = write_adapter()
    (directory / "adapter_config.json").write_bytes(text)
    error = refusal(read, directory)
    assert error.reason is Reason.ADAPTER_INVALID
    assert said in error.message


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({A: None}, "model.layers.0.self_attn.q_proj lacks lora_A.weight"),
        ({B: None}, "model.layers.0.self_attn.q_proj lacks lora_B.weight"),
        ({A: torch.zeros(3, 8)}, "A is [2, 8] and B [8, 2], given: A [3, 8], B [8, 2]"),
        ({B: torch.zeros(8, 1)}, "given: A [2, 8], B [8, 1]"),
        ({A: torch.zeros(16)}, "given: A [16]"),
        ({A: torch.zeros(0, 8)}, "given: A [0, 8]"),
        ({A: torch.zeros(2, 8, dtype=torch.int8)}, "type I8"),
        ({A: torch.zeros(2, 8, dtype=torch.float8_e4m3fn)}, "type F8_E4M3"),
        ({A: torch.full((2, 8), float("nan"))}, "lora_A is not finite"),
        ({B: torch.full((8, 2), float("-inf"))}, "lora_B is not finite"),
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(2, 8)}, "lm_head lacks lora_B"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2, 8)}, "adapts an embedding"),
        ({A.replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(8)}, "DoRA"),
        ({B.replace(".weight", ".bias"): torch.zeros(8)}, "none of a LoRA adapter"),
        ({"model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8)}, "none of a LoRA adapter"),
        (
            {
                "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(2, 8),
                "base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight": torch.zeros(8, 2),
            },
            "no layer model.layers.7.self_attn.q_proj",
        ),
    ],
)
def test_tensors_that_do_not_belong_are_refused(
    write_adapter: Any, read: Read, tensors: dict[str, torch.Tensor], said: str
) -> None:
    error = refusal(read, write_adapter(tensors=tensors))
    assert error.reason is Reason.ADAPTER_INVALID
    assert said in error.message


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [A, B])
def test_one_bad_number_is_found_in_every_type(
    write_adapter: Any, read: Read, name: str, dtype: torch.dtype, bad: float
) -> None:
    directory = write_adapter()
    file = directory / "adapter_model.safetensors"
    tensors = {each: tensor.to(dtype) for each, tensor in load_file(file).items()}
    save_file(tensors, file)
    assert read(directory).rank == 2
    tensors[name][1, 1] = bad
    save_file(tensors, file)
    assert f"lora_{'A' if name == A else 'B'} is not finite" in refusal(read, directory).message


def test_a_value_beyond_the_type_of_the_engine_is_refused(write_adapter: Any, read: Read) -> None:
    directory = write_adapter(tensors={B: torch.full((8, 2), 60_000.0)})
    assert read(directory).rank == 2
    assert "when scaled" in refusal(read, directory, dtype=torch.float16).message


def test_another_layer_size_is_another_base_model(write_adapter: Any, read: Read) -> None:
    error = refusal(read, write_adapter(tensors={A: torch.zeros(2, 16), B: torch.zeros(16, 2)}))
    assert error.reason is Reason.WRONG_BASE_MODEL
    assert "is 8 x 8" in error.message
    assert "16 x 16" in error.message
    assert error.metadata == {"expected": "model.layers.0.self_attn.q_proj 8x8", "value": "16x16"}


@pytest.mark.parametrize(
    "trained_for",
    [
        None,
        "",
        "/srv/models/smollm-135m",
        "./runs/llama-7b",
        "../llama-135m",
        "~/models/llama-135m",
        "C:\\models\\llama-135m",
        "data/models/llama-135m",
        "llama-135m",
        "hub/SmolLM2-135M-Instruct",
        "hub/SmolLM2-135M-Instruct-bnb-4bit",
        "hub/quite-another-name",
    ],
)
def test_a_name_that_tells_nothing_refuses_nothing(write_adapter: Any, read: Read, trained_for: str | None) -> None:
    directory = write_adapter(options={"base_model_name_or_path": trained_for})
    assert read(directory, base_model="smollm2-135m-instruct").rank == 2


@pytest.mark.parametrize("served", ["smollm2-135m-instruct", "hf://hub/SmolLM2-135M-Instruct@main"])
@pytest.mark.parametrize("trained_for", ["hub/SmolLM2-135M", "hub/SmolLM-135M-Instruct", "hub/SmolLM2-360M-Instruct"])
def test_another_published_model_is_refused(write_adapter: Any, read: Read, trained_for: str, served: str) -> None:
    error = refusal(read, write_adapter(options={"base_model_name_or_path": trained_for}), base_model=served)
    assert error.reason is Reason.WRONG_BASE_MODEL
    assert trained_for in error.message
    assert "base_model_name_or_path" in error.message


@pytest.mark.parametrize("pickle", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickle_is_never_opened(write_adapter: Any, read: Read, pickle: str) -> None:
    directory = write_adapter()
    # A named pipe: opening it would wait for ever.
    os.mkfifo(directory / pickle)
    (directory / "adapter_model.safetensors").unlink()
    error = refusal(read, directory)
    assert error.reason is Reason.ADAPTER_INVALID
    assert pickle in error.message
    assert "adapter_model.safetensors" in error.message


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("kind", ["missing", "link", "pipe", "directory"])
def test_a_file_that_is_none_is_refused(write_adapter: Any, read: Read, tmp_path: Path, name: str, kind: str) -> None:
    directory = write_adapter()
    path = directory / name
    path.rename(tmp_path / name)
    if kind == "link":
        path.symlink_to(tmp_path / name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    error = refusal(read, directory)
    assert error.reason is Reason.ADAPTER_INVALID
    assert name in error.message


ONE = {A: {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]}}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes"),
        (b"1234567", "7 bytes"),
        (struct.pack("<Q", 1 << 62) + b"{}", "claims 4611686018427387904 bytes"),
        (struct.pack("<Q", 100) + b"{}", "claims 100 bytes"),
        (file_with_header(b"\xff"), "not JSON"),
        (file_with_header(b"[" * 100_000), "not JSON"),
        (file_with_header([]), "not a JSON object"),
        (file_with_header({}), "no tensors"),
        (file_with_header({}, b"tail"), "4 bytes after"),
        (file_with_header({A: 1}), "not a JSON object"),
        (file_with_header({A: {}}), "no valid dtype and shape"),
        (file_with_header({A: {**ONE[A], "shape": [2, -8]}}, bytes(64)), "no valid dtype and shape"),
        (file_with_header({A: {**ONE[A], "shape": [2, 8.0]}}, bytes(64)), "no valid dtype and shape"),
        (file_with_header({A: {**ONE[A], "shape": [1] * 9}}, bytes(64)), "no valid dtype and shape"),
        (file_with_header({A: {**ONE[A], "dtype": 1}}, bytes(64)), "no valid dtype and shape"),
        (file_with_header({A: {**ONE[A], "shape": [1 << 40, 1 << 40]}}, bytes(64)), "has 64 bytes"),
        (file_with_header(ONE, bytes(32)), "outside the file"),
        (file_with_header({A: {**ONE[A], "data_offsets": [64, 0]}}, bytes(64)), "outside the file"),
        (file_with_header({A: {**ONE[A], "data_offsets": [64]}}, bytes(64)), "outside the file"),
        (file_with_header({A: {**ONE[A], "data_offsets": None}}, bytes(64)), "outside the file"),
        (file_with_header({A: ONE[A], B: {**ONE[A], "shape": [8, 2]}}, bytes(64)), "overlap"),
        (file_with_header({A: {**ONE[A], "data_offsets": [4, 68]}}, bytes(68)), "gaps"),
        (file_with_header({**ONE, "__metadata__": {"format": "pt"}}, bytes(64)), "lacks lora_B"),
    ],
)
def test_a_lying_weights_file_is_refused(write_adapter: Any, read: Read, data: bytes, said: str) -> None:
    error = refusal(read, replace_weights(write_adapter(), data))
    assert error.reason is Reason.ADAPTER_INVALID
    assert said in error.message


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@example(data=None)
def test_damaged_bytes_never_do_more_than_refuse(write_adapter: Any, read: Read, tmp_path: Path, data: Any) -> None:
    directory = tmp_path / "adapter"
    if not directory.exists():
        write_adapter()
        (tmp_path / "good").write_bytes((directory / "adapter_model.safetensors").read_bytes())
    good = bytearray((tmp_path / "good").read_bytes())
    if data is not None:
        for _ in range(data.draw(st.integers(1, 4))):
            good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        del good[data.draw(st.integers(0, len(good))) :]
    replace_weights(directory, bytes(good))
    with suppress(ArgosyError):
        weights = read(directory)
        assert all(torch.isfinite(pair.b).all() for pair in weights.modules.values())

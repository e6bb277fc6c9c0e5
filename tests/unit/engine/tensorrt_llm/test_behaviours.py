"""The behaviours of contract.yaml, by their names, on the stand-in; those that a GPU can show also on the library.

These tests hold the stand-in, not the engine: each fails when the stand-in becomes milder than the library.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.engine.tensorrt_llm.conftest import EOS, needs_library

from argosy_services.engine.tensorrt_llm.library import Library, load_library, read_contract
from argosy_services.models.types import LocalModel

PROMPT = {"prompt_token_ids": [5, 6, 7]}


class Host:
    """An LLM in pytorch mode, and the library that it is of."""

    def __init__(self, library: Library, llm: Any) -> None:
        self.library, self.llm = library, llm

    def ask(self, *, lora: Any = None, **params: Any) -> Any:
        given = self.library.sampling_params(**{"max_tokens": 4, "end_id": -1, "pad_id": 0, **params})
        return self.llm.generate_async(PROMPT, sampling_params=given, streaming=True, lora_request=lora)

    async def tokens(self, **params: Any) -> list[int]:
        result = self.ask(**params)
        async for _ in result:
            pass
        return list(result.outputs[0].token_ids)


@pytest.fixture
def host(control: Any, model: LocalModel) -> Iterator[Host]:
    """On the stand-in, for tests that steer it."""
    yield from _host(model)


@pytest.fixture(params=["stand-in", pytest.param("library", marks=[pytest.mark.gpu, needs_library])])
def either_host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """On the stand-in, and on the library where that and a GPU are present."""
    if request.param == "stand-in":
        yield request.getfixturevalue("host")
    else:
        yield from _host(request.getfixturevalue("smollm2"))


def _host(model: LocalModel) -> Iterator[Host]:
    library = load_library()
    llm = library.pytorch_llm(model=str(model.path), tokenizer=str(model.path), max_seq_len=256)
    yield Host(library, llm)
    llm.shutdown()


@pytest.fixture
def compiled_llm(control: Any, model: LocalModel, tmp_path: Path) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        library = load_library()
        build = library.build_config(max_seq_len=256, **changes.pop("build", {}))
        given = {"build_config": build, "workspace": str(tmp_path / "built"), **changes}
        return library.compiled_llm(model=str(model.path), tokenizer=str(model.path), **given)

    return make


def test_every_behaviour_has_a_test() -> None:
    assert {f"test_{name}" for name in read_contract()["behaviours"]} <= globals().keys()


async def test_same_object(either_host: Host) -> None:
    result = either_host.ask()
    seen = [response async for response in result]
    assert len(seen) > 1
    assert all(response is result for response in seen)


def test_running_loop(either_host: Host) -> None:
    result = either_host.ask()
    with pytest.raises(AssertionError):
        asyncio.run(result.__anext__())


async def test_error_ends(host: Host, control: Any) -> None:
    control.fail_next = "broken"
    result = host.ask()
    with pytest.raises(host.library.request_error):
        await result.__anext__()
    assert not result.finished
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(result.__anext__(), 0.05)
    assert control.violations.pop() == "a result was read again after an error"


async def test_leaving_is_not_cancelling(host: Host, control: Any) -> None:
    control.step_s = 0.005
    result = host.ask(max_tokens=100)
    async for _ in result:
        break
    await asyncio.sleep(0.03)
    assert host.llm.running == 1
    result.abort()
    async for _ in result:
        pass
    assert result.outputs[0].finish_reason == "cancelled"
    assert host.llm.running == 0


async def test_abort_twice(either_host: Host) -> None:
    result = either_host.ask()
    result.abort()
    result.abort()
    async for _ in result:
        pass
    result.abort()
    assert result.finished


async def test_params_mutated(host: Host, control: Any) -> None:
    params = host.library.sampling_params(max_tokens=2)
    for _ in range(2):
        async for _ in host.llm.generate_async(PROMPT, sampling_params=params, streaming=True):
            pass
    assert params.end_id == EOS
    assert control.violations.pop() == "a SamplingParams object was used for two requests"


async def test_default_max_tokens(either_host: Host) -> None:
    assert either_host.library.sampling_params().max_tokens == 32
    assert len(await either_host.tokens(max_tokens=0)) == 256 - 3


async def test_default_greedy(either_host: Host) -> None:
    assert await either_host.tokens(seed=1) == await either_host.tokens(seed=2)


async def test_default_seed(host: Host, control: Any) -> None:
    assert await host.tokens(temperature=1.0) == await host.tokens(temperature=1.0)
    assert await host.tokens(temperature=1.0, seed=1) != await host.tokens(temperature=1.0, seed=2)


async def test_logprobs_zero(either_host: Host) -> None:
    result = either_host.ask(logprobs=0)
    async for _ in result:
        pass
    assert not result.outputs[0].logprobs


async def test_end_id_skips_setup(host: Host, control: Any) -> None:
    control.eos, control.answer = (EOS, 9), [7, 9, 8]
    assert await host.tokens(end_id=EOS) == [7, 9, 8, 7]
    assert await host.tokens(end_id=None) == [7]


async def test_stop_tokens_stripped(host: Host, control: Any) -> None:
    control.answer = [7, 9, 8]
    result = host.ask(stop_token_ids=[9])
    async for _ in result:
        pass
    output = result.outputs[0]
    assert (list(output.token_ids), output.finish_reason, output.stop_reason) == ([7], "stop", 9)


async def test_lora_silent(either_host: Host, write_adapter: Callable[..., Path]) -> None:
    lora = either_host.library.lora_request("x", 1, str(write_adapter("x")))
    assert await either_host.tokens(lora=lora) == await either_host.tokens()


async def test_lora_by_id(control: Any, model: LocalModel, write_adapter: Callable[..., Path]) -> None:
    library = load_library()
    lora = library.lora_config(lora_target_modules=["attn_q"])
    llm = await asyncio.to_thread(
        lambda: library.pytorch_llm(model=str(model.path), tokenizer=str(model.path), lora_config=lora)
    )
    host = Host(library, llm)
    first, second = str(write_adapter("x", seed=1)), str(write_adapter("y", seed=2))
    old = await host.tokens(lora=library.lora_request("x", 1, first))
    assert await host.tokens(lora=library.lora_request("y", 1, second)) == old
    assert await host.tokens(lora=library.lora_request("y", 2, second)) != old


def test_lora_path(either_host: Host) -> None:
    with pytest.raises(ValueError, match="exist"):
        either_host.library.lora_request("x", 1)
    with pytest.raises(ValueError, match="exist"):
        either_host.library.lora_request("x", 1, "/nowhere")


def test_no_unload(either_host: Host) -> None:
    assert not [name for name in dir(either_host.llm) if "unload" in name or "remove_lora" in name]


async def test_trt_arguments(compiled_llm: Callable[..., Any]) -> None:
    llm = await asyncio.to_thread(compiled_llm)
    library = load_library()
    for params in ({"max_tokens": 300}, {"logprobs": 1}, {"prompt_logprobs": 1}):
        with pytest.raises(ValueError, match=r"max_seq_len|logprobs"):
            llm.generate_async(PROMPT, sampling_params=library.sampling_params(end_id=-1, **params))


async def test_trt_logprobs_abort(compiled_llm: Callable[..., Any], control: Any) -> None:
    llm = await asyncio.to_thread(lambda: compiled_llm(gather_generation_logits=True))
    control.step_s = 0.005
    result = Host(load_library(), llm).ask(logprobs=1, max_tokens=100)
    await result.__anext__()
    result.abort()
    assert not llm._check_health()
    assert "aborted in a compiled engine" in control.violations.pop()


def test_torch_rejects(control: Any, model: LocalModel) -> None:
    library = load_library()
    with pytest.raises(ValueError, match="_tensorrt_engine"):
        library.pytorch_llm(model=str(model.path), build_config=library.build_config())
    for llm in (library.pytorch_llm, library.compiled_llm):
        with pytest.raises(ValueError, match="invalid argument: nonsense"):
            llm(model=str(model.path), tokenizer=str(model.path), nonsense=1)


async def test_fatal_shuts(host: Host, control: Any) -> None:
    host.llm.die()
    assert not host.llm._check_health()
    with pytest.raises(RuntimeError, match="shutting down"):
        host.ask()


async def test_stats_end(host: Host, control: Any) -> None:
    assert [report async for report in host.llm.get_stats_async(timeout=0.01)] == []
    await host.tokens()
    control.reports = [{"iter": 1}]
    assert [report async for report in host.llm.get_stats_async(timeout=0.01)] == [{"iter": 1}]


def test_llm_arguments_are_the_contracts(control: Any) -> None:
    """The stand-in takes every argument that the contract lists."""
    from tensorrt_llm.llmapi.llm_args import COMMON, COMPILED, PYTORCH

    listed = read_contract()["llm_arguments"]
    assert set(listed["common"]) <= COMMON
    assert set(listed["pytorch"]) <= PYTORCH
    assert set(listed["compiled"]) <= COMPILED


def test_the_stand_ins_engine_has_the_librarys_layout(compiled_llm: Callable[..., Any], tmp_path: Path) -> None:
    compiled_llm().save(str(tmp_path / "saved"))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {"version", "build_config"} <= config.keys()
    assert (tmp_path / "saved" / "rank0.engine").exists()

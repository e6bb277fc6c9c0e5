"""Adapters under the library's ids."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.engine.tensorrt_llm.conftest import Bench, MakeBench, ask, eventually, tokens

from argosy_services.engine.base import Finish
from argosy_services.errors import ArgosyError, Reason

Write = Callable[..., Path]


def put(bench: Bench, key: str, directory: Path) -> None:
    bench.engine.load_adapter(key, bench.engine.read_adapter(directory)).result(10)


def answer(bench: Bench, name: str, adapter: str | None) -> list[int]:
    return tokens(bench.run(ask(name, adapter=adapter, stop_token_ids=frozenset())))


def test_an_adapter_changes_the_answer(bench: MakeBench, write_adapter: Write) -> None:
    """Fails when the adapter does not reach the library with the request."""
    engine = bench()
    put(engine, "x#1", write_adapter("x"))
    assert answer(engine, "a", "x#1") != answer(engine, "b", None)
    assert engine.engine.stats().adapters == 1


def test_a_new_version_gets_a_new_id(bench: MakeBench, control: Any, write_adapter: Write) -> None:
    """Fails when an id is used again for other files: the library would answer with the old ones."""
    engine = bench()
    answers = []
    for version in (1, 2):
        directory = write_adapter(f"x{version}", seed=version)
        put(engine, f"x#{version}", directory)
        answers.append(answer(engine, f"r{version}", f"x#{version}"))
        engine.engine.unload_adapter(f"x#{version}").result(10)
    assert answers[0] != answers[1]
    ids = {call["lora"].lora_name: call["lora"].lora_int_id for call in control.calls if call["lora"]}
    assert sorted(ids.values()) == [1, 2]


def test_the_same_version_keeps_its_id(bench: MakeBench, control: Any, write_adapter: Write) -> None:
    """Fails when loading the same files again takes another id: the library never gives memory back."""
    engine = bench()
    directory = write_adapter("x")
    for turn in range(3):
        put(engine, f"x#{turn}", directory)
        engine.engine.unload_adapter(f"x#{turn}").result(10)
    assert {call["lora"].lora_int_id for call in control.calls} == {1}


def test_loading_reads_the_files_before_anybody_waits(bench: MakeBench, control: Any, write_adapter: Write) -> None:
    """Fails when there is no warm-up: the first request would wait for the disk, and meet every fault."""
    engine = bench()
    put(engine, "x#1", write_adapter("x"))
    assert control.calls[0]["lora"].lora_int_id in control.llms[0]._adapters
    assert engine.steps == []


def test_a_refused_adapter_is_not_loaded(bench: MakeBench, control: Any, write_adapter: Write) -> None:
    """Fails when the library's refusal is lost, or the adapter keeps a slot or its id."""
    engine = bench()
    control.fail_next = "module attn_q has the wrong size"
    with pytest.raises(ArgosyError, match="wrong size") as raised:
        put(engine, "x#1", write_adapter("x"))
    assert raised.value.reason is Reason.ADAPTER_INVALID
    assert engine.engine.stats().adapters == 0
    put(engine, "x#2", write_adapter("y"))
    assert [call["lora"].lora_int_id for call in control.calls] == [1, 2]


def test_a_directory_that_is_gone(bench: MakeBench, write_adapter: Write) -> None:
    """Fails when the path is left out, or its ValueError ends the engine."""
    engine = bench()
    directory = write_adapter("x")
    weights = engine.engine.read_adapter(directory)
    shutil.rmtree(directory)
    with pytest.raises(ArgosyError) as raised:
        engine.engine.load_adapter("x#1", weights).result(10)
    assert raised.value.reason is Reason.ADAPTER_INVALID


def test_unknown_adapters_are_never_the_base_model(bench: MakeBench) -> None:
    """Fails when a request for an adapter that left runs without it."""
    (output,) = bench().run(ask(adapter="gone#1"))
    assert output.error is not None
    assert output.error.reason is Reason.ADAPTER_NOT_READY


def test_without_adapters_none_is_taken(bench: MakeBench, control: Any, write_adapter: Write) -> None:
    """Fails when LoRA is off and adapters are loaded all the same: the library ignores them in silence."""
    engine = bench(max_adapters=0)
    assert "lora_config" not in control.llms[0].args
    with pytest.raises(ArgosyError) as raised:
        put(engine, "x#1", write_adapter("x"))
    assert raised.value.reason is Reason.ADAPTER_SLOTS_FULL


def test_slots_are_bounded(bench: MakeBench, write_adapter: Write) -> None:
    """Fails when more adapters are taken than the library was made for."""
    engine = bench()
    for name in ("x", "y"):
        put(engine, name, write_adapter(name, seed=ord(name)))
    with pytest.raises(ArgosyError) as raised:
        put(engine, "z", write_adapter("z", seed=3))
    assert raised.value.reason is Reason.ADAPTER_SLOTS_FULL


def test_versions_are_bounded(bench: MakeBench, write_adapter: Write) -> None:
    """Fails when unloading is taken for freeing: the library keeps every version until it is restarted."""
    engine = bench(own={"max_adapter_versions": 2})
    for name in ("x", "y"):
        put(engine, name, write_adapter(name, seed=ord(name)))
        engine.engine.unload_adapter(name).result(10)
    with pytest.raises(ArgosyError, match="restart") as raised:
        put(engine, "z", write_adapter("z", seed=3))
    assert raised.value.reason is Reason.ADAPTER_SLOTS_FULL


def test_unloading_ends_its_requests(bench: MakeBench, control: Any, write_adapter: Write) -> None:
    """Fails when requests of an adapter that leaves go on, here or in the library."""
    control.step_s = 0.01
    engine = bench()
    put(engine, "x", write_adapter("x"))
    engine.engine.submit(ask("a", adapter="x", max_tokens=200))
    engine.wait("a", finished=False)
    engine.engine.unload_adapter("x").result(10)
    last = engine.wait("a")[-1]
    assert last.finish is Finish.FAILED
    assert last.error is not None
    assert last.error.reason is Reason.ADAPTER_NOT_READY
    eventually(lambda: control.llms[0].running == 0, seconds=0.4)


def test_adapters_outlive_the_library(bench: MakeBench, control: Any, write_adapter: Write) -> None:
    """Fails when adapters are lost with the library, or ids begin again."""
    engine = bench()
    put(engine, "x", write_adapter("x"))
    before = answer(engine, "a", "x")
    control.llms[0].die()
    eventually(lambda: len(control.llms) == 2 and engine.takes)
    assert answer(engine, "b", "x") == before
    put(engine, "y", write_adapter("y", seed=1))
    assert control.calls[-1]["lora"].lora_int_id == 2


@pytest.mark.parametrize(
    "options", [{"rank_pattern": {"q_proj": 1}}, {"alpha_pattern": {"q_proj": 8}}, {"use_rslora": True}, {"r": 5}]
)
def test_adapters_that_would_be_computed_otherwise(bench: MakeBench, write_adapter: Write, options: Any) -> None:
    """Fails when options are taken that the library's documentation does not promise to follow."""
    with pytest.raises(ArgosyError) as raised:
        bench().engine.read_adapter(write_adapter("x", **options))
    assert raised.value.reason is Reason.ADAPTER_INVALID


def test_adapters_on_several_gpus(bench: MakeBench, write_adapter: Write) -> None:
    """Fails when sizes that GPUs cannot share are only found while requests run."""
    engine = bench(own={"tensor_parallel_size": 3})
    with pytest.raises(ArgosyError, match="3 GPUs"):
        engine.engine.read_adapter(write_adapter("x"))


def test_weights_of_another_engine(bench: MakeBench) -> None:
    """Fails when anything with a version is taken for an adapter."""
    with pytest.raises(TypeError):
        bench().engine.load_adapter("x", object()).result(10)


def test_the_library_knows_which_layers(bench: MakeBench, control: Any) -> None:
    """Fails when target modules are left out (memory for all kinds of layers), or the tokenizer (an adapter's own)."""
    bench()
    lora = control.llms[0].args["lora_config"]
    assert {"attn_q", "attn_v", "mlp_4h_to_h"} <= set(lora.lora_target_modules)
    assert (lora.max_lora_rank, lora.max_loras, lora.max_cpu_loras) == (4, 2, 2)

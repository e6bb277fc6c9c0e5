"""Every option's limits, and what the engine is told."""

from __future__ import annotations

import dataclasses
import math

import pytest

from argosy.api.generation.v1 import generation_pb2
from argosy_services.errors import ArgosyError, Reason
from argosy_services.generation import options
from argosy_services.generation.types import Options

from .conftest import EOS, engine_info

INFO = engine_info()
NAN, INF = math.nan, math.inf
LARGEST = (1 << 32) - 1

VALID = {
    "temperature": (0.0, 1e-40, 0.7, 100.0),
    "top_k": (0, 1, LARGEST),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-9, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "logit_bias": ({}, {0: -100.0, 49_151: 100.0}, dict.fromkeys(range(1024), 1.0)),
    "seed": (None, 0, (1 << 64) - 1),
    "max_tokens": (None, 1, LARGEST),
    "min_tokens": (0, 1, LARGEST),
    "stop": ((), ("x",), ("x" * 256,), ("é" * 128,), ("x",) * 16),
    "stop_token_ids": ((), (0, 49_151), (5,) * 64),
    "ignore_eos": (False, True),
    "n": (1, 16),
    "logprobs": (None, 0, 20),
}

INVALID = {
    "temperature": (-0.1, 100.1, NAN, INF, -INF),
    "top_k": (-1, LARGEST + 1),
    "top_p": (0.0, -0.1, 1.1, NAN, INF, -INF),
    "min_p": (-0.1, 1.1, NAN, INF, -INF),
    "repetition_penalty": (0.0, -1.0, 100.1, NAN, INF, -INF),
    "presence_penalty": (-2.1, 2.1, NAN, INF, -INF),
    "frequency_penalty": (-2.1, 2.1, NAN, INF, -INF),
    "logit_bias": (
        {-1: 0.0},
        {49152: 0.0},
        {5: 100.1},
        {5: -100.1},
        {5: NAN},
        {5: INF},
        {5: -INF},
        dict.fromkeys(range(1025), 1.0),
    ),
    "seed": (-1, 1 << 64),
    "max_tokens": (0, -1, LARGEST + 1),
    "min_tokens": (-1, LARGEST + 1),
    "stop": (("",), ("x" * 257,), ("é" * 129,), ("x",) * 17, ("x", "")),
    "stop_token_ids": ((-1,), (49_152,), (5, 1 << 31), (5,) * 65),
    "n": (0, -1, 17),
    "logprobs": (-1, 21),
}


def cases(table: dict[str, tuple[object, ...]]) -> list[object]:
    return [
        pytest.param(name, value, id=f"{name}={str(value)[:30]}-{number}")
        for name, values in table.items()
        for number, value in enumerate(values)
    ]


@pytest.mark.parametrize(("name", "value"), cases(VALID))
def test_what_is_within_the_limits_passes(name: str, value: object) -> None:
    options.check(Options(**{name: value}), INFO)


@pytest.mark.parametrize(("name", "value"), cases(INVALID))
def test_what_is_outside_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ArgosyError) as refused:
        options.check(Options(**{name: value}), INFO)
    assert refused.value.reason is Reason.INVALID_FIELD
    assert refused.value.metadata["field"].startswith(f"spec.sampling.{name}")
    assert set(refused.value.metadata) == {"field", "limit", "value"}


def test_min_tokens_is_at_most_max_tokens() -> None:
    options.check(Options(min_tokens=5, max_tokens=5), INFO)
    with pytest.raises(ArgosyError) as refused:
        options.check(Options(min_tokens=6, max_tokens=5), INFO)
    assert refused.value.metadata["field"] == "spec.sampling.min_tokens"


def test_both_tables_name_every_option_of_the_schema() -> None:
    schema = {field.name for field in generation_pb2.SamplingParams.DESCRIPTOR.fields}
    assert {field.name for field in dataclasses.fields(Options)} == schema
    assert set(VALID) == schema
    assert set(INVALID) == schema - {"ignore_eos"}


def test_choices_differ_in_their_seed_only() -> None:
    first, second, third = options.samplings(Options(seed=(1 << 64) - 2, n=3, top_k=7, logprobs=2), INFO)
    assert (first.seed, second.seed, third.seed) == ((1 << 64) - 2, (1 << 64) - 1, 0)
    assert dataclasses.replace(second, seed=0) == dataclasses.replace(third, seed=0)
    assert (first.top_k, first.logprobs) == (7, 2)


def test_an_unset_seed_is_another_one_each_time() -> None:
    seeds = {options.samplings(Options(), INFO)[0].seed for _ in range(20)}
    assert len(seeds) == 20


def test_what_the_engine_cannot_tell_apart_is_greedy_or_unlimited() -> None:
    (sampling,) = options.samplings(Options(temperature=1e-40, top_k=LARGEST), INFO)
    assert (sampling.temperature, sampling.top_k) == (0.0, 0)


def test_stop_tokens_are_the_models_own_and_the_callers() -> None:
    assert options.stop_token_ids(Options(stop_token_ids=(7,)), INFO) == {EOS, 7}
    assert options.stop_token_ids(Options(stop_token_ids=(7,), ignore_eos=True), INFO) == {7}

"""Requests in the library's parameters."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.engine.tensorrt_llm.conftest import EOS, VOCABULARY, ask

from argosy_services.engine.base import EngineInfo, Grammar, GrammarKind, Sampling
from argosy_services.engine.tensorrt_llm.library import Library, load_library
from argosy_services.engine.tensorrt_llm.sampling import sampling_params
from argosy_services.errors import ArgosyError, Reason

INFO = EngineInfo("tensorrt_llm", "Llama", "bfloat16", "cuda", 1, 256, VOCABULARY, frozenset({EOS}), 2, 4)


@pytest.fixture
def installed(control: Any) -> Library:
    return load_library()


def test_each_request_gets_new_parameters(installed: Library) -> None:
    """Fails when parameters are kept for requests that are alike: the library changes them."""
    assert sampling_params(installed, ask(), INFO) is not sampling_params(installed, ask(), INFO)


def test_max_tokens_is_always_said(installed: Library) -> None:
    """Fails when max_tokens is left out: the library's default is 32."""
    assert sampling_params(installed, ask(max_tokens=100), INFO).max_tokens == 100


def test_scoring_draws_one_token(installed: Library) -> None:
    """Fails when max_tokens 0 is handed on: for the library that means as many as fit."""
    params = sampling_params(installed, ask(max_tokens=0, score_from=1), INFO)
    assert (params.max_tokens, params.prompt_logprobs, params.logprobs) == (1, 1, None)


def test_plain_sampling_is_not_greedy(installed: Library) -> None:
    """Fails when neutral temperature, top_k and top_p are left out: with none of them the library is greedy."""
    params = sampling_params(installed, ask(sampling=Sampling()), INFO)
    assert not params.greedy
    assert (params.temperature, params.top_k, params.top_p) == (1.0, 0, 1.0)


def test_temperature_zero_is_greedy(installed: Library) -> None:
    """Fails when greedy requests keep their top_p, or nothing says that they are greedy."""
    params = sampling_params(installed, ask(sampling=Sampling(temperature=0.0, top_p=0.5)), INFO)
    assert params.greedy
    assert (params.top_k, params.top_p, params.temperature) == (1, None, None)


def test_the_seed_is_always_said(installed: Library) -> None:
    """Fails when the seed is left out: every request would then draw alike."""
    assert sampling_params(installed, ask(sampling=Sampling(seed=2**63 + 1)), INFO).seed == 2**63 + 1
    assert sampling_params(installed, ask(sampling=Sampling(seed=0)), INFO).seed == 0


def test_no_log_probabilities_beside_the_drawn_one(installed: Library) -> None:
    """Fails when 0 is handed on, which switches log-probabilities off."""
    assert sampling_params(installed, ask(sampling=Sampling(logprobs=0)), INFO).logprobs == 1
    assert sampling_params(installed, ask(), INFO).logprobs is None


def test_running_past_the_end_token(installed: Library) -> None:
    """Fails when end_id is left to the library, which then adds the model's own end tokens."""
    params = sampling_params(installed, ask(stop_token_ids=frozenset({9})), INFO)
    assert (params.end_id, params.stop_token_ids) == (-1, [9])


def test_end_tokens_are_said_by_id_only(installed: Library) -> None:
    """Fails when stop strings are given, which need a tokenizer that end_id switches off."""
    params = sampling_params(installed, ask(stop_token_ids=frozenset({EOS, 9})), INFO)
    assert (params.end_id, params.stop_token_ids, params.stop, params.detokenize) == (EOS, [9], None, False)


def test_one_answer_for_each_request(installed: Library) -> None:
    """Fails when n is set: streaming several answers mixes them up."""
    params = sampling_params(installed, ask(), INFO)
    assert (params.n, params.best_of, params.use_beam_search) == (1, 1, False)


def test_penalties_and_biases(installed: Library) -> None:
    """Fails when a penalty lands in another field, or a bias at another token."""
    asked = Sampling(
        min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.3, logit_bias={4: 5.0, 9: -1.0}
    )
    params = sampling_params(installed, ask(sampling=asked, min_tokens=2), INFO)
    given = (params.min_p, params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    assert given == (0.1, 1.1, 0.2, 0.3)
    assert params.min_tokens == 2
    assert params.embedding_bias.shape == (VOCABULARY,)
    assert {at: value for at, value in enumerate(params.embedding_bias.tolist()) if value} == {4: 5.0, 9: -1.0}


@pytest.mark.parametrize(
    ("kind", "field"), [(GrammarKind.JSON_SCHEMA, "json"), (GrammarKind.REGEX, "regex")], ids=["json", "regex"]
)
def test_a_grammar_has_one_guide(installed: Library, kind: GrammarKind, field: str) -> None:
    """Fails when a schema is handed over as a regular expression, or several guides at once."""
    params = sampling_params(installed, ask(grammar=Grammar(kind, "{}"), stop_token_ids=frozenset()), INFO)
    given = params.guided_decoding
    assert {name: getattr(given, name) for name in ("json", "regex", "grammar")} == {
        "json": None,
        "regex": None,
        "grammar": None,
        field: "{}",
    }
    # Nothing else may follow a grammar's end, so that a request that ignores end tokens has to end there.
    assert params.end_id == EOS


def test_lark_is_not_supported(installed: Library) -> None:
    """Fails when Lark is handed over as EBNF, which is another language."""
    with pytest.raises(ArgosyError, match="Lark") as raised:
        sampling_params(installed, ask(grammar=Grammar(GrammarKind.LARK, "start: /a/")), INFO)
    assert raised.value.reason is Reason.NOT_SUPPORTED

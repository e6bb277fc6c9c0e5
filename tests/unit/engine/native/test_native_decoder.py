"""The native step against the same decoder in torch's operators, on random weights. No checkpoint is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from argosy_services.engine.base import Request
from argosy_services.engine.torch_engine.config import DecoderConfig, LayerKind, RopeConfig
from argosy_services.engine.torch_engine.kv_pool import KvPool
from argosy_services.engine.torch_engine.lora.reader import LoraPair, LoraWeights
from argosy_services.engine.torch_engine.lora.slots import AdapterSlots
from argosy_services.engine.torch_engine.model_runner import ModelRunner
from argosy_services.engine.torch_engine.models.decoder import Decoder
from argosy_services.engine.torch_engine.models.modules import adaptable
from argosy_services.engine.torch_engine.models.weights import DecoderWeights, LayerWeights, Linear
from argosy_services.engine.torch_engine.native import is_supported
from argosy_services.engine.torch_engine.native.adapters import NativeAdapters
from argosy_services.engine.torch_engine.native.decoder import NativeDecoder, obstacle
from argosy_services.engine.torch_engine.native.formats import Format, format_of
from argosy_services.engine.torch_engine.native.four_bits import halve
from argosy_services.engine.torch_engine.native.layout import GROUP, LEVELS
from argosy_services.engine.torch_engine.native.processor import AVX2, AVX512, AVX512_BF16, X86_64
from argosy_services.engine.torch_engine.native.runner import NativeRunner
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.step import Work

from ...processors import on

pytestmark = pytest.mark.skipif(not is_supported(), reason="the kernels are for Linux on x86-64")

BLOCK_TOKENS, BLOCKS, MAX_ROWS, VOCAB = 16, 40, 200, 150
FORMS = [
    on(kind, format_of(name, kind), name=f"{name} on {kind.name}")
    for kind, names in (
        (AVX512_BF16, ("float32", "bfloat16", "int8", "int4")),
        (AVX512, ("bfloat16", "int8")),
        (AVX2, ("float32", "bfloat16", "int8", "int4")),
        (X86_64, ("float32",)),
    )
    for name in names
]
# Largest difference of a logit from float32's; logits are some 2 in size. The reference for int4 has the weights that
# its four bits stand for.
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.06, "int8": 0.15, "int4": 0.15}
ROPE = RopeConfig("default", 10_000.0)
PLAIN = DecoderConfig(
    architecture="LlamaForCausalLM",
    vocab_size=VOCAB,
    hidden_size=128,
    intermediate_size=192,
    heads=6,
    kv_heads=2,
    head_dim=64,
    norm_eps=1e-5,
    max_positions=512,
    layer_kinds=(LayerKind(ROPE), LayerKind(ROPE)),
    tied_embeddings=True,
    eos_token_ids=frozenset({2}),
    attention_scale=64**-0.5,
)
CONFIGS = {
    "grouped": PLAIN,
    "biased": replace(PLAIN, qkv_bias=True, output_bias=True, mlp_bias=True),
    "normed": replace(PLAIN, qk_norm=True),
    "small heads": replace(PLAIN, heads=4, kv_heads=4, head_dim=32, attention_scale=32**-0.5),
    "large heads": replace(PLAIN, heads=8, kv_heads=1, head_dim=128, attention_scale=128**-0.5),
    "windows": replace(PLAIN, layer_kinds=(LayerKind(ROPE, 70), LayerKind(None))),
}


def random_weights(config: DecoderConfig, form: str = "float32") -> DecoderWeights:
    """Weights whose output and gate_up are, for int4, numbers that it has."""
    generator = torch.Generator().manual_seed(0)
    query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size

    def draw(*shape: int, around: float = 0.0) -> torch.Tensor:
        return around + torch.randn(*shape, generator=generator) * (0.1 if around else shape[-1] ** -0.5)

    def linear(outputs: int, inputs: int, biased: bool, *, halved: bool = False) -> Linear:
        weight = draw(outputs, inputs)
        return Linear(restored(*halve(weight)) if halved else weight, draw(outputs) if biased else None)

    def layer() -> LayerWeights:
        return LayerWeights(
            input_norm=draw(hidden, around=1.0),
            qkv=linear(query + 2 * key_value, hidden, config.qkv_bias),
            query_norm=draw(config.head_dim, around=1.0) if config.qk_norm else None,
            key_norm=draw(config.head_dim, around=1.0) if config.qk_norm else None,
            output=linear(hidden, query, config.output_bias, halved=form == "int4"),
            attention_post_norm=None,
            mlp_norm=draw(hidden, around=1.0),
            gate_up=linear(2 * inner, hidden, config.mlp_bias, halved=form == "int4"),
            down=linear(hidden, inner, config.mlp_bias),
            mlp_post_norm=None,
        )

    embeddings = draw(config.vocab_size, hidden) * hidden**0.5
    return DecoderWeights(
        embeddings, tuple(layer() for _ in range(config.layers)), draw(hidden, around=1.0), embeddings
    )


def restored(levels: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What four bits stand for, float32 `[out, in]`."""
    values = torch.tensor(LEVELS, dtype=torch.float32)[levels.int()] - 128
    return values * scales.float().repeat_interleave(GROUP, dim=1)


def random_adapter(config: DecoderConfig, rank: int, kind: torch.dtype) -> LoraWeights:
    generator = torch.Generator().manual_seed(rank)
    modules = {
        path: LoraPair(
            a=(torch.randn(rank, inputs, generator=generator) * inputs**-0.5).to(kind),
            b=(torch.randn(outputs, rank, generator=generator) * rank**-0.5).to(kind),
        )
        for path, (outputs, inputs) in list(adaptable(config).items())[:: 1 if rank > 8 else 2]
    }
    return LoraWeights("0" * 64, rank, ("q_proj",), 0, modules)


def factor_type(form: Format) -> torch.dtype:
    """Of adapters beside a format."""
    return torch.float32 if form.name == "float32" else torch.bfloat16


class Native:
    """A native runner with sequences whose blocks are given out in a scattered order."""

    def __init__(self, config: DecoderConfig, form: Format, threads: int = 2) -> None:
        weights = random_weights(config, form.name)
        kind = factor_type(form)
        embeddings = weights.embeddings.to(kind)
        self.adapters = NativeAdapters(2, list(adaptable(config)), form)
        self.runner = NativeRunner(
            NativeDecoder(
                config,
                replace(weights, embeddings=embeddings, head=embeddings),
                self.adapters,
                form=form,
                max_positions=config.max_positions,
                max_rows=MAX_ROWS,
                slots=BLOCKS * BLOCK_TOKENS,
                threads=threads,
            ),
            BLOCK_TOKENS,
            self.adapters,
        )


def make_sequence(name: str, tokens: list[int], first_block: int, adapter: str | None = None) -> Sequence:
    sequence = Sequence.of(Request(name, tokens, 1, adapter=adapter))
    count = -(-len(tokens) // BLOCK_TOKENS)
    sequence.table.extend(reversed(range(first_block, first_block + count)))
    return sequence


def prompts() -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"p{index}": torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        for index, length in enumerate((1, 5, 16, 90, 131))
    }


def sequences(adapters: dict[str, str] | None = None) -> list[Sequence]:
    made, block = [], 1
    for name, tokens in prompts().items():
        made.append(make_sequence(name, tokens, block, (adapters or {}).get(name)))
        block += -(-len(tokens) // BLOCK_TOKENS)
    return made


def last_logits(runner: NativeRunner | ModelRunner, work: list[Work]) -> dict[str, torch.Tensor]:
    logits, spans = runner.run(work)
    return {span.work.sequence.request.id: logits[span.first + span.count - 1].clone() for span in spans}


def all_at_once(made: list[Sequence]) -> list[list[Work]]:
    """Steps of at most MAX_ROWS tokens."""
    return [[Work(item, 0, len(item.tokens)) for item in made[:-1]], [Work(made[-1], 0, len(made[-1].tokens))]]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Format:
    return request.param


@pytest.fixture
def native(form: Format) -> Iterator[Native]:
    made = Native(PLAIN, form)
    yield made
    made.runner.close()


def reference(
    config: DecoderConfig, form: Format, adapters: dict[str, LoraWeights], of: dict[str, str]
) -> dict[str, torch.Tensor]:
    """Logits in float32 by torch's operators."""
    slots = AdapterSlots(2)
    for key, weights in adapters.items():
        slots.put(key, weights)
    pool = KvPool(config, BLOCKS, BLOCK_TOKENS, torch.float32, torch.device("cpu"))
    runner = ModelRunner(Decoder(config, random_weights(config, form.name), config.max_positions), pool, slots)
    found: dict[str, torch.Tensor] = {}
    for work in all_at_once(sequences(of)):
        found |= last_logits(runner, work)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_plain_decoder(name: str, form: Format) -> None:
    config = CONFIGS[name]
    wanted = reference(config, form, {}, {})
    made = Native(config, form)
    try:
        found: dict[str, torch.Tensor] = {}
        for work in all_at_once(sequences()):
            found |= last_logits(made.runner, work)
    finally:
        made.runner.close()
    assert found.keys() == wanted.keys()
    for prompt, logits in wanted.items():
        assert (found[prompt] - logits).abs().max() < TOLERANCE[form.name] * max(1.0, logits.abs().max().item() / 2), (
            prompt
        )


def test_a_row_is_bit_for_bit_the_same_in_any_batch_and_cut(native: Native) -> None:
    together: dict[str, torch.Tensor] = {}
    for work in all_at_once(sequences()):
        together |= last_logits(native.runner, work)
    for sequence in sequences():
        length = len(sequence.tokens)
        for start in range(0, length, 37):
            alone = last_logits(native.runner, [Work(sequence, start, min(37, length - start))])
        assert torch.equal(alone[sequence.request.id], together[sequence.request.id]), sequence.request.id


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(form: Format, threads: int, native: Native) -> None:
    other = Native(PLAIN, form, threads)
    try:
        for work, again in zip(all_at_once(sequences()), all_at_once(sequences()), strict=True):
            found, wanted = last_logits(other.runner, work), last_logits(native.runner, again)
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    finally:
        other.runner.close()


def test_adapters_change_their_own_rows_only(native: Native, form: Format) -> None:
    of = {"p0": "wide", "p2": "narrow", "p3": "wide"}
    exact = {"wide": random_adapter(PLAIN, 20, torch.float32), "narrow": random_adapter(PLAIN, 8, torch.float32)}
    kind = factor_type(form)
    for key, rank in (("wide", 20), ("narrow", 8)):
        native.adapters.put(key, native.adapters.prepare(random_adapter(PLAIN, rank, kind)))
    wanted, base = reference(PLAIN, form, exact, of), reference(PLAIN, form, {}, {})
    found: dict[str, torch.Tensor] = {}
    for work in all_at_once(sequences(of)):
        found |= last_logits(native.runner, work)
    for prompt, logits in wanted.items():
        limit = 3 * TOLERANCE[form.name] * max(1.0, logits.abs().max().item() / 2)
        assert (found[prompt] - logits).abs().max() < limit, prompt
        if prompt in of:
            assert (found[prompt] - base[prompt]).abs().max() > 2 * limit, "the adapter changes more than rounding does"


def test_a_dropped_adapter_gives_its_slot_to_the_next_one(native: Native, form: Format) -> None:
    kind = factor_type(form)
    first, second = (native.adapters.prepare(random_adapter(PLAIN, rank, kind)) for rank in (20, 8))
    native.adapters.put("second", second)
    (_, *rest) = all_at_once(sequences({"p4": "second"}))
    wanted = last_logits(native.runner, rest[0])["p4"]
    native.adapters.drop("second")
    native.adapters.put("a", first)
    native.adapters.put("b", first)
    native.adapters.drop("b")
    native.adapters.put("second", second)
    assert torch.equal(last_logits(native.runner, all_at_once(sequences({"p4": "second"}))[1])["p4"], wanted)
    assert len(native.adapters) == 2


def test_scoring_gives_the_logits_of_every_row(native: Native) -> None:
    sequence = sequences()[4]
    scored = Sequence.of(replace(sequence.request, score_from=1))
    scored.table.extend(sequence.table)
    logits, (span,) = native.runner.run([Work(scored, 0, len(scored.tokens))])
    assert (span.count, span.position) == (len(scored.tokens) - 1, 0)
    shorter = make_sequence("s", scored.tokens[:100], 20)
    assert torch.equal(logits[99], last_logits(native.runner, [Work(shorter, 0, 100)])["s"])


def test_the_likeliest_tokens_come_with_the_logits(native: Native) -> None:
    logits, spans = native.runner.run([Work(item, 0, len(item.tokens)) for item in sequences()[:4]])
    assert native.runner.greedy(logits).tolist() == logits.argmax(dim=-1).tolist()
    changed = logits.clone()
    changed[:, 7] = 1e9
    assert native.runner.greedy(changed).tolist() == [7] * 4
    assert len(spans) == 4


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [([3, VOCAB], "token ids"), ([-1], "token ids"), ([3] * (MAX_ROWS + 1), "at most 200"), ([3] * 513, "at most")],
)
def test_nothing_leads_the_kernels_out_of_their_memory(native: Native, tokens: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        native.runner.run([Work(make_sequence("s", tokens, 0), 0, len(tokens))])
    with pytest.raises(ValueError, match="position 512"):
        native.runner.run([Work(make_sequence("s", [3] * 513, 0), 512, 1)])


def test_what_the_kernels_do_not_compute_is_named() -> None:
    assert obstacle(PLAIN, 16) is None
    assert "hidden_size 100" in str(obstacle(replace(PLAIN, hidden_size=100), 16))
    assert "head_dim 80" in str(obstacle(replace(PLAIN, head_dim=80, heads=4, attention_scale=80**-0.5), 16))
    assert "block_tokens 8" in str(obstacle(PLAIN, 8))
    assert "Gemma" in str(obstacle(replace(PLAIN, architecture="Gemma2ForCausalLM", final_softcap=30.0), 16))

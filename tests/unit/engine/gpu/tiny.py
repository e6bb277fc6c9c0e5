"""Small random decoders, and how they answer on a runner, without checkpoint, engine and threads."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace

import torch

from argosy_services.engine.base import Request
from argosy_services.engine.torch_engine.config import DecoderConfig, LayerKind, RopeConfig
from argosy_services.engine.torch_engine.gpu.adapters import GpuAdapters
from argosy_services.engine.torch_engine.gpu.decode_step import DecodeStep
from argosy_services.engine.torch_engine.gpu.decoder import GpuDecoder
from argosy_services.engine.torch_engine.gpu.kernels import Kernels
from argosy_services.engine.torch_engine.gpu.runner import GpuRunner
from argosy_services.engine.torch_engine.kv_cache import BlockAllocator
from argosy_services.engine.torch_engine.kv_pool import KvPool
from argosy_services.engine.torch_engine.lora.reader import LoraPair, LoraWeights
from argosy_services.engine.torch_engine.lora.slots import AdapterSlots
from argosy_services.engine.torch_engine.model_runner import ModelRunner
from argosy_services.engine.torch_engine.models.decoder import Decoder
from argosy_services.engine.torch_engine.models.modules import adaptable
from argosy_services.engine.torch_engine.models.weights import DecoderWeights, LayerWeights, Linear, LinearOf
from argosy_services.engine.torch_engine.scheduler import Scheduler
from argosy_services.engine.torch_engine.sequence import Sequence

BLOCK_TOKENS, BLOCKS, VOCAB, POSITIONS = 16, 40, 150, 256
MAX_ROWS, MAX_ADAPTERS, MAX_RANK = 12, 3, 20
CPU = torch.device("cpu")
ROPE = RopeConfig("default", 10_000.0)
LLAMA = DecoderConfig(
    architecture="LlamaForCausalLM",
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    heads=6,
    kv_heads=2,
    head_dim=16,
    norm_eps=1e-5,
    max_positions=POSITIONS,
    layer_kinds=(LayerKind(ROPE), LayerKind(ROPE)),
    tied_embeddings=False,
    eos_token_ids=frozenset(),
    attention_scale=0.25,
)
CONFIGS = {
    "llama": LLAMA,
    "qwen, biases and norms": replace(LLAMA, qkv_bias=True, qk_norm=True),
    "mistral, windows, a layer that does not rotate": replace(
        LLAMA, layer_kinds=(LayerKind(ROPE, 20), LayerKind(None, None))
    ),
    "gemma": replace(
        LLAMA,
        layer_kinds=(LayerKind(ROPE, 20), LayerKind(RopeConfig("linear", 10_000.0, factor=2.0))),
        activation="gelu_tanh",
        attention_softcap=4.0,
        final_softcap=12.0,
        embedding_scale=8.0,
        norm_offset=True,
        post_norms=True,
    ),
}


def random_weights(
    config: DecoderConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    linear: LinearOf = Linear,
) -> DecoderWeights:
    """The same weights each time."""
    generator = torch.Generator().manual_seed(0)
    query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size

    def matrix(outputs: int, inputs: int) -> torch.Tensor:
        return (2 * torch.randn(outputs, inputs, generator=generator) * inputs**-0.5).to(device, dtype)

    def norm(size: int = hidden) -> torch.Tensor:
        drawn = 1 + 0.1 * torch.randn(size, generator=generator)
        return drawn.to(device, torch.float32 if config.norm_offset else dtype)

    def projection(outputs: int, inputs: int, biased: bool = False) -> Linear:
        bias = torch.randn(outputs, generator=generator).to(device, dtype) if biased else None
        return linear(matrix(outputs, inputs), bias)

    def layer() -> LayerWeights:
        return LayerWeights(
            input_norm=norm(),
            qkv=projection(query + 2 * key_value, hidden, config.qkv_bias),
            query_norm=norm(config.head_dim) if config.qk_norm else None,
            key_norm=norm(config.head_dim) if config.qk_norm else None,
            output=projection(hidden, query),
            mlp_norm=norm(),
            gate_up=projection(2 * inner, hidden),
            down=projection(hidden, inner),
            attention_post_norm=norm() if config.post_norms else None,
            mlp_post_norm=norm() if config.post_norms else None,
        )

    embeddings, head = matrix(config.vocab_size, hidden), matrix(config.vocab_size, hidden)
    return DecoderWeights(embeddings, tuple(layer() for _ in range(config.layers)), norm(), head)


def random_adapter(config: DecoderConfig, rank: int, every: int, dtype: torch.dtype = torch.float32) -> LoraWeights:
    """An adapter of every n-th projection."""
    generator = torch.Generator().manual_seed(rank)
    modules = {
        path: LoraPair(
            a=(torch.randn(rank, inputs, generator=generator) * inputs**-0.5).to(dtype),
            b=(torch.randn(outputs, rank, generator=generator) * rank**-0.5).to(dtype),
        )
        for path, (outputs, inputs) in list(adaptable(config).items())[::every]
    }
    return LoraWeights("0" * 64, rank, ("q_proj",), 0, modules)


class Plain:
    """The runner that torch's operators have."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights) -> None:
        self.adapters = AdapterSlots(MAX_ADAPTERS)
        pool = KvPool(config, BLOCKS, BLOCK_TOKENS, weights.embeddings.dtype, CPU)
        self.runner = ModelRunner(Decoder(config, weights, POSITIONS), pool, self.adapters)


class Padded:
    """The runner for a GPU, on any device; `step` is captured by whoever wants that."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, kernels: Kernels, *, ahead: bool = True) -> None:
        dtype, device = weights.embeddings.dtype, weights.embeddings.device
        self.adapters = GpuAdapters(MAX_ADAPTERS, MAX_RANK, config, dtype, device)
        self.pool = KvPool(config, BLOCKS + 1, BLOCK_TOKENS, dtype, device)
        decoder = GpuDecoder(config, weights, POSITIONS, kernels)
        self.step = DecodeStep(decoder, self.pool, self.adapters, max_rows=MAX_ROWS, max_positions=POSITIONS)
        self.runner = GpuRunner(decoder, self.pool, self.adapters, self.step, ahead=ahead)
        self.runner.warm_up(self.step.scratch)


def prompts(*lengths: int) -> list[list[int]]:
    """Prompts of random tokens; the same ones each time."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def answers(
    runner: ModelRunner | GpuRunner, asked: Items[list[int]], tokens: int, adapters: Items[str | None] = ()
) -> list[list[int]]:
    """The greedy answers of `tokens` tokens to prompts that come in one after another, cut into pieces of 24 tokens and
    mixed in all steps."""
    scheduler = Scheduler(BlockAllocator(BLOCKS, BLOCK_TOKENS), max_batch=MAX_ROWS, max_step_tokens=24, spare_tokens=1)
    keys = [*adapters, *[None] * (len(asked) - len(adapters))]
    waiting = [
        Sequence.of(Request(str(index), prompt, tokens, adapter=key))
        for index, (prompt, key) in enumerate(zip(asked, keys, strict=True))
    ]
    made = list(waiting)
    while waiting or scheduler.running or scheduler.waiting:
        if waiting:
            scheduler.add(waiting.pop(0))
        work = scheduler.schedule()
        logits, spans = runner.run(work)
        drawn = runner.greedy(logits).tolist()
        scheduler.advance(work)
        for span in spans:
            sequence = span.work.sequence
            sequence.tokens.append(drawn[span.first + span.count - 1])
            if sequence.generated == tokens:
                scheduler.remove(sequence)
    return [sequence.tokens[len(sequence.request.prompt) :] for sequence in made]

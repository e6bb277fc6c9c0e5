"""Decoding on an NVIDIA GPU against what its memory allows, and against transformers' continuous batching.

    python bench/gpu.py [--quantization fp8] [--streams 64] [--prompt 128] [--tokens 256] [--rounds 3] [--adapters 16]
        [--only-argosy]

Needs an NVIDIA GPU with 40 GB, and nothing else from outside: the weights are random, in the shape of Llama 3 8B. Their
values change no speed, for every token of every answer is wanted. The bound is the rate at which the device copies 4
GiB, divided by the bytes that a token reads: all weights but the embeddings' table, and the keys and values before it.
"""

from __future__ import annotations

import argparse
import gc
import queue
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from argosy_services.engine.base import EngineInfo, Request, Sampling, StepOutput
from argosy_services.engine.torch_engine.config import DecoderConfig, LayerKind, RopeConfig
from argosy_services.engine.torch_engine.engine import TorchEngine
from argosy_services.engine.torch_engine.grammar import GrammarCompiler
from argosy_services.engine.torch_engine.lora.reader import LoraPair, LoraWeights
from argosy_services.engine.torch_engine.models.modules import adaptable
from argosy_services.engine.torch_engine.models.weights import DecoderWeights, LayerWeights, LinearOf
from argosy_services.engine.torch_engine.runners import gpu_linear, load_gpu, runs_on_gpu
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings

DEVICE = torch.device("cuda")
LLAMA_3_8B = DecoderConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128_256,
    hidden_size=4_096,
    intermediate_size=14_336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    max_positions=8_192,
    layer_kinds=(LayerKind(RopeConfig("default", 500_000.0)),) * 32,
    tied_embeddings=False,
    eos_token_ids=frozenset(),
    attention_scale=128**-0.5,
)
RANK = 16
# A vocabulary of one letter, for the engine's grammars, which nobody asks for here.
TOKENIZER = '{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[]},"decoder":{"type":"ByteLevel"}}'


@dataclass(frozen=True, slots=True)
class Load:
    """`streams` requests at once, each with a prompt of `prompt` tokens and an answer of `tokens`, spread over
    `adapters`."""

    streams: int
    prompt: int
    tokens: int
    adapters: int = 0

    def adapter(self, index: int) -> str | None:
        """The key of a request's adapter: all of them in turn."""
        return str(index % self.adapters) if self.adapters else None

    def prompts(self) -> list[list[int]]:
        """Random tokens, none of them twice the same for the prefix cache."""
        generator = torch.Generator().manual_seed(time.perf_counter_ns())
        drawn = torch.randint(0, LLAMA_3_8B.vocab_size, (self.streams, self.prompt), generator=generator)
        return drawn.tolist()


def random_weights(linear: LinearOf) -> DecoderWeights:
    """Weights in bfloat16 on the device, as `linear` keeps them."""
    config = LLAMA_3_8B
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim

    def matrix(outputs: int, inputs: int) -> torch.Tensor:
        return torch.randn(outputs, inputs, dtype=torch.bfloat16, device=DEVICE) * inputs**-0.5

    def norm() -> torch.Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16, device=DEVICE)

    layers = tuple(
        LayerWeights(
            input_norm=norm(),
            qkv=linear(matrix(query + 2 * key_value, hidden), None),
            query_norm=None,
            key_norm=None,
            output=linear(matrix(hidden, query), None),
            mlp_norm=norm(),
            gate_up=linear(matrix(2 * inner, hidden), None),
            down=linear(matrix(hidden, inner), None),
        )
        for _ in range(config.layers)
    )
    return DecoderWeights(matrix(config.vocab_size, hidden), layers, norm(), matrix(config.vocab_size, hidden))


def bandwidth() -> float:
    """Bytes a second that the device reads and writes while it copies, the best of ten times."""
    source = torch.ones(1 << 32, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)


def bytes_of_a_token(weights: DecoderWeights, load: Load) -> float:
    """Bytes that one decoded token reads: weights, and keys and values halfway through its answer."""
    read = sum(tensor.nbytes for tensor in weights.parameters()) - weights.embeddings.nbytes
    each = 2 * LLAMA_3_8B.layers * LLAMA_3_8B.kv_heads * LLAMA_3_8B.head_dim * weights.embeddings.itemsize
    return read + each * (load.prompt + load.tokens / 2)


class Argosy:
    """The engine, as `argosy serve` runs it."""

    def __init__(self, weights: DecoderWeights, settings: GenerationSettings) -> None:
        started = time.perf_counter()
        config = LLAMA_3_8B
        loaded = load_gpu(config, weights, settings, config.max_positions)
        self._adapters = loaded.adapters
        print(f"made ready in {time.perf_counter() - started:.1f} s, graphs captured")
        info = EngineInfo(
            engine="torch",
            architecture=config.architecture,
            dtype=loaded.weights,
            device=settings.device,
            parameter_count=loaded.parameter_count,
            max_context_tokens=config.max_positions,
            vocabulary_size=config.vocab_size,
            eos_token_ids=config.eos_token_ids,
            max_adapters=settings.max_adapters,
            max_adapter_rank=settings.max_adapter_rank,
        )
        self._steps: queue.SimpleQueue[list[StepOutput]] = queue.SimpleQueue()
        self.engine = TorchEngine(
            LocalModel("random", "random", Path(), "0", 0),
            settings,
            loaded,
            draft=None,
            shapes=adaptable(config),
            info=info,
            grammars=GrammarCompiler(TOKENIZER, config.vocab_size, frozenset({0})),
        )
        self.engine.start(self._steps.put)

    def load_adapters(self, count: int) -> None:
        """Adapters of every projection, under the keys that `Load` names; the same numbers in different places."""
        pairs = {
            path: LoraPair(
                torch.randn(RANK, inputs, dtype=torch.bfloat16) * inputs**-0.5,
                torch.randn(outputs, RANK, dtype=torch.bfloat16) * RANK**-0.5,
            )
            for path, (outputs, inputs) in adaptable(LLAMA_3_8B).items()
        }
        for index in range(count):
            weights = LoraWeights(f"{index:064}", RANK, ("all",), 0, pairs)
            self.engine.load_adapter(str(index), self._adapters.prepare(weights)).result(60)

    def decode_rate(self, load: Load) -> float:
        """Tokens a second from the moment when every stream has its first token until one has all."""
        for index, prompt in enumerate(load.prompts()):
            sampling, adapter = Sampling(temperature=0.0), load.adapter(index)
            self.engine.submit(Request(str(index), prompt, load.tokens, sampling, adapter=adapter))
        begun: set[str] = set()
        finished, counted, started, ended = 0, 0, 0.0, 0.0
        while finished < load.streams:
            outputs = self._steps.get(timeout=600)
            now = time.perf_counter()
            for output in outputs:
                if output.error is not None:
                    raise output.error
                finished += output.finish is not None
            if len(begun) == load.streams and not ended:
                counted += sum(len(output.token_ids) for output in outputs)
                ended = now if finished else 0.0
            begun.update(output.request_id for output in outputs if output.token_ids)
            if len(begun) == load.streams and not started:
                started = now
        return counted / (ended - started)

    def total_rate(self, load: Load) -> float:
        """Tokens a second from the call to the last token."""
        started = time.perf_counter()
        self.decode_rate(load)
        return load.streams * load.tokens / (time.perf_counter() - started)


class Transformers:
    """Its continuous batching on a model of the same shape."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LLAMA_3_8B
        with DEVICE:
            self._model = AutoModelForCausalLM.from_config(
                LlamaConfig(
                    vocab_size=config.vocab_size,
                    hidden_size=config.hidden_size,
                    intermediate_size=config.intermediate_size,
                    num_hidden_layers=config.layers,
                    num_attention_heads=config.heads,
                    num_key_value_heads=config.kv_heads,
                    max_position_embeddings=config.max_positions,
                    rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
                ),
                dtype=torch.bfloat16,
            ).eval()

    def total_rate(self, load: Load) -> float:
        """Tokens a second from the call to the last token."""
        from transformers import GenerationConfig

        wanted = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=load.tokens)
        started = time.perf_counter()
        outputs = self._model.generate_batch(load.prompts(), generation_config=wanted, persistent_manager=True)
        seconds = time.perf_counter() - started
        tokens = sum(len(output.generated_tokens) for output in outputs.values())
        if tokens != load.streams * load.tokens:
            raise RuntimeError(f"transformers gave {tokens} tokens, {load.streams * load.tokens} were asked for")
        return tokens / seconds


def median(rate: Callable[[Load], float], load: Load, rounds: int) -> float:
    """The median of some rounds, after one to warm up."""
    rate(load)
    return statistics.median(rate(load) for _ in range(rounds))


def measure(options: argparse.Namespace) -> None:
    """Measures and prints a table."""
    settings = GenerationSettings(
        device="cuda",
        quantization=options.quantization,
        kv_cache_tokens=4_096 + 2 * options.streams * (options.prompt + options.tokens),
        max_batch=options.streams,
        max_step_tokens=2_048,
        speculation="off",
    )
    if not runs_on_gpu(settings):
        raise SystemExit("the kernels for a GPU cannot run here: is triton installed?")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    single, many = (Load(streams, options.prompt, options.tokens) for streams in (1, options.streams))
    copied = bandwidth()
    weights = random_weights(gpu_linear(settings, torch.bfloat16))
    bound = copied / bytes_of_a_token(weights, single)
    argosy = Argosy(weights, settings)
    alone = median(argosy.decode_rate, single, options.rounds)
    together = median(argosy.total_rate, many, options.rounds)
    adapted = together
    if options.adapters:
        argosy.load_adapters(options.adapters)
        adapted = median(argosy.total_rate, replace(many, adapters=options.adapters), options.rounds)
    argosy.engine.close()
    print(f"the device copies at {copied / 1e12:.2f} TB/s\n\n| what | tokens/s | against | ratio | bar |")
    print("| --- | --- | --- | --- | --- |")
    ratio = alone / bound
    print(f"| decode, one stream, {options.quantization} | {alone:.1f} | bound of {bound:.1f} | {ratio:.2f} | 0.8 |")
    if options.adapters:
        what = f"{many.streams} streams over {options.adapters} adapters of rank {RANK}"
        print(f"| {what} | {adapted:.0f} | the base's {together:.0f} | {adapted / together:.2f} | |")
    if options.only_argosy:
        print(f"| {many.streams} streams | {together:.0f} | | | |")
        return
    del argosy, weights
    gc.collect()
    torch.cuda.empty_cache()
    theirs = median(Transformers().total_rate, many, options.rounds)
    print(f"| {many.streams} streams | {together:.0f} | transformers' {theirs:.0f} | {together / theirs:.2f} | 2 |")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", choices=("none", "fp8"), default="none")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt (128)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an answer (256)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--adapters", type=int, default=0, help="measure so many adapters too, of all projections")
    parser.add_argument("--only-argosy", action="store_true", help="leave transformers out")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this measurement needs an NVIDIA GPU with 40 GB, and torch sees none")
    measure(options)


if __name__ == "__main__":
    sys.exit(main())

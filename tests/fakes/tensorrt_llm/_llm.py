from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import shutil
import threading
from pathlib import Path
from typing import Any

from tensorrt_llm._control import control
from tensorrt_llm.builder import BuildConfig
from tensorrt_llm.executor.request import LoRARequest
from tensorrt_llm.executor.result import Logprob, RequestError, RequestOutput, Response
from tensorrt_llm.llmapi.llm_args import COMMON, COMPILED, PYTORCH, KvCacheConfig
from tensorrt_llm.lora_helper import LoraConfig
from tensorrt_llm.sampling_params import SamplingParams

_ids = itertools.count(1)


def _blocks(what: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    control.violations.append(f"{what} blocks an event loop")


class BaseLLM:
    compiled = False

    def __init__(
        self,
        model: str | Path,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        _blocks("making an LLM")
        known = COMMON | (COMPILED if self.compiled else PYTORCH)
        for key in kwargs:
            if key not in known:
                raise ValueError(f"{'TrtLlmArgs' if self.compiled else 'TorchLlmArgs'} got invalid argument: {key}")
        if tokenizer is None:
            control.violations.append("the tokenizer is left to be guessed")
        lora: LoraConfig | None = kwargs.get("lora_config")
        if lora is not None and not lora.lora_dir and not lora.lora_target_modules:
            control.violations.append("LoRA for all module types")
        if kwargs.get("guided_decoding_backend") not in (None, "xgrammar", "llguidance"):
            raise ValueError("guided_decoding_backend")
        if control.failing_constructions:
            control.failing_constructions -= 1
            raise RuntimeError("CUDA error: out of memory")
        self.args = {"model": str(model), "tensor_parallel_size": tensor_parallel_size, **kwargs}
        self.kv: KvCacheConfig = kwargs.get("kv_cache_config") or KvCacheConfig()
        self.lora = lora is not None
        self.max_seq_len = kwargs.get("max_seq_len") or 4096
        self.max_rank = lora.max_lora_rank if lora is not None else 0
        self._dead = False
        self._asked = False
        self._running: dict[int, RequestOutput] = {}
        self._aborted: set[int] = set()
        self._tasks: set[Any] = set()
        self._adapters: dict[int, bytes] = {}
        self._seen_prompts: set[tuple[Any, ...]] = set()
        self.shut_down = False
        control.llms.append(self)

    def generate_async(
        self,
        inputs: Any,
        sampling_params: SamplingParams | None = None,
        lora_request: LoRARequest | None = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        trace_headers: Any = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        if self._dead:
            raise RuntimeError("LLM is shutting down")
        if not isinstance(sampling_params, SamplingParams):
            raise TypeError("sampling_params")
        if not isinstance(inputs, dict) or not all(type(token) is int for token in inputs["prompt_token_ids"]):
            raise TypeError("inputs")
        control.threads.add(threading.current_thread().name)
        prompt = inputs["prompt_token_ids"]
        self._check(prompt, sampling_params)
        params = self._prepare(sampling_params)
        if params.guided_decoding is not None and self.args.get("guided_decoding_backend") is None:
            raise ValueError("guided decoding is not enabled")
        self._asked = True
        control.calls.append({"prompt": prompt, "params": params, "lora": lora_request, "salt": cache_salt})
        result = RequestOutput._make(self, next(_ids), prompt)
        control.results.append(result)
        if result.aqueue is not None:
            self._running[result.request_id] = result
            task = asyncio.get_running_loop().create_task(
                self._produce(result, params, lora_request, streaming, cache_salt)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return result

    def get_stats_async(self, timeout: float | None = 2) -> Any:
        return self._stats(timeout or 0)

    async def _stats(self, timeout: float) -> Any:
        if not self._asked:
            control.stats_asked_early += 1
            return
        if control.stats_fail:
            raise RuntimeError("statistics are broken")
        control.stats_readers += 1
        if control.stats_readers > 1:
            control.violations.append("two tasks read the statistics")
        try:
            while control.reports:
                yield control.reports.pop(0)
            await asyncio.sleep(timeout)
        finally:
            control.stats_readers -= 1

    def _check_health(self) -> bool:
        return not self._dead

    def shutdown(self) -> None:
        _blocks("shutdown")
        for result in self._running.values():
            if not result.abort_asked and not self._dead:
                control.violations.append(f"request {result.request_id} leaked")
        self._dead = self.shut_down = True

    def die(self) -> None:
        """A fatal error: whoever waits for a response is told nothing."""
        self._dead = True

    @property
    def running(self) -> int:
        return len(self._running)

    def _prepare(self, params: SamplingParams) -> SamplingParams:
        if any(params is seen for seen in control.seen_params):
            control.violations.append("a SamplingParams object was used for two requests")
        control.seen_params.append(params)
        if params.end_id is None:
            params.end_id = control.eos[0]
            params.stop_token_ids = [*(params.stop_token_ids or []), *control.eos[1:]]
        elif params.stop or params.bad:
            raise RuntimeError("stop is not processed by tokenizer, please call the setup method.")
        params._stop_word_ids = [[token] for token in params.stop_token_ids or []]
        return params

    def _abort_request(self, result: RequestOutput) -> None:
        if result.request_id not in self._running:
            return
        self._aborted.add(result.request_id)

    async def _produce(
        self, result: RequestOutput, params: SamplingParams, lora: LoRARequest | None, streaming: bool, salt: str | None
    ) -> None:
        try:
            await self._draw(result, params, lora, streaming, salt)
        finally:
            if not self._dead:
                self._running.pop(result.request_id, None)

    async def _draw(
        self, result: RequestOutput, params: SamplingParams, lora: LoRARequest | None, streaming: bool, salt: str | None
    ) -> None:
        queue, prompt = result.aqueue, result.prompt_token_ids
        await asyncio.sleep(0)
        if control.fail_next is not None:
            message, control.fail_next = control.fail_next, None
            await queue.put(Response(error=message))
            return
        weights = b""
        if lora is not None and self.lora:
            try:
                weights = self._weights(lora)
            except RequestError as error:
                await queue.put(Response(error=str(error)))
                return
        limit = params.max_tokens or self.max_seq_len - len(prompt)
        held = Response()
        for position in range(limit):
            await asyncio.sleep(control.step_s)
            if self._dead:
                return
            if result.request_id in self._aborted:
                await queue.put(Response(finish_reason="cancelled"))
                return
            token = self._token(prompt, position, params, weights)
            response = Response([token])
            if params.logprobs:
                response.logprobs = [self._entry(token, params.logprobs)]
            if position == 0 and params.prompt_logprobs:
                response.prompt_logprobs = self._prompt_logprobs(prompt, params.prompt_logprobs, salt)
            self._finish(response, params, last=position + 1 == limit)
            held = Response(
                held.token_ids + response.token_ids, held.logprobs + response.logprobs,
                response.prompt_logprobs or held.prompt_logprobs, response.finish_reason, response.stop_reason,
            )  # fmt: skip
            if streaming or held.finish_reason is not None:
                if not self._dead:
                    await queue.put(held)
                held = Response()
            if response.finish_reason is not None:
                return

    def _finish(self, response: Response, params: SamplingParams, *, last: bool) -> None:
        token = response.token_ids[0]
        if control.finish_next is not None:
            response.finish_reason, control.finish_next = control.finish_next, None
        elif token == params.end_id and not params.ignore_eos:
            response.finish_reason = "stop"
            if not control.keeps_end_token:
                response.token_ids = []
        elif [token] in (params._stop_word_ids or []):
            response.finish_reason, response.stop_reason = "stop", token
            response.token_ids = []
        elif last:
            response.finish_reason = "length"

    def _token(self, prompt: list[int], position: int, params: SamplingParams, weights: bytes) -> int:
        if control.answer is not None:
            return control.answer[position % len(control.answer)]
        draw = "greedy" if params.greedy else f"{params.seed or 0}"
        text = f"{prompt} {position} {draw} ".encode() + weights
        return 3 + hashlib.sha256(text).digest()[0] % (control.vocabulary - 3)

    def _entry(self, token: int, top: int) -> dict[int, Logprob]:
        entry = {other: Logprob(-1.0 - other, other + 1) for other in range(top)}
        if not control.hides_drawn:
            entry[token] = Logprob(-0.5, 1)
        return entry

    def _prompt_logprobs(self, prompt: list[int], top: int, salt: str | None) -> list[Any]:
        entries = [self._entry(token, top) for token in prompt[1:]]
        cached = (salt, *prompt) in self._seen_prompts and self.kv.enable_block_reuse
        self._seen_prompts.add((salt, *prompt))
        if cached:
            return entries[-1:]
        if control.prompt_logprobs == "leading":
            return [None, *entries]
        return [*entries, self._entry(0, top)] if control.prompt_logprobs == "trailing" else entries

    def _weights(self, lora: LoRARequest) -> bytes:
        if lora.lora_int_id not in self._adapters:
            directory = Path(lora.lora_path)
            if not (directory / "adapter_config.json").exists():
                raise RequestError(f"adapter {lora.lora_int_id} has no adapter_config.json")
            if json.loads((directory / "adapter_config.json").read_text())["r"] > self.max_rank:
                raise RequestError("rank is above max_lora_rank")
            self._adapters[lora.lora_int_id] = (directory / "adapter_model.safetensors").read_bytes()
        return self._adapters[lora.lora_int_id]

    def _check(self, prompt: list[int], params: SamplingParams) -> None:
        raise NotImplementedError


class PyTorchLLM(BaseLLM):
    def __init__(
        self,
        model: str | Path,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        rejected = [key for key in kwargs if key in COMPILED]
        if rejected:
            raise ValueError(f"{rejected} are for tensorrt_llm._tensorrt_engine.LLM")
        super().__init__(
            model, tokenizer, tokenizer_mode, skip_tokenizer_init, trust_remote_code, tensor_parallel_size, dtype,
            revision, tokenizer_revision, **kwargs,
        )  # fmt: skip

    def _check(self, prompt: list[int], params: SamplingParams) -> None:
        limit = self.args.get("max_num_tokens", 8192)
        if limit and len(prompt) > limit and not self.args.get("enable_chunked_prefill"):
            raise RequestError(f"prompt length {len(prompt)} exceeds max_num_tokens {limit}")


class CompiledLLM(BaseLLM):
    compiled = True

    def __init__(
        self,
        model: str | Path,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model, tokenizer, tokenizer_mode, skip_tokenizer_init, trust_remote_code, tensor_parallel_size, dtype,
            revision, tokenizer_revision, **kwargs,
        )  # fmt: skip
        if self.kv.dtype != "auto":
            raise AssertionError("kv_cache_config.dtype must be auto")
        if kwargs.get("guided_decoding_backend") not in (None, "xgrammar"):
            raise ValueError("only xgrammar")
        self._engine_dir = Path(model)
        config = json.loads((Path(model) / "config.json").read_text())
        if "build_config" not in config:
            config = self._build(Path(kwargs.get("workspace") or model), kwargs)
        elif config["tensor_parallel_size"] != tensor_parallel_size and tensor_parallel_size != 1:
            raise ValueError("tp_size is not consistent with the engine's tp_size")
        self.build_config = config["build_config"]
        self.max_seq_len = self.build_config["max_seq_len"] or 4096
        # Without the plugin in the engine, requests for adapters are ignored.
        self.lora = self.build_config["lora_plugin"] is not None

    def save(self, engine_dir: str) -> None:
        shutil.copytree(self._engine_dir, engine_dir, dirs_exist_ok=True)

    def _build(self, workspace: Path, kwargs: dict[str, Any]) -> dict[str, Any]:
        build: BuildConfig = kwargs.get("build_config") or BuildConfig()
        if kwargs.get("enable_lora"):
            build.lora_plugin = "auto"
            if not build.lora_config.lora_target_modules:
                control.violations.append("the build knows no LoRA modules")
        self._engine_dir = workspace / "built"
        self._engine_dir.mkdir(parents=True)
        content = build.model_dump(mode="json") | {"lora_config": vars(build.lora_config)}
        quant = kwargs.get("quant_config")
        config = {
            "version": "1.2.1",
            "build_config": content,
            "tensor_parallel_size": self.args["tensor_parallel_size"],
            "quantization": None if quant is None else quant.model_dump(mode="json"),
        }
        (self._engine_dir / "config.json").write_text(json.dumps(config))
        for rank in range(self.args["tensor_parallel_size"]):
            (self._engine_dir / f"rank{rank}.engine").write_bytes(b"engine" * 100)
        return config

    def _abort_request(self, result: RequestOutput) -> None:
        call = next((c for c, r in zip(control.calls, control.results, strict=True) if r is result), None)
        if result.request_id in self._running and call is not None and call["params"].logprobs:
            control.violations.append("a stream with logprobs was aborted in a compiled engine")
            self.die()
        super()._abort_request(result)

    def _check(self, prompt: list[int], params: SamplingParams) -> None:
        build = self.build_config
        if len(prompt) + (params.max_tokens or 0) > self.max_seq_len:
            raise ValueError("prompt and max_tokens exceed max_seq_len")
        if params.prompt_logprobs and not build["gather_context_logits"]:
            raise ValueError("prompt_logprobs need gather_context_logits")
        if params.logprobs and not self.args.get("gather_generation_logits"):
            raise ValueError("logprobs need gather_generation_logits")

"""Whatever a caller sends: the right code, the field, the limit and the value, and nothing left behind."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file

import argosy
from argosy.api.adapters.v1 import adapters_service_pb2, adapters_service_pb2_grpc
from argosy.api.embeddings.v1 import embeddings_service_pb2
from argosy.api.generation.v1 import generation_pb2, generation_service_pb2
from argosy_services.testing import RunningFleet

pytestmark = pytest.mark.usefixtures("nothing_leaks")

Call = Callable[[argosy.Client], Any]


def generate(prompt: Any = "Hello", **options: Any) -> Call:
    return lambda client: client.generation.generate(prompt, **{"max_tokens": 4, **options})


INVALID: dict[str, tuple[Call, type[argosy.ArgosyError], str]] = {
    "empty prompt": (generate(""), argosy.InvalidRequestError, "prompt"),
    "no messages": (generate([]), argosy.InvalidRequestError, "prompt"),
    "prompt over the context": (generate("word " * 9000), argosy.PromptTooLongError, "8192"),
    "prompt and answer over the context": (generate("word " * 100, max_tokens=8150), argosy.PromptTooLongError, "8192"),
    "token id outside the vocabulary": (generate([1, 49_152]), argosy.InvalidRequestError, "49152"),
    "negative temperature": (generate(temperature=-0.1), argosy.InvalidRequestError, "temperature"),
    "NaN temperature": (generate(temperature=math.nan), argosy.InvalidRequestError, "temperature"),
    "infinite temperature": (generate(temperature=math.inf), argosy.InvalidRequestError, "temperature"),
    "top_p of zero": (generate(top_p=0.0), argosy.InvalidRequestError, "top_p"),
    "NaN top_p": (generate(top_p=math.nan), argosy.InvalidRequestError, "top_p"),
    "min_p over one": (generate(min_p=1.5), argosy.InvalidRequestError, "min_p"),
    "negative repetition penalty": (generate(repetition_penalty=-1), argosy.InvalidRequestError, "repetition_penalty"),
    "presence penalty over two": (generate(presence_penalty=2.5), argosy.InvalidRequestError, "presence_penalty"),
    "NaN frequency penalty": (generate(frequency_penalty=math.nan), argosy.InvalidRequestError, "frequency_penalty"),
    "bias on an unknown token": (generate(logit_bias={60_000: 1.0}), argosy.InvalidRequestError, "logit_bias"),
    "NaN bias": (generate(logit_bias={6: math.nan}), argosy.InvalidRequestError, "logit_bias"),
    "no tokens wanted": (generate(max_tokens=0), argosy.InvalidRequestError, "max_tokens"),
    "minimum over maximum": (generate(min_tokens=9), argosy.InvalidRequestError, "min_tokens"),
    "17 answers": (generate(n=17), argosy.InvalidRequestError, "n"),
    "21 logprobs": (generate(logprobs=21), argosy.InvalidRequestError, "logprobs"),
    "empty stop string": (generate(stop=[""]), argosy.InvalidRequestError, "stop"),
    "17 stop strings": (generate(stop=["x"] * 17), argosy.InvalidRequestError, "stop"),
    "priority of three": (generate(priority=3), argosy.InvalidRequestError, "priority"),
    "257 bytes of salt": (generate(cache_salt="x" * 257), argosy.InputTooLargeError, "256"),
    "broken regex": (generate(regex="("), argosy.InvalidGrammarError, "regex"),
    "broken schema": (generate(json_schema='{"type": "nonsense"}'), argosy.InvalidGrammarError, "schema"),
    "unknown model": (generate(model="nobody"), argosy.ModelNotFoundError, "nobody"),
    "unknown adapter": (generate(adapter="nobody"), argosy.AdapterNotFoundError, "nobody"),
    "another tokenizer": (generate(tokenizer_fingerprint="0" * 64), argosy.TokenizerMismatchError, "tokenizer"),
    "10 MB of text": (lambda c: c.tokenization.encode("a" * 10_000_000), argosy.InputTooLargeError, "4194304"),
    "10 MB of prompt": (generate("a" * 10_000_000), argosy.InputTooLargeError, "spec.text"),
    "10,000 texts": (lambda c: c.embeddings.embed(["x"] * 10_000), argosy.TooManyInputsError, "4096"),
    "no texts": (lambda c: c.embeddings.embed([]), argosy.InvalidRequestError, "texts"),
    "unknown embedding model": (lambda c: c.embeddings.embed("x", model="nobody"), argosy.ModelNotFoundError, "nobody"),
    "too many dimensions": (lambda c: c.embeddings.embed("x", dimensions=385), argosy.InvalidRequestError, "384"),
    "text too long to embed": (
        lambda c: c.embeddings.embed("word " * 500, truncate=False),
        argosy.PromptTooLongError,
        "256",
    ),
    "ids outside the vocabulary": (
        lambda c: c.tokenization.decode([99_999_999]),
        argosy.InvalidRequestError,
        "99999999",
    ),
    "unknown tokenizer": (lambda c: c.tokenization.encode("x", model="nobody"), argosy.ModelNotFoundError, "nobody"),
    "nothing to score": (lambda c: c.generation.score([]), argosy.InvalidRequestError, "items"),
    "empty continuation": (lambda c: c.generation.score([("a", "")]), argosy.InvalidRequestError, "continuation"),
    "empty task": (lambda c: c.agents.run("").result(), argosy.InvalidRequestError, "task"),
    "unknown tool": (lambda c: c.agents.run("x", tools=["nobody"]).result(), argosy.ToolNotFoundError, "nobody"),
    "unknown adapter to get": (lambda c: c.adapters.get("nobody"), argosy.AdapterNotFoundError, "nobody"),
    "unknown adapter to unload": (lambda c: c.adapters.unload("nobody"), argosy.AdapterNotFoundError, "nobody"),
}


@pytest.mark.parametrize("case", INVALID)
def test_bad_requests(client: argosy.Client, case: str) -> None:
    call, expected, mentions = INVALID[case]
    with pytest.raises(expected) as refused:
        call(client)
    error = refused.value
    assert type(error) is expected, f"{type(error).__name__} is not {expected.__name__}"
    assert mentions in str(error), str(error)
    assert error.request_id


def to(application: str) -> list[tuple[str, str]]:
    """What Ray Serve finds a service by; the SDK sends it always, and the embedded runtime does without."""
    return [("application", application)]


def test_a_page_token_that_the_server_never_gave(fleet: RunningFleet) -> None:
    with grpc.insecure_channel(fleet.address) as channel:
        stub = adapters_service_pb2_grpc.AdaptersServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ListAdapters(
                adapters_service_pb2.ListAdaptersRequest(page_token="no token"), timeout=10, metadata=to("adapters")
            )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "page_token" in refused.value.details()


def test_partial_characters_decode_to_the_replacement_character(client: argosy.Client) -> None:
    ids = client.tokenization.encode("🚢", add_special_tokens=False).ids
    assert len(ids) > 1
    assert client.tokenization.decode(ids) == "🚢"
    assert "�" in client.tokenization.decode(ids[:1])
    answer = client.generation.generate(ids[:1], max_tokens=4, temperature=0.0)
    assert answer.usage.prompt_tokens == 1


def test_bytes_that_are_no_text_are_the_callers_fault(fleet: RunningFleet) -> None:
    spec = generation_pb2.GenerationSpec(text="XXXX").SerializeToString().replace(b"XXXX", b"\xff\xfe\xfd\xfc")
    request = generation_service_pb2.GenerateRequest(spec=generation_pb2.GenerationSpec(text="XXXX"))
    broken = request.SerializeToString().replace(b"XXXX", b"\xff\xfe\xfd\xfc")
    assert spec in broken
    with grpc.insecure_channel(fleet.address) as channel:
        call = channel.unary_unary("/argosy.api.generation.v1.GenerationService/Generate")
        with pytest.raises(grpc.RpcError) as refused:
            call(broken, timeout=10, metadata=to("generation"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_over_the_limit_is_refused(fleet: RunningFleet) -> None:
    request = embeddings_service_pb2.EmbedRequest(texts=["x" * 20_000_000]).SerializeToString()
    with grpc.insecure_channel(fleet.address) as channel:
        call = channel.unary_unary("/argosy.api.embeddings.v1.EmbeddingsService/Embed")
        with pytest.raises(grpc.RpcError) as refused:
            call(request, timeout=10, metadata=to("embeddings"))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_deadline_that_has_passed_and_one_that_passes(client: argosy.Client) -> None:
    with pytest.raises(argosy.DeadlineExceededError):
        client.generation.generate("Hello", timeout=1e-6)
    started = time.monotonic()
    with pytest.raises(argosy.DeadlineExceededError):
        client.generation.generate("Hello", max_tokens=4000, ignore_eos=True, timeout=0.5)
    assert time.monotonic() - started < 5


def test_a_client_that_vanishes(fleet: RunningFleet, metric: Callable[..., float]) -> None:
    before = metric("argosy_cancel_to_free_seconds_count")
    channel = grpc.insecure_channel(fleet.address)
    call = channel.unary_stream(
        "/argosy.api.generation.v1.GenerationService/StreamGenerate",
        request_serializer=generation_service_pb2.StreamGenerateRequest.SerializeToString,
        response_deserializer=generation_service_pb2.StreamGenerateResponse.FromString,
    )
    spec = generation_pb2.GenerationSpec(
        text="Hello", sampling=generation_pb2.SamplingParams(max_tokens=4000, ignore_eos=True)
    )
    events = call(generation_service_pb2.StreamGenerateRequest(spec=spec), metadata=to("generation"))
    for _ in range(4):
        next(events)
    assert metric("argosy_kv_blocks_in_use") > 0
    channel.close()
    give_up = time.monotonic() + 10
    while metric("argosy_kv_blocks_in_use"):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert metric("argosy_cancel_to_free_seconds_count") == before + 1


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(directory: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = directory / "adapter_model.safetensors"
    save_file({name: change(tensor).contiguous() for name, tensor in load_file(path).items()}, path)


def to_pickle(directory: Path) -> None:
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")


DAMAGE: dict[str, tuple[Callable[[Path], object], type[argosy.ArgosyError], str]] = {
    "pickle": (to_pickle, argosy.AdapterInvalidError, "safetensors"),
    "no config": (lambda d: (d / "adapter_config.json").unlink(), argosy.AdapterInvalidError, "adapter_config.json"),
    "no weights": (lambda d: (d / "adapter_model.safetensors").unlink(), argosy.AdapterInvalidError, "safetensors"),
    "empty weights": (lambda d: (d / "adapter_model.safetensors").write_bytes(b""), argosy.AdapterInvalidError, ""),
    "config that is no JSON": (
        lambda d: (d / "adapter_config.json").write_text("{"),
        argosy.AdapterInvalidError,
        "adapter_config.json",
    ),
    "rank over the limit": (lambda d: change_config(d, r=512), argosy.AdapterInvalidError, "512"),
    "rank that lies": (lambda d: change_config(d, r=8), argosy.AdapterInvalidError, "shape"),
    "wrong shapes": (lambda d: change_tensors(d, lambda t: t[:, :2]), argosy.ArgosyError, ""),
    "NaN": (lambda d: change_tensors(d, lambda t: t * math.nan), argosy.AdapterInvalidError, "finite"),
    "DoRA": (lambda d: change_config(d, use_dora=True), argosy.AdapterInvalidError, "dora"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_bad_adapters(client: argosy.Client, good_adapter: Path, adapter_root: Path, case: str) -> None:
    damage, expected, mentions = DAMAGE[case]
    directory = adapter_root / "damaged"
    shutil.copytree(good_adapter, directory)
    try:
        damage(directory)
        with pytest.raises(expected) as refused:
            client.adapters.load("damaged", directory)
        assert mentions.lower() in str(refused.value).lower(), str(refused.value)
        assert client.adapters.get("damaged").state == "failed"
        with pytest.raises(argosy.AdapterNotReadyError):
            client.generation.generate("Hello", adapter="damaged", max_tokens=2)
    finally:
        shutil.rmtree(directory)


def test_an_adapter_of_another_base(client: argosy.Client, good_adapter: Path, adapter_root: Path) -> None:
    directory = adapter_root / "foreign"
    shutil.copytree(good_adapter, directory, dirs_exist_ok=True)
    tensors = load_file(directory / "adapter_model.safetensors")
    wider = {name: torch.zeros(4, 2048) if "lora_A" in name else torch.zeros(2048, 4) for name in tensors}
    save_file(wider, directory / "adapter_model.safetensors")
    with pytest.raises((argosy.WrongBaseModelError, argosy.AdapterInvalidError)) as refused:
        client.adapters.load("foreign", directory)
    assert "576" in str(refused.value)


@pytest.mark.parametrize(
    "source",
    [
        "file://{root}/../good",
        "file://{root}/good/../good",
        "file://{root}/%2e%2e/good",
        "file:///etc",
        "good",
        "hf://org/name",
        "",
    ],
)
def test_sources_outside_the_roots(client: argosy.Client, adapter_root: Path, good_adapter: Path, source: str) -> None:
    with pytest.raises(argosy.InvalidRequestError):
        client.adapters.load("outside", source.format(root=adapter_root))
    with pytest.raises(argosy.AdapterNotFoundError):
        client.adapters.get("outside")


@pytest.mark.parametrize("name", ["", "../up", "a b", "-x", "x" * 129, "ü"])
def test_bad_adapter_names(client: argosy.Client, good_adapter: Path, name: str) -> None:
    with pytest.raises(argosy.InvalidRequestError):
        client.adapters.load(name, good_adapter)


def test_a_good_adapter_after_all_that(client: argosy.Client, good_adapter: Path) -> None:
    loaded = client.adapters.load("good", good_adapter)
    assert loaded.state == "ready"
    assert loaded.rank == 4
    base = client.generation.generate("Hello", max_tokens=8, temperature=0.0)
    tuned = client.generation.generate("Hello", max_tokens=8, temperature=0.0, adapter="good")
    assert tuned.choices[0].token_ids != base.choices[0].token_ids
    assert tuned.origin.adapter_version == loaded.version
    assert client.adapters.load("good", good_adapter).revision == loaded.revision
    assert client.adapters.unload("good").state == "unloaded"
    with pytest.raises(argosy.AdapterNotReadyError):
        client.generation.generate("Hello", adapter="good", max_tokens=2)

"""What gateways and engines say to each other, and what nobody may."""

from __future__ import annotations

import pickle
import random
import tracemalloc
from typing import Any

import msgspec
import pytest

from argosy_services.cluster import messages as module
from argosy_services.cluster.messages import (
    Cancel,
    MessageRefusedError,
    Outputs,
    Run,
    encode,
    read_to_engine,
    read_to_gateway,
)
from argosy_services.engine.base import (
    Finish,
    Grammar,
    GrammarKind,
    Request,
    Sampling,
    StepOutput,
    Timings,
    TokenLogprobs,
)
from argosy_services.errors import ArgosyError, Reason

BARE = Request("a", prompt=[], max_tokens=0, generated=[])
FULL = Request(
    "a",
    prompt=[1, 2, 300_000],
    max_tokens=5,
    sampling=Sampling(
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-0.5,
        frequency_penalty=0.5,
        logit_bias={7: -1.0, 8: float("-inf")},
        seed=2**64 - 1,
        logprobs=2,
    ),
    min_tokens=1,
    stop_token_ids=frozenset({0, 9}),
    adapter="x@1",
    grammar=Grammar(GrammarKind.REGEX, "a+"),
    score_from=2,
    generated=[4],
    tenant="t",
    priority=-2,
    cache_salt="s",
    call="c",
    timeout_s=1.5,
)
OUTPUTS = Outputs(
    [
        StepOutput("a", (5,), (TokenLogprobs(5, -0.5, ((5, -0.5), (6, float("-inf")))),), cached_tokens=2),
        StepOutput("a", (6,), finish=Finish.LENGTH, timings=Timings(1.0, 2.0, 3.0)),
    ]
)
# A list that says it has 2**32 - 1 elements, and none of them.
HUGE = b"\xdd\xff\xff\xff\xff"


def failed(error: object) -> bytes:
    return msgspec.msgpack.encode(["Outputs", [{"request_id": "a", "error": error}]])


@pytest.mark.parametrize("message", [Run(BARE), Run(FULL), Cancel("a")], ids=["bare", "full", "cancel"])
def test_what_gateways_say_arrives(message: Run | Cancel) -> None:
    assert read_to_engine(encode(message)) == message


def test_the_full_request_differs_from_the_defaults_in_every_field() -> None:
    for name in Request.__dataclass_fields__:
        assert name == "id" or getattr(FULL, name) != getattr(BARE, name)
    for name in Sampling.__dataclass_fields__:
        assert getattr(FULL.sampling, name) != getattr(BARE.sampling, name)


def test_what_engines_say_arrives() -> None:
    assert read_to_gateway(encode(OUTPUTS)) == OUTPUTS


@pytest.mark.parametrize("reason", Reason)
def test_an_error_arrives_with_all_that_it_says(reason: Reason) -> None:
    said = ArgosyError(reason, "full; come back", retry_after_s=1.5, limit=3, field="spec.text")
    (output,) = read_to_gateway(encode(Outputs([StepOutput("a", finish=Finish.FAILED, error=said)]))).outputs
    heard = output.error
    assert type(heard) is ArgosyError
    assert vars(heard) == vars(said)
    assert str(heard) == "full; come back"


def test_an_error_that_quotes_what_is_not_unicode_arrives() -> None:
    said = ArgosyError(Reason.ADAPTER_INVALID, "no '\ud800'", path="\udcff")
    (output,) = read_to_gateway(encode(Outputs([StepOutput("a", error=said)]))).outputs
    assert output.error is not None
    assert (output.error.message, output.error.metadata) == ("no '\\ud800'", {"path": "\\udcff"})


class Harm:
    """Runs code where it is unpickled."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Harm, "ran", True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("read", [read_to_engine, read_to_gateway])
def test_a_pickle_is_not_opened(read: Any, protocol: int) -> None:
    for value in (Harm(), FULL, [Harm()]):
        with pytest.raises(MessageRefusedError):
            read(pickle.dumps(value, protocol))
    assert not Harm.ran


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(encode(OUTPUTS), id="a message of the other direction"),
        pytest.param(encode(Run(FULL))[:-1], id="cut short"),
        pytest.param(encode(Cancel("a")) + b"\xc0", id="more behind it"),
        pytest.param(msgspec.msgpack.encode(["Shutdown", "a"]), id="an unknown tag"),
        pytest.param(msgspec.msgpack.encode([7, "a"]), id="a tag of another type"),
        pytest.param(msgspec.msgpack.encode([]), id="no tag"),
        pytest.param(msgspec.msgpack.encode(["Cancel"]), id="a tag alone"),
        pytest.param(msgspec.msgpack.encode("a"), id="a string"),
        pytest.param(msgspec.msgpack.encode({"type": "Cancel", "request_id": "a"}), id="a map"),
        pytest.param(msgspec.msgpack.encode(["Cancel", 7]), id="a number as the id"),
        pytest.param(msgspec.msgpack.encode(["Cancel", None]), id="null as the id"),
        pytest.param(b"\x92\xa6Cancel\xa1\xff", id="not UTF-8"),
        pytest.param(msgspec.msgpack.encode(["Run", {"id": "a", "max_tokens": 1}]), id="no prompt"),
        pytest.param(
            msgspec.msgpack.encode(["Run", {"id": "a", "prompt": ["1"], "max_tokens": 1}]), id="text as a token"
        ),
        pytest.param(msgspec.msgpack.encode(["Run", {"id": "a", "prompt": [1.5], "max_tokens": 1}]), id="half a token"),
        pytest.param(b"\x92\xa3Run" + b"\x91" * 1_000_000, id="deep where a map should be"),
        pytest.param(b"\x92\xa3Run\x81\xa1x" + b"\x91" * 1_000_000, id="deep in an unknown field"),
        pytest.param(b"\x92\xa3Run\x81\xa1x" + b"\x81\xa1x" * 1_000_000, id="deep maps in an unknown field"),
    ],
)
def test_what_gateways_must_not_say_is_refused(data: bytes) -> None:
    with pytest.raises(MessageRefusedError, match="is not a message"):
        read_to_engine(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(Cancel("a")), id="a message of the other direction"),
        pytest.param(
            msgspec.msgpack.encode(["Outputs", [{"request_id": "a", "finish": "soon"}]]), id="an unknown finish"
        ),
        pytest.param(msgspec.msgpack.encode(["Outputs", [{"token_ids": [1]}]]), id="an output of no request"),
        pytest.param(failed("broken"), id="text as an error"),
        pytest.param(failed({"reason": "INTERNAL"}), id="a map as an error"),
        pytest.param(failed(["NONE", "m", None, {}]), id="an unknown reason"),
        pytest.param(failed(["INTERNAL", "m", "soon", {}]), id="a time of another type"),
        pytest.param(failed(["INTERNAL", "m", None, {"limit": 3}]), id="a fact of another type"),
        pytest.param(failed(["INTERNAL", "m", None, {"self": "a"}]), id="a fact in the error's place"),
        pytest.param(failed(["INTERNAL", "m", None, {"reason": "a"}]), id="a fact in the reason's place"),
        pytest.param(failed(msgspec.msgpack.Ext(1, b"x")), id="an extension"),
        pytest.param(b"\x92\xa7Outputs\x91\x81\xa5error\x81\xd4\x01x\x01", id="an extension as a key"),
        pytest.param(b"\x92\xa7Outputs\x91\x81\xa5error\x81\x81\x01\x01\x01", id="a map as a key"),
        pytest.param(b"\x92\xa7Outputs\x91\x81\xa5error" + b"\x91" * 1_000_000, id="deep in an error"),
        pytest.param(b"\x92\xa7Outputs\x91\x81\xa5error" + b"\x81\x01" * 1_000_000, id="deep maps in an error"),
    ],
)
def test_what_engines_must_not_say_is_refused(data: bytes) -> None:
    with pytest.raises(MessageRefusedError, match="is not a message"):
        read_to_gateway(data)


@pytest.mark.parametrize(
    ("read", "data"),
    [
        pytest.param(read_to_engine, b"\x92\xa3Run\x81\xa6prompt" + HUGE, id="prompt"),
        pytest.param(read_to_engine, b"\x92\xa3Run\x81\xaestop_token_ids" + HUGE, id="stop tokens"),
        pytest.param(read_to_engine, b"\x92\xa3Run\x81\xa8sampling\x81\xaalogit_bias\xdf\xff\xff\xff\xff", id="biases"),
        pytest.param(read_to_engine, b"\x92\xa6Cancel\xdb\xff\xff\xff\xff", id="id"),
        pytest.param(read_to_gateway, b"\x92\xa7Outputs" + HUGE, id="outputs"),
        pytest.param(read_to_gateway, b"\x92\xa7Outputs\x91\x81\xa9token_ids" + HUGE, id="tokens"),
        pytest.param(read_to_gateway, b"\x92\xa7Outputs\x91\x81\xa5error" + HUGE, id="error"),
    ],
)
def test_a_length_within_a_message_takes_no_memory(read: Any, data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MessageRefusedError, match="truncated"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_bytes_at_random_make_a_message_or_are_refused() -> None:
    draw = random.Random(4)
    whole = [encode(Run(FULL)), encode(OUTPUTS), failed(["INTERNAL", "m", 1.0, {"limit": "3"}])]
    refused = 0
    for round_ in range(30_000):
        data = bytearray(draw.randbytes(40) if round_ % 4 == 0 else draw.choice(whole))
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        for read, kinds in ((read_to_engine, Run | Cancel), (read_to_gateway, Outputs)):
            try:
                assert isinstance(read(bytes(data)), kinds)
            except MessageRefusedError:
                refused += 1
    assert 30_000 < refused < 60_000


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(Request("a", prompt=[object()], max_tokens=1), id="no MessagePack"),  # type: ignore[list-item]
        pytest.param(Request("a", prompt=[2**64], max_tokens=1), id="too large a number"),
        pytest.param(Request("\ud800", prompt=[1], max_tokens=1), id="no Unicode"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(request_: Request) -> None:
    with pytest.raises(MessageRefusedError, match="Run cannot be sent"):
        encode(Run(request_))


def test_a_message_that_is_too_long_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", len(encode(Cancel("aa"))))
    assert encode(Cancel("aa"))
    with pytest.raises(MessageRefusedError, match="a message of 12 bytes is too long: at most 11 are allowed"):
        encode(Cancel("aaa"))

"""What a healthy fleet would answer: one plausible answer for each RPC of the schema."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from argosy.api.adapters.v1 import adapter_pb2, adapters_service_pb2
from argosy.api.agents.v1 import agent_pb2, agents_service_pb2
from argosy.api.common.v1 import usage_pb2
from argosy.api.embeddings.v1 import embedding_model_pb2, embeddings_service_pb2
from argosy.api.generation.v1 import explanation_pb2, generation_pb2, generation_service_pb2, model_pb2
from argosy.api.tokenization.v1 import tokenization_service_pb2, tokenizer_pb2

FINGERPRINT = "f" * 64
USAGE = usage_pb2.Usage(prompt_tokens=5, cached_tokens=2, completion_tokens=3)
TIMINGS = usage_pb2.StageTimings(queue=Duration(nanos=250_000_000), total=Duration(seconds=1, nanos=500_000_000))
ORIGIN = generation_pb2.Origin(request_id="r-1", model="small", adapter="pirate", adapter_version="a" * 64)
KEEP_ALIVE = generation_service_pb2.StreamGenerateResponse()
PIECES = [" Par", "is", "."]


def logprobs(token_id: int) -> generation_pb2.TokenLogprobs:
    chosen = generation_pb2.TokenLogprob(token_id=token_id, logprob=-0.5)
    return generation_pb2.TokenLogprobs(
        chosen=chosen, top=[chosen, generation_pb2.TokenLogprob(token_id=9, logprob=-2)]
    )


def choice(index: int = 0, text: str = " Paris.") -> generation_pb2.Choice:
    return generation_pb2.Choice(
        index=index,
        text=text,
        token_ids=[7, 8, 9],
        finish_reason=generation_pb2.FINISH_REASON_STOP,
        stop_string="\n",
        logprobs=[logprobs(token_id) for token_id in (7, 8, 9)],
    )


def generate(text: str = " Paris.") -> generation_service_pb2.GenerateResponse:
    return generation_service_pb2.GenerateResponse(
        origin=ORIGIN, choices=[choice(text=text)], usage=USAGE, timings=TIMINGS
    )


def started() -> generation_service_pb2.StreamGenerateResponse:
    return generation_service_pb2.StreamGenerateResponse(
        started=generation_service_pb2.Started(origin=ORIGIN, prompt_tokens=5)
    )


def delta(text: str, index: int = 0, token_id: int = 7) -> generation_service_pb2.StreamGenerateResponse:
    return generation_service_pb2.StreamGenerateResponse(
        delta=generation_service_pb2.Delta(index=index, text=text, token_ids=[token_id], logprobs=[logprobs(token_id)])
    )


def choice_finished(index: int = 0) -> generation_service_pb2.StreamGenerateResponse:
    return generation_service_pb2.StreamGenerateResponse(
        choice_finished=generation_service_pb2.ChoiceFinished(
            index=index, finish_reason=generation_pb2.FINISH_REASON_STOP, stop_string="\n"
        )
    )


def finished() -> generation_service_pb2.StreamGenerateResponse:
    return generation_service_pb2.StreamGenerateResponse(
        finished=generation_service_pb2.Finished(usage=USAGE, timings=TIMINGS)
    )


def batch(*events: generation_service_pb2.StreamGenerateResponse) -> generation_service_pb2.StreamGenerateResponse:
    return generation_service_pb2.StreamGenerateResponse(batch=generation_service_pb2.EventBatch(events=events))


def stream_generate() -> list[Any]:
    return [
        started(),
        KEEP_ALIVE,
        *(delta(piece, token_id=7 + position) for position, piece in enumerate(PIECES)),
        choice_finished(),
        finished(),
    ]


def score(_request: Any = None) -> generation_service_pb2.ScoreResponse:
    token = generation_pb2.TokenLogprob(token_id=7, logprob=-1.25)
    return generation_service_pb2.ScoreResponse(
        origin=ORIGIN,
        scores=[generation_service_pb2.Score(logprob=-1.25, is_greedy=True, tokens=[token])],
        usage=USAGE,
        timings=TIMINGS,
    )


def model(name: str = "small") -> model_pb2.Model:
    return model_pb2.Model(
        name=name,
        architecture="LlamaForCausalLM",
        engine="torch",
        dtype="float32",
        device="cpu",
        parameter_count=134_515_008,
        max_context_tokens=8192,
        vocabulary_size=49_152,
        tokenizer_fingerprint=FINGERPRINT,
        model_fingerprint="e" * 64,
        max_adapters=16,
        max_adapter_rank=64,
        is_default=name == "small",
    )


def list_models(request: Any) -> generation_service_pb2.ListModelsResponse:
    """Two pages."""
    if request.page_token:
        return generation_service_pb2.ListModelsResponse(models=[model("tiny")])
    return generation_service_pb2.ListModelsResponse(models=[model("small"), model("spare")], next_page_token="2")


def encode(request: Any) -> tokenization_service_pb2.EncodeResponse:
    """One token a word, whose id is its length."""
    encodings = []
    for text in request.texts:
        encoding, at = tokenization_service_pb2.Encoding(), 0
        for word in text.split(" "):
            size = len(word.encode())
            encoding.ids.append(size)
            if request.return_byte_offsets:
                encoding.byte_starts.append(at)
                encoding.byte_ends.append(at + size)
            if request.return_tokens:
                encoding.tokens.append(word)
            at += size + 1
        encodings.append(encoding)
    return tokenization_service_pb2.EncodeResponse(encodings=encodings, tokenizer_fingerprint=FINGERPRINT)


def decode(request: Any) -> tokenization_service_pb2.DecodeResponse:
    return tokenization_service_pb2.DecodeResponse(
        texts=[" ".join("x" * token_id for token_id in given.ids) for given in request.inputs],
        tokenizer_fingerprint=FINGERPRINT,
    )


def count_tokens(request: Any) -> tokenization_service_pb2.CountTokensResponse:
    counts = [len(text.split(" ")) for text in request.texts.texts] if request.HasField("texts") else [42]
    return tokenization_service_pb2.CountTokensResponse(counts=counts, tokenizer_fingerprint=FINGERPRINT)


def render_chat(request: Any) -> tokenization_service_pb2.RenderChatResponse:
    text = "".join(f"<{message.role}>{message.content}" for message in request.chat.messages)
    return tokenization_service_pb2.RenderChatResponse(
        text=text, ids=[1, 2, 3] if request.return_ids else [], tokenizer_fingerprint=FINGERPRINT
    )


def get_tokenizer() -> tokenization_service_pb2.GetTokenizerResponse:
    return tokenization_service_pb2.GetTokenizerResponse(
        tokenizer=tokenizer_pb2.Tokenizer(
            model="small",
            fingerprint=FINGERPRINT,
            vocabulary_size=49_152,
            special_tokens=[tokenizer_pb2.SpecialToken(text="<|end|>", id=0)],
            has_chat_template=True,
            eos_token_id=0,
            max_context_tokens=8192,
        )
    )


def tokenizer_file(name: str, content: bytes, *, sha256: str | None = None, size: int | None = None) -> list[Any]:
    header = tokenization_service_pb2.TokenizerFile(
        name=name,
        size_bytes=len(content) if size is None else size,
        sha256=sha256 or hashlib.sha256(content).hexdigest(),
    )
    half = len(content) // 2
    return [
        tokenization_service_pb2.StreamTokenizerFilesResponse(file=header),
        tokenization_service_pb2.StreamTokenizerFilesResponse(chunk=content[:half]),
        tokenization_service_pb2.StreamTokenizerFilesResponse(),
        tokenization_service_pb2.StreamTokenizerFilesResponse(chunk=content[half:]),
    ]


def embed(request: Any) -> embeddings_service_pb2.EmbedResponse:
    """Vectors of three dimensions: length of the text, 1, 0."""
    rows = [(float(len(text)), 1.0, 0.0) for text in request.texts]
    packed = request.format == embeddings_service_pb2.EMBEDDING_FORMAT_PACKED
    return embeddings_service_pb2.EmbedResponse(
        model="tiny-embedder",
        embeddings=[
            embeddings_service_pb2.Embedding(values=() if packed else row, tokens=len(text), truncated=len(text) > 100)
            for row, text in zip(rows, request.texts, strict=True)
        ],
        packed=b"".join(struct.pack("<3f", *row) for row in rows) if packed else b"",
        dimensions=3,
        usage=usage_pb2.Usage(prompt_tokens=sum(map(len, request.texts))),
        timings=TIMINGS,
        tokenizer_fingerprint=FINGERPRINT,
    )


def embedding_model() -> embeddings_service_pb2.GetModelResponse:
    return embeddings_service_pb2.GetModelResponse(
        model=embedding_model_pb2.EmbeddingModel(
            name="tiny-embedder",
            architecture="BertModel",
            dimensions=3,
            max_input_tokens=256,
            pooling=embedding_model_pb2.POOLING_MEAN,
            normalizes=True,
            tokenizer_fingerprint=FINGERPRINT,
            dtype="float32",
            parameter_count=22_713_216,
        )
    )


def explanation(state: str = "FINISHED") -> explanation_pb2.Explanation:
    """A request that waited for everything there is."""

    def seconds(value: float) -> Duration:
        return Duration(seconds=int(value), nanos=round(value % 1 * 1e9))

    return explanation_pb2.Explanation(
        request_id="req-1",
        state=explanation_pb2.RequestState.Value(f"REQUEST_STATE_{state}"),
        model="small",
        adapter="pirate",
        priority=-1,
        arrive_time=Timestamp(seconds=1_700_000_000),
        total=seconds(2.0),
        stages=[
            explanation_pb2.StageTime(stage=explanation_pb2.STAGE_QUEUE, duration=seconds(1.5)),
            explanation_pb2.StageTime(stage=explanation_pb2.STAGE_PREFILL, duration=seconds(0.5)),
        ],
        waits=[
            explanation_pb2.Wait(cause=explanation_pb2.WAIT_CAUSE_ADAPTER, duration=seconds(0.25), adapter="pirate"),
            explanation_pb2.Wait(
                cause=explanation_pb2.WAIT_CAUSE_QUEUE,
                duration=seconds(1.5),
                ahead=explanation_pb2.Ahead(own=1, others=2, higher_priority=1, waiting_tokens=300),
                short_of="blocks",
            ),
            explanation_pb2.Wait(cause=explanation_pb2.WAIT_CAUSE_PREEMPTION, duration=seconds(0.125), times=2),
        ],
        sequence_count=1,
        prompt_tokens=40,
        cached_tokens=16,
        completion_tokens=8,
    )


def get_model(request: Any) -> Any:
    """GetModel is a method of two services, told apart by their request types."""
    if isinstance(request, embeddings_service_pb2.GetModelRequest):
        return embedding_model()
    return generation_service_pb2.GetModelResponse(model=model(request.name or "small"))


def adapter(state: str = "READY", name: str = "pirate", revision: int = 5) -> adapter_pb2.Adapter:
    failure = None
    if state == "FAILED":
        failure = adapter_pb2.AdapterFailure(reason="WRONG_BASE_MODEL", message="trained for another model")
    return adapter_pb2.Adapter(
        name=name,
        version="a" * 64,
        base_model="small",
        source="file:///adapters/pirate",
        state=adapter_pb2.AdapterState.Value(f"ADAPTER_STATE_{state}"),
        failure=failure,
        rank=8,
        target_modules=["q_proj", "v_proj"],
        size_bytes=1_843_200,
        active_leases=1,
        create_time=Timestamp(seconds=1_700_000_000),
        update_time=Timestamp(seconds=1_700_000_001),
        revision=revision,
    )


def watch(*states: str, name: str = "pirate") -> list[Any]:
    """A snapshot of the first state, then the others as changes."""
    events = [
        adapters_service_pb2.WatchAdaptersResponse(adapter=adapter(state, name, revision=5 + position))
        for position, state in enumerate(states)
    ]
    complete = adapters_service_pb2.WatchAdaptersResponse(
        snapshot_complete=adapters_service_pb2.SnapshotComplete(revision=5)
    )
    return [adapters_service_pb2.WatchAdaptersResponse(), events[0], complete, *events[1:]]


def run_agent() -> list[Any]:
    events: list[dict[str, Any]] = [
        {
            "started": agent_pb2.RunStarted(
                run_id="run-1",
                model="small",
                tools=["calculator"],
                budget=agent_pb2.AgentBudget(max_steps=8, max_tokens=2048, max_duration=Duration(seconds=120)),
            )
        },
        {"thought_delta": agent_pb2.ThoughtDelta(step=1, text="I should ")},
        {"thought_delta": agent_pb2.ThoughtDelta(step=1, text="calculate.")},
        {
            "tool_requested": agent_pb2.ToolRequested(
                step=1, call_id="c1", tool="calculator", arguments_json='{"expression": "17 * 23"}'
            )
        },
        {
            "tool_returned": agent_pb2.ToolReturned(
                step=1, call_id="c1", observation="391", duration=Duration(nanos=2_000_000)
            )
        },
        {"answer": agent_pb2.Answer(step=2, text="It is 391.")},
        {
            "finished": agent_pb2.RunFinished(
                outcome=agent_pb2.RUN_OUTCOME_ANSWERED, steps=2, tool_calls=1, usage=USAGE, duration=Duration(seconds=3)
            )
        },
    ]
    return [
        agents_service_pb2.RunAgentResponse(),
        *(agents_service_pb2.RunAgentResponse(sequence=number, **event) for number, event in enumerate(events, 1)),
    ]


def list_tools() -> agents_service_pb2.ListToolsResponse:
    return agents_service_pb2.ListToolsResponse(
        tools=[
            agent_pb2.ToolInfo(
                name="calculator", description="Computes an expression.", parameters_json_schema='{"type": "object"}'
            )
        ]
    )


def everything() -> dict[str, Any]:
    return {
        "Generate": generate(),
        "StreamGenerate": stream_generate(),
        "Score": score,
        "ListModels": list_models,
        "GetModel": get_model,
        "Explain": generation_service_pb2.ExplainResponse(explanation=explanation()),
        "Encode": encode,
        "Decode": decode,
        "CountTokens": count_tokens,
        "RenderChat": render_chat,
        "GetTokenizer": get_tokenizer(),
        "StreamTokenizerFiles": [
            *tokenizer_file("tokenizer.json", b'{"version": "1.0"}'),
            *tokenizer_file("tokenizer_config.json", b"{}"),
        ],
        "Embed": embed,
        "LoadAdapter": adapters_service_pb2.LoadAdapterResponse(adapter=adapter("PENDING")),
        "UnloadAdapter": adapters_service_pb2.UnloadAdapterResponse(adapter=adapter("DRAINING")),
        "ListAdapters": adapters_service_pb2.ListAdaptersResponse(adapters=[adapter()]),
        "GetAdapter": adapters_service_pb2.GetAdapterResponse(adapter=adapter()),
        "WatchAdapters": watch("PENDING", "LOADING", "READY"),
        "RunAgent": run_agent(),
        "ListTools": list_tools(),
    }

"""Vectors and embedding models as messages of the schema."""

from __future__ import annotations

from google.protobuf import duration_pb2

from argosy.api.common.v1 import usage_pb2
from argosy.api.embeddings.v1 import embedding_model_pb2, embeddings_service_pb2
from argosy_services.embeddings.types import EmbeddingModelInfo, Embeddings, Pooling, StageTimings
from argosy_services.errors import invalid_field

_PACKED: dict[int, bool] = {
    embeddings_service_pb2.EMBEDDING_FORMAT_UNSPECIFIED: False,
    embeddings_service_pb2.EMBEDDING_FORMAT_FLOATS: False,
    embeddings_service_pb2.EMBEDDING_FORMAT_PACKED: True,
}
_POOLINGS = {Pooling.MEAN: embedding_model_pb2.POOLING_MEAN, Pooling.CLS: embedding_model_pb2.POOLING_CLS}


def reads_packed(field: str, form: int) -> bool:
    """Whether vectors travel as one block of bytes. Raises INVALID_FIELD for a number that the schema does not have."""
    if form not in _PACKED:
        raise invalid_field(field, "is not a format", limit="FLOATS or PACKED", value=form)
    return _PACKED[form]


def write_embeddings(embeddings: Embeddings, *, packed: bool) -> embeddings_service_pb2.EmbedResponse:
    """The response with all vectors, as floats of each text or as one block of little-endian float32."""
    vectors = embeddings.vectors
    rows = [()] * len(vectors) if packed else vectors.tolist()
    return embeddings_service_pb2.EmbedResponse(
        model=embeddings.model.name,
        embeddings=[
            embeddings_service_pb2.Embedding(values=row, tokens=tokens, truncated=truncated)
            for row, tokens, truncated in zip(rows, embeddings.tokens, embeddings.truncated, strict=True)
        ],
        packed=vectors.astype("<f4").tobytes() if packed else b"",
        dimensions=vectors.shape[1],
        usage=usage_pb2.Usage(prompt_tokens=sum(embeddings.tokens)),
        timings=_timings(embeddings.timings),
        tokenizer_fingerprint=embeddings.model.tokenizer_fingerprint,
        adapter=embeddings.adapter,
        adapter_version=embeddings.adapter_version,
    )


def write_model(info: EmbeddingModelInfo) -> embedding_model_pb2.EmbeddingModel:
    """A model's description as a message."""
    return embedding_model_pb2.EmbeddingModel(
        name=info.name,
        architecture=info.architecture,
        dimensions=info.dimensions,
        max_input_tokens=info.max_input_tokens,
        pooling=_POOLINGS[info.pooling],
        normalizes=info.normalizes,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        dtype=info.dtype,
        parameter_count=info.parameter_count,
    )


def _timings(timings: StageTimings) -> usage_pb2.StageTimings:
    return usage_pb2.StageTimings(
        tokenization=_duration(timings.tokenization_s),
        queue=_duration(timings.queue_s),
        prefill=_duration(timings.compute_s),
        total=_duration(timings.total_s),
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration

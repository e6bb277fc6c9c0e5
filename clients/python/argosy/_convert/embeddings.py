"""Embeddings."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import cast

from argosy._convert import common
from argosy.api.embeddings.v1 import embedding_model_pb2
from argosy.api.embeddings.v1 import embeddings_service_pb2 as rpc
from argosy.errors import ProtocolError
from argosy.types.embeddings import EmbeddingModel, Embeddings, Pooling


def embed_request(
    texts: str | Sequence[str],
    *,
    model: str,
    normalize: bool | None,
    dimensions: int | None,
    truncate: bool | None,
    packed: bool,
    tokenizer_fingerprint: str,
    adapter: str,
    adapter_sticky_key: str,
) -> rpc.EmbedRequest:
    """Texts to embed; a lone text counts as one."""
    request = rpc.EmbedRequest(
        model=model,
        texts=[texts] if isinstance(texts, str) else list(texts),
        normalize=normalize,
        truncate=truncate,
        format=rpc.EMBEDDING_FORMAT_PACKED if packed else rpc.EMBEDDING_FORMAT_FLOATS,
        tokenizer_fingerprint=tokenizer_fingerprint,
        adapter=adapter,
        adapter_sticky_key=adapter_sticky_key,
    )
    if dimensions is not None:
        common.set_field(request, "dimensions", dimensions, name="dimensions")
    return request


def embeddings(message: rpc.EmbedResponse, expected: int) -> Embeddings:
    """The vectors of `expected` texts, in one block however they travelled."""
    values = array("f")
    if message.packed:
        if len(message.packed) % values.itemsize:
            raise ProtocolError(f"the server sent {len(message.packed)} bytes, which are no whole float32 values")
        values.frombytes(message.packed)
        if sys.byteorder == "big":
            values.byteswap()
    else:
        for embedding in message.embeddings:
            values.extend(embedding.values)
    if len(message.embeddings) != expected or len(values) != expected * message.dimensions:
        raise ProtocolError(
            f"the server sent {len(message.embeddings)} results and {len(values)} values for {expected} texts "
            f"of {message.dimensions} dimensions"
        )
    return Embeddings(
        model=message.model,
        dimensions=message.dimensions,
        buffer=cast("memoryview[float]", memoryview(values)),
        tokens=tuple(embedding.tokens for embedding in message.embeddings),
        truncated=tuple(embedding.truncated for embedding in message.embeddings),
        usage=common.usage(message.usage),
        timings=common.timings(message.timings),
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        adapter=message.adapter,
        adapter_version=message.adapter_version,
    )


def model(message: embedding_model_pb2.EmbeddingModel) -> EmbeddingModel:
    """A served embedding model."""
    return EmbeddingModel(
        name=message.name,
        architecture=message.architecture,
        dimensions=message.dimensions,
        max_input_tokens=message.max_input_tokens,
        pooling=common.enum_of(Pooling, embedding_model_pb2.Pooling, "POOLING_", message.pooling),
        normalizes=message.normalizes,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        dtype=message.dtype,
        parameter_count=message.parameter_count,
    )

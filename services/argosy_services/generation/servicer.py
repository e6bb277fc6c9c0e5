"""GenerationService of the schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from argosy.api.generation.v1 import generation_service_pb2 as pb
from argosy_services.errors import ArgosyError, Reason, invalid_field
from argosy_services.generation import convert
from argosy_services.generation.convert_explanation import write_explanation
from argosy_services.generation.service import GenerationService
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call
from argosy_services.rpc.endpoint import stream, unary
from argosy_services.rpc.gate import Gate
from argosy_services.rpc.paging import page


class GenerationServicer:
    """Reads requests, asks the service, writes responses."""

    SERVICE = "argosy.api.generation.v1.GenerationService"

    def __init__(self, service: GenerationService, gate: Gate, auth: Authenticator) -> None:
        self._service = service
        self.gate = gate
        self.auth = auth

    @unary(pb.GenerateResponse)
    async def Generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        spec = convert.read_spec(request.spec)
        _check_permission("spec.priority", spec.priority, call)
        generation = await self._service.generate(
            spec, request_id=call.request_id, deadline=call.deadline, tenant=call.tenant
        )
        # A long answer with log-probabilities takes long enough to hold up everything else on the event loop.
        return await asyncio.to_thread(convert.write_generation, generation)

    @stream(pb.StreamGenerateResponse)
    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, call: Call
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        spec = convert.read_spec(request.spec)
        _check_permission("spec.priority", spec.priority, call)
        batches = self._service.batches(spec, request_id=call.request_id, deadline=call.deadline, tenant=call.tenant)
        async with aclosing(batches):
            async for events in batches:
                for message in convert.write_events(events, batched=request.batch_events):
                    yield message

    @unary(pb.ScoreResponse)
    async def Score(self, request: pb.ScoreRequest, call: Call) -> pb.ScoreResponse:
        spec = convert.read_score(request)
        _check_permission("priority", spec.priority, call)
        scores = await self._service.score(spec, request_id=call.request_id, deadline=call.deadline, tenant=call.tenant)
        return await asyncio.to_thread(convert.write_scores, scores)

    @unary(pb.ListModelsResponse)
    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        models, next_token = page(
            self._service.models(), lambda model: model.name, size=request.page_size, token=request.page_token
        )
        return pb.ListModelsResponse(models=map(convert.write_model, models), next_page_token=next_token)

    @unary(pb.GetModelResponse)
    async def GetModel(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=convert.write_model(self._service.model(request.name)))

    @unary(pb.ExplainResponse)
    async def Explain(self, request: pb.ExplainRequest, call: Call) -> pb.ExplainResponse:
        if not request.request_id:
            raise invalid_field("request_id", "is required", limit="an id of a request", value="")
        explanation = await self._service.explain(request.request_id, call.tenant)
        return pb.ExplainResponse(explanation=write_explanation(explanation))


def _check_permission(field: str, priority: int, call: Call) -> None:
    """Raises NOT_PERMITTED where the caller may not go before others."""
    if priority > 0 and not call.may_raise_priority:
        raise ArgosyError(
            Reason.NOT_PERMITTED,
            f"{field} {priority} needs an API key that may raise its priority; ask for 0 or less, "
            "or have the key added to ARGOSY_PRIORITY_KEYS",
            field=field,
            limit=0,
            value=priority,
        )

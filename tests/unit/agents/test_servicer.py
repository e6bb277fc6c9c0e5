"""The service as clients see it: a real server on loopback and the generated stubs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from argosy.api.agents.v1 import agent_pb2, agents_service_pb2, agents_service_pb2_grpc
from argosy_services.agents.service import AgentsService
from argosy_services.agents.servicer import AgentsServicer
from argosy_services.agents.tools.calculator import Calculator
from argosy_services.agents.tools.clock import Clock
from argosy_services.agents.types import AgentSpec
from argosy_services.metrics_page import registry
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.dispatch import MethodTable
from argosy_services.rpc.gate import Gate

from ..serving import serving
from .scripted import MODEL, ScriptedModel, action, agents, answer

if TYPE_CHECKING:
    from argosy.api.agents.v1.agents_service_pb2_grpc import AgentsServiceAsyncStub as Stub

Spec = agent_pb2.AgentSpec
AgentBudget = agent_pb2.AgentBudget
RunAgentRequest = agents_service_pb2.RunAgentRequest
RunAgentResponse = agents_service_pb2.RunAgentResponse
ListToolsRequest = agents_service_pb2.ListToolsRequest

SOLVED = ["I need it", action("calculator", expression="6 * 7"), "I have it", answer("6 * 7 = 42")]


class Stage:
    """A server with one scripted model; `says` sets what it writes from now on."""

    def __init__(self, model: ScriptedModel, service: AgentsService) -> None:
        self.model = model
        self.service = service

    def says(self, *texts: str) -> None:
        self.model.texts = texts
        self.model.asked.clear()
        self.model.closed = 0
        self.model.before = None


@pytest.fixture
def stage() -> Iterator[Stage]:
    model = ScriptedModel([])
    with agents(model, [Clock(), Calculator()], max_running=1) as service:
        yield Stage(model, service)


@pytest.fixture
async def stub(stage: Stage) -> AsyncIterator[Stub]:
    gate, auth = Gate(), Authenticator()
    gate.open()
    methods = MethodTable(gate, auth)
    agents_service_pb2_grpc.add_AgentsServiceServicer_to_server(AgentsServicer(stage.service, gate, auth), methods)
    async with serving(lambda server: server.add_generic_rpc_handlers((methods,))) as channel:
        yield agents_service_pb2_grpc.AgentsServiceStub(channel)


async def run(stub: Stub, spec: agent_pb2.AgentSpec) -> list[RunAgentResponse]:
    """The events of a run, without keep-alives and those that only count tokens."""
    events = [event async for event in stub.RunAgent(RunAgentRequest(spec=spec), timeout=20)]
    return [event for event in events if event.WhichOneof("event") not in (None, "model_replied")]


async def error_of(stub: Stub, spec: agent_pb2.AgentSpec) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run(stub, spec)
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(details).details[0].Unpack(info)
    return caught.value.code(), info


def counted(name: str, **labels: str) -> float:
    return registry().get_sample_value(f"argosy_{name}_total", labels) or 0.0


async def eventually(holds: Callable[[], object]) -> None:
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come")


async def test_events_of_a_run(stub: Stub, stage: Stage) -> None:
    stage.says(*SOLVED)
    runs, steps = counted("agent_runs", outcome="answered"), counted("agent_steps")
    calls = counted("tool_calls", tool="calculator", result="ok")
    events = await run(stub, Spec(task="What is 6 * 7?", budget=AgentBudget(max_steps=3)))
    assert [event.sequence for event in events] == [1, 2, 3, 4, 7, 8, 9, 10, 11, 14, 15]
    assert [event.WhichOneof("event") for event in events] == [
        "started",
        *["thought_delta"] * 3,
        "tool_requested",
        "tool_returned",
        *["thought_delta"] * 3,
        "answer",
        "finished",
    ]
    started = events[0].started
    assert (started.model, list(started.tools)) == (MODEL, ["calculator", "current_time"])
    assert (started.budget.max_steps, started.budget.max_tokens) == (3, 2048)
    assert started.budget.max_duration.seconds == 120
    assert len(started.run_id) == 32
    assert "".join(event.thought_delta.text for event in events if event.HasField("thought_delta")) == (
        "I need itI have it"
    )
    request, returned = events[4].tool_requested, events[5].tool_returned
    assert (request.step, request.tool) == (1, "calculator")
    assert json.loads(request.arguments_json) == {"expression": "6 * 7"}
    assert (returned.call_id, returned.observation, returned.is_error) == (request.call_id, "6 * 7 = 42", False)
    assert returned.duration.ToNanoseconds() > 0
    assert (events[-2].answer.step, events[-2].answer.text) == (2, "6 * 7 = 42")
    end = events[-1].finished
    assert (end.outcome, end.steps, end.tool_calls) == (agent_pb2.RUN_OUTCOME_ANSWERED, 2, 1)
    assert (end.usage.prompt_tokens, end.usage.cached_tokens) == (400, 160)
    assert end.usage.completion_tokens > 0
    assert end.duration.ToNanoseconds() > returned.duration.ToNanoseconds()
    assert counted("agent_runs", outcome="answered") == runs + 1
    assert counted("agent_steps") == steps + 2
    assert counted("tool_calls", tool="calculator", result="ok") == calls + 1


@pytest.mark.parametrize(
    ("budget", "outcome"),
    [
        (AgentBudget(max_steps=1), agent_pb2.RUN_OUTCOME_STEP_LIMIT),
        (AgentBudget(max_tokens=2), agent_pb2.RUN_OUTCOME_TOKEN_LIMIT),
        (AgentBudget(max_duration=Duration(nanos=1)), agent_pb2.RUN_OUTCOME_TIME_LIMIT),
    ],
)
async def test_a_spent_budget_is_no_error(
    stub: Stub,
    stage: Stage,
    budget: agent_pb2.AgentBudget,
    outcome: agent_pb2.RunOutcome,
) -> None:
    stage.says("a thought", answer("a guess"))
    events = await run(stub, Spec(task="task", budget=budget))
    assert events[-1].finished.outcome == outcome


async def test_tools_can_be_narrowed(stub: Stub, stage: Stage) -> None:
    stage.says("a", answer("b"))
    events = await run(stub, Spec(task="task", tools=["current_time"]))
    assert list(events[0].started.tools) == ["current_time"]


@pytest.mark.parametrize(
    ("spec", "reason", "field"),
    [
        (Spec(), "INVALID_FIELD", "spec.task"),
        (Spec(task=" \n"), "INVALID_FIELD", "spec.task"),
        (Spec(task="a" * (64 << 10) + "b"), "INPUT_TOO_LARGE", "spec.task"),
        (Spec(task="a", strategy=99), "INVALID_FIELD", "spec.strategy"),  # type: ignore[arg-type]
        (Spec(task="a", budget=AgentBudget(max_steps=0)), "INVALID_FIELD", "spec.budget.max_steps"),
        (Spec(task="a", budget=AgentBudget(max_steps=65)), "INVALID_FIELD", "spec.budget.max_steps"),
        (Spec(task="a", budget=AgentBudget(max_tokens=0)), "INVALID_FIELD", "spec.budget.max_tokens"),
        (Spec(task="a", budget=AgentBudget(max_tokens=131_073)), "INVALID_FIELD", "spec.budget.max_tokens"),
        (Spec(task="a", budget=AgentBudget(max_duration=Duration())), "INVALID_FIELD", "spec.budget.max_duration"),
        (
            Spec(task="a", budget=AgentBudget(max_duration=Duration(seconds=-1))),
            "INVALID_FIELD",
            "spec.budget.max_duration",
        ),
        (
            Spec(task="a", budget=AgentBudget(max_duration=Duration(seconds=3600, nanos=1000))),
            "INVALID_FIELD",
            "spec.budget.max_duration",
        ),
        (Spec(task="a", temperature=-1), "INVALID_FIELD", "spec.temperature"),
        (Spec(task="a", temperature=101), "INVALID_FIELD", "spec.temperature"),
        (Spec(task="a", temperature=float("nan")), "INVALID_FIELD", "spec.temperature"),
    ],
)
async def test_wrong_requests(
    stub: Stub,
    stage: Stage,
    spec: agent_pb2.AgentSpec,
    reason: str,
    field: str,
) -> None:
    code, info = await error_of(stub, spec)
    assert (code, info.reason, info.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field)
    assert stage.model.asked == []


async def test_unknown_tool_and_model(stub: Stub) -> None:
    code, info = await error_of(stub, Spec(task="a", tools=["calculator", "shell"]))
    assert (code, info.reason, info.metadata["tool"]) == (grpc.StatusCode.NOT_FOUND, "TOOL_NOT_FOUND", "shell")
    code, info = await error_of(stub, Spec(task="a", model="other"))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_a_broken_model_is_an_internal_error(stub: Stub, stage: Stage) -> None:
    stage.says("a", "no action")
    failed = counted("agent_runs", outcome="failed")
    code, info = await error_of(stub, Spec(task="a"))
    assert (code, info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert counted("agent_runs", outcome="failed") == failed + 1


async def test_cancelling_frees_the_place(stub: Stub, stage: Stage) -> None:
    stage.says(*SOLVED)
    stage.model.before = lambda _: asyncio.sleep(30)
    cancelled = counted("agent_runs", outcome="cancelled")
    call = stub.RunAgent(RunAgentRequest(spec=Spec(task="a")))
    await eventually(lambda: stage.model.asked)
    code, info = await error_of(stub, Spec(task="b"))
    assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert (info.metadata["limit"], info.metadata["value"]) == ("1", "1")
    call.cancel()
    await eventually(lambda: stage.model.closed == 1)
    await eventually(lambda: counted("agent_runs", outcome="cancelled") == cancelled + 1)
    stage.says(*SOLVED)
    assert (await run(stub, Spec(task="c")))[-1].finished.outcome == agent_pb2.RUN_OUTCOME_ANSWERED


async def test_list_tools(stub: Stub) -> None:
    names: list[str] = []
    token = ""
    for _ in range(2):
        listed = await stub.ListTools(ListToolsRequest(page_size=1, page_token=token))
        (tool,) = listed.tools
        names.append(tool.name)
        assert tool.description
        assert json.loads(tool.parameters_json_schema)["type"] == "object"
        token = listed.next_page_token
    assert (names, token) == (["calculator", "current_time"], "")


async def test_an_agent_asks_in_the_name_of_its_caller(stage: Stage) -> None:
    stage.model.texts = ["thinking", answer("done")]
    async for _ in stage.service.run(AgentSpec(task="a"), tenant="somebody"):
        pass
    assert [completion.tenant for completion in stage.model.asked] == ["somebody"] * 2

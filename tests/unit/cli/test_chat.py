"""Conversations: history, commands, and Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import grpc
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_failures import COMMAND
from tests.unit.sdk import answers
from tests.unit.sdk.scripted import Failure, ScriptedServer

from argosy.api.common.v1 import chat_pb2


def sent(server: ScriptedServer) -> list[list[tuple[str, str]]]:
    """Roles and texts of each request."""
    return [
        [(chat_pb2.Role.Name(m.role).removeprefix("ROLE_").lower(), m.content) for m in call.request.spec.chat.messages]
        for call in server.calls_of("StreamGenerate")
    ]


def test_one_message(run: Run, server: ScriptedServer) -> None:
    result = run("chat", "Hello", "--system", "Be brief.", "--model", "small", "--max-tokens", "9")
    assert (result.exit_code, result.stdout) == (0, " Paris.\n")
    assert sent(server) == [[("system", "Be brief."), ("user", "Hello")]]
    spec = server.calls[0].request.spec
    assert (spec.model, spec.sampling.max_tokens) == ("small", 9)


def test_one_message_from_a_pipe(run: Run, server: ScriptedServer) -> None:
    assert run("chat", input="Hello\nthere\n").stdout == " Paris.\n"
    assert sent(server) == [[("user", "Hello\nthere")]]


def test_a_conversation_remembers(run: Run, server: ScriptedServer) -> None:
    result = run("chat", "-i", input="One\n\nTwo\n/quit\nnever sent\n")
    assert result.exit_code == 0
    assert result.stdout.count(" Paris.") == 2
    assert sent(server) == [
        [("user", "One")],
        [("user", "One"), ("assistant", " Paris."), ("user", "Two")],
    ]


def test_the_end_of_input_ends_a_conversation(run: Run) -> None:
    assert run("chat", "-i", input="One\n").exit_code == 0


def test_commands(run: Run, server: ScriptedServer) -> None:
    lines = [
        "One",
        "/reset",
        "Two",
        "/system Be kind.",
        "Three",
        "/adapter pirate",
        "Four",
        "/adapter",
        "/system",
        "Five",
    ]
    result = run("chat", "-i", input="\n".join(lines))
    assert sent(server) == [
        [("user", "One")],
        [("user", "Two")],
        [("system", "Be kind."), ("user", "Three")],
        [("system", "Be kind."), ("user", "Three"), ("assistant", " Paris."), ("user", "Four")],
        [("user", "Five")],
    ]
    assert [call.request.spec.adapter for call in server.calls] == ["", "", "", "pirate", ""]
    assert result.exit_code == 0


def test_help_and_unknown_commands_ask_nobody(run: Run, server: ScriptedServer) -> None:
    result = run("chat", "-i", input="/help\n/dance\n")
    assert "/adapter [NAME]" in result.stderr
    assert "no command /dance" in result.stderr
    assert server.calls == []


def test_a_failed_answer_does_not_end_the_conversation(run: Run, server: ScriptedServer) -> None:
    server.failures["StreamGenerate"] = [Failure(grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")]
    result = run("chat", "-i", input="One\nTwo\n")
    assert result.exit_code == 0
    assert "error PROMPT_TOO_LONG" in result.stderr
    assert "/reset" in result.stderr
    # The question that failed is not part of the history.
    assert sent(server)[1] == [("user", "Two")]


def test_one_message_that_fails_has_an_exit_code(run: Run, server: ScriptedServer) -> None:
    server.failures["StreamGenerate"] = [Failure(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")]
    assert run("chat", "Hello").exit_code == 3


def test_ctrl_c_ends_the_answer_but_not_the_conversation(server: ScriptedServer) -> None:
    scripts: list[list[Any]] = [[answers.started(), answers.delta("Once"), 30.0], answers.stream_generate()]
    server.answers["StreamGenerate"] = lambda _request: scripts.pop(0)
    process = subprocess.Popen(
        [*COMMAND, "chat", "--interactive"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "ARGOSY_ADDRESS": server.address},
        text=True,
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("Tell a story\n")
    seen = ""
    while "Once" not in seen:
        seen += process.stdout.read(1)
    process.send_signal(2)
    assert server.calls[0].ended.wait(5)
    process.stdin.write("Go on\n/quit\n")
    deadline = time.monotonic() + 20
    while len(server.calls) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    rest, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert " Paris." in rest
    assert "(stopped)" in stderr
    assert sent(server)[1] == [("user", "Tell a story"), ("assistant", "Once"), ("user", "Go on")]

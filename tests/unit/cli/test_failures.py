"""Failures: one line on standard error, and an exit code that scripts can rely on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.unit.cli.conftest import Run
from tests.unit.sdk.scripted import Failure, ScriptedServer
from typer.testing import CliRunner

import argosy
from argosy_services import embedded
from argosy_services.cli import failures
from argosy_services.cli.app import app
from argosy_services.cli.exit_codes import MEANINGS, ExitCode
from argosy_services.errors import ArgosyError, Reason
from argosy_services.models import errors as store_errors
from argosy_services.settings import Settings

COMMAND = [sys.executable, "-c", "from argosy_services.cli import main; main()"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failure(grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG"), ExitCode.USAGE),
        (Failure(grpc.StatusCode.UNIMPLEMENTED, "NOT_SUPPORTED"), ExitCode.USAGE),
        (Failure(grpc.StatusCode.NOT_FOUND, "ADAPTER_NOT_FOUND"), ExitCode.NOT_FOUND),
        (Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "KV_CACHE_FULL"), ExitCode.UNAVAILABLE),
        (Failure(grpc.StatusCode.UNAVAILABLE, "DRAINING"), ExitCode.UNAVAILABLE),
        (Failure(grpc.StatusCode.CANCELLED), ExitCode.UNAVAILABLE),
        (Failure(grpc.StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"), ExitCode.NOT_ALLOWED),
        (Failure(grpc.StatusCode.PERMISSION_DENIED), ExitCode.NOT_ALLOWED),
        (Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"), ExitCode.DEADLINE),
        (Failure(grpc.StatusCode.ALREADY_EXISTS, "ADAPTER_EXISTS"), ExitCode.CONFLICT),
        (Failure(grpc.StatusCode.FAILED_PRECONDITION, "ADAPTER_NOT_READY"), ExitCode.CONFLICT),
        (Failure(grpc.StatusCode.INTERNAL, "INTERNAL"), ExitCode.SERVER_FAULT),
        (Failure(grpc.StatusCode.DATA_LOSS), ExitCode.SERVER_FAULT),
    ],
    ids=lambda value: value.code.name if isinstance(value, Failure) else value.name,
)
def test_every_kind_of_failure_has_its_exit_code(
    run: Run, server: ScriptedServer, failure: Failure, code: ExitCode
) -> None:
    server.answers["GetAdapter"] = failure
    result = run("adapters", "get", "pirate")
    assert result.exit_code == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error {failure.reason or failure.code.name}: scripted failure")
    assert line.endswith(f"[request id {server.calls[0].metadata['x-request-id']}]")


def test_a_failure_says_when_to_come_back(run: Run, server: ScriptedServer) -> None:
    server.answers["GetAdapter"] = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=60.0)
    assert "try again in 60 s" in run("adapters", "get", "pirate").stderr


def test_no_server() -> None:
    result = CliRunner().invoke(app, ["--address", "127.0.0.1:1", "generate", "x"])
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert "no connection to 127.0.0.1:1" in result.stderr
    assert "argosy serve" in result.stderr


def test_global_options_reach_the_call(run: Run, server: ScriptedServer) -> None:
    assert run("--api-key", "key-1", "--timeout", "9", "generate", "x").exit_code == 0
    (call,) = server.calls
    assert call.metadata["authorization"] == "Bearer key-1"
    assert call.time_remaining == pytest.approx(9, abs=1)


def test_a_deadline_on_the_command_line(run: Run, server: ScriptedServer) -> None:
    server.delays["StreamGenerate"] = 5.0
    result = run("--timeout", "0.3", "generate", "x")
    assert result.exit_code == ExitCode.DEADLINE
    assert "--timeout" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "x", "--regex", "a", "--choice", "b"),
        ("generate", "x", "--json-schema", "@/no/such/file"),
        ("generate", "x", "--max-tokens", "0"),
        ("generate", "--unknown"),
        ("unknown",),
        ("adapters", "load", "only-a-name"),
        ("--address", "http://localhost:50051", "generate", "x"),
        ("serve", "--config", "/no/such/file"),
        ("serve", "--host", "0.0.0.0"),
        ("serve", "--port", "70000"),
        ("models", "pull", "ftp://elsewhere"),
    ],
    ids=" ".join,
)
def test_wrong_use(run: Run, server: ScriptedServer, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == ExitCode.USAGE
    assert result.stderr
    assert server.calls == []


def test_settings_problems_show_no_values(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_PORT", "top-secret")
    result = run("models", "list")
    assert result.exit_code == ExitCode.USAGE
    assert "error SETTINGS: port: " in result.stderr
    assert "top-secret" not in result.output


def test_failures_of_the_store() -> None:
    cases = {
        store_errors.InvalidSourceError("x"): ExitCode.USAGE,
        store_errors.DownloadError("x"): ExitCode.UNAVAILABLE,
        store_errors.NameTakenError("x"): ExitCode.CONFLICT,
        store_errors.ChecksumError("x"): ExitCode.FAILED,
        ArgosyError(Reason.MODEL_NOT_FOUND, "x", model="m"): ExitCode.NOT_FOUND,
    }
    for error, code in cases.items():
        found = failures.report(error)
        assert found is not None
        assert found.code == code


def test_a_missing_package_says_how_to_install() -> None:
    found = failures.report(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert found is not None
    assert 'pip install "argosy[services]"' in found.message


def test_a_bug_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("argosy.embeddings.EmbeddingsClient.embed", broken)
    assert isinstance(run("embed", "x").exception, ZeroDivisionError)


def test_every_exception_of_the_sdk_has_an_exit_code() -> None:
    for name in argosy.__all__:
        kind = getattr(argosy, name)
        if isinstance(kind, type) and issubclass(kind, argosy.ArgosyError):
            found = failures.report(kind("x"))
            assert found is not None, name
            assert found.code not in (ExitCode.OK, ExitCode.FAILED), name


def test_exit_codes_are_in_the_help(run: Run) -> None:
    assert set(MEANINGS) == set(ExitCode)
    text = " ".join(run("--help").stdout.split())
    assert all(f"{code.value} {meaning.split()[0]}" in text for code, meaning in MEANINGS.items())


def test_without_typer_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from argosy_services.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "argosy[services]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_help_comes_at_once() -> None:
    code = (
        "import sys, time; sys.argv = ['argosy', '--help']\n"
        "from argosy_services.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'grpc', 'pydantic', 'argosy', 'structlog'} & sys.modules.keys()\n"
        "print('HEAVY', *heavy)\nprint('SECONDS', time.process_time())"
    )
    runs = [subprocess.check_output([sys.executable, "-c", code], text=True).splitlines() for _ in range(3)]
    assert runs[0][-2].split() == ["HEAVY"]
    assert min(float(lines[-1].split()[1]) for lines in runs) < 0.5


def test_a_closed_pipe_is_no_failure(server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = answers_of_many_pieces()
    environment = {**os.environ, "ARGOSY_ADDRESS": server.address}
    with subprocess.Popen(
        [*COMMAND, "generate", "x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(20) == 0
    assert stderr == b""


def answers_of_many_pieces() -> list[Any]:
    from tests.unit.sdk import answers

    text = "x" * 10_000
    return [
        answers.started(),
        *(answers.delta(text) for _ in range(200)),
        answers.choice_finished(),
        answers.finished(),
    ]


def test_serve_hands_over_the_settings(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Settings] = []

    def serve(settings: Settings) -> int:
        seen.append(settings)
        return 1

    monkeypatch.setattr(embedded, "serve", serve)
    config = tmp_path / "argosy.yaml"
    config.write_text("port: 1234\nmetrics_port: 4321\n")
    monkeypatch.setenv("ARGOSY_CONFIG", "")  # restored at the end, because the command sets it
    result = run(
        "serve", "--config", str(config), "--port", "0", "--data-dir", str(tmp_path), "--log-format", "console"
    )
    assert result.exit_code == 1
    (settings,) = seen
    assert (settings.port, settings.metrics_port) == (0, 4321)
    assert (settings.data_dir, settings.log_format, settings.host) == (tmp_path, "console", "127.0.0.1")


def test_ctrl_c_ends_a_command_with_130(server: ScriptedServer) -> None:
    server.delays["StreamGenerate"] = 30.0
    environment = {**os.environ, "ARGOSY_ADDRESS": server.address}
    process = subprocess.Popen([*COMMAND, "generate", "x"], stderr=subprocess.PIPE, env=environment)
    deadline = time.monotonic() + 20
    while not server.calls and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(2)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    assert stderr == b""
    assert server.calls[0].ended.wait(3)

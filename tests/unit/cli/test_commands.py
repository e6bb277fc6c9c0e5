"""Each command: what it sends, what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from tests.unit.cli.conftest import Run, words
from tests.unit.sdk import answers
from tests.unit.sdk.scripted import Failure, ScriptedServer

import argosy
from argosy_services.cli.embed import cosine
from argosy_services.cli.output import safe, size
from argosy_services.cli.tokenize import Piece, pieces


def test_generate_streams_text(run: Run, server: ScriptedServer) -> None:
    result = run(
        *("generate", "The capital of France is", "--model", "small", "--adapter", "pirate", "--max-tokens", "5"),
        *("--temperature", "0", "--top-p", "0.5", "--top-k", "3", "--seed", "7", "--stop", "a", "--stop", "b"),
    )
    assert (result.exit_code, result.stdout, result.stderr) == (0, " Paris.\n", "")
    spec = server.calls_of("StreamGenerate")[0].request.spec
    assert (spec.text, spec.model, spec.adapter) == ("The capital of France is", "small", "pirate")
    sampling = spec.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (5, 0.0, 0.5, 3)
    assert sampling.HasField("temperature")
    assert (sampling.seed, list(sampling.stop)) == (7, ["a", "b"])


def test_generate_leaves_defaults_to_the_server(run: Run, server: ScriptedServer) -> None:
    assert run("generate", "x").exit_code == 0
    sampling = server.calls_of("StreamGenerate")[0].request.spec.sampling
    assert [field.name for field, _ in sampling.ListFields()] == ["max_tokens"]


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_generate_reads_standard_input(run: Run, server: ScriptedServer, arguments: tuple[str, ...]) -> None:
    assert run("generate", *arguments, input="from a pipe\n").stdout == " Paris.\n"
    assert server.calls_of("StreamGenerate")[0].request.spec.text == "from a pipe"


def test_generate_as_json(run: Run) -> None:
    answer = json.loads(run("generate", "x", "--json").stdout)
    assert answer["choices"][0]["text"] == " Paris."
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 5, "cached_tokens": 2, "completion_tokens": 3}


def test_generate_stats_go_to_standard_error(run: Run) -> None:
    result = run("generate", "x", "--stats")
    assert result.stdout == " Paris.\n"
    assert "5 prompt tokens (2 cached), 3 generated" in result.stderr
    assert "ended by stop" in result.stderr


def test_generate_in_a_form(run: Run, server: ScriptedServer, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer"}')
    assert run("generate", "x", "--json-schema", f"@{schema}").exit_code == 0
    assert run("generate", "x", "--regex", "a|b").exit_code == 0
    assert run("generate", "x", "--choice", "yes", "--choice", "no").exit_code == 0
    forms = [call.request.spec.structured_output for call in server.calls]
    assert forms[0].json_schema == '{"type": "integer"}'
    assert forms[1].regex == "a|b"
    assert list(forms[2].choice.options) == ["yes", "no"]


def test_embed_compares_texts(run: Run) -> None:
    result = run("embed", "a", "bcd")
    rows = words(result.stdout)
    assert rows[0] == ["#", "TEXT", "TOKENS", "DIMENSIONS", "NORM", "VALUES"]
    assert rows[1] == ["1", "a", "1", "3", "1.4142", "+1.0000 +1.0000 +0.0000"]
    assert rows[3:] == [["cosine similarity"], ["#", "1", "2"], ["1", "1.000", "0.894"], ["2", "0.894", "1.000"]]


def test_embed_one_text_compares_nothing(run: Run) -> None:
    assert "cosine" not in run("embed", "a").stdout


def test_embed_lines_of_standard_input_as_json(run: Run, server: ScriptedServer) -> None:
    result = json.loads(run("embed", "--json", "--no-normalize", "--dimensions", "3", input="a\nbcd\n").stdout)
    assert result["dimensions"] == 3
    assert [(entry["text"], entry["vector"]) for entry in result["embeddings"]] == [
        ("a", [1.0, 1.0, 0.0]),
        ("bcd", [3.0, 1.0, 0.0]),
    ]
    assert server.calls[0].request.normalize is False


def test_cosine() -> None:
    assert cosine([1.0, 0.0], [0.0, 2.0]) == 0.0
    assert cosine([1.0, 2.0], [-2.0, -4.0]) == pytest.approx(-1.0)
    assert cosine([0.0, 0.0], [1.0, 1.0]) == 0.0


def test_tokenize(run: Run, server: ScriptedServer) -> None:
    result = run("tokenize", "héllo you", "--no-special")
    assert words(result.stdout) == [["héllo you"], ["6 3"], ["2 tokens"]]
    assert server.calls[0].request.add_special_tokens is False


def test_tokenize_as_json(run: Run) -> None:
    result = json.loads(run("tokenize", "héllo you", "--json").stdout)
    assert result["count"] == 2
    assert result["ids"] == [6, 3]
    assert result["byte_spans"] == [[0, 6], [7, 10]]


def test_pieces_of_a_character_that_is_cut() -> None:
    encoding = argosy.Encoding(
        ids=(0, 5, 6, 7, 8),
        tokens=("<s>", "a", "ð", "Ł", "b"),
        byte_spans=((0, 0), (0, 1), (1, 5), (1, 5), (5, 6)),
    )
    space_and_start = argosy.Encoding(ids=(1, 2, 3), tokens=("Ġâ", "ļ", "ĵ"), byte_spans=((0, 4), (1, 4), (1, 4)))
    assert pieces(" ⚓", space_and_start) == [Piece(" ⚓", (1, 2, 3))]
    gap = argosy.Encoding(ids=(5, 8), tokens=("a", "b"), byte_spans=((0, 1), (2, 3)))
    assert pieces("a b!", gap) == [Piece("a", (5,)), Piece(" ", ()), Piece("b", (8,)), Piece("!", ())]
    assert pieces("a🙂b", encoding) == [Piece("<s>", (0,)), Piece("a", (5,)), Piece("🙂", (6, 7)), Piece("b", (8,))]


def test_adapters_load_a_directory(run: Run, server: ScriptedServer) -> None:
    result = run("adapters", "load", "pirate", "/adapters/pirate", "--base-model", "small")
    header, row = words(result.stdout)
    assert header[:3] == ["NAME", "STATE", "BASE MODEL"]
    assert row[:7] == ["pirate", "ready", "small", "8", "1.8 MB", "1", "a" * 12]
    request = server.calls_of("LoadAdapter")[0].request
    assert (request.source, request.base_model) == ("file:///adapters/pirate", "small")


def test_adapters_load_without_waiting(run: Run, server: ScriptedServer) -> None:
    result = run("adapters", "load", "pirate", "file:///adapters/pirate", "--no-wait", "--json")
    assert json.loads(result.stdout)[0]["state"] == "pending"
    assert server.calls_of("WatchAdapters") == []


def test_adapters_unload(run: Run, server: ScriptedServer) -> None:
    server.answers["WatchAdapters"] = answers.watch("DRAINING", "UNLOADED")
    assert words(run("adapters", "unload", "pirate", "--drain-timeout", "2").stdout)[1][1] == "unloaded"
    assert server.calls_of("UnloadAdapter")[0].request.drain_timeout.seconds == 2


def test_adapters_list_and_get(run: Run, server: ScriptedServer) -> None:
    assert words(run("adapters", "list").stdout)[1][:2] == ["pirate", "ready"]
    listed = json.loads(run("adapters", "list", "--json").stdout)[0]
    assert listed["create_time"].startswith("2023-11-14")
    failed = answers.adapters_service_pb2.GetAdapterResponse(adapter=answers.adapter("FAILED"))
    server.answers["GetAdapter"] = failed
    result = run("adapters", "get", "pirate")
    assert words(result.stdout)[1][1] == "failed"
    assert "WRONG_BASE_MODEL: trained for another model" in result.stderr


def test_adapters_of_an_empty_server(run: Run, server: ScriptedServer) -> None:
    server.answers["ListAdapters"] = answers.adapters_service_pb2.ListAdaptersResponse()
    result = run("adapters", "list")
    assert result.stdout == ""
    assert "argosy adapters load" in result.stderr
    assert run("adapters", "list", "--json").stdout == "[]\n"


def test_adapters_watch(run: Run) -> None:
    result = run("adapters", "watch", "pirate", "--until-settled")
    assert words(result.stdout) == [["5", "pirate", "pending"], ["6", "pirate", "loading"], ["7", "pirate", "ready"]]
    lines = run("adapters", "watch", "--json").stdout.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["pending", "loading", "ready"]


def test_agent_shows_the_way_and_prints_the_answer(run: Run, server: ScriptedServer) -> None:
    result = run(
        *("agent", "run", "17 * 23?", "--tool", "calculator", "--max-steps", "3", "--max-tokens", "99"),
        *("--max-duration", "1.5", "--temperature", "0", "--seed", "1"),
    )
    assert (result.exit_code, result.stdout) == (0, "It is 391.\n")
    assert result.stderr.splitlines() == [
        "run run-1 on small, tools: calculator",
        "[1] I should calculate.",
        '[1] calculator {"expression": "17 * 23"}',
        "    391",
        "answered: 2 steps, 1 tool calls, 3 tokens, 3.0 s",
    ]
    spec = server.calls[0].request.spec
    assert (list(spec.tools), spec.budget.max_steps, spec.budget.max_tokens) == (["calculator"], 3, 99)
    assert spec.budget.max_duration.ToMilliseconds() == 1500


def test_agent_events_as_json_lines(run: Run) -> None:
    lines = [json.loads(line) for line in run("agent", "run", "x", "--json").stdout.splitlines()]
    assert [line["event"] for line in lines][:2] == ["RunStarted", "ThoughtDelta"]
    assert lines[-2]["data"] == {"step": 2, "text": "It is 391."}


def test_agent_without_an_answer_has_its_own_exit_code(run: Run, server: ScriptedServer) -> None:
    events = answers.run_agent()
    del events[-2]
    events[-1].finished.outcome = 2
    server.answers["RunAgent"] = events
    result = run("agent", "run", "x")
    assert (result.exit_code, result.stdout) == (9, "")
    assert "step_limit" in result.stderr


def test_agent_lists_tools(run: Run) -> None:
    assert words(run("agent", "tools").stdout)[1] == ["calculator", "unknown", "Computes an expression."]
    assert json.loads(run("agent", "tools", "--json").stdout)[0]["name"] == "calculator"


def test_health(run: Run, server: ScriptedServer) -> None:
    result = run("health")
    assert result.exit_code == 0
    assert words(result.stdout)[1:] == [[area, "serving"] for area in argosy.AREAS]
    server.health = 2
    result = run("health", "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["agents"] == "not_serving"
    assert run("health", "--wait", "0.3").exit_code == 6


def test_version(run: Run) -> None:
    assert run("version").stdout.startswith(f"argosy {argosy.__version__}\n")


def test_models_served(run: Run) -> None:
    rows = words(run("models", "served").stdout)
    assert rows[1] == ["small (default)", "LlamaForCausalLM", "torch on cpu", "float32", "135 M", "8192", "16"]
    assert [row[0] for row in rows[2:]] == ["spare", "tiny"]
    assert len(json.loads(run("models", "served", "--json").stdout)) == 3


def test_sizes_are_readable() -> None:
    assert [size(count) for count in (0, 999, 1000, 1_843_200, 10**12, 10**16)] == [
        *("0 B", "999 B", "1.0 kB", "1.8 MB", "1.0 TB", "10000.0 TB")
    ]


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert safe("a\x1b[2Jb\tc\nd\x9be\r") == "a\ufffd[2Jb\tc\nd\ufffde\ufffd"


def test_tools_cannot_write_escape_sequences(run: Run, server: ScriptedServer) -> None:
    events = answers.run_agent()
    events[5].tool_returned.observation = "\x1b]0;owned\x07 [red]no markup[/red]"
    server.answers["RunAgent"] = events
    stderr = run("agent", "run", "x").stderr
    assert "\x1b" not in stderr
    assert "[red]no markup[/red]" in stderr


def test_a_stream_that_fails_keeps_what_came(run: Run, server: ScriptedServer) -> None:
    server.answers["StreamGenerate"] = [
        answers.started(),
        answers.delta("half"),
        Failure(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error"),
    ]
    result = run("generate", "x")
    assert (result.exit_code, result.stdout) == (8, "half")
    assert "error INTERNAL: internal error [request id " in result.stderr


def test_explain_says_where_the_time_went_and_who_was_before(run: Run, server: ScriptedServer) -> None:
    result = run("explain", "req-1")
    assert result.exit_code == 0, result.output
    assert words(result.stdout)[1:] == [
        ["STAGE", "SECONDS", "SHARE"],
        ["queue", "1.500", "75%"],
        ["prefill", "0.500", "25%"],
        ["WAITED FOR", "SECONDS", "BEHIND"],
        ["adapter", "0.250", "adapter pirate"],
        [
            "queue",
            "1.500",
            "1 of the same key, 2 of others, 300 prompt tokens; 1 of a higher priority; too few blocks",
        ],
        ["preemption", "0.125", "2 times"],
    ]
    assert json.loads(run("explain", "req-1", "--json").stdout)["waits"][0]["adapter"] == "pirate"

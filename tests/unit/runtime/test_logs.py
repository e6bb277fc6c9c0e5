"""Log lines: one form for ours and for those of libraries."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog

from argosy_services import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_lines_carry_level_name_time_and_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    structlog.contextvars.bind_contextvars(request_id="abc")
    structlog.get_logger("argosy.part").info("done", tokens=3, text="é")
    logging.getLogger("library").warning("took %d s", 2)
    first, second = lines(capsys)
    assert first.pop("timestamp")
    assert first == {
        "event": "done",
        "level": "info",
        "logger": "argosy.part",
        "request_id": "abc",
        "tokens": 3,
        "text": "é",
    }
    assert (second["event"], second["logger"], second["request_id"]) == ("took 2 s", "library", "abc")


def test_levels_hold_for_both(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "json")
    structlog.get_logger("argosy.part").info("quiet")
    logging.getLogger("library").info("quiet")
    structlog.get_logger("argosy.part").warning("loud")
    logging.getLogger("library").warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud", "loud"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_show_no_local_variables(capsys: pytest.CaptureFixture[str], form: str) -> None:
    logs.configure("info", "json" if form == "json" else "console")

    def fail(secret: str) -> None:
        raise ValueError("broken")

    for log in (structlog.get_logger("argosy.part").error, logging.getLogger("library").error):
        try:
            fail("s3cr3t")
        except ValueError as error:
            log("failed", exc_info=error)
    written = capsys.readouterr().err
    assert written.count("ValueError: broken") == 2
    assert "s3cr3t" not in written.replace('fail("s3cr3t")', "").replace('fail(\\"s3cr3t\\")', "")


def test_warnings_are_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("careful", stacklevel=1)
        logging.captureWarnings(capture=False)
    (line,) = lines(capsys)
    assert "careful" in str(line["event"])
    assert line["logger"] == "py.warnings"

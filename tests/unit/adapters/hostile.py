"""Makes adapter directories that somebody could have made to break a server, as many as are asked for, from a seed."""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANK = 2


@dataclass(frozen=True, slots=True)
class Hostile:
    """A source, and words that the refusal must hold."""

    kind: str
    source: str
    says: str


class Maker:
    """`shapes` are the model's layers. Everything is made below `root`; `sentinel` is a file that no code may make."""

    def __init__(self, root: Path, shapes: dict[str, tuple[int, int]], seed: int) -> None:
        self.sentinel = root / "code-was-run"
        self._root = root
        self._shapes = shapes
        self._rng = random.Random(seed)
        self._made = 0

    def make(self, count: int) -> list[Hostile]:
        """So many of them, of all kinds in turn."""
        kinds: list[Callable[[Path], str | tuple[str, str]]] = [
            getattr(self, name) for name in sorted(dir(self)) if name.startswith("kind_")
        ]
        return [self._one(kinds[number % len(kinds)]) for number in range(count)]

    def _one(self, kind: Callable[[Path], str | tuple[str, str]]) -> Hostile:
        self._made += 1
        directory = self._root / f"hostile-{self._made}"
        directory.mkdir()
        self._write(directory, self._options(), self._tensors())
        made = kind(directory)
        says, source = (made, f"file://{directory}") if isinstance(made, str) else made
        return Hostile(kind.__name__.removeprefix("kind_"), source, says)

    # Each changes a good directory into a hostile one, and tells what the refusal must say.

    def kind_pickle_beside(self, directory: Path) -> str:
        (directory / WEIGHTS).unlink()
        name = self._rng.choice(("adapter_model.bin", "adapter_model.pt", "adapter_model.pth"))
        (directory / name).write_bytes(self._pickle())
        return "is a pickle"

    def kind_pickle_in_disguise(self, directory: Path) -> str:
        (directory / WEIGHTS).write_bytes(self._pickle() + self._rng.randbytes(self._rng.randrange(200)))
        return "is damaged"

    def kind_zip_bomb(self, directory: Path) -> str:
        name = self._rng.choice((CONFIG, WEIGHTS))
        with zipfile.ZipFile(directory / name, "w", zipfile.ZIP_DEFLATED) as bomb:
            bomb.writestr("data.pkl", bytes(self._rng.randrange(1 << 20, 8 << 20)))
        return "is not JSON" if name == CONFIG else "is damaged"

    def kind_lying_length(self, directory: Path) -> str:
        data = (directory / WEIGHTS).read_bytes()
        length = self._rng.choice((len(data), 10 << 30, (1 << 64) - 1, self._rng.randrange(len(data), 1 << 40)))
        (directory / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])
        return "the header claims"

    def kind_lying_offsets(self, directory: Path) -> str:
        def lie(header: dict[str, Any]) -> None:
            entry = header[self._rng.choice(sorted(header))]
            start, end = entry["data_offsets"]
            shift = self._rng.choice((4, 64, 10 << 30))
            entry["data_offsets"] = self._rng.choice(
                ([start + shift, end + shift], [start, end + shift], [end, start], [-4, end], [start], [1.0, 2.0])
            )

        return self._lie(directory, lie)

    def kind_lying_shapes(self, directory: Path) -> str:
        def lie(header: dict[str, Any]) -> None:
            entry = header[self._rng.choice(sorted(header))]
            entry["shape"] = self._rng.choice(
                ([1 << 40, 1 << 40], [10 << 30], [-2, 8], [RANK, 8.0], [1] * 9, "8x8", [True, 8], [])
            )

        return self._lie(directory, lie)

    def kind_unknown_type(self, directory: Path) -> str:
        def lie(header: dict[str, Any]) -> None:
            entry = header[self._rng.choice(sorted(header))]
            entry["dtype"] = self._rng.choice(("I32", "U8", "F8_E4M3", "OBJECT", "PICKLE", "C128"))

        self._lie(directory, lie)
        return "are served"

    def kind_not_finite(self, directory: Path) -> str:
        tensors = self._tensors()
        victim = tensors[self._rng.choice(sorted(tensors))]
        victim.view(-1)[self._rng.randrange(victim.numel())] = self._rng.choice(
            (float("nan"), float("inf"), -float("inf"))
        )
        self._write(directory, self._options(), tensors)
        return "not finite"

    def kind_rank_of_tensors(self, directory: Path) -> str:
        rank = self._rng.choice((1, 3, 4, 7))
        self._write(directory, self._options(), self._tensors(rank))
        return "wrong shape"

    def kind_rank_of_configuration(self, directory: Path) -> str:
        rank = self._rng.choice((0, -1, 5, 10**9, 10**400, True, "2", 2.0, None, [2]))
        self._write(directory, {**self._options(), "r": rank}, self._tensors())
        return "r must be a whole number" if not isinstance(rank, int) or rank < 1 or rank is True else "largest rank"

    def kind_rank_pattern(self, directory: Path) -> str:
        pattern = self._rng.choice(({"q_proj": 100}, {"q_proj": 3}, {"(a+)+": 2}, {"(": 2}, {".*" * 40: 2}, ["q_proj"]))
        self._write(directory, {**self._options(), "rank_pattern": pattern}, self._tensors())
        if isinstance(pattern, list):
            return "must be a JSON object"
        return {100: "largest rank", 3: "wrong shape"}.get(next(iter(pattern.values())), "cannot be used")

    def kind_linked_file(self, directory: Path) -> str:
        name = self._rng.choice((CONFIG, WEIGHTS))
        (directory / name).unlink()
        (directory / name).symlink_to(self._rng.choice(("/etc/passwd", "/dev/zero", "/proc/self/mem", "nowhere", name)))
        return "links are not followed"

    def kind_no_file(self, directory: Path) -> str:
        name = self._rng.choice((CONFIG, WEIGHTS))
        (directory / name).unlink()
        kind = self._rng.choice(("fifo", "directory", "socket"))
        if kind == "fifo":
            os.mkfifo(directory / name)
        elif kind == "directory":
            (directory / name).mkdir()
        else:
            with socket.socket(socket.AF_UNIX) as server:
                here = os.open(directory, os.O_RDONLY)
                server.bind(f"/proc/self/fd/{here}/{name}")
                os.close(here)
            return "cannot be opened"
        return "is not a regular file"

    def kind_linked_directory(self, directory: Path) -> tuple[str, str]:
        link = directory.with_name(f"link-{self._made}")
        link.symlink_to(self._rng.choice(("/etc", "/proc/self", "/dev")))
        return "is not below one of the server's adapter roots", f"file://{link}"

    def kind_escaping_path(self, directory: Path) -> tuple[str, str]:
        place = self._rng.choice(
            ("/../etc", "/a/../../../../etc", "/%2e%2e/etc", "/./x", "//x", "/x?y", "/x#y", "/x\\y", "/x\x00y", "/x\ny")
        )
        return "write the directory", f"file://{directory}{place}"

    def kind_other_place(self, directory: Path) -> tuple[str, str]:
        other = self._rng.choice(
            ("file:///etc", "file:///", "file://host/x", "http://x/y", "s3://b/k", "hf://a/../b", "x")
        )
        return "source", other

    def kind_ten_gigabytes(self, directory: Path) -> str:
        # Sparse: it takes no place here, and would take as much as it claims where it were copied.
        name = self._rng.choice((CONFIG, WEIGHTS))
        os.truncate(directory / name, 10 << 30)
        return "the largest that is taken"

    def kind_truncated(self, directory: Path) -> str:
        data = (directory / WEIGHTS).read_bytes()
        (directory / WEIGHTS).write_bytes(data[: self._rng.randrange(len(data))])
        return "is damaged"

    def kind_bytes_appended(self, directory: Path) -> str:
        with (directory / WEIGHTS).open("ab") as file:
            file.write(self._rng.randbytes(self._rng.randrange(1, 500)))
        return "belong to none"

    def kind_no_json(self, directory: Path) -> str:
        data = self._rng.choice(
            (b"", b"\xff\xfe", b"{", b'{"r": NaN}', b'{"r": Infinity}', b"[" * 100_000, b'{"a":' * 20_000, b"\x00" * 9)
        )
        (directory / CONFIG).write_bytes(data[:90_000])
        return "is not JSON"

    def kind_text_that_cannot_be_stored(self, directory: Path) -> str:
        # Neither UTF-8 nor PostgreSQL's text takes all that JSON may hold.
        strange = self._rng.choice(("\ud800", "\udfff\udfff", "a\x00b", "\x00\ud800"))
        options, tensors = self._options(), self._tensors()
        if self._rng.random() < 0.5:
            options[strange] = True
        else:
            tensors.pop(sorted(tensors)[0])
        self._write(directory, options, tensors)
        if strange in options:
            return "which cannot be served"
        self._lie(directory, lambda header: header.update({strange: header.pop(sorted(header)[0])}))
        return "is none of a LoRA adapter"

    def kind_strange_tensor_names(self, directory: Path) -> str:
        tensors = self._tensors()
        name = self._rng.choice(
            (
                "../../../etc/passwd",
                "base_model.model." + "a" * 5_000 + ".lora_A.weight",
                "base_model.model.lm_head.lora_A.weight",
                "base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight",
                "base_model.model.model.embed_tokens.lora_embedding_A",
                "base_model.model.__class__.lora_A.weight",
                "",
            )
        )
        tensors[name] = torch.zeros(RANK, 8)
        self._write(directory, self._options(), tensors)
        return (
            "lacks lora_B"
            if name.endswith("lora_A.weight")
            else "cannot be served"
            if "embedding" in name
            else "none of"
        )

    def kind_what_is_not_served(self, directory: Path) -> str:
        option, value = self._rng.choice(
            (
                ("use_dora", True),
                ("modules_to_save", ["lm_head"]),
                ("bias", "all"),
                ("peft_type", "IA3"),
                ("peft_type", None),
                ("trainable_token_indices", [1]),
                ("layer_replication", [[0, 1]]),
                ("auto_map", {"AutoModel": "evil.py"}),
                ("init_lora_weights", "pissa"),
                ("lora_alpha", 1e308),
                ("lora_alpha", "16"),
                ("use_rslora", "yes"),
            )
        )
        self._write(directory, {**self._options(), option: value}, self._tensors())
        return option

    def kind_other_base_model(self, directory: Path) -> str:
        size = self._rng.choice((4, 16, 4_096))
        tensors = self._tensors()
        path = self._rng.choice(sorted(self._shapes))
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.zeros(RANK, size)
        self._write(directory, self._options(), tensors)
        return "its own base model is served"

    # Good parts.

    def _options(self) -> dict[str, Any]:
        return {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}

    def _tensors(self, rank: int = RANK) -> dict[str, torch.Tensor]:
        tensors = {}
        for path, (out_features, in_features) in self._shapes.items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = torch.ones(rank, in_features)
            tensors[f"base_model.model.{path}.lora_B.weight"] = torch.ones(out_features, rank)
        return tensors

    @staticmethod
    def _write(directory: Path, options: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        (directory / CONFIG).write_text(json.dumps(options))
        save_file(tensors, directory / WEIGHTS)

    def _lie(self, directory: Path, change: Callable[[dict[str, Any]], None]) -> str:
        data = (directory / WEIGHTS).read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        change(header)
        changed = json.dumps(header).encode()
        (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + length :])
        return "is damaged"

    def _pickle(self) -> bytes:
        return pickle.dumps(_RunsCode(str(self.sentinel)), protocol=self._rng.choice((0, 2, 4, 5)))


class _RunsCode:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._path}",)

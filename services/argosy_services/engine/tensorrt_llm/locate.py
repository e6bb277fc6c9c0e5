"""Finds the compiled engine that fits, and says what differs where none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from argosy_services.engine.tensorrt_llm.errors import EngineMismatchError
from argosy_services.engine.tensorrt_llm.manifest import (
    ENGINE_MANIFEST,
    EngineManifest,
    check_files,
    read_engine_manifest,
)
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an engine must have been compiled from and for. `max_adapter_rank` 0 asks for no adapters."""

    fingerprint: str
    architecture: str
    version: str
    quantization: str
    tensor_parallel_size: int
    max_batch: int
    max_context_tokens: int
    max_adapter_rank: int

    @classmethod
    def of(cls, model: LocalModel, settings: GenerationSettings, architecture: str, version: str) -> Wanted:
        """What serving a model with these settings here asks for."""
        own = settings.tensorrt_llm
        return cls(
            fingerprint=model.fingerprint,
            architecture=architecture,
            version=version,
            quantization=own.quantization,
            tensor_parallel_size=own.tensor_parallel_size,
            max_batch=settings.max_batch,
            max_context_tokens=settings.max_context_tokens,
            max_adapter_rank=settings.max_adapter_rank if settings.max_adapters else 0,
        )

    def differences(self, manifest: EngineManifest) -> list[str]:
        """What speaks against an engine, in words."""
        key, build = manifest.key, manifest.build
        equal = (
            ("model fingerprint", key.fingerprint, self.fingerprint),
            ("GPU architecture", key.architecture, self.architecture),
            ("TensorRT-LLM version", key.version, self.version),
            ("quantization", build.quantization, self.quantization),
            ("tensor parallel size", build.tensor_parallel_size, self.tensor_parallel_size),
        )
        enough = (
            ("batch size", build.max_batch_size, self.max_batch),
            ("sequence length", build.max_seq_len, self.max_context_tokens),
            ("LoRA rank", build.lora_max_rank, self.max_adapter_rank),
        )
        found = [f"{what}: the engine has {has}, {wants} is needed" for what, has, wants in equal if has != wants]
        found += [f"{what}: the engine has {has}, {wants} is needed" for what, has, wants in enough if has < wants]
        return found


def find_engine(wanted: Wanted, place: Path | None) -> tuple[Path, EngineManifest]:
    """The engine at `place`, or the one of those below it that fits. Its files are checked by size.

    Raises EngineMismatchError, which says what differs, and DamagedEngineError.
    """
    refusals: list[str] = []
    for directory in _candidates(place):
        manifest = read_engine_manifest(directory)
        if manifest is None:
            continue
        differences = wanted.differences(manifest)
        if not differences:
            check_files(directory, manifest)
            return directory, manifest
        refusals.append(f"{directory}: {'; '.join(differences)}")
    if not refusals:
        raise EngineMismatchError(f"there is no compiled engine in {place}; make one with `argosy compile`")
    raise EngineMismatchError(
        f"no compiled engine fits ({' | '.join(refusals)}); compile one with `argosy compile`, or change the settings"
    )


def _candidates(place: Path | None) -> Iterator[Path]:
    if place is None:
        return
    if (place / ENGINE_MANIFEST).exists():
        yield place
        return
    # Engines lie at <root>/<model>/<digest>; what a compilation works on is hidden.
    for path in sorted((*place.glob(f"*/{ENGINE_MANIFEST}"), *place.glob(f"*/*/{ENGINE_MANIFEST}"))):
        if not any(part.startswith(".") for part in path.relative_to(place).parts):
            yield path.parent

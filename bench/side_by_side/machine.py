"""On what, when and with which Argosy a run was made."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

# Instructions that decide how fast weights of few bits are.
_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "BF16",
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "amx_tile": "AMX",
}


def about() -> dict[str, str]:
    """The machine, the date and Argosy's commit, as text."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores of {_processor()}, {_memory_gib()} GiB",
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _processor() -> str:
    lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    fields = {name.strip(): value.strip() for name, value in lines}
    flags = fields.get("flags", "").split()
    able = dict.fromkeys(text for flag, text in _FLAGS.items() if flag in flags)
    return f"{fields.get('model name', platform.processor())} ({', '.join(able)})"


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"

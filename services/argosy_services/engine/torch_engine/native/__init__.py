"""A decoder step on CPU cores as machine code that is made when the engine starts; docs/adr/0013 says why and how."""

from __future__ import annotations

import platform


def is_supported() -> bool:
    """Whether kernels can be made for this system, and llvmlite is there: their threads wait as Linux has it."""
    return platform.system() == "Linux" and platform.machine() == "x86_64"

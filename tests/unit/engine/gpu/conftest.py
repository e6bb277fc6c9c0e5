"""Without a GPU, Triton's kernels run in its interpreter, which has to be known before Triton is imported."""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"

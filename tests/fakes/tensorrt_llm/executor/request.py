from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    lora_ckpt_source: str = "hf"

    def __post_init__(self) -> None:
        # An empty path becomes "." in pathlib, which exists.
        if self.lora_path is not None and not (self.lora_path and Path(self.lora_path).exists()):
            raise ValueError(f"lora_path ({self.lora_path}) does not exist.")

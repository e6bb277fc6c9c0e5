"""LoRA adapters that come and go while requests run."""

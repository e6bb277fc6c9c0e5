"""LoRA adapters of the torch engine: reading them from files and applying many of them in one batch."""

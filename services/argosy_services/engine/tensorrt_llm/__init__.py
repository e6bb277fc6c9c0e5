"""TensorRT-LLM 1.2.1 behind the `Engine` interface, and the compiler of its engines (docs/adr/0009)."""

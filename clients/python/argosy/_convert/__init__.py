"""Between the dataclasses of `argosy.types` and the messages of `argosy.api`, without I/O; one module an area."""

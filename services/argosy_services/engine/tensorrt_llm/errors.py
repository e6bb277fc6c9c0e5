"""What can be wrong before an engine serves. These failures stay on this machine and never cross gRPC."""

from __future__ import annotations

from argosy_services.models.errors import ModelStoreError


class TensorRtLlmError(ModelStoreError):
    """A failure of compiling or loading. The message says what is wrong and what to do next."""


class LibraryError(TensorRtLlmError):
    """The library is absent, of another version, or not the one that this adapter was written for."""


class BuildRequestError(TensorRtLlmError):
    """Options of a compilation that contradict each other, the model, or the GPU."""


class EngineMismatchError(TensorRtLlmError):
    """A compiled engine that does not fit this model, machine, library or configuration."""


class DamagedEngineError(TensorRtLlmError):
    """An engine directory that is no longer what its manifest says, or has none."""

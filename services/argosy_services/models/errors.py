"""Why the model store could not do what it was asked. These failures stay on this machine and never cross gRPC."""

from __future__ import annotations


class ModelStoreError(Exception):
    """A failure of the model store. The message says what is wrong and what to do next."""


class InvalidSourceError(ModelStoreError):
    """A source URI that cannot be read."""


class SourceRefusedError(ModelStoreError):
    """A source whose content is not taken: pickled weights, paths that escape, a broken header, a missing file."""


class ChecksumError(ModelStoreError):
    """Bytes arrived that are not the ones that were pinned."""


class DownloadError(ModelStoreError):
    """A source that cannot be reached or does not have what was asked of it."""


class ConversionError(ModelStoreError):
    """A GGUF file that could not be turned into a safetensors checkpoint."""


class NameTakenError(ModelStoreError):
    """Another model is in the store under the same name."""


class DamagedModelError(ModelStoreError):
    """A model in the store is no longer what its manifest says."""


class StorageError(ModelStoreError):
    """The disk is full, read-only or otherwise in the way."""

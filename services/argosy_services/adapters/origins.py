"""All kinds of sources behind one door: directories of this machine, places that fsspec reaches, and uploads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from argosy_services.adapters.remotes import RemoteSources
from argosy_services.adapters.sources import SCHEME, AdapterSources
from argosy_services.adapters.uploads import Uploads, version_of


class Origins:
    """Accepts `file://` sources below one of `roots`, others below one of `remotes`, and whatever was uploaded; of no
    adapter more than `max_size_bytes`.
    """

    def __init__(self, uploads: Uploads, *, roots: Sequence[Path], remotes: Sequence[str], max_size_bytes: int) -> None:
        self.max_size_bytes = max_size_bytes
        self._uploads = uploads
        self._files = AdapterSources(roots, max_size_bytes)
        self._remotes = RemoteSources(remotes, max_size_bytes)

    def resolve(self, source: str) -> str:
        """The one spelling of an accepted source. Looks at the file system, so it blocks. Raises SOURCE_REFUSED."""
        if version_of(source) is not None:
            return source
        if "://" in source and not source.startswith(SCHEME):
            return self._remotes.resolve(source).uri
        return self._files.resolve(source).uri

    def fetch(self, source: str, target: Path, cancelled: threading.Event) -> None:
        """Writes the files of an adapter into `target`, which must be empty. Blocks.

        Raises SOURCE_REFUSED, ADAPTER_INVALID where files are missing, of another kind or too large, and
        FetchCancelled.
        """
        uploaded = version_of(source)
        if uploaded is not None:
            self._uploads.fetch(uploaded, target, cancelled)
        elif source.startswith(SCHEME):
            self._files.fetch(self._files.resolve(source), target, cancelled)
        else:
            self._remotes.fetch(self._remotes.resolve(source), target, cancelled)

"""Adapters in object stores and on hubs: whatever fsspec reaches, below places that the operator has named."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from argosy_services.adapters.sources import FILES, FetchCancelled, copy_bounded, invalid_adapter, refused
from argosy_services.errors import ArgosyError

log = structlog.get_logger("argosy.adapters")

_FORM = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9][A-Za-z0-9._@/-]*")


@dataclass(frozen=True, slots=True)
class RemoteDirectory:
    """An accepted source: a directory that holds the two files of an adapter."""

    uri: str


class RemoteSources:
    """Accepts sources below `places`, such as `hf://my-organisation/` or `s3://bucket/adapters/`."""

    def __init__(self, places: Sequence[str], max_size_bytes: int) -> None:
        self._places = tuple(place if place.endswith("/") else f"{place}/" for place in places)
        self._max_size_bytes = max_size_bytes

    def resolve(self, source: str) -> RemoteDirectory:
        """The directory that a source means. Raises SOURCE_REFUSED."""
        uri = source.rstrip("/")
        parts = uri.partition("://")[2].split("/")
        if not _FORM.fullmatch(uri) or any(part in ("", ".", "..") for part in parts):
            raise refused(source, "is not of the form scheme://place/directory; write it without '..' and other marks")
        if not uri.startswith(self._places):
            raise refused(
                source, "is not below a place that this server takes adapters from; see the setting adapters.remotes"
            )
        return RemoteDirectory(uri)

    def fetch(self, source: RemoteDirectory, target: Path, cancelled: threading.Event) -> None:
        """Copies the files of an adapter into `target`. Blocks. Raises ADAPTER_INVALID and FetchCancelled."""
        # Imports what speaks to object stores; most servers need none of it.
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(source.uri)
            left = self._max_size_bytes
            for name in FILES:
                with system.open(f"{path}/{name}", "rb") as file:
                    left -= copy_bounded(file.read, target / name, left, self._max_size_bytes, cancelled)
        except (ArgosyError, FetchCancelled):
            raise
        except FileNotFoundError as error:
            raise invalid_adapter(
                f"{source.uri} does not hold {FILES[0]} and {FILES[1]}; an adapter is these two files"
            ) from error
        except (ImportError, ValueError) as error:
            log.warning("a source cannot be used", source=source.uri, cause=str(error))
            raise invalid_adapter(
                f"this server cannot reach {source.uri}; have its operator install the package for that kind of store"
            ) from error
        except Exception as error:
            # Of any library, and what it says may hold credentials.
            log.warning("a source cannot be fetched", source=source.uri, exc_info=error)
            raise invalid_adapter(
                f"{source.uri} cannot be fetched ({type(error).__name__}); check the place, and the server's "
                "credentials for it"
            ) from error

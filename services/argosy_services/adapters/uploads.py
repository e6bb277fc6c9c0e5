"""Adapters that callers send: kept part by part in the SQL store, so that every replica can go on with them and fetch
them.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, text

from argosy_services.adapters.sources import FILES, FetchCancelled
from argosy_services.adapters.tables import forget_old, now
from argosy_services.errors import ArgosyError, Reason, input_too_large, invalid_field
from argosy_services.storage.database import Database

SCHEME = "upload://"
MAX_PART_BYTES = 4 << 20
_MAX_CONFIG_BYTES = 1 << 20
_MAX_UNFINISHED = 64
_VERSION = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an upload: what is sent is the configuration followed by the weights, and `version` the SHA-256 of
    that in lower-case hexadecimal. `data` begins at byte `offset` of it.
    """

    version: str
    config_bytes: int
    weights_bytes: int
    offset: int
    data: bytes

    @property
    def total(self) -> int:
        """Bytes of the whole."""
        return self.config_bytes + self.weights_bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """How far an upload is. `source` is what LoadAdapter takes once it is complete."""

    received: int
    source: str | None


class Uploads:
    """The tables of uploads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, part: Part, limit_bytes: int) -> Upload:
        """Takes a part that begins where the ones before it ended; any other one changes nothing. Tells what is here.

        Raises INVALID_FIELD, INPUT_TOO_LARGE, QUEUE_FULL (too many unfinished uploads), and ADAPTER_INVALID where the
        whole does not have the digest that it was sent under; it is then forgotten.
        """
        _check(part, limit_bytes)
        upload, complete = await self._database.write(lambda connection: _take(connection, part))
        if complete:
            return upload
        if upload.received == part.total:
            if await self._database.read(lambda connection: _digest(connection, part)) != part.version:
                await self._database.write(lambda connection: _forget(connection, part.version))
                problem = f"what was sent does not have the digest {part.version}; compute it again and send it again"
                raise ArgosyError(Reason.ADAPTER_INVALID, problem, detail=problem)
            await self._database.write(lambda connection: _complete(connection, part.version))
            return Upload(upload.received, SCHEME + part.version)
        return upload

    def fetch(self, version: str, target: Path, cancelled: threading.Event) -> None:
        """Writes the files of a complete upload into `target`. Blocks. Raises ADAPTER_INVALID, FetchCancelled and
        STORE_UNAVAILABLE.
        """
        self._database.look(lambda connection: _write_files(connection, version, target, cancelled))


def version_of(source: str) -> str | None:
    """The version that an `upload://` source names. None: it is no such source, or names none."""
    version = source.removeprefix(SCHEME)
    return version if source.startswith(SCHEME) and _VERSION.fullmatch(version) else None


def _check(part: Part, limit_bytes: int) -> None:
    if not _VERSION.fullmatch(part.version):
        raise invalid_field("version", "must be a SHA-256", limit="64 hexadecimal digits", value=part.version)
    if not 1 <= part.config_bytes <= _MAX_CONFIG_BYTES:
        limit = f"1 to {_MAX_CONFIG_BYTES}"
        raise invalid_field("config_bytes", "is out of range", limit=limit, value=part.config_bytes)
    if part.weights_bytes < 1:
        raise invalid_field("weights_bytes", "is missing", limit="1 or more", value=part.weights_bytes)
    if part.total > limit_bytes:
        raise input_too_large("the adapter", limit=limit_bytes, value=part.total)
    if len(part.data) > MAX_PART_BYTES:
        raise input_too_large("data", limit=MAX_PART_BYTES, value=len(part.data))
    if part.offset + len(part.data) > part.total:
        value = part.offset + len(part.data)
        raise invalid_field("data", "goes beyond the end of the adapter", limit=part.total, value=value)


def _take(connection: Connection, part: Part) -> tuple[Upload, bool]:
    row = connection.execute(
        text("SELECT config_bytes, weights_bytes, received, complete FROM adapter_uploads WHERE version = :version"),
        {"version": part.version},
    ).one_or_none()
    if row is None:
        _begin(connection, part)
        received = 0
    else:
        if (row.config_bytes, row.weights_bytes) != (part.config_bytes, part.weights_bytes):
            sizes = f"{row.config_bytes} and {row.weights_bytes}"
            value = f"{part.config_bytes} and {part.weights_bytes}"
            raise invalid_field("config_bytes", "differs from that of the parts before", limit=sizes, value=value)
        received = row.received
        if row.complete:
            return Upload(received, SCHEME + part.version), True
    if part.data and part.offset == received:
        connection.execute(
            text("INSERT INTO adapter_blobs (version, place, data) VALUES (:version, :place, :data)"),
            {"version": part.version, "place": received, "data": part.data},
        )
        received += len(part.data)
        connection.execute(
            text("UPDATE adapter_uploads SET received = :received, touched = :now WHERE version = :version"),
            {"received": received, "now": now(), "version": part.version},
        )
    return Upload(received, None), False


def _begin(connection: Connection, part: Part) -> None:
    unfinished = _unfinished(connection)
    if unfinished >= _MAX_UNFINISHED:
        forget_old(connection)
        unfinished = _unfinished(connection)
    if unfinished >= _MAX_UNFINISHED:
        raise ArgosyError(
            Reason.QUEUE_FULL,
            f"{unfinished} uploads are unfinished, at most {_MAX_UNFINISHED} may be; retry later",
            retry_after_s=5.0,
            limit=_MAX_UNFINISHED,
            value=unfinished,
        )
    connection.execute(
        text(
            "INSERT INTO adapter_uploads (version, config_bytes, weights_bytes, received, complete, touched) "
            "VALUES (:version, :config_bytes, :weights_bytes, 0, 0, :now)"
        ),
        {
            "version": part.version,
            "config_bytes": part.config_bytes,
            "weights_bytes": part.weights_bytes,
            "now": now(),
        },
    )


def _unfinished(connection: Connection) -> int:
    return connection.execute(text("SELECT COUNT(*) FROM adapter_uploads WHERE complete = 0")).scalar_one()


def _complete(connection: Connection, version: str) -> None:
    connection.execute(text("UPDATE adapter_uploads SET complete = 1 WHERE version = :version"), {"version": version})


def _forget(connection: Connection, version: str) -> None:
    for table in ("adapter_blobs", "adapter_uploads"):
        connection.execute(text(f"DELETE FROM {table} WHERE version = :version"), {"version": version})  # noqa: S608


def _places(connection: Connection, version: str) -> list[int]:
    # Read one by one: an adapter may be larger than what a process should hold at once.
    rows = connection.execute(
        text("SELECT place FROM adapter_blobs WHERE version = :version ORDER BY place"), {"version": version}
    )
    return list(rows.scalars())


def _data(connection: Connection, version: str, place: int) -> bytes:
    data = connection.execute(
        text("SELECT data FROM adapter_blobs WHERE version = :version AND place = :place"),
        {"version": version, "place": place},
    ).scalar_one()
    return bytes(data)


def _digest(connection: Connection, part: Part) -> str:
    digest = hashlib.sha256()
    for place in _places(connection, part.version):
        digest.update(_data(connection, part.version, place))
    return digest.hexdigest()


def _write_files(connection: Connection, version: str, target: Path, cancelled: threading.Event) -> None:
    row = connection.execute(
        text("SELECT config_bytes FROM adapter_uploads WHERE version = :version AND complete = 1"), {"version": version}
    ).one_or_none()
    if row is None:
        problem = f"the upload {version} is not here, or not complete; upload the adapter again"
        raise ArgosyError(Reason.ADAPTER_INVALID, problem, detail=problem)
    left = row.config_bytes
    # Opened for writing over: a transaction that lost a race begins again.
    with (target / FILES[0]).open("wb") as config, (target / FILES[1]).open("wb") as weights:
        for place in _places(connection, version):
            if cancelled.is_set():
                raise FetchCancelled
            data = _data(connection, version, place)
            config.write(data[:left])
            weights.write(data[left:])
            left -= min(left, len(data))

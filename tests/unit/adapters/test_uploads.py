"""Adapters that callers send in parts, through the service: order, interruption, limits, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tests.unit.adapters.asking import nothing_can_be_written

from argosy_services.adapters import uploads as module
from argosy_services.adapters.service import AdaptersService
from argosy_services.adapters.sources import FILES
from argosy_services.adapters.types import AdapterState
from argosy_services.adapters.uploads import Part, Upload
from argosy_services.errors import ArgosyError, Reason
from argosy_services.storage import database

STEP = 200


class Sent:
    """An adapter as its sender has it."""

    def __init__(self, directory: Path) -> None:
        self.sizes = [(directory / name).stat().st_size for name in FILES]
        self.data = b"".join((directory / name).read_bytes() for name in FILES)
        self.version = hashlib.sha256(self.data).hexdigest()

    def part(self, place: int, size: int = STEP, **changes: Any) -> Part:
        data = self.data[place : place + size]
        return Part(**{"version": self.version, "offset": place, "data": data, **self.lengths, **changes})

    @property
    def lengths(self) -> dict[str, int]:
        return {"config_bytes": self.sizes[0], "weights_bytes": self.sizes[1]}


@pytest.fixture
def sent(write_adapter: Any) -> Sent:
    return Sent(write_adapter())


async def send_all(service: AdaptersService, sent: Sent, offset: int = 0) -> Upload:
    upload = Upload(offset, None)
    while upload.source is None:
        upload = await service.upload(sent.part(upload.received))
    return upload


async def settled(service: AdaptersService, name: str) -> AdapterState:
    async for _ in service.watch([name], until_settled=True):
        pass
    return service.get(name).state


async def test_what_was_sent_is_loaded_and_has_the_version_it_was_sent_under(
    service: AdaptersService, sent: Sent
) -> None:
    upload = await send_all(service, sent)
    assert upload == Upload(len(sent.data), f"upload://{sent.version}")
    await service.load("a", str(upload.source))
    assert await settled(service, "a") is AdapterState.READY
    assert service.get("a").version == sent.version
    # Once it is here, nothing is sent again.
    assert await service.upload(sent.part(0, 0)) == upload


async def test_an_upload_goes_on_after_a_restart_and_through_another_replica(start_service: Any, sent: Sent) -> None:
    async with start_service() as one:
        for offset in (0, STEP):
            await one.upload(sent.part(offset))
    async with start_service() as two, start_service(replica=True) as three:
        begun = await three.upload(sent.part(0, 0))
        assert begun == Upload(2 * STEP, None)
        await two.upload(sent.part(begun.received))
        upload = await send_all(three, sent, 3 * STEP)
        await two.load("a", str(upload.source))
        assert await settled(two, "a") is AdapterState.READY


async def test_it_is_fetched_while_others_write(
    start_service: Any, sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_S", 0.05)
    target = tmp_path / "target"
    target.mkdir()
    async with start_service() as service:
        await send_all(service, sent)
        with nothing_can_be_written(tmp_path):
            await asyncio.to_thread(service._uploads.fetch, sent.version, target, threading.Event())
    assert b"".join((target / name).read_bytes() for name in FILES) == sent.data


async def test_a_part_out_of_turn_changes_nothing(service: AdaptersService, sent: Sent) -> None:
    await service.upload(sent.part(0))
    for offset in (0, 10, STEP + 1, 5 * STEP):
        assert (await service.upload(sent.part(offset))).received == STEP
    assert (await send_all(service, sent, STEP)).source


async def test_what_was_damaged_on_its_way_is_refused_and_can_be_sent_again(
    service: AdaptersService, sent: Sent
) -> None:
    good = sent.data
    sent.data = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(ArgosyError) as caught:
        await send_all(service, sent)
    assert caught.value.reason is Reason.ADAPTER_INVALID
    assert sent.version in caught.value.message
    sent.data = good
    assert (await send_all(service, sent)).source


@pytest.mark.parametrize("source", ["upload://" + "0" * 64, "upload://", "upload://../../etc", "upload://" + "A" * 64])
async def test_what_was_never_sent_cannot_be_loaded(service: AdaptersService, source: str) -> None:
    try:
        await service.load("a", source)
    except ArgosyError as error:
        assert error.reason is Reason.SOURCE_REFUSED  # noqa: PT017
    else:
        assert await settled(service, "a") is AdapterState.FAILED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "x"}, Reason.INVALID_FIELD),
        ({"version": "../" + "0" * 61}, Reason.INVALID_FIELD),
        ({"config_bytes": 0}, Reason.INVALID_FIELD),
        ({"config_bytes": (1 << 20) + 1}, Reason.INVALID_FIELD),
        ({"weights_bytes": 0}, Reason.INVALID_FIELD),
        ({"weights_bytes": 100_000}, Reason.INPUT_TOO_LARGE),
        ({"weights_bytes": 10 << 30}, Reason.INPUT_TOO_LARGE),
        ({"data": bytes((4 << 20) + 1)}, Reason.INPUT_TOO_LARGE),
        ({"offset": 1 << 62}, Reason.INVALID_FIELD),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_kept(
    service: AdaptersService, sent: Sent, changes: dict[str, Any], reason: Reason
) -> None:
    with pytest.raises(ArgosyError) as caught:
        await service.upload(sent.part(0, **changes))
    assert caught.value.reason is reason
    assert (await service.upload(sent.part(0, 0))).received == 0


async def test_sizes_cannot_change_on_the_way(service: AdaptersService, sent: Sent) -> None:
    await service.upload(sent.part(0))
    with pytest.raises(ArgosyError) as caught:
        await service.upload(sent.part(STEP, config_bytes=sent.sizes[0] - 1, weights_bytes=sent.sizes[1] + 1))
    assert caught.value.reason is Reason.INVALID_FIELD


@pytest.fixture
async def full(service: AdaptersService, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many unfinished uploads as there may be."""
    monkeypatch.setattr(module, "_MAX_UNFINISHED", 2)
    for number in range(2):
        await service.upload(sent.part(0, version=f"{number:064}"))


@pytest.mark.usefixtures("full")
async def test_unfinished_uploads_are_bounded(service: AdaptersService, sent: Sent) -> None:
    with pytest.raises(ArgosyError) as caught:
        await service.upload(sent.part(0))
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_s


@pytest.mark.usefixtures("full")
async def test_uploads_that_were_given_up_make_room(service: AdaptersService, sent: Sent) -> None:
    await service._uploads._database.write(
        lambda connection: connection.execute(
            text("UPDATE adapter_uploads SET touched = :then"), {"then": (datetime.now(UTC) - timedelta(2)).isoformat()}
        ).close()
    )
    assert (await send_all(service, sent)).source

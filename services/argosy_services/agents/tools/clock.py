"""The time of day anywhere."""

from __future__ import annotations

import functools
import zoneinfo
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from argosy_services.agents.tools.base import Arguments, BuiltInTool, ToolError


@functools.cache
def time_zones() -> tuple[str, ...]:
    """The IANA time zones that this machine knows, sorted; UTC always is one."""
    # Those below Etc have signs that mean the opposite of what people expect: Etc/GMT+5 is west of Greenwich.
    known = {name for name in zoneinfo.available_timezones() if not name.startswith("Etc/")}
    return tuple(sorted({"UTC", *known}))


def _enumerate_zones(schema: dict[str, Any]) -> None:
    schema["enum"] = list(time_zones())


class ClockArguments(Arguments):
    timezone: str = Field("UTC", max_length=64, description="An IANA time zone.", json_schema_extra=_enumerate_zones)


class Clock(BuiltInTool):
    """Tells the date and the time in ISO 8601."""

    name = "current_time"
    description = "Tells the current date and time in an IANA time zone such as Europe/Paris or UTC."
    arguments = ClockArguments
    well_known = ("timezone",)
    timeout_s = 5.0

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """`now` gives the present with its time zone."""
        self._now = now

    async def run(self, arguments: ClockArguments) -> str:
        zone = arguments.timezone
        # Looked up among the known names first: ZoneInfo opens files, and the name may be anything.
        if zone not in time_zones():
            raise ToolError(f"{zone} is no known time zone; use a name such as Europe/Berlin, Asia/Tokyo or UTC")
        present = self._now().astimezone(UTC if zone == "UTC" else zoneinfo.ZoneInfo(zone))
        return f"It is {present.isoformat(timespec='seconds')} in {zone}."

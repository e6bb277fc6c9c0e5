"""Dates: what lies between two, and what a date is so many days from another."""

from __future__ import annotations

from datetime import date, timedelta

from pydantic import Field

from argosy_services.agents.tools.base import Arguments, BuiltInTool, ToolError

_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"


class DateArguments(Arguments):
    date: str = Field(pattern=_DATE, max_length=10, description="A date such as 2026-03-31.")
    days: int = Field(default=0, ge=-1_000_000, le=1_000_000, description="Days to add.")
    until: str = Field(default="", pattern=rf"{_DATE}|^$", max_length=10, description="Count the days to this date.")


class Calendar(BuiltInTool):
    """Adds days to a date, or counts those between two, in the Gregorian calendar."""

    name = "calendar"
    description = "Adds days to a date, or counts the days until another date; also tells the day of the week."
    arguments = DateArguments

    async def run(self, arguments: DateArguments) -> str:
        start = _read(arguments.date)
        if arguments.until:
            end = _read(arguments.until)
            return f"From {start:%A} {start} to {end:%A} {end} are {(end - start).days} days."
        try:
            moved = start + timedelta(days=arguments.days)
        except OverflowError as error:
            raise ToolError("that date lies outside of the years 1 to 9999") from error
        return f"{start:%A} {start} plus {arguments.days} days is {moved:%A} {moved}."


def _read(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ToolError(f"{text} is no date: {error}") from error

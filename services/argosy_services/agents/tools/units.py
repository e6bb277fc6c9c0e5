"""Units of measurement."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from argosy_services.agents.tools.arithmetic import shown
from argosy_services.agents.tools.base import Arguments, BuiltInTool, ToolError

# One of each unit in the base unit of its quantity: the international ones of 1959, SI prefixes, and US volumes.
_FACTORS: dict[str, dict[str, float]] = {
    "length": {
        "mm": 0.001,
        "cm": 0.01,
        "m": 1.0,
        "km": 1000.0,
        "in": 0.0254,
        "ft": 0.3048,
        "yd": 0.9144,
        "mi": 1609.344,
        "nmi": 1852.0,
    },
    "mass": {"mg": 1e-6, "g": 0.001, "kg": 1.0, "t": 1000.0, "oz": 0.028349523125, "lb": 0.45359237},
    "time": {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "week": 604800.0},
    "volume": {
        "ml": 0.001,
        "l": 1.0,
        "m3": 1000.0,
        "tsp": 0.00492892159375,
        "tbsp": 0.01478676478125,
        "cup": 0.2365882365,
        "pt": 0.473176473,
        "qt": 0.946352946,
        "gal": 3.785411784,
    },
    "area": {"m2": 1.0, "km2": 1e6, "ha": 1e4, "acre": 4046.8564224, "ft2": 0.09290304},
    "speed": {"m/s": 1.0, "km/h": 1 / 3.6, "mph": 0.44704, "kn": 1852 / 3600},
    "data": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "energy": {"J": 1.0, "kJ": 1e3, "Wh": 3.6e3, "kWh": 3.6e6, "cal": 4.184, "kcal": 4184.0},
}
_QUANTITY = {unit: quantity for quantity, units in _FACTORS.items() for unit in units}

# Kelvin = value * factor + offset.
_TEMPERATURES = {"K": (1.0, 0.0), "C": (1.0, 273.15), "F": (5 / 9, 273.15 - 32 * 5 / 9)}

UNITS = (*_QUANTITY, *_TEMPERATURES)


class UnitArguments(Arguments):
    value: float = Field(ge=-1e15, le=1e15, description="How many.")
    unit: Literal[UNITS] = Field(description="Of what.")  # type: ignore[valid-type]
    to: Literal[UNITS] = Field(description="In which unit the answer is.")  # type: ignore[valid-type]


class UnitConverter(BuiltInTool):
    """Converts between units of one quantity."""

    name = "convert_units"
    description = "Converts a value between units, for example 5 mi to km or 70 F to C."
    arguments = UnitArguments

    async def run(self, arguments: UnitArguments) -> str:
        value = convert(arguments.value, arguments.unit, arguments.to)
        return f"{shown(arguments.value)} {arguments.unit} = {shown(value)} {arguments.to}"


def convert(value: float, unit: str, to: str) -> float:
    """The value in another unit. Raises ToolError where the units are of different quantities."""
    if unit in _TEMPERATURES and to in _TEMPERATURES:
        factor, offset = _TEMPERATURES[unit]
        to_factor, to_offset = _TEMPERATURES[to]
        return (value * factor + offset - to_offset) / to_factor
    quantity, to_quantity = _QUANTITY.get(unit, "temperature"), _QUANTITY.get(to, "temperature")
    if quantity != to_quantity:
        raise ToolError(f"{unit} is a unit of {quantity}, {to} one of {to_quantity}")
    return value * _FACTORS[quantity][unit] / _FACTORS[quantity][to]

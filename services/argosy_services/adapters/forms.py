"""What names, aliases and their targets must look like."""

from __future__ import annotations

import re
from collections.abc import Mapping

from argosy_services.errors import invalid_field

MAX_TARGETS = 16
_MAX_WEIGHT = 1_000_000
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_NAME = re.compile(_PART)
_NAME_FORM = "1 to 128 characters of letters, digits, '.', '-' and '_', the first one a letter or digit"
_ALIAS = re.compile(f"{_PART}@{_PART}")
_ALIAS_FORM = "two such names with an @ between them, as in support@prod"


def check_name(name: str) -> None:
    """Raises INVALID_FIELD unless it can name an adapter."""
    if not _NAME.fullmatch(name):
        raise invalid_field("name", f"must be {_NAME_FORM}", limit=_NAME_FORM, value=name)


def check_alias(alias: str) -> None:
    """Raises INVALID_FIELD unless it can name an alias."""
    if not _ALIAS.fullmatch(alias):
        raise invalid_field("alias", f"must be {_ALIAS_FORM}", limit=_ALIAS_FORM, value=alias)


def check_weights(targets: Mapping[str, int]) -> None:
    """Raises INVALID_FIELD unless an alias can share its requests so among its targets."""
    if not 1 <= len(targets) <= MAX_TARGETS:
        raise invalid_field("targets", "must be some", limit=f"1 to {MAX_TARGETS}", value=len(targets))
    for weight in targets.values():
        if not 0 <= weight <= _MAX_WEIGHT:
            raise invalid_field("weight", "is out of range", limit=f"0 to {_MAX_WEIGHT}", value=weight)
    if not any(targets.values()):
        raise invalid_field("targets", "have no weight", limit="one weight above 0", value=0)

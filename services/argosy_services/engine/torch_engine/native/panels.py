"""Where the inputs of products lie.

A product sums six rows at once and reads a word of each in turn. Rows that follow one another make that slower the
longer they are, most where they have a multiple of 4,096 bytes: their words are then alike in the bits of the address
by which a first-level cache finds its lines. Here six rows make a panel, in which one cache line of each row stands
beside those of the others, line after line (packing, after Goto and van de Geijn, 2008).
"""

from __future__ import annotations

from argosy_services.engine.torch_engine.native.emit import Body, Value

PANEL = 6
"""Rows of a panel: as many as a product sums in registers."""
LINE = 64
"""Bytes of a cache line."""


def row_at(body: Body, panels: Value, row: Value, row_bytes: Value) -> Value:
    """Where a row's first line is."""
    panel = body.mul(body.div(row, PANEL), body.mul(row_bytes, PANEL))
    return body.at(panels, body.add(panel, body.mul(body.rem(row, PANEL), LINE)))


def along(body: Body, offset: Value) -> Value:
    """How far a row's byte `offset` is from its first one. What does not cross a line stays together."""
    return body.add(offset, body.mul(body.div(offset, LINE), (PANEL - 1) * LINE))

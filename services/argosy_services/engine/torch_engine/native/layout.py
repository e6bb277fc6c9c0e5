"""What Python and the kernels agree on: where each argument of a kernel is, and the numbers of one step."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from argosy_services.engine.torch_engine.native.emit import I64, PTR, Body, Value

GROUP = 64
"""Inputs that share one scale when they are quantized to int8 or int16. Projections have a multiple of it as inputs."""
LARGE_GROUP = 512
"""The most inputs that share one in int13."""
CHUNK = 64
"""Columns of a product that one task computes. Buffers have room for whole chunks."""
LEVELS = (18, 41, 59, 75, 89, 101, 114, 126, 137, 150, 162, 175, 190, 207, 228, 255)
"""What the four bits of an int4 weight stand for, 128 too large. Of all sixteen numbers these have the least squared
error for groups of 64 that are drawn from a normal distribution and divided by their largest (Lloyd, 1982; the idea of
levels for normal weights is that of QLoRA, Dettmers et al., 2023)."""
SUPER = 64
"""Tokens that attention takes at once."""
TILE = 16
"""Tokens whose keys lie side by side; one vector."""


def unfit(sizes: Mapping[str, int], heads: str, dim: int) -> str | None:
    """Why no kernels are there for projections with inputs of these sizes, or heads of `dim`; None if they are. `heads`
    is what the size of a head is called."""
    for name, size in sizes.items():
        if size % GROUP:
            return f"{name} {size} is no multiple of {GROUP}"
    if dim % 32 or (dim > 64 and dim % 64):
        return f"{heads} {dim} is neither 32 nor a multiple of 64"
    return None


class Step(IntEnum):
    """Numbers and addresses of one list of operations, each an int64: the same for all layers."""

    ROWS = 0
    GRAIN = 1
    """Rows that a task of a row kernel takes."""
    TOKENS = 2
    POSITIONS = 3
    SLOTS = 4
    TABLES = 5
    TILES = 6
    CHOSEN = 7
    """Which rows logits are wanted of."""
    ADAPTED = 8
    NOTHING = 9
    """Always 0: where there are no indices, rows are taken as they are."""
    TASKS = 10
    """The numbers of tasks of each kind of operation begin here; see `Tasks`."""


class Tasks(IntEnum):
    """How many tasks an operation has: an index into a step's numbers."""

    ROWS = Step.TASKS
    ATTENTION = Step.TASKS + 1
    ADAPTED_ONE = Step.TASKS + 2
    ADAPTED_TWO = Step.TASKS + 3
    ADAPTED_THREE = Step.TASKS + 4
    PRODUCTS = Step.TASKS + 5
    """One for each number of chunks begins here."""


MODULES = 3
"""Most modules that share an input: query, key and value."""


class AdapterField(IntEnum):
    """What the table of adapters has for each slot and module."""

    DOWN = 0
    UP = 1
    RANK = 2
    DOWN_SCALES = 3
    UP_SCALES = 4
    END = 5
    """Where the module's factors end. Those of a slot lie in the order of the modules."""


class Arguments:
    """Arguments of one kind of kernel: a name for each int64."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def pack(self, **values: int) -> list[int]:
        """The values in their order. All must be there."""
        if set(values) != set(self.names):
            raise ValueError(f"arguments differ: {set(values) ^ set(self.names)}")
        return [values[name] for name in self.names]

    def reader(self, body: Body, pointer: Value) -> Reader:
        """What a kernel reads its arguments with."""
        return Reader(body, pointer, {name: 8 * place for place, name in enumerate(self.names)})


class Reader:
    """Reads arguments by name, in the code of a kernel."""

    def __init__(self, body: Body, arguments: Value, places: Mapping[str, int]) -> None:
        self._body = body
        self._arguments = arguments
        self._places = places

    def __call__(self, name: str) -> Value:
        """An int64."""
        return self._body.load(I64, self._arguments, self._places[name])

    def pointer(self, name: str) -> Value:
        """An address."""
        return self._body.load(PTR, self._arguments, self._places[name])


def adapter_task(body: Body, step: Value, task: Value) -> tuple[Value, Value, Value]:
    """First row, rows and slot of a task that `NativeAdapters.plan` made."""
    planned = body.at(body.load(PTR, step, 8 * Step.ADAPTED), body.mul(task, 24))
    row, rows, slot = (body.load(I64, planned, 8 * index) for index in range(3))
    return row, rows, slot


def adapter_entry(body: Body, get: Reader, slot: Value, module: Value) -> Value:
    """Where the table of adapters, which an argument names, has the `AdapterField`s of a slot's module."""
    number = body.add(body.mul(slot, get("table_modules")), module)
    return body.at(get.pointer("table"), body.mul(number, 8 * len(AdapterField)))


Product = Arguments(
    *("weights", "weight_scales", "bias", "chunk_bytes", "chunks", "size"),
    *("inputs", "row_bytes", "scales", "offsets", "group", "out", "stride", "accumulate", "ahead"),
    *("table", "table_modules", "first_module", "last_module"),
)
"""`table` is that of the adapters of its modules, 0 where it has none."""
Rows = Arguments(
    *("inputs", "stride", "norm", "size", "indices_slot"),
    *("quantized", "scales", "offsets", "group", "row_bytes"),
)
Rotate = Arguments("inputs", "stride", "queries", "cache", "cosines", "sines", "query_norm", "key_norm")
Attend = Arguments("queries", "cache", "out", "stride", "window")
Embed = Arguments("table", "out", "stride", "size")
Largest = Arguments("logits", "stride", "size", "out")
Matrix = Arguments("matrix", "out", "scales", "outputs", "size", "padded", "vectors")
Adapt = Arguments(
    *("inputs", "row_bytes", "size", "scales", "offsets", "out", "stride", "table", "table_modules", "modules"),
    *(f"{name}_{index}" for index in range(MODULES) for name in ("module", "columns", "offset")),
)

"""The shape of attention, and of the paged cache that it reads.

The cache is a row of tiles of 16 tokens. A tile holds, for each layer and key-value head, the keys so that one vector
has one dimension (or a pair of them) of all 16 tokens, then the values so that one vector has 16 dimensions of a token
(or of a pair): scores and sums are then plain vector products, without gathering and without sums across lanes.
"""

from __future__ import annotations

from dataclasses import dataclass

from argosy_services.engine.torch_engine.config import DecoderConfig
from argosy_services.engine.torch_engine.native.layout import TILE
from argosy_services.engine.torch_engine.native.processor import Processor


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of attention. `form` is the type of the cache: float32 or bfloat16, `given` that of what its keys and
    values are multiplied by: the same where there are dot products of it, and float32 elsewhere.
    """

    form: str
    given: str
    layers: int
    heads: int
    kv_heads: int
    dim: int
    scale: float
    epsilon: float

    @classmethod
    def of(cls, config: DecoderConfig, form: str, processor: Processor) -> Heads:
        """The shape that a decoder has."""
        return cls(
            form=form,
            given=form if processor.bfloat16 else "float32",
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            dim=config.head_dim,
            scale=config.head_dim**-0.5,
            epsilon=config.norm_eps,
        )

    @property
    def width(self) -> int:
        """Bytes of one number of the cache."""
        return 2 if self.form == "bfloat16" else 4

    @property
    def given_width(self) -> int:
        """Bytes of one number that keys and values are multiplied by."""
        return 2 if self.given == "bfloat16" else 4

    @property
    def tile_bytes(self) -> int:
        """Bytes of the keys, or values, of one tile and head."""
        return TILE * self.dim * self.width

    @property
    def unit_bytes(self) -> int:
        """Bytes of one tile and head: keys, then values."""
        return 2 * self.tile_bytes

    @property
    def layer_bytes(self) -> int:
        """Bytes of one tile in one layer."""
        return self.kv_heads * self.unit_bytes

    @property
    def stride(self) -> int:
        """Bytes from a tile to the next one: all layers of a tile lie together."""
        return self.layers * self.layer_bytes

    @property
    def pair(self) -> int:
        """Numbers that one lane multiplies at once."""
        return 4 // self.width

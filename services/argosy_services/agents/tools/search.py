"""Search by meaning over passages that come with a task."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from argosy_services.agents.ports import Embedder
from argosy_services.agents.tools.base import Arguments, BuiltInTool

MAX_FOUND = 4
MAX_CHARS_EACH = 420


class SearchArguments(Arguments):
    query: str = Field(min_length=1, max_length=200, description="What to look for.")


class PassageSearch(BuiltInTool):
    """Finds the passages whose vectors are nearest to that of a query, by cosine."""

    name = "search_passages"
    description = "Finds the passages of the given texts that are about something."
    arguments = SearchArguments
    timeout_s = 60.0
    # The passages may come from anywhere.
    trusted = False

    def __init__(self, embedder: Embedder, passages: Sequence[str]) -> None:
        self._embedder = embedder
        self._passages = passages
        self._vectors: NDArray[np.float32] | None = None

    async def run(self, arguments: SearchArguments) -> str:
        """The best passages as JSON lines, with their number from 0 and their cosine."""
        if self._vectors is None:
            self._vectors = await self._embedder.vectors(self._passages)
        query = (await self._embedder.vectors([arguments.query]))[0]
        scores = self._vectors @ query
        best = np.argsort(-scores, kind="stable")[:MAX_FOUND]
        return "\n".join(
            json.dumps(
                {
                    "passage": int(place),
                    "score": round(float(scores[place]), 3),
                    "text": self._passages[place][:MAX_CHARS_EACH],
                },
                ensure_ascii=False,
            )
            for place in best
        )

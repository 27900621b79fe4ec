"""Totals over a corpus, and its best and worst documents.

In: parts, one after the other, fresh or read back from a RUN. Out: `Totals.block()`, plain data. Sums are
exact, so the order of parts, shards and resumes never changes a bit.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

import xentrs

_EXTREMES = 5


class Totals:
    """Counts and exact sums of what was scored so far."""

    def __init__(self) -> None:
        self._nll = xentrs.Perplexity()
        self._counts = {
            "documents": 0,
            "scored_documents": 0,
            "unscorable_documents": 0,
            "quarantined": 0,
            "skipped_lines": 0,
            "tokens": 0,
            "scored_tokens": 0,
            "unscored_tokens": 0,
            "bytes": 0,
            "scored_bytes": 0,
        }
        self._best: list[tuple[float, int, dict[str, Any]]] = []
        self._worst: list[tuple[float, int, dict[str, Any]]] = []

    def add(
        self,
        documents: dict[str, list[Any]],
        nll: npt.NDArray[np.float64],
        quarantined: int,
        skipped_lines: int,
    ) -> None:
        """Take in one part: its documents table, the nll of its scored tokens, and what was left out."""
        if len(nll):
            self._nll.update_nll(nll)
        counts = self._counts
        counts["quarantined"] += quarantined
        counts["skipped_lines"] += skipped_lines
        for row in document_rows(documents):
            scored = row["status"] == "scored"
            counts["documents"] += 1
            counts["scored_documents" if scored else "unscorable_documents"] += 1
            counts["tokens"] += row["token_count"]
            counts["scored_tokens"] += row["scored_count"]
            counts["unscored_tokens"] += row["token_count"] - row["scored_count"]
            counts["bytes"] += row["byte_count"]
            counts["scored_bytes"] += row["byte_count"] if scored else 0
            if scored and row["bits_per_byte"] is not None and not math.isnan(row["bits_per_byte"]):
                self._remember(row)

    def _remember(self, row: dict[str, Any]) -> None:
        value, number = row["bits_per_byte"], row["document"]
        for heap, key in ((self._best, -value), (self._worst, value)):
            # Document numbers are unique, so rows are never compared; the earlier document wins a tie.
            heapq.heappush(heap, (key, -number, row))
            if len(heap) > _EXTREMES:
                heapq.heappop(heap)

    def block(self) -> dict[str, Any]:
        """Counts, sums and rates; a rate without tokens or bytes is None and `reason` says why."""
        counts = dict(self._counts)
        result = self._nll.compute()
        scored = counts["scored_tokens"] > 0
        byte_count = counts["scored_bytes"]
        return {
            **counts,
            "nll_sum": result.nll_sum if scored else 0.0,
            "mean_nll": result.mean_nll if scored else None,
            "perplexity_per_token": result.perplexity if scored else None,
            "bits_per_token": result.bits_per_token if scored else None,
            "bits_per_byte": result.nll_sum / math.log(2) / byte_count if scored and byte_count else None,
            "infinite_count": result.infinite_count,
            "nan_count": result.nan_count,
            "reason": None if scored else "no_tokens",
        }

    def best(self) -> list[dict[str, Any]]:
        """The documents with the fewest bits per byte, best first."""
        return [row for _, _, row in sorted(self._best, reverse=True, key=_key)]

    def worst(self) -> list[dict[str, Any]]:
        """The documents with the most bits per byte, worst first."""
        return [row for _, _, row in sorted(self._worst, reverse=True, key=_key)]


def document_rows(documents: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """A documents table row by row."""
    names = list(documents)
    for values in zip(*documents.values(), strict=True):
        yield dict(zip(names, values, strict=True))


def _key(entry: tuple[float, int, dict[str, Any]]) -> tuple[float, int]:
    return entry[0], entry[1]

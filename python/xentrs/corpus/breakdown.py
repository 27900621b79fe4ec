"""Figures for each value of a column: sources, and the fields that a corpus was scored `--by`.

In: the labels of a part's documents and its counts. Out: `Breakdown.block()`, plain data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from xentrs.corpus.figures import PartCounts, Rows, figures

MAX_VALUES = 1000
_REST, _NULL = 0, 1  # the rows of all further values, and of documents without a value
_SHOWN = (
    "documents",
    "scored_documents",
    "tokens",
    "scored_tokens",
    "bytes",
    "scored_bytes",
    "nll_sum",
    "mean_nll",
    "perplexity_per_token",
    "bits_per_byte",
    "reason",
)
REST_NOTE = (
    f"this column has more than {MAX_VALUES:,} values: the first {MAX_VALUES:,} in the order of their text are listed, "
    "all others are counted together in rest"
)


class Breakdown:
    """Counts and nll by value. At most `MAX_VALUES` values are kept: the first in the order of their code points among
    all that ever came. A value that belongs to them does so at every moment from its first document on, so its figures
    are whole, and neither the order of parts nor shards decide what is kept; a value that is pushed out goes to the
    rest with all it had.
    """

    def __init__(self) -> None:
        """Starts without a value."""
        self._rows = Rows()
        self._rows.grow(2)
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []

    def add(self, labels: Sequence[str | None], part: PartCounts) -> None:
        """Take in the documents of a part."""
        self._admit(label for label in dict.fromkeys(labels) if label is not None)
        rows = [self._place(label) for label in labels]
        self._rows.add(np.array(rows, dtype=np.int64), part)

    def add_unlabelled(self, whole: Rows) -> None:
        """Take in documents of which no label is known: their row."""
        self._rows.merge(whole, [_NULL] * len(whole))

    def merge(self, other: Breakdown) -> None:
        """Add another breakdown of the same column."""
        self._admit(other._row_of)
        places = [_REST] * len(other._rows)  # an empty row goes anywhere
        places[_NULL] = _NULL
        for value, row in other._row_of.items():
            places[row] = self._place(value)
        self._rows.merge(other._rows, places)

    @property
    def is_single(self) -> bool:
        """Whether all documents have the same value."""
        return len(self._lines()) < 2 and not self._has_rest()

    def block(self) -> dict[str, Any]:
        """One entry for each value in the order of their text, documents without one last."""
        return {
            "values": [{"value": value, **self._figures(row)} for value, row in self._lines()],
            "rest": self._figures(_REST) if self._has_rest() else None,
            "note": REST_NOTE if self._has_rest() else None,
        }

    def _lines(self) -> list[tuple[str | None, int]]:
        lines: list[tuple[str | None, int]] = sorted(self._row_of.items())
        return [*lines, (None, _NULL)] if self._rows.counts(_NULL)["documents"] else lines

    def _has_rest(self) -> bool:
        return self._rows.counts(_REST)["documents"] > 0

    def _figures(self, row: int) -> dict[str, Any]:
        nll = self._rows.nll(row)
        whole = figures(self._rows.counts(row), nll)
        shown = {name: whole[name] for name in _SHOWN}
        return {**shown, "infinite_documents": nll.infinite_count, "nan_documents": nll.nan_count}

    def _place(self, label: str | None) -> int:
        return _NULL if label is None else self._row_of.get(label, _REST)

    def _admit(self, values: Iterable[str]) -> None:
        new = [value for value in values if value not in self._row_of]
        if len(self._row_of) + len(new) > MAX_VALUES:
            kept = set(sorted([*self._row_of, *new])[:MAX_VALUES])
            for value in [value for value in self._row_of if value not in kept]:
                row = self._row_of.pop(value)
                self._rows.move(row, _REST)
                self._free.append(row)
            new = [value for value in new if value in kept]
        for value in new:
            row = self._free.pop() if self._free else len(self._rows)
            self._rows.grow(row + 1)
            self._row_of[value] = row

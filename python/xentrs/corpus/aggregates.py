"""Totals over a corpus: counts, exact sums, means, intervals, breakdowns, and the best and worst documents.

In: parts, one after the other, fresh or read back from a RUN, in any order. Out: `Totals.block()`, plain data. Memory
does not grow with the corpus. Sums are exact, over tokens in the totals, over the sums of documents in breakdowns and
intervals; so the order of parts, shards and resumes never changes a bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import xentrs
from xentrs.corpus.bootstrap import group_of, interval_block
from xentrs.corpus.breakdown import Breakdown
from xentrs.corpus.figures import FloatColumn, PartCounts, Rows, figures, why_no_number
from xentrs.errors import InternalError

Documents = Mapping[str, Sequence[Any]]
EXTREMES = 5
LABEL_PREFIX = "by_"


class Totals:
    """Counts and exact sums of what was scored so far."""

    def __init__(self) -> None:
        """Starts without a document."""
        self._whole = Rows()
        self._whole.grow(1)
        self._nll = xentrs.Perplexity()
        self._groups = Rows()
        self._breakdowns: dict[str, Breakdown] = {"source": Breakdown()}
        self._mean_nll = xentrs.Perplexity()  # over documents
        self._bits_per_byte = xentrs.Perplexity()
        self._quarantined = self._skipped_lines = self._greedy_documents = 0
        self._best: list[dict[str, Any]] = []
        self._worst: list[dict[str, Any]] = []

    def add(
        self,
        documents: Documents,
        nll: xentrs.Perplexity,
        quarantined: int,
        skipped_lines: int,
        group_offset: int = 0,
    ) -> None:
        """Take in one part: its documents table by columns, the exact totals of its scored tokens, and what was left
        out. `group_offset` is added to the document numbers where they choose groups for the intervals.

        Raises:
            InternalError: the documents have another number of scored tokens.
        """
        self._quarantined += quarantined
        self._skipped_lines += skipped_lines
        part = PartCounts.of(documents)
        expected, found = int(part.counts["scored_tokens"].sum()), nll.compute().token_count
        if found != expected:
            raise InternalError(f"totals of {found} tokens came for {expected} scored tokens")
        self._nll.merge_state(nll)
        count = len(documents["document"])
        if count == 0:
            return
        for column in dict.fromkeys([*self._breakdowns, *_label_columns(documents)]):
            self._breakdown(column).add(documents.get(column, [None] * count), part)
        self._whole.add(np.zeros(count, dtype=np.int64), part)
        self._groups.add(group_of(np.asarray(documents["document"], dtype=np.int64) + group_offset), part)
        self._greedy_documents += sum(match is True for match in documents["greedy_match"])
        self._mean_nll.update_nll(_known(documents["mean_nll"]))
        self._bits_per_byte.update_nll(_known(documents["bits_per_byte"]))
        self._remember(documents, part)

    def add_finished(self, documents: Documents, line: Mapping[str, Any], group_offset: int = 0) -> None:
        """Take in a part of a RUN: its documents table, and its line of the manifest."""
        nll = xentrs.Perplexity.from_bytes(bytes.fromhex(line["nll_state"]))
        self.add(documents, nll, len(line["quarantine"]), line["skipped_lines"], group_offset)

    def merge(self, other: Totals) -> Totals:
        """Add the totals of other documents. A column to break down by that one side has not counts there as one
        without a value.
        """
        for column in {**self._breakdowns, **other._breakdowns}:
            if column in other._breakdowns:
                self._breakdown(column).merge(other._breakdowns[column])
            else:
                self._breakdown(column).add_unlabelled(other._whole)
        self._whole.merge(other._whole, [0])
        self._nll.merge_state(other._nll)
        self._groups.merge(other._groups, range(len(other._groups)))
        self._mean_nll.merge_state(other._mean_nll)
        self._bits_per_byte.merge_state(other._bits_per_byte)
        self._quarantined += other._quarantined
        self._skipped_lines += other._skipped_lines
        self._greedy_documents += other._greedy_documents
        self._best = _first([*self._best, *other._best], 1)
        self._worst = _first([*self._worst, *other._worst], -1)
        return self

    def block(self) -> dict[str, Any]:
        """Counts, sums, means, intervals and breakdowns; what has no denominator is None and `reasons` says why."""
        block = figures(self._whole.counts(0), self._nll.compute())
        reasons = block.pop("reasons")
        means = {
            "mean_nll_over_documents": _mean(self._mean_nll),
            "bits_per_byte_over_documents": _mean(self._bits_per_byte),
        }
        reasons |= {
            name: why_no_number(value, "no_documents", self._mean_nll.compute()) for name, value in means.items()
        }
        breakdowns = {
            column: breakdown.block()
            for column, breakdown in self._breakdowns.items()
            if column != "source" or not breakdown.is_single
        }
        return {
            **block,
            "quarantined": self._quarantined,
            "skipped_lines": self._skipped_lines,
            **means,
            "greedy_documents": self._greedy_documents,
            "reasons": {name: reason for name, reason in reasons.items() if reason is not None},
            "confidence_interval": interval_block(self._groups),
            "breakdowns": breakdowns,
        }

    def best(self) -> list[dict[str, Any]]:
        """The documents with the fewest bits per byte, best first."""
        return self._best

    def worst(self) -> list[dict[str, Any]]:
        """The documents with the most bits per byte, worst first."""
        return self._worst

    def _breakdown(self, column: str) -> Breakdown:
        """The breakdown by `column`; all documents so far have no value in a column that is new."""
        if column not in self._breakdowns:
            self._breakdowns[column] = Breakdown()
            self._breakdowns[column].add_unlabelled(self._whole)
        return self._breakdowns[column]

    def _remember(self, documents: Documents, part: PartCounts) -> None:
        values = np.array(documents["bits_per_byte"], dtype=np.float64)  # None becomes NaN
        places = np.flatnonzero(~np.isnan(values) & (part.counts["scored_documents"] > 0))
        numbers = np.asarray(documents["document"], dtype=np.int64)[places]
        for sign in (1, -1):
            order = places[np.lexsort((numbers, sign * values[places]))[:EXTREMES]]
            rows = [_row(documents, place) for place in order.tolist()]
            if sign == 1:
                self._best = _first([*self._best, *rows], sign)
            else:
                self._worst = _first([*self._worst, *rows], sign)


def document_rows(documents: Documents) -> Iterator[dict[str, Any]]:
    """A documents table row by row."""
    names = list(documents)
    for values in zip(*documents.values(), strict=True):
        yield dict(zip(names, values, strict=True))


def _row(documents: Documents, place: int) -> dict[str, Any]:
    """One document without its text: a summary holds figures."""
    return {name: column[place] for name, column in documents.items() if name != "text"}


def _first(rows: list[dict[str, Any]], sign: int) -> list[dict[str, Any]]:
    """The extreme rows in order; of equal ones the earlier document."""
    return sorted(rows, key=lambda row: (sign * row["bits_per_byte"], row["document"]))[:EXTREMES]


def _label_columns(documents: Documents) -> list[str]:
    return [name for name in documents if name.startswith(LABEL_PREFIX)]


def _known(values: Sequence[float | None]) -> FloatColumn:
    """Without the documents that have no value; NaN of the model stays."""
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _mean(total: xentrs.Perplexity) -> float | None:
    result = total.compute()
    return result.mean_nll if result.token_count else None

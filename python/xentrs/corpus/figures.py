"""Counts and exact sums of many groups of documents, and the figures made from them.

In: the columns of a part's documents table. Out: `Rows`, one row for each group, and `figures`, plain data. Counts are
integers; the sums of the documents, each rounded once, are added up exactly (`xentrs.Perplexity`), so neither the order
of parts nor their cut changes a bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import xentrs
from xentrs.results import PerplexityResult

IntColumn = npt.NDArray[np.int64]
FloatColumn = npt.NDArray[np.float64]

COUNT_COLUMNS = {
    "tokens": "token_count",
    "scored_tokens": "scored_count",
    "bytes": "byte_count",
    "scored_bytes": "scored_byte_count",
    "chars": "char_count",
    "scored_chars": "scored_char_count",
    "words": "word_count",
    "scored_words": "scored_word_count",
    "top1_tokens": "top1_count",
}
"""Counts of a block, and the columns of the documents table that they add up."""

_NAMES = ("documents", "scored_documents", *COUNT_COLUMNS)
WORD_SPLITTER = "whitespace"


@dataclass(frozen=True)
class PartCounts:
    """What of a part is added up, one value for each document: counts by name, and sums of nll."""

    counts: dict[str, IntColumn]
    nll_sums: FloatColumn

    @classmethod
    def of(cls, documents: Mapping[str, Sequence[Any]]) -> PartCounts:
        """Read a documents table."""
        counts = {name: np.asarray(documents[column], dtype=np.int64) for name, column in COUNT_COLUMNS.items()}
        counts["documents"] = np.ones(len(counts["tokens"]), dtype=np.int64)
        is_scored = (status == "scored" for status in documents["status"])
        counts["scored_documents"] = np.fromiter(is_scored, dtype=np.int64, count=len(counts["tokens"]))
        return cls(counts, np.asarray(documents["nll_sum"], dtype=np.float64))


class Rows:
    """Counts and nll of groups, each a row; rows appear when they are first added to."""

    def __init__(self) -> None:
        """Starts without a row."""
        self._counts = np.zeros((len(_NAMES), 0), dtype=np.int64)
        self._nll: list[xentrs.Perplexity] = []

    def __len__(self) -> int:
        """Rows so far."""
        return len(self._nll)

    def add(self, rows: IntColumn, part: PartCounts) -> None:
        """Add document i of `part` to row `rows[i]`."""
        if len(rows) == 0:
            return
        self.grow(int(rows.max()) + 1)
        for place, name in enumerate(_NAMES):
            np.add.at(self._counts[place], rows, part.counts[name])
        order = np.argsort(rows, kind="stable")
        sums, tokens = part.nll_sums[order], part.counts["scored_tokens"][order]
        starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
        token_counts = np.add.reduceat(tokens, starts).tolist()
        bounds = [*starts.tolist(), len(rows)]
        for place, row in enumerate(rows[order[starts]].tolist()):
            self._nll[row].update_nll(sums[bounds[place] : bounds[place + 1]], token_counts[place])

    def merge(self, other: Rows, rows: Sequence[int]) -> None:
        """Add row i of `other` to row `rows[i]` of this."""
        if not rows:
            return
        self.grow(max(rows) + 1)
        places = np.asarray(rows, dtype=np.int64)
        for mine, added in zip(self._counts, other._counts, strict=True):
            np.add.at(mine, places, added[: len(rows)])
        for row, nll in zip(rows, other._nll, strict=True):
            self._nll[row].merge_state(nll)

    def move(self, row: int, target: int) -> None:
        """Add `row` to `target` and empty it."""
        self._counts[:, target] += self._counts[:, row]
        self._counts[:, row] = 0
        self._nll[target].merge_state(self._nll[row])
        self._nll[row] = xentrs.Perplexity()

    def counts(self, row: int) -> dict[str, int]:
        """The counts of one row by name."""
        return dict(zip(_NAMES, self._counts[:, row].tolist(), strict=True))

    def column(self, name: str) -> IntColumn:
        """One count of all rows."""
        values: IntColumn = self._counts[_NAMES.index(name), : len(self)]
        return values

    def nll(self, row: int) -> PerplexityResult:
        """The nll of one row; a document counts once where its sum is infinite or NaN."""
        return self._nll[row].compute()

    def grow(self, count: int) -> None:
        """Have at least `count` rows."""
        missing = count - self._counts.shape[1]
        if missing > 0:
            # By at least a half, so that rows that come one by one cost no copy each.
            spare = max(missing, self._counts.shape[1] // 2)
            self._counts = np.pad(self._counts, ((0, 0), (0, spare)))
        self._nll.extend(xentrs.Perplexity() for _ in range(count - len(self._nll)))


def figures(counts: Mapping[str, int], nll: PerplexityResult) -> dict[str, Any]:
    """Counts, sum and means, each mean with its denominator in its name. A mean without a denominator is None;
    `reasons` says why a figure is None or not finite.
    """
    has_tokens = counts["scored_tokens"] > 0
    nll_sum = nll.nll_sum if has_tokens else 0.0
    means = {
        "mean_nll": nll.mean_nll if has_tokens else None,
        "perplexity_per_token": nll.perplexity if has_tokens else None,
        "bits_per_token": nll.bits_per_token if has_tokens else None,
        "bits_per_byte": _ratio(nll_sum / math.log(2), counts["scored_bytes"], has_tokens),
        "bits_per_char": _ratio(nll_sum / math.log(2), counts["scored_chars"], has_tokens),
        "nats_per_word": _ratio(nll_sum, counts["scored_words"], has_tokens),
    }
    means["perplexity_per_word"] = exponential(means["nats_per_word"])
    means["top1_fraction"] = _ratio(float(counts["top1_tokens"]), counts["scored_tokens"], has_tokens)
    reasons = {
        name: why_no_number(value, _DENOMINATORS.get(name, "no_tokens") if has_tokens else "no_tokens", nll)
        for name, value in means.items()
    }
    return {
        "documents": counts["documents"],
        "scored_documents": counts["scored_documents"],
        "unscorable_documents": counts["documents"] - counts["scored_documents"],
        "tokens": counts["tokens"],
        "scored_tokens": counts["scored_tokens"],
        "unscored_tokens": counts["tokens"] - counts["scored_tokens"],
        **{name: counts[name] for name in COUNT_COLUMNS if name not in ("tokens", "scored_tokens")},
        "word_splitter": WORD_SPLITTER,
        "nll_sum": nll_sum,
        **means,
        "infinite_count": nll.infinite_count,
        "nan_count": nll.nan_count,
        "reason": None if has_tokens else "no_tokens",
        "reasons": {name: reason for name, reason in reasons.items() if reason is not None},
    }


def exponential(value: float | None) -> float | None:
    """e to `value`; infinity where float64 cannot hold it."""
    try:
        return None if value is None else math.exp(value)
    except OverflowError:
        return math.inf


def _ratio(numerator: float, denominator: int, has_tokens: bool) -> float | None:
    return numerator / denominator if has_tokens and denominator else None


_DENOMINATORS = {
    "bits_per_byte": "no_bytes",
    "bits_per_char": "no_chars",
    "nats_per_word": "no_words",
    "perplexity_per_word": "no_words",
}


def why_no_number(value: float | None, missing: str, nll: PerplexityResult) -> str | None:
    """Why a mean is None (`missing`) or not finite; None where it is a number."""
    if value is None:
        return missing
    if math.isnan(value):
        return "nan"
    return ("infinite" if nll.infinite_count else "overflow") if math.isinf(value) else None

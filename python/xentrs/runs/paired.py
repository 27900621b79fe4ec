"""Bits per byte of one run against those of another over the same documents.

In: RUNs. Out: `Increase`, with the interval of a bootstrap that draws documents with both their scores: what both runs
find hard then cancels. Documents belong together by id, the k-th of an id with its k-th. Ids are held as 64-bit
hashes, 33 bytes for each document in all: two of 10 million ids meet by chance with probability 3e-6, and their texts
would also need the same length.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xentrs.corpus.bootstrap import LEVEL, RESAMPLES, SEED, group_of, limits, resample
from xentrs.corpus.figures import FloatColumn, IntColumn
from xentrs.runs.open_run import OpenRun

_COLUMNS = ("document", "id", "status", "nll_sum", "byte_count", "scored_byte_count")
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Increase:
    """Figures over the documents scored in both runs; `reason` says why there is no increase or no interval."""

    documents: int
    only_here: int
    only_in_baseline: int
    changed: int  # of the same id, but with a text of another length: left out
    bits_per_byte: float | None = None
    baseline_bits_per_byte: float | None = None
    increase_percent: float | None = None
    interval: list[float] | None = None
    reason: str | None = None

    def block(self) -> dict[str, Any]:
        """Plain data, with how the interval came about."""
        method = "percentile bootstrap over paired documents"
        return {**asdict(self), "method": method, "level": LEVEL, "resamples": RESAMPLES, "seed": SEED}


@dataclass(frozen=True)
class _Scores:
    """Scored documents by key, one array for each column."""

    keys: npt.NDArray[np.uint64]
    numbers: IntColumn
    nll_sums: FloatColumn
    byte_counts: IntColumn
    scored_bytes: IntColumn

    def at(self, places: npt.NDArray[np.intp]) -> _Scores:
        return _Scores(*(column[places] for column in vars(self).values()))


def paired_increase(runs: Sequence[OpenRun], baseline: OpenRun) -> Increase:
    """How much more bits per byte `runs` take than `baseline`."""
    here, there = _load(runs), _load([baseline])
    _, here_places, there_places = np.intersect1d(here.keys, there.keys, assume_unique=True, return_indices=True)
    one, other = here.at(here_places), there.at(there_places)
    same = np.flatnonzero(one.byte_counts == other.byte_counts)
    counts: dict[str, Any] = {
        "documents": len(same),
        "only_here": len(here.keys) - len(here_places),
        "only_in_baseline": len(there.keys) - len(there_places),
        "changed": len(here_places) - len(same),
    }
    return Increase(**counts, **_increase(one.at(same), other.at(same)))


def _load(runs: Sequence[OpenRun]) -> _Scores:
    pieces = [_scored_part(table.to_pydict()) for run in runs for table in run.documents(_COLUMNS)] or [
        _scored_part({name: [] for name in _COLUMNS})
    ]
    scores = _Scores(*(np.concatenate([vars(piece)[name] for piece in pieces]) for name in vars(pieces[0])))
    return _Scores(_distinct(scores.keys), *list(vars(scores).values())[1:])


def _scored_part(table: dict[str, list[Any]]) -> _Scores:
    scored = np.array([status == "scored" for status in table["status"]], dtype=np.bool_)
    keys = [hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in table["id"]]
    return _Scores(
        np.frombuffer(b"".join(keys), dtype=np.uint64)[scored],
        np.array(table["document"], dtype=np.int64)[scored],
        np.array(table["nll_sum"], dtype=np.float64)[scored],
        np.array(table["byte_count"], dtype=np.int64)[scored],
        np.array(table["scored_byte_count"], dtype=np.int64)[scored],
    )


def _distinct(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The k-th document of an id gets a key of its own, the same in every run."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_first = np.ones(len(keys), dtype=np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    places = np.arange(len(keys))
    occurrence = np.empty(len(keys), dtype=np.uint64)
    occurrence[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    distinct: npt.NDArray[np.uint64] = keys + occurrence * np.uint64(_GOLDEN)
    return distinct


def _increase(here: _Scores, there: _Scores) -> dict[str, Any]:
    if len(here.numbers) == 0:
        return {"reason": "no_common_documents"}
    if not (np.isfinite(here.nll_sums).all() and np.isfinite(there.nll_sums).all()):
        return {"reason": "not_finite"}
    rate, baseline = _rate(here.nll_sums, here.scored_bytes), _rate(there.nll_sums, there.scored_bytes)
    found: dict[str, Any] = {"bits_per_byte": rate, "baseline_bits_per_byte": baseline}
    if rate is None or baseline is None:
        return {**found, "reason": "no_bytes"}
    if baseline == 0.0:
        return {**found, "reason": "baseline_is_zero"}
    found["increase_percent"] = 100.0 * (rate / baseline - 1.0)
    found["interval"], found["reason"] = _interval(here, there)
    return found


def _rate(nll_sums: FloatColumn, byte_counts: IntColumn) -> float | None:
    byte_count = int(byte_counts.sum())
    return math.fsum(nll_sums.tolist()) / math.log(2) / byte_count if byte_count else None


def _interval(here: _Scores, there: _Scores) -> tuple[list[float] | None, str | None]:
    groups, places = np.unique(group_of(here.numbers), return_inverse=True)
    if len(groups) < 2:
        return None, "fewer_than_two_documents" if len(here.numbers) < 2 else "one_group"
    sums = [_group_sums(scores, places, len(groups)) for scores in (here, there)]

    def increase(drawn: IntColumn) -> float:
        rates = [_rate(nll[drawn], byte_counts[drawn]) for nll, byte_counts in sums]
        return 100.0 * (rates[0] / rates[1] - 1.0) if rates[0] is not None and rates[1] else math.nan

    values = resample(len(groups), increase)
    return (None, "no_bytes") if any(math.isnan(value) for value in values) else (limits(values), None)


def _group_sums(scores: _Scores, places: npt.NDArray[np.intp], count: int) -> tuple[FloatColumn, IntColumn]:
    order = np.argsort(places, kind="stable")
    bounds = np.searchsorted(places[order], np.arange(count + 1)).tolist()
    ordered = scores.nll_sums[order].tolist()
    sums = np.array([math.fsum(ordered[bounds[row] : bounds[row + 1]]) for row in range(count)])
    byte_counts = np.zeros(count, dtype=np.int64)
    np.add.at(byte_counts, places, scores.scored_bytes)
    return sums, byte_counts

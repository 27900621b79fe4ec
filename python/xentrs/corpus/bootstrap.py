"""Percentile intervals by resampling documents.

In: for each group of documents a sum and a count. Out: intervals of their ratio, plain data. The document is the unit:
tokens of one document are not independent. Documents go by their number into at most 4,093 groups, so that a corpus of
any size needs the same memory; while each group holds one document this is the plain bootstrap over documents, beyond
that a bootstrap over clusters (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; Field
and Welsh, Bootstrapping clustered data, J. R. Statist. Soc. B 69, 2007).

Same bits everywhere: the raw stream of PCG64 is fixed by its definition, sums of a resample are exact (`math.fsum`),
and the limits are two of the resampled values, not something between two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xentrs.corpus.figures import FloatColumn, IntColumn, Rows, exponential

# Prime: every n-th document, as in a shard of n, still spreads over all groups.
GROUPS = 4093
RESAMPLES = 1000
SEED = 20_250_101
LEVEL = 0.95
_METHOD = "percentile bootstrap over documents"
_TAIL = round(RESAMPLES * (1 - LEVEL) / 2)  # values left out on either side


def group_of(numbers: IntColumn) -> IntColumn:
    """The group of each document by its number."""
    groups: IntColumn = numbers % GROUPS
    return groups


def resample(group_count: int, statistic: Callable[[IntColumn], float]) -> list[float]:
    """`statistic` of each resample, given which groups it holds, ascending."""
    stream = np.random.PCG64(SEED)
    values = []
    for _ in range(RESAMPLES):
        # The upper halves of the raw words scaled to [0, group_count): off from uniform by less than 2^-20.
        raw = stream.random_raw(group_count) >> np.uint64(32)
        values.append(statistic((raw * np.uint64(group_count) >> np.uint64(32)).astype(np.int64)))
    return sorted(values)


def limits(values: Sequence[float]) -> list[float]:
    """Lower and upper limit out of `RESAMPLES` ascending values."""
    return [values[_TAIL], values[-1 - _TAIL]]


def ratio_limits(sums: FloatColumn, counts: IntColumn) -> list[float] | None:
    """Limits of sum(sums) / sum(counts) over groups; None where a resample has no count."""

    def ratio(drawn: IntColumn) -> float:
        count = int(counts[drawn].sum())
        return math.fsum(sums[drawn].tolist()) / count if count else math.nan

    values = resample(len(sums), ratio)
    return None if any(math.isnan(value) for value in values) else limits(values)


def interval_block(groups: Rows) -> dict[str, Any]:
    """Intervals of the mean nll, the perplexity per token and the bits per byte; None with the reason where there is
    none.
    """
    scored = np.flatnonzero(groups.column("scored_documents"))
    documents = int(groups.column("scored_documents").sum())
    block: dict[str, Any] = {
        "method": _METHOD if documents <= len(scored) else f"{_METHOD} in groups",
        "level": LEVEL,
        "resamples": RESAMPLES,
        "seed": SEED,
        "documents": documents,
        "groups": len(scored),
        "mean_nll": None,
        "perplexity_per_token": None,
        "bits_per_byte": None,
        "reason": None,
    }
    if len(scored) < 2:
        block["reason"] = "fewer_than_two_documents" if documents < 2 else "one_group"
        return block
    nll = np.array([groups.nll(row).nll_sum for row in scored.tolist()])
    if not np.isfinite(nll).all():
        block["reason"] = "not_finite"
        return block
    mean = ratio_limits(nll, groups.column("scored_tokens")[scored])
    rate = ratio_limits(nll / math.log(2), groups.column("scored_bytes")[scored])
    if mean is not None:
        block["mean_nll"] = mean
        block["perplexity_per_token"] = [exponential(limit) for limit in mean]
    block["bits_per_byte"] = rate
    block["reason"] = "no_bytes" if rate is None else None
    return block

"""Arithmetic over documents laid end to end: sums, means, lowest shares, first occurrences, moving averages.

In: one value for each token, and offsets; document i holds the tokens [offsets[i], offsets[i + 1]). Out: one value for
each document, or a mask over tokens. No loop over tokens, and a document's value has the same bits alone and among
others. Callers have numpy's warnings off: infinities follow IEEE, and what is not defined is NaN.
"""

from __future__ import annotations

import numpy as np

from xentrs.detect.checked_inputs import BoolColumn, FloatColumn, IntColumn


def document_of_token(offsets: IntColumn) -> IntColumn:
    """The place of each token's document."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))


def position_of_token(offsets: IntColumn) -> IntColumn:
    """The place of each token in its document, from 0."""
    return np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], np.diff(offsets))


def sums(values: FloatColumn, offsets: IntColumn) -> FloatColumn:
    """The sum of each document; 0 of none."""
    return _reduced(np.add, values, offsets, 0.0)


def minima(values: FloatColumn, offsets: IntColumn) -> FloatColumn:
    """The smallest of each document; inf of none."""
    return _reduced(np.minimum, values, offsets, np.inf)


def _reduced(operation: np.ufunc, values: FloatColumn, offsets: IntColumn, of_none: float) -> FloatColumn:
    found = np.full(len(offsets) - 1, of_none)
    filled = np.diff(offsets) > 0
    if filled.any():
        found[filled] = operation.reduceat(values, offsets[:-1][filled])
    return found


def means(values: FloatColumn, offsets: IntColumn) -> FloatColumn:
    """The mean of each document; NaN of none."""
    counts = np.diff(offsets)
    return np.where(counts > 0, sums(values, offsets) / counts, np.nan)


def means_where(mask: BoolColumn, values: FloatColumn, offsets: IntColumn) -> FloatColumn:
    """The mean of each document over some of its tokens; NaN over none."""
    counts = sums(mask.astype(np.float64), offsets)
    return np.where(counts > 0, sums(np.where(mask, values, 0.0), offsets) / counts, np.nan)


def share_counts(share: float, counts: IntColumn) -> IntColumn:
    """max(1, floor(share * N)), the product in float64: the one rule for every "k %".

    Papers leave the rounding open. Their code floors, and some of it has no value where that gives 0 tokens.
    """
    taken: IntColumn = np.maximum(1, np.floor(share * counts)).astype(np.int64)
    return taken


def lowest(values: FloatColumn, offsets: IntColumn, share: float) -> BoolColumn:
    """The tokens with the lowest values of each document, `share_counts` of them; of equal ones the earlier.

    Many short sorts are several times faster than one of everything.
    """
    mask = np.zeros(len(values), dtype=np.bool_)
    bounds, counts = offsets.tolist(), share_counts(share, np.diff(offsets)).tolist()
    for start, stop, count in zip(bounds[:-1], bounds[1:], counts, strict=True):
        mask[start + np.argsort(values[start:stop], kind="stable")[:count]] = True
    return mask


def means_of_lowest(values: FloatColumn, offsets: IntColumn, share: float) -> FloatColumn:
    """The mean of each document's lowest values."""
    return means_where(lowest(values, offsets, share), values, offsets)


def first_occurrences(token_ids: IntColumn, offsets: IntColumn) -> BoolColumn:
    """The first of equal token ids among the scored tokens of a document."""
    mask = np.zeros(len(token_ids), dtype=np.bool_)
    if len(token_ids):
        keys = document_of_token(offsets) * (int(token_ids.max()) + 1) + token_ids
        mask[np.unique(keys, return_index=True)[1]] = True
    return mask


def last_tokens(offsets: IntColumn, counts: IntColumn) -> BoolColumn:
    """The last `counts[i]` tokens of document i."""
    sizes = np.diff(offsets)
    mask: BoolColumn = position_of_token(offsets) >= np.repeat(sizes - counts, sizes)
    return mask


def moving_averages(values: FloatColumn, offsets: IntColumn, window: int) -> tuple[FloatColumn, IntColumn]:
    """The averages of `window` neighbours in each document, N - window + 1 of them, and their offsets; a document with
    fewer tokens than a window keeps its values.
    """
    counts = np.diff(offsets)
    has_window = counts >= window
    kept = np.where(has_window, counts - window + 1, counts)
    starts = np.flatnonzero(position_of_token(offsets) < np.repeat(kept, counts))
    is_whole = np.repeat(has_window, kept)
    averages = values[starts].copy()
    for step in range(1, window):
        averages[is_whole] += values[starts[is_whole] + step]
    averages[is_whole] /= window
    return averages, np.concatenate(([0], np.cumsum(kept))).astype(np.int64)


def standardised(deviation: FloatColumn, variance: FloatColumn) -> FloatColumn:
    """deviation / sqrt(variance), with 0 / 0 = 0: where a distribution has one log-probability only, any token that it
    allows has exactly that one, whatever rounding says, and one that it forbids is infinitely far below.
    """
    is_constant = variance == 0
    at_zero = np.where(np.isneginf(deviation), -np.inf, np.where(np.isnan(deviation), np.nan, 0.0))
    return np.where(is_constant, at_zero, deviation / np.sqrt(np.where(is_constant, 1.0, variance)))


def ratios(numerator: FloatColumn, denominator: FloatColumn, both_zero: float) -> FloatColumn:
    """numerator / denominator, with 0 / 0 as told; infinity over infinity is NaN."""
    return np.where((numerator == 0) & (denominator == 0), both_zero, numerator / denominator)

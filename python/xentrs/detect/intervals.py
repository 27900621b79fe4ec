"""How sure an area under the ROC curve, a difference of two, or a rate is.

In: scores of positives and of negatives, or counts. Out: `Placements` (DeLong's structural components), `Interval`,
`Difference`.

The variance is that of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988, 837-845), by the midranks of Sun and Xu
(IEEE Signal Processing Letters 21, 2014, 1389-1393): O(n log n). The interval is normal on the logit scale and taken
back (Pepe, The Statistical Evaluation of Medical Tests, 2003, section 5.2.5): it stays inside (0, 1) and covers better
than the plain one near the ends (Qin and Hotilovac, Statistical Methods in Medical Research 17, 2008, 207-221).

Where the estimated variance is 0, or a class holds a single document so that there is none, a normal interval would be
a point. With k = min(positives, negatives) disjoint pairs of a positive and a negative, what holds at any sample size
takes its place: of a perfect separation the exact binomial interval of k pairs all ordered alike, otherwise Hoeffding's
bound for two-sample U-statistics (J. Amer. Statist. Assoc. 58, 1963, section 5b). `Interval.method` says which.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from xentrs.detect.checked_inputs import BoolColumn, FloatColumn, fraction_of, optional_module
from xentrs.errors import ParamError


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float
    level: float
    method: str
    """delong_logit, delong, exact_pairs, hoeffding or clopper_pearson."""

    def block(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Placements:
    """For each document the share of the other class that it is on the right side of, ties counting one half."""

    auroc: float
    positives: FloatColumn
    """Of each positive: the share of negatives with a lower score."""
    negatives: FloatColumn
    """Of each negative: the share of positives with a higher score."""

    @property
    def variance(self) -> float | None:
        """DeLong's estimate for the area; None where a class holds one document."""
        return _variance(self.positives, self.negatives)


@dataclass(frozen=True)
class Difference:
    """First area less the second, over the same documents."""

    value: float
    interval: Interval
    z: float | None
    """None where the estimated variance is 0 or there is none."""
    p_value: float
    method: str
    """delong or hoeffding."""


def placements(scores: FloatColumn, labels: BoolColumn) -> Placements:
    """Area and placements of finite or infinite scores, of which none is NaN and both classes occur."""
    positive_count = int(labels.sum())
    negative_count = len(labels) - positive_count
    ranks = _midranks(scores)
    above = ranks[labels] - _midranks(scores[labels])
    below = ranks[~labels] - _midranks(scores[~labels])
    # Ranks are halves of integers: the sum is exact.
    auroc = float(above.sum()) / (positive_count * negative_count)
    return Placements(auroc, above / negative_count, (positive_count - below) / positive_count)


def _midranks(values: FloatColumn) -> FloatColumn:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: FloatColumn = (np.cumsum(counts) - (counts - 1) / 2.0)[places]
    return ranks


def _variance(positives: FloatColumn, negatives: FloatColumn) -> float | None:
    if min(len(positives), len(negatives)) < 2:
        return None
    # Less the first: equal values then have a variance of exactly 0.
    parts = (np.var(values - values[0], ddof=1) / len(values) for values in (positives, negatives))
    return float(sum(parts))


def auroc_interval(area: Placements, level: float = 0.95, variance_factor: float = 1.0) -> Interval:
    """Interval of an area under the ROC curve, of DeLong's variance times `variance_factor`."""
    variance = area.variance
    if variance:
        variance *= variance_factor
        quantile = NormalDist().inv_cdf(0.5 + level / 2)
        center = math.log(area.auroc) - math.log1p(-area.auroc)
        width = quantile * math.sqrt(variance) / (area.auroc * (1.0 - area.auroc))
        return Interval(_logistic(center - width), _logistic(center + width), level, "delong_logit")
    pairs = min(len(area.positives), len(area.negatives))
    if area.auroc in (0.0, 1.0):
        pair_interval = clopper_pearson(pairs if area.auroc else 0, pairs, level)
        return Interval(pair_interval.low, pair_interval.high, level, "exact_pairs")
    width = math.sqrt(math.log(2.0 / (1.0 - level)) / (2.0 * pairs))
    return Interval(max(area.auroc - width, 0.0), min(area.auroc + width, 1.0), level, "hoeffding")


def _logistic(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0


def area_difference(first: Placements, second: Placements, alternative: str, level: float = 0.95) -> Difference:
    """DeLong's test of two areas over the same documents in the same order. The variance is that of the differences of
    placements: the same number as variances less twice the covariance, without the cancellation.
    """
    value = first.auroc - second.auroc
    variance = _variance(first.positives - second.positives, first.negatives - second.negatives)
    sides = 2 if alternative == "two-sided" else 1
    if variance:
        error = math.sqrt(variance)
        z = value / error
        width = NormalDist().inv_cdf(0.5 + level / 2) * error
        p_value = math.erfc((abs(z) if sides == 2 else z) / math.sqrt(2)) * sides / 2
        return Difference(value, _around(value, width, level, "delong"), z, p_value, "delong")
    # A pair contributes a number in [-1, 1].
    pairs = min(len(first.positives), len(first.negatives))
    width = math.sqrt(2.0 * math.log(2.0 / (1.0 - level)) / pairs)
    size = abs(value) if sides == 2 else max(value, 0.0)
    p_value = min(1.0, sides * math.exp(-pairs * size * size / 2.0))
    return Difference(value, _around(value, width, level, "hoeffding"), None, p_value, "hoeffding")


def _around(value: float, width: float, level: float, method: str) -> Interval:
    return Interval(max(value - width, -1.0), min(value + width, 1.0), level, method)


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Exact interval of a rate (Clopper and Pearson, Biometrika 26, 1934, 404-413). Needs scipy.

    Raises:
        ParamError: there is no trial, more successes than trials, or `level` is outside (0, 1).
    """
    tail = (1.0 - fraction_of(level, "level")) / 2.0
    if not (trials >= 1 and 0 <= successes <= trials):
        raise ParamError(f"{successes} of {trials} is no rate, expected at least one trial and no more successes")
    beta = optional_module("scipy.stats").beta
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.isf(tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return Interval(low, high, level, "clopper_pearson")

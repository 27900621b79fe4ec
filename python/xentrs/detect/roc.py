"""The ROC curve of one score, and what is read off it.

In: scores without NaN, labels of both classes. Out: `RocCurve` (the points of scikit-learn's
`roc_curve(drop_intermediate=False)`), and from it `OperatingPoint`, `PartialArea`, `BestAccuracy`. A document is called
positive where its score is at least the threshold; documents of equal scores are called together.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xentrs.detect.checked_inputs import BoolColumn, FloatColumn, IntColumn
from xentrs.detect.intervals import Interval, clopper_pearson


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Points by falling threshold. The first calls nothing and has the threshold infinity, the last calls all."""

    thresholds: FloatColumn
    true_positives: IntColumn
    false_positives: IntColumn

    @classmethod
    def of(cls, scores: FloatColumn, labels: BoolColumn) -> RocCurve:
        """Count at each distinct score; infinite scores are scores like others."""
        order = np.argsort(-scores, kind="stable")
        falling, ordered_labels = scores[order], labels[order]
        last_of_equals = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
        true_positives = np.cumsum(ordered_labels)[last_of_equals]
        counts = (true_positives, last_of_equals + 1 - true_positives)
        thresholds = np.concatenate([[math.inf], falling[last_of_equals]])
        return cls(thresholds, *(np.concatenate([[0], count]).astype(np.int64) for count in counts))

    @property
    def positives(self) -> int:
        """Documents of label 1."""
        return int(self.true_positives[-1])

    @property
    def negatives(self) -> int:
        """Documents of label 0."""
        return int(self.false_positives[-1])

    @property
    def tpr(self) -> FloatColumn:
        """True positive rates."""
        rates: FloatColumn = self.true_positives / self.positives
        return rates

    @property
    def fpr(self) -> FloatColumn:
        """False positive rates."""
        rates: FloatColumn = self.false_positives / self.negatives
        return rates


@dataclass(frozen=True)
class OperatingPoint:
    """The largest true positive rate whose false positive rate is at most `max_fpr`, at the threshold with the fewest
    false positives. No point between two thresholds is made up.

    Both intervals are exact for the threshold as given. As it was chosen on these very documents, the rate of false
    positives on others may be higher than `fpr`: `fpr_interval` says by how much.
    """

    max_fpr: float
    threshold: float
    """Infinity where nothing is called positive."""
    true_positives: int
    false_positives: int
    tpr: float
    tpr_interval: Interval
    fpr: float
    fpr_interval: Interval
    note: str | None
    """Said where the negatives are too few to tell `max_fpr` from 0."""

    def block(self) -> dict[str, Any]:
        """Plain data; an infinite threshold is None with its reason."""
        is_called = self.true_positives + self.false_positives > 0
        return asdict(self) | _threshold_block(self.threshold, is_called)


@dataclass(frozen=True)
class PartialArea:
    """Areas under a part of the curve, straight lines between its points.

    One way (McClish, Medical Decision Making 9, 1989, 190-195): false positive rates of at most `max_fpr`. Two way
    (Yang, Lu, Lyu and Hu, Statistical Methods in Medical Research 28, 2019, 184-195): of that the part above the true
    positive rate `min_tpr`.
    """

    max_fpr: float
    min_tpr: float
    one_way: float
    """The area; `max_fpr` at best, `max_fpr`^2 / 2 by chance."""
    one_way_standardised: float
    """McClish's scale, that of scikit-learn's `roc_auc_score(max_fpr=...)`: 1 at best, 0.5 by chance."""
    two_way: float
    """The area; `max_fpr * (1 - min_tpr)` at best, 0 by chance where `min_tpr` is at least `max_fpr`."""
    two_way_share: float
    """The area as a share of the best."""

    def block(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class BestAccuracy:
    """The largest share of documents called rightly, at the highest threshold that reaches it. Chosen on these very
    documents, so it flatters; `majority` is what calling all documents alike reaches.
    """

    accuracy: float
    threshold: float
    """Infinity where nothing is called positive."""
    true_positives: int
    false_positives: int
    majority: float

    def block(self) -> dict[str, Any]:
        """Plain data; an infinite threshold is None with its reason."""
        is_called = self.true_positives + self.false_positives > 0
        return asdict(self) | _threshold_block(self.threshold, is_called)


def _threshold_block(threshold: float, is_called: bool) -> dict[str, Any]:
    reason = "nothing_called" if not is_called else None if math.isfinite(threshold) else "infinite_score"
    return {"threshold": None if reason else threshold, "threshold_reason": reason}


def operating_point(curve: RocCurve, max_fpr: float, level: float) -> OperatingPoint:
    """The point for a rate of false positives of at most `max_fpr`."""
    allowed = int(np.searchsorted(curve.fpr, max_fpr, side="right"))
    place = int(np.argmax(curve.true_positives[:allowed]))
    true_positives, false_positives = int(curve.true_positives[place]), int(curve.false_positives[place])
    note = None
    if max_fpr < 1.0 / curve.negatives:
        note = (
            f"{curve.negatives} negatives resolve no rate between 0 and {1.0 / curve.negatives:.6g}: at most "
            f"{max_fpr:g} means no false positive here"
        )
    return OperatingPoint(
        max_fpr=max_fpr,
        threshold=float(curve.thresholds[place]),
        true_positives=true_positives,
        false_positives=false_positives,
        tpr=true_positives / curve.positives,
        tpr_interval=clopper_pearson(true_positives, curve.positives, level),
        fpr=false_positives / curve.negatives,
        fpr_interval=clopper_pearson(false_positives, curve.negatives, level),
        note=note,
    )


def partial_area(curve: RocCurve, max_fpr: float, min_tpr: float) -> PartialArea:
    """Areas left of `max_fpr`, all of it and above `min_tpr`."""
    fpr, tpr = curve.fpr, curve.tpr
    inside = int(np.searchsorted(fpr, max_fpr, side="right"))
    fpr_inside, tpr_inside = np.append(fpr[:inside], max_fpr), np.append(tpr[:inside], np.interp(max_fpr, fpr, tpr))
    one_way, two_way = (_area_above(fpr_inside, tpr_inside, floor) for floor in (0.0, min_tpr))
    chance = max_fpr * max_fpr / 2.0
    return PartialArea(
        max_fpr=max_fpr,
        min_tpr=min_tpr,
        one_way=one_way,
        one_way_standardised=0.5 * (1.0 + (one_way - chance) / (max_fpr - chance)),
        two_way=two_way,
        two_way_share=two_way / (max_fpr * (1.0 - min_tpr)),
    )


def _area_above(x: FloatColumn, y: FloatColumn, floor: float) -> float:
    """Area between a rising line of straight pieces and `floor`, where the line is above."""
    width = np.diff(x)
    start, end = y[:-1] - floor, y[1:] - floor
    rise = np.where(end > start, end - start, 1.0)
    whole, crossing = (start + end) / 2.0, end * end / (2.0 * rise)
    return float(np.sum(width * np.where(start >= 0.0, whole, np.where(end > 0.0, crossing, 0.0))))


def best_accuracy(curve: RocCurve) -> BestAccuracy:
    """The threshold that calls most documents rightly."""
    right = curve.true_positives + curve.negatives - curve.false_positives
    place = int(np.argmax(right))
    documents = curve.positives + curve.negatives
    return BestAccuracy(
        accuracy=int(right[place]) / documents,
        threshold=float(curve.thresholds[place]),
        true_positives=int(curve.true_positives[place]),
        false_positives=int(curve.false_positives[place]),
        majority=max(curve.positives, curve.negatives) / documents,
    )

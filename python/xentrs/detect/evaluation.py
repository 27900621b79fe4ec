"""How well scores tell members from others, or machine text from human text, and how sure that is.

In: scores by name, larger meaning member or machine, and labels. Out: `Evaluation`, one `ScoreEvaluation` for each
score, and `PairedTest` of two scores over the same documents. Needs scipy, of the extra `detect`.

Only the order of a score's values matters, so infinite values count like any other. A value that is NaN is a document
without that score: it is counted, named and left out of that score alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xentrs.detect.checked_inputs import BoolColumn, FloatColumn, choice_of, column_of, fraction_of, labels_of, too_few
from xentrs.detect.intervals import Interval, area_difference, auroc_interval, placements
from xentrs.detect.roc import (
    BestAccuracy,
    OperatingPoint,
    PartialArea,
    RocCurve,
    best_accuracy,
    operating_point,
    partial_area,
)
from xentrs.errors import DTypeError, ParamError

FPRS = (0.01, 0.05)
"""False positive rates that every evaluation has a true positive rate for."""
_NAMED = 10


@dataclass(frozen=True)
class ScoreEvaluation:
    """One score over the documents that have it."""

    name: str
    documents: int
    positives: int
    negatives: int
    nan_count: int
    """Documents without this score."""
    nan_documents: tuple[int, ...]
    """Their places, the first ten."""
    auroc: float
    """Chance that a positive scores higher than a negative, ties counting one half."""
    standard_error: float | None
    """DeLong's; None where a class holds one document. Where it is 0, the interval is of another method."""
    interval: Interval
    """Of the area."""
    operating_points: tuple[OperatingPoint, ...]
    """By rising rate of false positives."""
    partial_area: PartialArea
    best_accuracy: BestAccuracy

    def block(self) -> dict[str, Any]:
        """Plain data without NaN."""
        return asdict(self) | {
            "nan_documents": list(self.nan_documents),
            "standard_error_reason": "one_document_in_a_class" if self.standard_error is None else None,
            "operating_points": [point.block() for point in self.operating_points],
            "best_accuracy": self.best_accuracy.block(),
        }

    def __repr__(self) -> str:
        """Says area, interval and documents; the rest is a field away."""
        missing = f", {self.nan_count} NaN" if self.nan_count else ""
        return (
            f"ScoreEvaluation({self.name}: AUROC {self.auroc:.4f} [{self.interval.low:.4f}, {self.interval.high:.4f}], "
            f"{self.positives} + {self.negatives} documents{missing})"
        )


@dataclass(frozen=True)
class Unevaluated:
    """A score that too few documents have."""

    name: str
    nan_count: int
    nan_documents: tuple[int, ...]
    reason: str

    def block(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"nan_documents": list(self.nan_documents)}


@dataclass(frozen=True)
class Evaluation:
    """All scores over one set of documents."""

    documents: int
    positives: int
    negatives: int
    level: float
    """Confidence level of every interval."""
    scores: dict[str, ScoreEvaluation]
    unevaluated: dict[str, Unevaluated]

    def block(self) -> dict[str, Any]:
        """Plain data without NaN, for JSON."""
        return vars(self) | {
            "scores": {name: entry.block() for name, entry in self.scores.items()},
            "unevaluated": {name: entry.block() for name, entry in self.unevaluated.items()},
        }

    def __repr__(self) -> str:
        """One line for each score."""
        lines = [
            *(f"  {score!r}" for score in self.scores.values()),
            *(f"  {entry.name}: not evaluated, {entry.reason}" for entry in self.unevaluated.values()),
        ]
        return "\n".join([f"Evaluation({self.positives} + {self.negatives} documents, level {self.level:g})", *lines])


@dataclass(frozen=True)
class PairedTest:
    """Whether the areas of two scores differ, over the documents that have both."""

    first: str
    second: str
    documents: int
    left_out: int
    """Documents where either is NaN."""
    first_auroc: float
    second_auroc: float
    difference: float
    """First less second."""
    interval: Interval
    """Of the difference."""
    z: float | None
    """None where the variance is estimated as 0, or not at all; `p_value` is then Hoeffding's bound."""
    p_value: float
    alternative: str
    """two-sided, or greater: the first area is larger."""
    method: str
    """delong or hoeffding."""

    def block(self) -> dict[str, Any]:
        """Plain data without NaN."""
        return asdict(self) | {"z_reason": "no_variance" if self.z is None else None}


def evaluate(
    scores: Mapping[str, Any],
    labels: Any,
    *,
    fprs: Sequence[float] = (),
    partial_fpr: float = 0.05,
    partial_tpr: float = 0.05,
    level: float = 0.95,
) -> Evaluation:
    """Evaluate each score against the labels.

    `scores` maps names to one float for each document, larger meaning member or machine; `labels` holds 0 or 1 for each
    document. True positive rates are given at false positive rates of 1 %, 5 % and `fprs`; partial areas for false
    positive rates up to `partial_fpr` and, two-way, true positive rates from `partial_tpr`. A score that fewer than 5
    documents have, or documents of one class alone, is listed under `unevaluated` with the reason.

    Raises:
        ParamError: no score; a label other than 0 and 1; fewer than 5 documents; one class only; a rate outside (0, 1].
        ShapeError: a score has more than one axis, or another length than the labels.
        DTypeError: `scores` is no mapping, or a score holds no numbers.

    >>> evaluation = evaluate({"loss": [0.1, 0.4, 0.35, 0.8, 0.9, 0.2]}, [0, 0, 1, 1, 1, 0])
    >>> round(evaluation.scores["loss"].auroc, 4)
    0.8889
    """
    if not isinstance(scores, Mapping):
        raise DTypeError(f"scores is a {type(scores).__name__}, expected a mapping of names to numbers")
    if not scores:
        raise ParamError("scores is empty, expected at least one score")
    checked = labels_of(labels)
    rates = sorted({*FPRS, *(fraction_of(rate, f"fprs[{i}]", may_be_one=True) for i, rate in enumerate(fprs))})
    part = (
        fraction_of(partial_fpr, "partial_fpr", may_be_one=True),
        fraction_of(partial_tpr, "partial_tpr"),
    )
    fraction_of(level, "level")
    columns = {name: column_of(values, f"scores[{name!r}]", len(checked)) for name, values in scores.items()}
    entries = [_evaluate_one(name, column, checked, rates, part, level) for name, column in columns.items()]
    return Evaluation(
        documents=len(checked),
        positives=int(checked.sum()),
        negatives=int((~checked).sum()),
        level=level,
        scores={entry.name: entry for entry in entries if isinstance(entry, ScoreEvaluation)},
        unevaluated={entry.name: entry for entry in entries if isinstance(entry, Unevaluated)},
    )


def _evaluate_one(
    name: str,
    column: FloatColumn,
    labels: BoolColumn,
    rates: Sequence[float],
    part: tuple[float, float],
    level: float,
) -> ScoreEvaluation | Unevaluated:
    is_nan = np.isnan(column)
    missing = np.flatnonzero(is_nan)
    named = tuple(missing[:_NAMED].tolist())
    there, there_labels = column[~is_nan], labels[~is_nan]
    reason = too_few(there_labels)
    if reason is not None:
        return Unevaluated(name, len(missing), named, f"{len(missing)} of {len(column)} values are NaN, left {reason}")
    area = placements(there, there_labels)
    curve = RocCurve.of(there, there_labels)
    return ScoreEvaluation(
        name=name,
        documents=len(there),
        positives=curve.positives,
        negatives=curve.negatives,
        nan_count=len(missing),
        nan_documents=named,
        auroc=area.auroc,
        standard_error=None if area.variance is None else area.variance**0.5,
        interval=auroc_interval(area, level),
        operating_points=tuple(operating_point(curve, rate, level) for rate in rates),
        partial_area=partial_area(curve, *part),
        best_accuracy=best_accuracy(curve),
    )


def paired_test(
    first: Any,
    second: Any,
    labels: Any,
    *,
    names: tuple[str, str] = ("first", "second"),
    alternative: str = "two-sided",
    level: float = 0.95,
) -> PairedTest:
    """DeLong's test of two scores over the same documents. `alternative` is two-sided, or greater: the first is better.

    Raises:
        ParamError: as `evaluate`; fewer than 5 documents, or one class alone, have both scores; another `alternative`.
        ShapeError, DTypeError: as `evaluate`.

    >>> test = paired_test([0.1, 0.4, 0.35, 0.8, 0.9, 0.2], [0.3, 0.1, 0.2, 0.4, 0.3, 0.5], [0, 0, 1, 1, 1, 0])
    >>> round(test.difference, 4), round(test.p_value, 3)
    (0.3889, 0.322)
    """
    checked = labels_of(labels)
    choice_of(alternative, "alternative", ("two-sided", "greater"))
    fraction_of(level, "level")
    columns = [column_of(values, name, len(checked)) for values, name in zip((first, second), names, strict=True)]
    has_both = ~(np.isnan(columns[0]) | np.isnan(columns[1]))
    reason = too_few(checked[has_both])
    if reason is not None:
        raise ParamError(f"{names[0]} and {names[1]} have in common {reason}")
    areas = [placements(column[has_both], checked[has_both]) for column in columns]
    found = area_difference(areas[0], areas[1], alternative, level)
    return PairedTest(
        first=names[0],
        second=names[1],
        documents=int(has_both.sum()),
        left_out=int((~has_both).sum()),
        first_auroc=areas[0].auroc,
        second_auroc=areas[1].auroc,
        difference=found.value,
        interval=found.interval,
        z=found.z,
        p_value=found.p_value,
        alternative=alternative,
        method=found.method,
    )

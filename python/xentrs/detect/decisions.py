"""Decisions about single documents, with the share of wrong ones bounded.

In: scores of documents, larger meaning member or machine, and scores of documents known not to be (the reference). Out:
`ConformalPValues`, adjusted p-values, `Decisions`.

What it means. A conformal p-value is the share of the reference, the document counted among them, that scores at least
as high. If a document is no member and could as well have been one of the reference (exchangeable: same source, time,
length, preparation), P(p <= t) <= t for every t, whatever the model and the score (Vovk, Gammerman and Shafer,
Algorithmic Learning in a Random World, 2005). That is an average over the draw of the reference, too: with one fixed
reference of n documents the true level strays by about sqrt(t (1 - t) / n). Where the reference differs from the
documents in anything else, such as their date, small p-values show that difference and not membership.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xentrs.detect.checked_inputs import BoolColumn, FloatColumn, choice_of, column_of, fraction_of
from xentrs.detect.random_draws import Draws
from xentrs.errors import ParamError

_STREAM = 1
TIES = ("conservative", "randomised")
METHODS = ("bh", "by")


@dataclass(frozen=True, eq=False)
class ConformalPValues:
    """P-values against a reference; NaN where the score is NaN."""

    p_values: FloatColumn
    reference_count: int
    """Documents of the reference that have a score."""
    reference_nan_count: int
    """Documents of the reference left out, as their score is NaN."""
    nan_count: int
    """Documents without a score."""
    ties: str
    """conservative or randomised."""
    seed: int | None
    """Of randomised ties."""

    @property
    def smallest(self) -> float:
        """The smallest p-value that this reference can give with conservative ties."""
        return 1.0 / (self.reference_count + 1)

    def block(self) -> dict[str, Any]:
        """Plain data; a p-value that is NaN is None, and `nan_count` says how many."""
        return {**vars(self), "p_values": _without_nan(self.p_values), "smallest": self.smallest}

    def __repr__(self) -> str:
        """Says counts and the smallest value."""
        low = np.nanmin(self.p_values) if self.nan_count < len(self.p_values) else np.nan
        return (
            f"ConformalPValues({len(self.p_values)} documents, {self.nan_count} NaN, against {self.reference_count}; "
            f"smallest {low:.4g})"
        )


@dataclass(frozen=True, eq=False)
class Decisions:
    """Which documents are decided to be members or machine text at a false discovery rate of `q`.

    Of the documents decided, at most the share `q` is wrong on average over repetitions of everything: documents and
    reference. It is no probability that a given document is a member, and a document that was not decided was not
    shown to be no member. Documents without a score are never decided.
    """

    decided: BoolColumn
    adjusted: FloatColumn
    """Adjusted p-values: the smallest `q` at which the document would be decided; NaN without a score."""
    conformal: ConformalPValues
    q: float
    method: str
    """bh or by."""
    note: str | None
    """Said where the reference is too small for anything to be decided."""

    @property
    def count(self) -> int:
        """Documents decided."""
        return int(self.decided.sum())

    def block(self) -> dict[str, Any]:
        """Plain data; NaN is None."""
        return {
            "q": self.q,
            "method": self.method,
            "count": self.count,
            "decided": self.decided.tolist(),
            "adjusted": _without_nan(self.adjusted),
            "conformal": self.conformal.block(),
            "note": self.note,
        }

    def __repr__(self) -> str:
        """Says how many and at which rate."""
        return f"Decisions({self.count} of {len(self.decided)} documents at q = {self.q:g}, {self.method})"


def conformal_p_values(scores: Any, reference: Any, *, ties: str = "conservative", seed: int = 0) -> ConformalPValues:
    """P-values of documents against the scores of known non-members.

    With r the reference and s the score of a document: (1 + #{r >= s}) / (n + 1). With `ties="randomised"`:
    (#{r > s} + u (1 + #{r = s})) / (n + 1), u uniform on (0, 1] from `seed`: exactly uniform under the null, also for
    scores with many equal values. Reference documents whose score is NaN are left out and counted, which keeps the
    guarantee for documents that have one.

    Raises:
        ParamError: no reference document has a score; `ties` is another word.
        ShapeError: more than one axis.
        DTypeError: no numbers.

    >>> conformal_p_values([3.0, 0.5], [0.0, 1.0, 2.0]).p_values.tolist()
    [0.25, 0.75]
    """
    choice_of(ties, "ties", TIES)
    values, all_known = column_of(scores, "scores"), column_of(reference, "reference")
    known = np.sort(all_known[~np.isnan(all_known)])
    if len(known) == 0:
        raise ParamError(f"reference has {len(all_known)} documents, none with a score: expected at least one")
    above = len(known) - np.searchsorted(known, values, side="right")
    at_least = len(known) - np.searchsorted(known, values, side="left")
    share = Draws(seed, _STREAM).uniforms(len(values)) if ties == "randomised" else np.ones(len(values))
    ranks = above + share * (1 + at_least - above)
    is_nan = np.isnan(values)
    return ConformalPValues(
        p_values=np.where(is_nan, np.nan, ranks / (len(known) + 1)),
        reference_count=len(known),
        reference_nan_count=len(all_known) - len(known),
        nan_count=int(is_nan.sum()),
        ties=ties,
        seed=seed if ties == "randomised" else None,
    )


def adjusted_p_values(p_values: Any, *, method: str = "bh") -> FloatColumn:
    """Adjusted p-values of Benjamini and Hochberg (J. R. Statist. Soc. B 57, 1995) or, `method="by"`, of Benjamini and
    Yekutieli (Ann. Statist. 29, 2001), which holds under any dependence and costs a factor of about ln m.

    A p-value that is NaN stays NaN and is no hypothesis.

    Raises:
        ParamError: a p-value is outside [0, 1]; another method.

    >>> adjusted_p_values([0.01, 0.5, 0.02, 0.5]).tolist()
    [0.04, 0.5, 0.04, 0.5]
    """
    choice_of(method, "method", METHODS)
    values = column_of(p_values, "p_values")
    wrong = np.flatnonzero((values < 0.0) | (values > 1.0))
    if len(wrong):
        raise ParamError(f"p_values[{wrong[0]}] = {values[wrong[0]]:g} is outside [0, 1]")
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    ranks = np.arange(1, len(order) + 1)
    factor = np.sum(1.0 / ranks) if method == "by" else 1.0
    scaled = values[order] * (factor * len(order)) / ranks
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def decide(
    scores: Any, reference: Any, *, q: float = 0.05, method: str = "bh", ties: str = "conservative", seed: int = 0
) -> Decisions:
    """Decide which documents are members or machine text, at a false discovery rate of `q`.

    P-values that share a reference depend on each other positively, so that `method="bh"` holds (Bates, Candes, Lei,
    Romano and Sesia, Testing for outliers with conformal p-values, Ann. Statist. 51, 2023, theorem 2; for scores
    without ties). `method="by"` needs no such argument.

    Raises:
        ParamError: `q` is outside (0, 1), and as `conformal_p_values`.

    >>> decide([0.5, 120.0, 101.0], range(100), q=0.05).decided.tolist()
    [False, True, True]
    """
    fraction_of(q, "q")
    conformal = conformal_p_values(scores, reference, ties=ties, seed=seed)
    adjusted = adjusted_p_values(conformal.p_values, method=method)
    tested = len(adjusted) - conformal.nan_count
    needed = conformal.smallest * (float(np.sum(1.0 / np.arange(1, tested + 1))) if method == "by" else 1.0)
    note = None
    if ties == "conservative" and tested and needed > q:
        note = (
            f"{conformal.reference_count} reference documents give no adjusted p-value below {needed:.4g}: nothing can "
            f"be decided at q = {q:g}"
        )
    decided = np.less_equal(adjusted, q)  # False for NaN
    return Decisions(decided, adjusted, conformal, q, method, note)


def _without_nan(values: FloatColumn) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]

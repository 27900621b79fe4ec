"""Documents without a label against known non-members: which are decided to be members or machine text?

In: `ScoredDocuments` of which some have no label. Out: `Unlabeled`: a conformal p-value and a decision for each of them
and each score (`xentrs.detect.decisions` says what they mean), and whether the words alone tell the two sets apart, in
which case small p-values may show that difference and not membership.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xentrs.detect.baseline import BlindBaseline, blind_baseline
from xentrs.detect.decisions import Decisions, decide
from xentrs.detect.pipeline import ScoredDocuments
from xentrs.errors import ParamError

_NAMED = 10


@dataclass(frozen=True, eq=False)
class Unlabeled:
    """All that is known of documents without a label."""

    places: list[int]
    """Where they stand among all documents."""
    ids: list[str]
    nonmember_count: int
    """Documents of label 0."""
    decisions: dict[str, Decisions]
    """By score, in the order of `places`."""
    undecided: dict[str, str]
    """Scores that no document of label 0 has."""
    blind: BlindBaseline | None
    """Of no label against label 0."""
    blind_reason: str | None
    """Why there is none."""

    @property
    def sentence(self) -> str | None:
        """What the words say, for people."""
        if self.blind is None:
            return None
        interval = self.blind.interval
        found = (
            f"Words alone tell documents without a label from those of label 0 with AUROC "
            f"{self.blind.evaluation.auroc:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
        )
        if interval.low > 0.5:
            return f"{found}: the two sets differ in what they say, and small p-values may show that alone."
        return f"{found}: no difference of words between the two sets was found."

    def block(self) -> dict[str, Any]:
        """Plain data without NaN; values of single documents stand in decisions.parquet."""
        return {
            "documents": len(self.places),
            "nonmembers": self.nonmember_count,
            "scores": {name: self._summary(entry) for name, entry in self.decisions.items()},
            "undecided": self.undecided,
            "blind_baseline": None if self.blind is None else self.blind.block() | {"sentence": self.sentence},
            "blind_baseline_reason": self.blind_reason,
        }

    def _summary(self, decisions: Decisions) -> dict[str, Any]:
        conformal = decisions.conformal
        has_value = conformal.nan_count < len(conformal.p_values)
        return {
            "q": decisions.q,
            "method": decisions.method,
            "decided": decisions.count,
            "decided_ids": [self.ids[place] for place in np.flatnonzero(decisions.decided)[:_NAMED]],
            "lowest_p_value": float(np.nanmin(conformal.p_values)) if has_value else None,
            "smallest_possible_p_value": conformal.smallest,
            "nan_count": conformal.nan_count,
            "reference_count": conformal.reference_count,
            "reference_nan_count": conformal.reference_nan_count,
            "note": decisions.note,
        }


def judge_unlabeled(documents: ScoredDocuments, q: float) -> Unlabeled | None:
    """Decide about the documents without a label at a false discovery rate of `q`; None where each has one, or none is
    a known non-member.
    """
    labels = documents.labels or []
    places = [place for place, label in enumerate(labels) if label is None]
    nonmembers = [place for place, label in enumerate(labels) if label is False]
    if not places or not nonmembers:
        return None
    decisions, undecided = {}, {}
    for name, values in documents.values.items():
        try:
            decisions[name] = decide(values[places], values[nonmembers], q=q)
        except ParamError as error:  # no reference document has the score
            undecided[name] = str(error)
    blind, reason = _blind(documents, nonmembers, places)
    ids = [documents.ids[place] for place in places]
    return Unlabeled(places, ids, len(nonmembers), decisions, undecided, blind, reason)


def _blind(
    documents: ScoredDocuments, nonmembers: list[int], places: list[int]
) -> tuple[BlindBaseline | None, str | None]:
    if documents.texts is None:
        return None, documents.no_texts_reason
    for found, what in ((places, "without a label"), (nonmembers, "of label 0")):
        if len(found) < 2:  # one to fit, one to score
            return None, f"{len(found)} document {what}, expected at least 2"
    chosen = sorted([*nonmembers, *places])
    try:
        texts = [documents.texts[place] for place in chosen]
        is_unlabeled = [documents.labels is not None and documents.labels[place] is None for place in chosen]
        return blind_baseline(texts, is_unlabeled), None
    except ParamError as error:  # too few for folds
        return None, str(error)

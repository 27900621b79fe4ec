"""What the labels say about scores: areas, the blind baseline beside each, decisions against known non-members.

In: `ScoredDocuments` with labels, of which some may be missing. Out: `Judgement`. Needs scipy and scikit-learn, of the
extra `detect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xentrs.detect.baseline import BlindBaseline, BlindComparison, beats_blind, blind_baseline
from xentrs.detect.checked_inputs import IntColumn
from xentrs.detect.decisions import Decisions, decide
from xentrs.detect.evaluation import Evaluation, evaluate
from xentrs.detect.pipeline import ScoredDocuments
from xentrs.detect.records import labels_lack
from xentrs.detect.unlabeled import Unlabeled, judge_unlabeled
from xentrs.errors import ParamError

FALSE_DISCOVERY_RATE = 0.05


@dataclass(frozen=True, eq=False)
class Judgement:
    """All that is known once there are labels."""

    label_counts: dict[str, int]
    """Documents of label 1, of label 0, and unlabeled."""
    evaluation: Evaluation | None
    """Of the documents that have a label."""
    evaluation_reason: str | None
    """Why there is none: known non-members alone, beside documents without a label."""
    blind: BlindBaseline | None
    blind_reason: str | None
    """Why there is no blind baseline."""
    comparisons: dict[str, BlindComparison]
    """By score, with the blind baseline."""
    decisions: dict[str, Decisions]
    """By score: documents of label 1 against those of label 0."""
    unlabeled: Unlabeled | None
    """Documents without a label against those of label 0."""

    def block(self, numbers: Sequence[int], labels: Sequence[bool | None]) -> dict[str, Any]:
        """Plain data without NaN."""
        of_label_1 = [number for number, label in zip(numbers, labels, strict=True) if label]
        return {
            "labels": self.label_counts,
            "evaluation": None if self.evaluation is None else self.evaluation.block(),
            "evaluation_reason": self.evaluation_reason,
            "blind_baseline": None if self.blind is None else self.blind.block(),
            "blind_baseline_reason": self.blind_reason,
            "against_blind": {name: entry.block() for name, entry in self.comparisons.items()},
            "decisions": {
                "documents": of_label_1,
                "scores": {name: entry.block() for name, entry in self.decisions.items()},
            },
            "unlabeled": None if self.unlabeled is None else self.unlabeled.block(),
        }


def judge(documents: ScoredDocuments) -> Judgement:
    """Evaluate every score over the documents with a label, larger meaning label 1, and decide about those without.

    Raises:
        ParamError: `labels_lack` says why: one class only, or fewer than 5 documents with a label.
    """
    labels = documents.labels
    assert labels is not None, "the caller has asked for labels"
    if (reason := labels_lack(labels)) is not None:
        raise ParamError(f"labels: {reason}")
    counts = {"label_1": labels.count(True), "label_0": labels.count(False), "unlabeled": labels.count(None)}
    unlabeled = judge_unlabeled(documents, FALSE_DISCOVERY_RATE)
    places = np.array([place for place, label in enumerate(labels) if label is not None], dtype=np.int64)
    known = np.array([labels[place] for place in places], dtype=np.bool_)
    if not known.any():
        reason = f"{counts['label_0']} documents of label 0 and none of label 1"
        return Judgement(counts, None, reason, None, reason, {}, {}, unlabeled)
    values = {name: column[places] for name, column in documents.values.items()}
    evaluation = _placed(evaluate(values, known), places)
    blind, blind_reason = _blind(documents, places, known)
    comparisons = {}
    if blind is not None:
        comparisons = {name: beats_blind(values[name], blind, name=name) for name in evaluation.scores}
    decisions = {
        name: decide(values[name][known], values[name][~known], q=FALSE_DISCOVERY_RATE) for name in evaluation.scores
    }
    return Judgement(counts, evaluation, None, blind, blind_reason, comparisons, decisions, unlabeled)


def _placed(evaluation: Evaluation, places: IntColumn) -> Evaluation:
    """Documents without a score by their places among all documents."""

    def placed(entry: Any) -> Any:
        return replace(entry, nan_documents=tuple(places[list(entry.nan_documents)].tolist()))

    return replace(
        evaluation,
        scores={name: placed(entry) for name, entry in evaluation.scores.items()},
        unevaluated={name: placed(entry) for name, entry in evaluation.unevaluated.items()},
    )


def _blind(documents: ScoredDocuments, places: IntColumn, known: Any) -> tuple[BlindBaseline | None, str | None]:
    if documents.texts is None:
        return None, documents.no_texts_reason
    try:
        return blind_baseline([documents.texts[place] for place in places], known), None
    except ParamError as error:  # too few for folds
        return None, str(error)

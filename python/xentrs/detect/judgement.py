"""What the labels say about scores: areas, the blind baseline beside each, decisions against known non-members.

In: `ScoredDocuments` with labels. Out: `Judgement`. Needs scipy and scikit-learn, of the extra `detect`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xentrs.detect.baseline import BlindBaseline, BlindComparison, beats_blind, blind_baseline
from xentrs.detect.decisions import Decisions, decide
from xentrs.detect.evaluation import Evaluation, evaluate
from xentrs.detect.pipeline import ScoredDocuments
from xentrs.errors import ParamError

FALSE_DISCOVERY_RATE = 0.05


@dataclass(frozen=True, eq=False)
class Judgement:
    """All that is known once there are labels."""

    evaluation: Evaluation
    blind: BlindBaseline | None
    blind_reason: str | None
    """Why there is no blind baseline."""
    comparisons: dict[str, BlindComparison]
    """By score, with the blind baseline."""
    decisions: dict[str, Decisions]
    """By score: documents of label 1 against those of label 0."""

    def block(self, numbers: list[int], labels: list[bool]) -> dict[str, Any]:
        """Plain data without NaN."""
        of_label_1 = [number for number, label in zip(numbers, labels, strict=True) if label]
        return {
            "evaluation": self.evaluation.block(),
            "blind_baseline": None if self.blind is None else self.blind.block(),
            "blind_baseline_reason": self.blind_reason,
            "against_blind": {name: entry.block() for name, entry in self.comparisons.items()},
            "decisions": {
                "documents": of_label_1,
                "scores": {name: entry.block() for name, entry in self.decisions.items()},
            },
        }


def judge(documents: ScoredDocuments) -> Judgement:
    """Evaluate every score; larger means label 1.

    Raises:
        ParamError: one class only, or fewer than 5 documents.
    """
    assert documents.labels is not None, "the caller has asked for labels"
    labels = np.array(documents.labels, dtype=np.bool_)
    evaluation = evaluate(documents.values, labels)
    blind, reason = _blind(documents)
    comparisons = {}
    if blind is not None:
        comparisons = {name: beats_blind(documents.values[name], blind, name=name) for name in evaluation.scores}
    decisions = {name: _decide(documents, name, labels) for name in evaluation.scores}
    return Judgement(evaluation, blind, reason, comparisons, decisions)


def _blind(documents: ScoredDocuments) -> tuple[BlindBaseline | None, str | None]:
    if documents.texts is None:
        return None, documents.no_texts_reason
    try:
        return blind_baseline(documents.texts, documents.labels), None
    except ParamError as error:  # too few for folds
        return None, str(error)


def _decide(documents: ScoredDocuments, name: str, labels: Any) -> Decisions:
    values = documents.values[name]
    return decide(values[labels], values[~labels], q=FALSE_DISCOVERY_RATE)

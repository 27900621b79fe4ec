"""The blind baseline: what the words alone tell, without any language model.

In: texts and labels. Out: `BlindBaseline`, scores of a bag of words with logistic regression, each document scored by a
fit that has not seen it; and `BlindComparison` of a score with it. Needs scikit-learn and scipy, of the extra `detect`.

Members and non-members that were collected apart often differ in dates, topics or form, and then such a classifier
beats most published membership scores on their own benchmarks (Das, Zhang and Tramer, Blind Baselines Beat Membership
Inference Attacks for Foundation Models, arXiv 2406.16201). A score that does not beat it may measure no more than that.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xentrs.detect.checked_inputs import (
    BoolColumn,
    FloatColumn,
    choice_of,
    column_of,
    count_of,
    fraction_of,
    labels_of,
    optional_module,
)
from xentrs.detect.evaluation import PairedTest, ScoreEvaluation, evaluate, paired_test
from xentrs.detect.intervals import Interval, auroc_interval, placements
from xentrs.errors import DTypeError, ParamError, ShapeError

FEWEST_TEXTS = 10
NAME = "blind"
_MAX_ITERATIONS = 1000
# Under the null the area of out-of-fold scores is a sum over pairs of documents, y_i y_j k(x_i, x_j), in which a pair
# counts twice: once with i in the fit and j scored, once the other way. Its variance is twice that of a fixed score's.
_VARIANCE_FACTOR = 2.0


@dataclass(frozen=True, eq=False)
class BlindBaseline:
    """Scores of texts by a bag of words, larger meaning label 1, and their evaluation."""

    scores: FloatColumn
    """Log-odds, each from the fit on the other folds."""
    labels: BoolColumn
    features: str
    """tfidf or counts."""
    folds: int
    seed: int
    evaluation: ScoreEvaluation
    """As of any score; its interval takes the scores as given."""
    interval: Interval
    """Of the area, of twice DeLong's variance: the fits share documents, so that where the words tell nothing the area
    scatters more than that of a score that was not fitted. Wider than needed where they tell much.
    """

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        found = (
            f"Words alone (bag of words, {self.folds} folds) reach AUROC {self.evaluation.auroc:.3f} "
            f"[{self.interval.low:.3f}, {self.interval.high:.3f}]"
        )
        if self.interval.low > 0.5:
            return f"{found}: the two sets differ in what they say, so a score has to beat this."
        return f"{found}: no difference of words between the two sets was found."

    def block(self) -> dict[str, Any]:
        """Plain data without NaN; not the scores."""
        return {
            "features": self.features,
            "folds": self.folds,
            "seed": self.seed,
            "evaluation": self.evaluation.block(),
            "interval": self.interval.block(),
            "variance_factor": _VARIANCE_FACTOR,
            "sentence": self.sentence,
        }

    def __repr__(self) -> str:
        """Says the area."""
        return f"BlindBaseline({self.features}, {self.folds} folds, seed {self.seed}, {self.evaluation!r})"


@dataclass(frozen=True)
class BlindComparison:
    """A score beside the blind baseline, over the documents that have the score."""

    name: str
    beats_blind: bool
    """The score's own interval lies above 0.5, and the one-sided paired test rejects."""
    significance: float
    """The test rejects below this."""
    interval: Interval
    """Of the score's area."""
    test: PairedTest

    @property
    def sentence(self) -> str:
        """The verdict, for people."""
        test = self.test
        against = (
            f"{self.name} has AUROC {test.first_auroc:.3f} [{self.interval.low:.3f}, {self.interval.high:.3f}] against "
            f"{test.second_auroc:.3f} of the blind baseline (paired one-sided p = {test.p_value:.2g}, "
            f"{test.documents} documents)"
        )
        if self.beats_blind:
            return f"{against}: it tells more than the words alone do."
        if self.interval.low <= 0.5:
            return f"{against}: it is not shown to be better than chance, and proves nothing."
        return f"{against}: it is not shown to beat the words alone, and proves nothing about the model."

    def block(self) -> dict[str, Any]:
        """Plain data without NaN."""
        return vars(self) | {
            "interval": self.interval.block(),
            "test": self.test.block(),
            "sentence": self.sentence,
        }


def blind_baseline(
    texts: Sequence[str],
    labels: Any,
    *,
    features: str = "tfidf",
    folds: int = 5,
    seed: int = 0,
    level: float = 0.95,
) -> BlindBaseline:
    """Score texts by a bag of words, out of fold.

    Words as scikit-learn's vectorizers find them, weighted (`features="tfidf"`) or counted (`"counts"`), then logistic
    regression by liblinear with C = 1, whose bits do not depend on threads. Vocabulary and weights come from the
    training folds alone. Folds are stratified and drawn from `seed`; there are as many as the smaller class has
    documents, if that is less than `folds`. Duplicates across folds make the baseline stronger than it is: remove them
    first.

    Raises:
        ParamError: fewer than 10 texts, one class only, a class of one document; a setting outside its range.
        ShapeError: not one label for each text.
        DTypeError: a text is no str.

    >>> texts = [f"the {season} of {year}" for year in range(2000, 2010) for season in ("summer", "winter")]
    >>> blind_baseline(texts, [0, 1] * 10).evaluation.auroc
    1.0
    """
    choice_of(features, "features", ("tfidf", "counts"))
    count_of(folds, "folds", 2)
    count_of(seed, "seed", 0)
    fraction_of(level, "level")
    checked = labels_of(labels)
    _check_texts(texts, checked)
    used_folds = min(folds, int(checked.sum()), int((~checked).sum()))
    scores = _out_of_fold(np.array(texts, dtype=object), checked, features, used_folds, seed)
    evaluation = evaluate({NAME: scores}, checked, level=level).scores[NAME]
    interval = auroc_interval(placements(scores, checked), level, _VARIANCE_FACTOR)
    return BlindBaseline(scores, checked, features, used_folds, seed, evaluation, interval)


def beats_blind(
    score: Any, blind: BlindBaseline, *, name: str = "score", significance: float = 0.05, level: float = 0.95
) -> BlindComparison:
    """Whether a score tells more than the blind baseline of the same documents, in the same order.

    The test takes the baseline's scores as given. That the score's own interval has to lie above 0.5 as well guards
    against a baseline that falls below by chance.

    Raises:
        ParamError, ShapeError, DTypeError: as `paired_test`.

    >>> blind = blind_baseline([f"document {number}" for number in range(40)], [0, 1] * 20)
    >>> beats_blind([number % 2 + number / 30 for number in range(40)], blind).beats_blind
    True
    """
    fraction_of(significance, "significance")
    test = paired_test(score, blind.scores, blind.labels, names=(name, NAME), alternative="greater", level=level)
    values = column_of(score, name)
    has_score = ~np.isnan(values)
    interval = auroc_interval(placements(values[has_score], blind.labels[has_score]), level)
    beats = interval.low > 0.5 and test.p_value < significance
    return BlindComparison(name, beats, significance, interval, test)


def _check_texts(texts: Sequence[str], labels: BoolColumn) -> None:
    if len(texts) != len(labels):
        raise ShapeError(f"texts has {len(texts)} entries and labels {len(labels)}: expected one label for each text")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise DTypeError(f"texts[{place}] is a {type(text).__name__}, expected a str")
    if len(texts) < FEWEST_TEXTS:
        raise ParamError(f"texts has {len(texts)} entries, expected at least {FEWEST_TEXTS}")
    positives = int(labels.sum())
    if min(positives, len(labels) - positives) < 2:
        raise ParamError(
            f"labels has {positives} documents of label 1 and {len(labels) - positives} of label 0, expected at least "
            "two of each: one to fit, one to score"
        )


def _out_of_fold(texts: Any, labels: BoolColumn, features: str, folds: int, seed: int) -> FloatColumn:
    scores = np.zeros(len(texts))
    splitter = optional_module("sklearn.model_selection").StratifiedKFold(
        n_splits=folds, shuffle=True, random_state=seed
    )
    for fitted, scored in splitter.split(texts, labels):
        scores[scored] = _fit_and_score(texts[fitted], labels[fitted], texts[scored], features)
    return scores


def _fit_and_score(fitted: Any, labels: BoolColumn, scored: Any, features: str) -> FloatColumn:
    vectorizers = optional_module("sklearn.feature_extraction.text")
    vectorizer = vectorizers.TfidfVectorizer() if features == "tfidf" else vectorizers.CountVectorizer()
    analyze = vectorizer.build_analyzer()
    if not any(analyze(text) for text in fitted):
        return np.zeros(len(scored))  # No word to learn from: nothing is told apart.
    with warnings.catch_warnings():
        # A fit that stops early is a baseline all the same.
        warnings.simplefilter("ignore", optional_module("sklearn.exceptions").ConvergenceWarning)
        regression = optional_module("sklearn.linear_model").LogisticRegression(
            solver="liblinear", max_iter=_MAX_ITERATIONS
        )
        model = regression.fit(vectorizer.fit_transform(fitted), labels)
    log_odds: FloatColumn = model.decision_function(vectorizer.transform(scored))
    return log_odds

"""Decisions about documents, and the blind baseline: uniform p-values, kept error rates, scipy and scikit-learn."""

from __future__ import annotations

import doctest
import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from xentrs.detect import baseline, decisions
from xentrs.detect.baseline import beats_blind, blind_baseline
from xentrs.detect.decisions import adjusted_p_values, conformal_p_values, decide
from xentrs.detect.random_draws import Draws
from xentrs.errors import DTypeError, ParamError, ShapeError


def test_conformal_p_values_are_counts() -> None:
    generator = np.random.default_rng(0)
    scores, reference = generator.integers(0, 9, 50).astype(float), generator.integers(0, 9, 23).astype(float)
    scores[:2] = np.inf, -np.inf
    found = conformal_p_values(scores, reference)
    expected = [(1 + sum(known >= score for known in reference)) / 24 for score in scores]
    assert found.p_values.tolist() == expected
    assert found.smallest == 1 / 24 == expected[0]
    assert (found.seed, found.reference_count) == (None, 23)


def test_randomised_ties_lie_between_and_repeat() -> None:
    scores, reference = [2.0] * 200, [1.0, 2.0, 2.0, 3.0]
    found = conformal_p_values(scores, reference, ties="randomised", seed=5)
    # One above, two equal: (1 + u * 3) / 5.
    assert 0.2 < found.p_values.min() < 0.23
    assert 0.77 < found.p_values.max() <= 0.8
    again = conformal_p_values(scores, reference, ties="randomised", seed=5)
    np.testing.assert_array_equal(found.p_values, again.p_values)
    other = conformal_p_values(scores, reference, ties="randomised", seed=6)
    assert (found.p_values != other.p_values).all()
    assert found.seed == 5


@pytest.mark.parametrize("ties", ["conservative", "randomised"])
@pytest.mark.parametrize("values", ["continuous", "few"])
def test_p_values_under_the_null(ties: str, values: str) -> None:
    """One document for each reference, so that they are independent."""
    p_values = []
    for seed in range(1500):
        drawn = np.random.default_rng(seed).normal(size=40)
        drawn = drawn if values == "continuous" else np.round(drawn)
        p_values.append(conformal_p_values(drawn[:1], drawn[1:], ties=ties, seed=seed).p_values[0])
    for level in (0.025, 0.1, 0.25, 0.5, 0.9):
        rejected = int(np.less_equal(p_values, level).sum())
        assert rejected <= stats.binom.isf(1e-4, 1500, level)
        if ties == "randomised" or values == "continuous":
            # Of 39 + 1 ranks exactly so many are at most the level.
            attained = level if ties == "randomised" else math.floor(level * 40 + 1e-9) / 40
            assert rejected >= stats.binom.ppf(1e-4, 1500, attained)
    if ties == "randomised":
        assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_nan_is_counted_and_never_decided() -> None:
    reference = [*np.arange(40.0), math.nan, math.nan]
    found = decide([math.nan, 100.0, -1.0], reference, q=0.1)
    assert (found.conformal.nan_count, found.conformal.reference_nan_count, found.conformal.reference_count) == (
        1,
        2,
        40,
    )
    assert found.decided.tolist() == [False, True, False]
    block = found.block()
    assert block["conformal"]["p_values"] == [None, 1 / 41, 1.0]
    assert block["adjusted"] == [None, 2 / 41, 1.0]
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    assert repr(found) == "Decisions(1 of 3 documents at q = 0.1, bh)"
    assert repr(found.conformal) == "ConformalPValues(3 documents, 1 NaN, against 40; smallest 0.02439)"
    assert repr(conformal_p_values([math.nan], [1.0])).endswith("smallest nan)")


@pytest.mark.parametrize("method", ["bh", "by"])
@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_adjusted_p_values_are_those_of_scipy(method: Any, count: int) -> None:
    generator = np.random.default_rng(count)
    p_values = np.round(generator.uniform(size=count) ** 3, 2 if count > 100 else 6)
    expected = stats.false_discovery_control(p_values, method=method)
    np.testing.assert_allclose(adjusted_p_values(p_values, method=method), expected, rtol=1e-13)
    holed = np.insert(p_values, [0, count // 2], np.nan)
    kept = ~np.isnan(holed)
    np.testing.assert_allclose(adjusted_p_values(holed, method=method)[kept], expected, rtol=1e-13)
    assert np.isnan(adjusted_p_values(holed, method=method)[~kept]).all()


@pytest.mark.parametrize("method", ["bh", "by"])
def test_false_discoveries_stay_below_q(method: str) -> None:
    q, shares, found = 0.2, [], 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        is_member = np.arange(60) < 20
        result = decide(generator.normal(size=60) + 3.0 * is_member, generator.normal(size=150), q=q, method=method)
        shares.append((result.decided & ~is_member).sum() / max(1, result.count))
        found += int((result.decided & is_member).sum())
    error = np.std(shares) / math.sqrt(len(shares))
    assert np.mean(shares) <= q + 3 * error
    assert found > 300 * 20 * (0.7 if method == "bh" else 0.35)


def test_a_reference_too_small_to_decide_anything_is_said() -> None:
    found = decide([100.0] * 5, np.arange(10.0), q=0.05)
    assert found.count == 0
    assert found.note == (
        "10 reference documents give no adjusted p-value below 0.09091: nothing can be decided at q = 0.05"
    )
    assert decide([100.0] * 5, np.arange(19.0), q=0.05).note is None
    assert decide([100.0] * 5, np.arange(19.0), q=0.05).count == 5
    assert decide([100.0] * 5, np.arange(19.0), q=0.05, method="by").note is not None
    assert decide([], np.arange(10.0), q=0.05).count == 0


def test_errors_of_decisions() -> None:
    with pytest.raises(ParamError, match="reference has 2 documents, none with a score: expected at least one"):
        decide([1.0], [math.nan, math.nan])
    with pytest.raises(ParamError, match="ties = 'fair', expected one of conservative, randomised"):
        conformal_p_values([1.0], [1.0], ties="fair")
    with pytest.raises(ParamError, match=r"p_values\[1\] = 1.5 is outside \[0, 1\]"):
        adjusted_p_values([0.5, 1.5])
    with pytest.raises(ParamError, match="method = 'holm', expected one of bh, by"):
        adjusted_p_values([0.5], method="holm")
    with pytest.raises(ParamError, match=r"q = 0 is outside \(0, 1\)"):
        decide([1.0], [1.0], q=0)
    with pytest.raises(ShapeError, match=r"scores has shape \(1, 1\), expected one value for each document"):
        decide([[1.0]], [1.0])
    with pytest.raises(ParamError, match="seed = -1, expected at least 0"):
        conformal_p_values([1.0], [1.0], ties="randomised", seed=-1)
    with pytest.raises(DTypeError, match="seed is a float, expected an integer"):
        conformal_p_values([1.0], [1.0], ties="randomised", seed=1.5)  # type: ignore[arg-type]


PINNED_PERMUTATIONS = [[3, 2, 1, 0, 4], [3, 1, 2, 0, 4]]
PINNED_INTEGERS = [448, 430, 419, 277]


def test_draws_are_fair_and_the_same_bits_for_ever() -> None:
    assert Draws(0).permutations(2, 5).tolist() == PINNED_PERMUTATIONS
    assert Draws(1, 2).integers(4, 1000).tolist() == PINNED_INTEGERS
    drawn = Draws(3).permutations(4000, 4)
    assert (np.sort(drawn, axis=1) == np.arange(4)).all()
    counts = np.unique(drawn @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-4
    assert stats.chisquare(np.bincount(Draws(4).integers(3000, 7))).pvalue > 1e-4
    uniforms = Draws(5).uniforms(3000)
    assert stats.kstest(uniforms, "uniform").pvalue > 1e-4
    assert 0.0 < uniforms.min() <= uniforms.max() <= 1.0


def texts_of(seed: int, count: int, difference: float) -> tuple[list[str], Any]:
    """Texts of 40 words; those of label 1 draw a share of theirs from another distribution."""
    generator = np.random.default_rng(seed)
    words = np.array([f"word{number}" for number in range(200)])
    shared, other = (generator.dirichlet(np.full(200, 0.3)) for _ in range(2))
    labels = generator.permutation(np.arange(count) % 2)
    mixed = [(1 - difference * label) * shared + difference * label * other for label in labels]
    return [" ".join(generator.choice(words, 40, p=weights)) for weights in mixed], labels


@pytest.mark.parametrize("features", ["tfidf", "counts"])
def test_out_of_fold_scores_are_those_of_scikit_learn(features: str) -> None:
    texts, labels = texts_of(0, 40, 0.3)
    found = blind_baseline(texts, labels, features=features, seed=3)
    expected = np.empty(40)
    data = np.array(texts, dtype=object)
    for fitted, scored in StratifiedKFold(5, shuffle=True, random_state=3).split(data, labels):
        vectorizer = CountVectorizer() if features == "counts" else TfidfVectorizer()
        pipeline = make_pipeline(vectorizer, LogisticRegression(solver="liblinear"))
        expected[scored] = pipeline.fit(data[fitted], labels[fitted]).decision_function(data[scored])
    np.testing.assert_array_equal(found.scores, expected)
    again = blind_baseline(texts, labels, features=features, seed=3)
    np.testing.assert_array_equal(found.scores, again.scores)
    assert (found.folds, found.seed, found.features) == (5, 3, features)
    assert found.evaluation.auroc > 0.7
    block = found.block()
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    assert block["seed"] == 3
    # Of the doubled variance.
    assert found.interval.low < found.evaluation.interval.low < found.evaluation.interval.high < found.interval.high
    assert "the two sets differ in what they say, so a score has to beat this." in found.sentence


def test_the_baseline_is_at_chance_where_words_tell_nothing() -> None:
    covered, areas, trials = 0, [], 100
    for seed in range(trials):
        found = blind_baseline(*texts_of(seed, 40, 0.0), seed=seed, features="counts")
        covered += found.interval.low <= 0.5 <= found.interval.high
        areas.append(found.evaluation.auroc)
    assert covered >= stats.binom.ppf(1e-4, trials, 0.95)
    assert abs(np.mean(areas) - 0.5) < 4 * np.std(areas) / math.sqrt(trials)


def test_a_score_has_to_beat_the_words() -> None:
    texts, labels = texts_of(1, 120, 0.1)
    blind = blind_baseline(texts, labels)
    generator = np.random.default_rng(1)
    better = beats_blind(labels * 5.0 + generator.normal(size=120), blind, name="minkpp")
    assert better.beats_blind
    assert better.sentence.startswith("minkpp has AUROC 1.000 [0.940, 1.000] against 0.")
    assert better.sentence.endswith("it tells more than the words alone do.")
    same = beats_blind(blind.scores + generator.normal(size=120), blind, name="loss")
    assert not same.beats_blind
    assert same.sentence.endswith("is not shown to beat the words alone, and proves nothing about the model.")
    holed = np.where(np.arange(120) < 7, np.nan, generator.normal(size=120))
    useless = beats_blind(holed, blind)
    assert useless.test.left_out == 7
    assert useless.sentence.endswith("it is not shown to be better than chance, and proves nothing.")
    block = useless.block()
    assert json.loads(json.dumps(block, allow_nan=False)) == block


def test_a_baseline_below_chance_is_no_help() -> None:
    """A useless score does not win because the baseline happened to lose."""
    texts, labels = texts_of(2, 60, 0.0)
    blind = blind_baseline(texts, labels)
    object.__setattr__(blind, "scores", -3.0 * labels + np.random.default_rng(0).normal(size=60))
    found = beats_blind(np.random.default_rng(1).normal(size=60), blind)
    assert found.test.p_value < 0.05
    assert not found.beats_blind


def test_texts_without_words_and_small_classes() -> None:
    empty = blind_baseline(["", "!?", "a", " "] * 5, [0, 1] * 10)
    assert (empty.evaluation.auroc, empty.scores.any()) == (0.5, False)
    few = blind_baseline([f"text {number}" for number in range(20)], [1, 1, 1] + [0] * 17)
    assert few.folds == 3


@pytest.mark.parametrize(
    ("texts", "labels", "options", "error", "message"),
    [
        (["a"] * 9, [0, 1] * 4 + [1], {}, ParamError, "texts has 9 entries, expected at least 10"),
        (["a"] * 12, [1] * 12, {}, ParamError, "labels has 12 documents of label 1 and 0 of label 0, expected both"),
        (
            ["a"] * 12,
            [1] + [0] * 11,
            {},
            ParamError,
            "labels has 1 documents of label 1 and 11 of label 0, expected at",
        ),
        (["a"] * 11, [0, 1] * 6, {}, ShapeError, "texts has 11 entries and labels 12: expected one label for each"),
        (["a"] * 11 + [None], [0, 1] * 6, {}, DTypeError, "texts[11] is a NoneType, expected a str"),
        (["a"] * 12, [0, 1] * 6, {"features": "bert"}, ParamError, "features = 'bert', expected one of tfidf, counts"),
        (["a"] * 12, [0, 1] * 6, {"folds": 1}, ParamError, "folds = 1, expected at least 2"),
    ],
)
def test_errors_of_the_baseline(
    texts: Any, labels: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        blind_baseline(texts, labels, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(("module", "count"), [(decisions, 3), (baseline, 4)])
def test_examples(module: Any, count: int) -> None:
    failed, tried = doctest.testmod(module)
    assert (failed, tried) == (0, count)

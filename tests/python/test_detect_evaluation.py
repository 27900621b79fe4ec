"""Evaluation of detection scores: against scikit-learn, scipy and definitions written out, intervals by simulation."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
import json
import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from xentrs.detect import checked_inputs, evaluation
from xentrs.detect.evaluation import Evaluation, ScoreEvaluation, evaluate, paired_test
from xentrs.detect.intervals import area_difference, auroc_interval, clopper_pearson, placements
from xentrs.detect.roc import RocCurve
from xentrs.errors import DTypeError, ParamError, ShapeError


def sample(seed: int, positives: int, negatives: int, shift: float, *, ties: bool) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(positives + negatives) < positives)
    scores = generator.normal(size=len(labels)) + shift * labels
    return (np.round(scores, 1) if ties else scores), labels


def one(scores: Any, labels: Any, **options: Any) -> ScoreEvaluation:
    return evaluate({"score": scores}, labels, **options).scores["score"]


def binomial_range(trials: int, rate: float) -> tuple[int, int]:
    """Counts that a fair draw leaves with probability 2e-4."""
    return int(stats.binom.ppf(1e-4, trials, rate)), int(stats.binom.isf(1e-4, trials, rate))


CASES = [
    pytest.param(seed, *sizes, ties, id=f"{seed}-{sizes[0]}+{sizes[1]}{'-ties' if ties else ''}")
    for seed, sizes in enumerate([(3, 2), (2, 30), (40, 25), (150, 200), (1, 6)])
    for ties in (False, True)
]


@pytest.mark.parametrize(("seed", "positives", "negatives", "ties"), CASES)
def test_the_curve_and_its_areas_are_those_of_scikit_learn(
    seed: int, positives: int, negatives: int, ties: bool
) -> None:
    scores, labels = sample(seed, positives, negatives, 0.7, ties=ties)
    curve = RocCurve.of(scores, labels)
    fpr, tpr, thresholds = metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    np.testing.assert_array_equal(curve.fpr, fpr)
    np.testing.assert_array_equal(curve.tpr, tpr)
    assert one(scores, labels).auroc == pytest.approx(metrics.roc_auc_score(labels, scores), rel=1e-14)
    for limit in (0.01, 0.05, 0.3, 1 / 3, 0.999):
        found = one(scores, labels, partial_fpr=limit).partial_area
        assert found.one_way_standardised == pytest.approx(
            metrics.roc_auc_score(labels, scores, max_fpr=limit), rel=1e-12
        )
    whole = one(scores, labels, partial_fpr=1.0).partial_area
    assert whole.one_way == pytest.approx(metrics.roc_auc_score(labels, scores), rel=1e-14)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("max_fpr", "min_tpr"), [(0.05, 0.05), (0.5, 0.4), (0.123, 0.777), (1.0, 0.01)])
def test_the_two_way_area_is_that_above_and_left(max_fpr: float, min_tpr: float, ties: bool) -> None:
    scores, labels = sample(11, 80, 60, 1.0, ties=ties)
    found = one(scores, labels, partial_fpr=max_fpr, partial_tpr=min_tpr).partial_area
    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    # Midpoints of many narrow strips; each piece of the line is off by at most a strip.
    middles = (np.arange(400_000) + 0.5) * max_fpr / 400_000
    expected = np.maximum(np.interp(middles, fpr, tpr) - min_tpr, 0.0).mean() * max_fpr
    assert found.two_way == pytest.approx(expected, abs=1e-6)
    assert found.two_way_share == pytest.approx(found.two_way / (max_fpr * (1 - min_tpr)), rel=1e-14)


def test_partial_areas_of_perfect_and_useless_scores() -> None:
    labels = np.arange(40) % 2
    perfect = one(labels.astype(float), labels, partial_fpr=0.1, partial_tpr=0.3).partial_area
    assert (perfect.one_way, perfect.one_way_standardised, perfect.two_way_share) == pytest.approx((0.1, 1.0, 1.0))
    chance = one(np.zeros(40), labels, partial_fpr=0.1, partial_tpr=0.1).partial_area
    assert (chance.one_way, chance.one_way_standardised, chance.two_way) == pytest.approx((0.005, 0.5, 0.0), abs=1e-15)


@pytest.mark.parametrize(("seed", "positives", "negatives", "ties"), CASES)
def test_operating_points_and_accuracy_by_trying_every_threshold(
    seed: int, positives: int, negatives: int, ties: bool
) -> None:
    scores, labels = sample(seed, positives, negatives, 0.7, ties=ties)
    found = one(scores, labels, fprs=(0.1, 0.5, 1.0))
    tried = [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    counts = [(int((scores[labels] >= t).sum()), int((scores[~labels] >= t).sum()), t) for t in tried]
    assert [point.max_fpr for point in found.operating_points] == [0.01, 0.05, 0.1, 0.5, 1.0]
    for point in found.operating_points:
        allowed = [entry for entry in counts if entry[1] / negatives <= point.max_fpr]
        best = max(allowed, key=lambda entry: (entry[0], -entry[1], entry[2]))
        assert (point.true_positives, point.false_positives, point.threshold) == best
        assert (point.tpr, point.fpr) == (best[0] / positives, best[1] / negatives)
        exact = stats.binomtest(best[0], positives).proportion_ci(0.95, "exact")
        assert (point.tpr_interval.low, point.tpr_interval.high) == pytest.approx((exact.low, exact.high), rel=1e-9)
        assert (point.note is not None) == (point.max_fpr * negatives < 1)
    accuracies = [(hit + negatives - wrong) / len(labels) for hit, wrong, _ in counts]
    accuracy = found.best_accuracy
    assert accuracy.accuracy == max(accuracies)
    assert accuracy.threshold == counts[accuracies.index(max(accuracies))][2]
    assert accuracy.majority == max(positives, negatives) / len(labels)


def test_negatives_too_few_for_a_rate_are_said() -> None:
    scores, labels = sample(1, 20, 40, 1.0, ties=False)
    point = one(scores, labels).operating_points[0]
    assert point.note == "40 negatives resolve no rate between 0 and 0.025: at most 0.01 means no false positive here"
    assert point.false_positives == 0
    nothing = one(-np.arange(40.0), np.arange(40) >= 20).operating_points[0]
    assert nothing.threshold == math.inf
    assert nothing.block()["threshold"] is None
    assert nothing.block()["threshold_reason"] == "nothing_called"


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_exact_bounds_are_those_of_scipy(level: float) -> None:
    for trials in (1, 2, 7, 40):
        for successes in range(trials + 1):
            found = clopper_pearson(successes, trials, level)
            exact = stats.binomtest(successes, trials).proportion_ci(level, "exact")
            assert (found.low, found.high) == pytest.approx((exact.low, exact.high), rel=1e-9, abs=1e-15)
    with pytest.raises(ParamError, match="0 of 0 is no rate, expected at least one trial"):
        clopper_pearson(0, 0)
    with pytest.raises(ParamError, match=r"level = 1.0 is outside \(0, 1\)"):
        clopper_pearson(1, 2, 1.0)


def pairwise_covariance(first: Any, second: Any, labels: Any) -> float:
    """Definition of DeLong et al., pair by pair."""

    def kernel(scores: Any) -> Any:
        above = np.sign(scores[labels][:, None] - scores[~labels])
        return (above + 1.0) / 2.0

    kernels = [kernel(first), kernel(second)]
    parts = []
    for axis in (1, 0):
        placed = [table.mean(axis=axis) for table in kernels]
        count = len(placed[0])
        centred = [values - table.mean() for values, table in zip(placed, kernels, strict=True)]
        parts.append(math.fsum((centred[0] * centred[1]).tolist()) / (count - 1) / count)
    return sum(parts)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("positives", "negatives"), [(2, 2), (5, 30), (60, 41)])
def test_delong_is_the_pairwise_definition(positives: int, negatives: int, ties: bool) -> None:
    first, labels = sample(3, positives, negatives, 0.5, ties=ties)
    second = np.round(first + np.random.default_rng(4).normal(size=len(first)), 1 if ties else 17)
    areas = [placements(values, labels) for values in (first, second)]
    mann_whitney = stats.mannwhitneyu(first[labels], first[~labels]).statistic / (positives * negatives)
    assert areas[0].auroc == pytest.approx(mann_whitney, rel=1e-14)
    variances = [pairwise_covariance(values, values, labels) for values in (first, second)]
    covariance = pairwise_covariance(first, second, labels)
    assert [area.variance for area in areas] == pytest.approx(variances, rel=1e-10)
    expected = variances[0] + variances[1] - 2 * covariance
    difference = area_difference(areas[0], areas[1], "two-sided")
    assert difference.z == pytest.approx((areas[0].auroc - areas[1].auroc) / math.sqrt(expected), rel=1e-8)
    assert difference.p_value == pytest.approx(2 * stats.norm.sf(abs(difference.z or 0.0)), rel=1e-12)
    greater = area_difference(areas[0], areas[1], "greater")
    assert greater.p_value == pytest.approx(stats.norm.sf(difference.z), rel=1e-12)


@pytest.mark.parametrize(("positives", "negatives", "shift"), [(30, 30, 0.0), (30, 60, 1.0), (25, 25, 2.0)])
def test_intervals_cover_what_they_promise(positives: int, negatives: int, shift: float) -> None:
    truth = stats.norm.cdf(shift / math.sqrt(2))
    trials, covered = 1500, 0
    for seed in range(trials):
        scores, labels = sample(seed, positives, negatives, shift, ties=False)
        interval = auroc_interval(placements(scores, labels))
        covered += interval.low <= truth <= interval.high
    # At these sizes the method may be a point off its level.
    assert binomial_range(trials, 0.94)[0] <= covered <= binomial_range(trials, 0.975)[1]


def test_the_paired_test_is_uniform_under_the_null_and_has_power() -> None:
    p_values = []
    for seed in range(600):
        generator = np.random.default_rng(seed)
        labels = np.arange(120) < 50
        shared = generator.normal(size=120) + labels
        scores = [shared + generator.normal(size=120) for _ in range(2)]
        p_values.append(area_difference(*(placements(values, labels) for values in scores), "two-sided").p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    labels = np.arange(120) < 50
    better = np.random.default_rng(0).normal(size=120) + 3.0 * labels
    found = paired_test(better, shared, labels, names=("new", "old"), alternative="greater")
    assert found.p_value < 1e-3
    assert found.interval.low > 0.0
    assert (found.first, found.second, found.method) == ("new", "old", "delong")


def test_degenerate_areas_have_intervals() -> None:
    labels = np.arange(12) >= 4
    perfect = one(np.arange(12.0), labels)
    # Four disjoint pairs, all in order: 0.025 = low^4.
    assert (perfect.auroc, perfect.interval.high, perfect.interval.method) == (1.0, 1.0, "exact_pairs")
    assert perfect.interval.low == pytest.approx(0.025**0.25)
    assert perfect.standard_error == 0.0
    reverse = one(-np.arange(12.0), labels)
    assert (reverse.interval.low, reverse.interval.high) == pytest.approx((0.0, 1 - 0.025**0.25))
    constant = one(np.full(12, 1 / 3), labels)
    assert (constant.auroc, constant.interval.method) == (0.5, "hoeffding")
    assert constant.interval.low == pytest.approx(max(0.0, 0.5 - math.sqrt(math.log(40) / 8)))
    single = one([5.0, 1.0, 2.0, 6.0, 3.0], [1, 0, 0, 0, 0])
    assert (single.standard_error, single.interval.low, single.interval.high) == (None, 0.0, 1.0)
    assert single.block()["standard_error_reason"] == "one_document_in_a_class"


def test_degenerate_differences_are_bounded() -> None:
    labels = np.arange(40) >= 20
    same = paired_test(np.arange(40.0), np.exp(np.arange(40.0)), labels)
    assert (same.difference, same.z, same.p_value) == (0.0, None, 1.0)
    assert same.block()["z_reason"] == "no_variance"
    apart = paired_test(np.arange(40.0), -np.arange(40.0), labels)
    assert (apart.difference, apart.z, apart.method) == (1.0, None, "hoeffding")
    assert apart.p_value == pytest.approx(2 * math.exp(-20 / 2))
    backwards = paired_test(-np.arange(40.0), np.arange(40.0), labels, alternative="greater")
    assert backwards.p_value == 1.0


def test_infinite_scores_are_scores() -> None:
    scores = np.array([-np.inf, 0.0, -np.inf, 1.0, np.inf, np.inf, 2.0])
    labels = np.array([0, 0, 1, 0, 1, 1, 1], dtype=bool)
    finite = np.array([-9.0, 0.0, -9.0, 1.0, 9.0, 9.0, 2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, expected = one(scores, labels), one(finite, labels)
    assert (found.auroc, found.interval, found.partial_area) == (
        expected.auroc,
        expected.interval,
        expected.partial_area,
    )
    point = found.operating_points[0]
    assert point.threshold == 2.0
    infinite = one(np.array([np.inf, 0, 1, np.inf, 0.5]), [1, 0, 0, 1, 1], fprs=()).best_accuracy
    assert infinite.block()["threshold_reason"] == "infinite_score"


def test_nan_is_counted_named_and_left_out_of_its_score_alone() -> None:
    scores, labels = sample(5, 30, 30, 1.0, ties=False)
    holed = scores.copy()
    holed[[3, 17, 41]] = np.nan
    thin = np.full(60, np.nan)
    thin[:4] = 1.0
    one_class = np.where(labels, scores, np.nan)
    found = evaluate({"whole": scores, "holed": holed, "thin": thin, "one class": one_class}, labels)
    assert found.scores["whole"] == dataclasses.replace(one(scores, labels), name="whole")
    entry = found.scores["holed"]
    assert (entry.nan_count, entry.nan_documents, entry.documents) == (3, (3, 17, 41), 57)
    rest = np.delete(np.arange(60), [3, 17, 41])
    assert entry.auroc == one(scores[rest], labels[rest]).auroc
    assert found.unevaluated["thin"].reason == "56 of 60 values are NaN, left 4 documents, expected at least 5"
    assert found.unevaluated["one class"].reason == (
        "30 of 60 values are NaN, left 30 documents of label 1 and 0 of label 0, expected both"
    )
    test = paired_test(scores, holed, labels)
    assert (test.documents, test.left_out, test.difference) == (57, 3, 0.0)


def test_results_are_plain_data() -> None:
    scores, labels = sample(6, 9, 12, 0.4, ties=True)
    found = evaluate({"a": scores, "b": np.full(21, np.nan)}, labels, fprs=[0.2])
    block = found.block()
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    assert block["scores"]["a"]["auroc"] == found.scores["a"].auroc
    assert pickle.loads(pickle.dumps(found)) == found
    lines = repr(found).splitlines()
    assert lines[0] == "Evaluation(9 + 12 documents, level 0.95)"
    assert lines[1].startswith("  ScoreEvaluation(a: AUROC 0.")
    assert lines[2].startswith("  b: not evaluated, 21 of 21 values are NaN")
    assert isinstance(found, Evaluation)


def test_order_type_and_container_of_the_input_do_not_matter() -> None:
    import torch

    scores, labels = sample(7, 20, 20, 0.5, ties=True)
    expected = one(scores, labels)
    order = np.random.default_rng(0).permutation(40)
    assert one(scores[order], labels[order]) == expected
    assert one(torch.tensor(scores), torch.tensor(labels)) == expected
    assert one(scores.tolist(), labels.astype(int).tolist()) == expected
    frozen = np.repeat(scores, 2)[::2]
    frozen.flags.writeable = False
    assert one(frozen, labels.astype(np.float32)) == expected


LABELS = [0, 1, 0, 1, 0, 1]
ERRORS: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    ({}, LABELS, {}, ParamError, "scores is empty, expected at least one score"),
    ([1.0], LABELS, {}, DTypeError, "scores is a list, expected a mapping of names to numbers"),
    ({"a": [1.0] * 5}, LABELS, {}, ShapeError, "scores['a'] has 5 values and labels 6: expected one for each"),
    ({"a": [[1.0] * 6]}, LABELS, {}, ShapeError, "scores['a'] has shape (1, 6), expected one value for each document"),
    ({"a": ["x"] * 6}, LABELS, {}, DTypeError, "scores['a'] holds <U1, expected numbers"),
    ({"a": [1.0] * 6}, [0, 1, 2, 1, 0, 1], {}, ParamError, "labels[2] = 2, expected 0 or 1"),
    ({"a": [1.0] * 6}, [0, 1, 0, 1, math.nan, 1], {}, ParamError, "labels[4] = nan, expected 0 or 1"),
    ({"a": [1.0] * 4}, [0, 1, 0, 1], {}, ParamError, "labels has 4 documents, expected at least 5"),
    ({"a": [1.0] * 6}, [1] * 6, {}, ParamError, "labels has 6 documents of label 1 and 0 of label 0, expected both"),
    ({"a": [1.0] * 6}, LABELS, {"fprs": [0.1, 0.0]}, ParamError, "fprs[1] = 0.0 is outside (0, 1]"),
    ({"a": [1.0] * 6}, LABELS, {"partial_fpr": 1.5}, ParamError, "partial_fpr = 1.5 is outside (0, 1]"),
    ({"a": [1.0] * 6}, LABELS, {"partial_tpr": 1.0}, ParamError, "partial_tpr = 1.0 is outside (0, 1)"),
    ({"a": [1.0] * 6}, LABELS, {"level": 95}, ParamError, "level = 95 is outside (0, 1)"),
]


@pytest.mark.parametrize(("scores", "labels", "options", "error", "message"), ERRORS, ids=itertools.count())
def test_errors_say_place_and_numbers(
    scores: Any, labels: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        evaluate(scores, labels, **options)
    assert message in str(caught.value)


def test_errors_of_the_paired_test() -> None:
    with pytest.raises(ParamError, match="alternative = 'less', expected one of two-sided, greater"):
        paired_test([1.0] * 6, [1.0] * 6, LABELS, alternative="less")
    with pytest.raises(ParamError, match="a and b have in common 2 documents, expected at least 5"):
        paired_test([1.0] * 4 + [math.nan] * 2, [math.nan] * 2 + [1.0] * 4, LABELS, names=("a", "b"))
    with pytest.raises(ShapeError, match="b has 5 values and labels 6"):
        paired_test([1.0] * 6, [1.0] * 5, LABELS, names=("a", "b"))


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(checked_inputs.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"this needs scipy: pip install 'xentrs\[detect\]'"):
        clopper_pearson(1, 2)
    with pytest.raises(ImportError, match="this needs scikit-learn"):
        checked_inputs.optional_module("sklearn.linear_model")


def test_examples() -> None:
    failed, tried = doctest.testmod(evaluation)
    assert (failed, tried) == (0, 4)

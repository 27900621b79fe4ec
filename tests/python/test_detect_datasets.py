"""Tests of whole datasets: errors of the first kind by simulation, power, honest halves, oracles of scipy."""

from __future__ import annotations

import doctest
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats
from xentrs.detect import benchmark_order, dataset_tests
from xentrs.detect.benchmark_order import order_log_probs, order_test, shard_bounds
from xentrs.detect.dataset_tests import combined_p_value, dataset_inference
from xentrs.errors import DTypeError, ParamError, ShapeError

LEVELS = (0.01, 0.05, 0.2, 0.5)


def assert_level_kept(p_values: Sequence[float], name: str) -> None:
    """At no level more rejections than a fair test has but once in 10,000 tries."""
    for level in LEVELS:
        rejected = int(np.less_equal(p_values, level).sum())
        allowed = int(stats.binom.isf(1e-4, len(p_values), level))
        assert rejected <= allowed, f"{name}: {rejected} of {len(p_values)} at {level}, at most {allowed}"


def features_of(generator: np.random.Generator, count: int, shift: float = 0.0, skewed: bool = False) -> Any:
    """Six features that are close to each other, as Min-K% at several K are."""
    base = generator.normal(size=(count, 1)) + shift
    features = base + 0.5 * generator.normal(size=(count, 6))
    return np.exp(1.5 * features) if skewed else features


@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize("skewed", [False, True], ids=["normal", "skewed"])
def test_dataset_inference_keeps_its_level(splits: int, skewed: bool) -> None:
    exact, welch = [], []
    for seed in range(400 // splits):
        generator = np.random.default_rng(seed)
        sets = (features_of(generator, count, skewed=skewed) for count in (24, 40))
        found = dataset_inference(*sets, splits=splits, permutations=199, seed=seed)
        exact.append(found.permutation_p_value)
        welch.append(found.welch_p_value)
    assert_level_kept(exact, "permutation")
    if not skewed:
        assert_level_kept(welch, "Welch")
    if splits == 1:
        assert stats.kstest(exact, "uniform").pvalue > 1e-3


def test_dataset_inference_has_power() -> None:
    detected = [
        dataset_inference(
            features_of(np.random.default_rng(seed), 100, shift=0.8),
            features_of(np.random.default_rng(1000 + seed), 100),
            permutations=199,
            seed=seed,
        )
        for seed in range(20)
    ]
    assert sum(found.permutation_p_value <= 0.05 for found in detected) >= 18
    assert sum(found.welch_p_value <= 0.05 for found in detected) >= 18
    assert all(split.difference > 0 for split in detected[0].splits)


def test_the_direction_of_a_feature_is_learned_and_useless_ones_are_ignored() -> None:
    generator = np.random.default_rng(0)
    noise = {f"noise {place}": generator.normal(size=120) for place in range(8)}
    suspect = {"loss": generator.normal(size=120) - 1.5, **noise, "constant": np.ones(120)}
    validation = {name: generator.permutation(values) for name, values in suspect.items()}
    validation["loss"] = generator.normal(size=120)
    found = dataset_inference(suspect, validation, permutations=499)
    assert found.permutation_p_value == 2 / 500
    weights = dict(zip(found.features, found.weights, strict=True))
    assert weights["loss"] < 0.0
    assert max(abs(weight) for name, weight in weights.items() if name != "loss") < abs(weights["loss"]) / 2
    assert weights["constant"] == 0.0
    assert list(weights) == list(suspect)


def test_tested_documents_have_no_say_in_the_fit() -> None:
    """Replacing the tested half leaves weights and, for the fitting half, everything as it was."""
    generator = np.random.default_rng(1)
    suspect, validation = features_of(generator, 30), features_of(generator, 20)
    first = dataset_inference(suspect, validation, splits=1, permutations=9)
    draws = dataset_tests.Draws(0, dataset_tests._STREAM)
    orders = [draws.permutations(1, count)[0] for count in (30, 20)]
    for rows, order in zip((suspect, validation), orders, strict=True):
        rows[order[len(rows) // 2 :]] *= 1000.0
    second = dataset_inference(suspect, validation, splits=1, permutations=9)
    assert first.weights == second.weights
    assert first.splits[0].difference != second.splits[0].difference


def test_welch_and_the_combined_score_are_as_defined() -> None:
    generator = np.random.default_rng(2)
    suspect, validation = features_of(generator, 21, shift=0.3), features_of(generator, 34)
    found = dataset_inference(suspect, validation, splits=1, permutations=99, seed=8, clip=0.1, ridge=0.5)
    draws = dataset_tests.Draws(8, dataset_tests._STREAM)
    orders = [draws.permutations(1, count)[0] for count in (21, 34)]
    (fit_s, test_s), (fit_v, test_v) = (
        (rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]])
        for rows, order in zip((suspect, validation), orders, strict=True)
    )
    fitting = np.vstack([fit_s, fit_v])
    low, high = np.quantile(fitting, 0.1, axis=0), np.quantile(fitting, 0.9, axis=0)
    center, scale = np.clip(fitting, low, high).mean(axis=0), np.clip(fitting, low, high).std(axis=0)

    def scaled(rows: Any) -> Any:
        return (np.clip(rows, low, high) - center) / scale

    label = np.r_[np.ones(len(fit_s)), np.zeros(len(fit_v))]
    gram = scaled(fitting).T @ scaled(fitting) / len(fitting) + 0.5 * np.eye(6)
    weights = np.linalg.inv(gram) @ scaled(fitting).T @ (label - label.mean()) / len(fitting)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-9)
    one, other = scaled(test_s) @ weights, scaled(test_v) @ weights
    expected = stats.ttest_ind(one, other, equal_var=False, alternative="greater")
    split = found.splits[0]
    assert (split.suspect_tested, split.validation_tested) == (11, 17)
    assert split.t == pytest.approx(expected.statistic, rel=1e-9)
    assert found.welch_p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert split.difference == pytest.approx(one.mean() - other.mean(), rel=1e-9)
    exchanged = stats.permutation_test(
        (one, other), lambda x, y: x.mean() - y.mean(), alternative="greater", n_resamples=4000, vectorized=False, rng=0
    )
    many = dataset_inference(suspect, validation, splits=1, permutations=4000, seed=8, clip=0.1, ridge=0.5)
    assert many.permutation_p_value == pytest.approx(exchanged.pvalue, abs=4 * math.sqrt(0.5 / 4000))


def test_the_rule_of_several_splits_keeps_the_level_whatever_the_dependence() -> None:
    assert combined_p_value([0.3]) == 0.3
    assert combined_p_value([0.5, 0.01, 0.2]) == 0.4
    assert combined_p_value([0.5, 0.01, 0.2, 0.04]) == 0.08
    assert combined_p_value([0.9, 0.8]) == 1.0
    generator = np.random.default_rng(0)
    for correlation in (0.0, 0.5, 1.0, -0.2):
        covariance = np.full((5, 5), correlation) + (1 - correlation) * np.eye(5)
        p_values = stats.norm.sf(generator.multivariate_normal(np.zeros(5), covariance, size=4000))
        assert_level_kept([combined_p_value(row) for row in p_values.tolist()], f"correlation {correlation}")


def test_features_that_are_not_finite_and_constant_ones() -> None:
    generator = np.random.default_rng(3)
    suspect, validation = features_of(generator, 30), features_of(generator, 25)
    suspect[[2, 5], [0, 1]] = math.nan, math.inf
    found = dataset_inference(suspect, validation, permutations=9, splits=2)
    assert (found.suspect_documents, found.suspect_left_out, found.validation_left_out) == (28, 2, 0)
    rest = dataset_inference(np.delete(suspect, [2, 5], axis=0), validation, permutations=9, splits=2)
    assert rest.splits == found.splits
    constant = dataset_inference(np.ones((20, 2)), np.ones((20, 2)), permutations=9, splits=1)
    assert (constant.permutation_p_value, constant.welch_p_value, constant.splits[0].t) == (1.0, 1.0, None)
    block = constant.block()
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    assert block["splits"][0]["t_reason"] == "no_variance"
    assert repr(found).endswith("28 suspect and 25 validation documents, 2 splits, seed 0)")


def test_the_seed_decides_alone() -> None:
    generator = np.random.default_rng(4)
    sets = features_of(generator, 30), features_of(generator, 30)
    first, again, other = (dataset_inference(*sets, permutations=19, splits=3, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.splits != other.splits
    assert first.seed == 1


ROWS = np.arange(40.0).reshape(20, 2) % 7


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dataset_inference(ROWS[:9], ROWS), ParamError, "suspect has 9 documents, 9 of them with all features"),
        (
            lambda: dataset_inference(ROWS, np.where(np.arange(20)[:, None] < [0, 12], math.nan, ROWS)),
            ParamError,
            "validation has 20 documents, 8 of them with all features finite, expected at least 10; feature 1 is "
            "finite for 8",
        ),
        (lambda: dataset_inference(ROWS, ROWS[:, :1]), ShapeError, "suspect has 2 features and validation 1"),
        (lambda: dataset_inference(ROWS[:, 0], ROWS), ShapeError, "suspect has shape (20,), expected two axes"),
        (
            lambda: dataset_inference({"a": [1.0]}, {"b": [1.0]}),
            ShapeError,
            "suspect has the features a and validation b",
        ),
        (lambda: dataset_inference({}, {}), ShapeError, "suspect has the features none and validation none"),
        (
            lambda: dataset_inference({"a": [1.0] * 20, "b": [1.0] * 19}, {"a": [1.0] * 20, "b": [1.0] * 20}),
            ShapeError,
            "suspect['b'] has 19 values and suspect['a'] 20: expected one for each document in both",
        ),
        (lambda: dataset_inference([["x"]], ROWS), DTypeError, "suspect holds <U1, expected numbers"),
        (lambda: dataset_inference(ROWS, ROWS, splits=0), ParamError, "splits = 0, expected at least 1"),
        (lambda: dataset_inference(ROWS, ROWS, clip=0.5), ParamError, "clip = 0.5 is outside [0, 0.5)"),
        (lambda: dataset_inference(ROWS, ROWS, ridge=0.0), ParamError, "ridge = 0.0 is outside (0, inf)"),
        (lambda: order_test([[1.0, 2.0]]), ParamError, "log_probs has shape (1, 2), expected at least 2 shards and 1"),
        (lambda: order_test([[1.0], [2.0]]), ParamError, "log_probs has shape (2, 1), expected at least 2 shards"),
        (
            lambda: order_test([[1.0, 2.0], [2.0, -math.inf]]),
            ParamError,
            "log_probs[1, 1] = -inf, expected a finite number",
        ),
        (lambda: order_test([1.0]), ShapeError, "log_probs has shape (1,), expected two axes"),
        (
            lambda: order_log_probs(len, "abc", shards=2),
            ParamError,
            "items has 3 entries for 2 shards, expected at least 4",
        ),
        (lambda: order_log_probs(len, "abcd", shards=1), ParamError, "shards = 1, expected at least 2"),
        (lambda: order_log_probs(len, "abcd", shards=2, shuffles=0), ParamError, "shuffles = 0, expected at least 1"),
    ],
    ids=itertools.count(),
)
def test_errors_say_place_and_numbers(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def neighbours(memory: Any, strength: float) -> Callable[[Sequence[int]], float]:
    """A model that knows some items to follow others; the rest is noise that depends on the order alone."""

    def log_prob(items: Sequence[int]) -> float:
        pairs = list(itertools.pairwise(items))
        known = sum(memory.get(first) == second for first, second in pairs)
        return strength * known + sum(math.sin(12.9898 * first + 78.233 * second) for first, second in pairs)

    return log_prob


def test_the_order_test_keeps_its_level() -> None:
    """The published order is drawn at random; the model prefers some neighbours, but not those published."""
    exact, student = [], []
    for seed in range(250):
        generator = np.random.default_rng(seed)
        items = generator.permutation(60).tolist()
        preferred = dict(enumerate(generator.permutation(60).tolist()))
        found = order_test(
            order_log_probs(neighbours(preferred, 2.0), items, shards=6, shuffles=5, seed=seed),
            permutations=499,
            seed=seed,
        )
        exact.append(found.permutation_p_value)
        student.append(found.t_p_value)
    assert_level_kept(exact, "permutation")
    assert stats.kstest(exact, "uniform").pvalue > 1e-3
    assert_level_kept(student, "t")


def test_the_order_test_finds_a_memorised_order() -> None:
    items = np.random.default_rng(0).permutation(200).tolist()
    memory = dict(itertools.pairwise(items))
    log_probs = order_log_probs(neighbours(memory, 1.0), items, shards=10, shuffles=20)
    found = order_test(log_probs)
    assert found.permutation_p_value == 1 / 10_000
    assert found.t_p_value < 1e-3
    assert found.mean_difference > 5
    assert (found.shards, found.shuffles, found.permutations, found.seed) == (10, 20, 9999, 0)


def test_the_t_test_is_that_of_scipy_with_the_unbiased_deviation() -> None:
    table = np.random.default_rng(0).normal(size=(7, 9))
    found = order_test(table, permutations=99)
    expected = stats.ttest_1samp(table[:, 0] - table[:, 1:].mean(axis=1), 0.0, alternative="greater")
    assert found.t == pytest.approx(expected.statistic, rel=1e-12)
    assert found.t_p_value == pytest.approx(expected.pvalue, rel=1e-12)
    block = found.block()
    assert json.loads(json.dumps(block, allow_nan=False)) == block


def test_the_permutation_p_value_is_that_of_all_choices() -> None:
    table = np.random.default_rng(1).normal(size=(4, 5)) + np.array([0.8, 0, 0, 0, 0])
    sums = np.array([sum(choice) for choice in itertools.product(*table.tolist())])
    exact = (sums >= table[:, 0].sum() - 1e-9).mean()
    found = order_test(table, permutations=20_000, seed=3).permutation_p_value
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    # Shifts of a shard, as longer items have, change nothing.
    moved = order_test(table - np.array([[1e6], [0.0], [3e5], [7.0]]), permutations=20_000, seed=3)
    assert moved.permutation_p_value == found


def test_a_model_that_does_not_see_the_order() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=40).tolist()
    log_probs = order_log_probs(lambda items: sum(values[item] for item in items), range(40), shards=5, shuffles=8)
    found = order_test(log_probs, permutations=99)
    assert found.permutation_p_value == 1.0
    flat = order_test(np.zeros((3, 4)), permutations=99)
    assert (flat.t, flat.t_p_value, flat.permutation_p_value) == (None, 1.0, 1.0)
    assert flat.block()["t_reason"] == "no_variance"


def test_shards_and_shuffles() -> None:
    assert shard_bounds(11, 3) == [0, 4, 8, 11]
    assert shard_bounds(6, 3) == [0, 2, 4, 6]
    seen: list[list[str]] = []

    def record(items: Sequence[str]) -> float:
        seen.append(list(items))
        return 0.0

    order_log_probs(record, list("abcdefghijk"), shards=3, shuffles=4, seed=1)
    assert len(seen) == 15
    for shard, expected in enumerate(["abcd", "efgh", "ijk"]):
        calls = seen[5 * shard : 5 * shard + 5]
        assert "".join(calls[0]) == expected
        assert all(sorted(call) == list(expected) for call in calls)
    first = list(seen)
    seen.clear()
    order_log_probs(record, list("abcdefghijk"), shards=3, shuffles=4, seed=1)
    assert seen == first


@pytest.mark.parametrize(("module", "count"), [(dataset_tests, 2), (benchmark_order, 3)])
def test_examples(module: Any, count: int) -> None:
    failed, tried = doctest.testmod(module)
    assert (failed, tried) == (0, count)

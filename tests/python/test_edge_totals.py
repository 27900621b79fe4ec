"""Perplexity over a corpus: the rows A1 to A5 of the edge-case table."""

from __future__ import annotations

import math
import pickle
from typing import Any, Final

import numpy as np
import pytest
import xentrs as xe
from reference import Floats
from test_edge_lse import noise

INF, NAN = math.inf, math.nan
SUMS: Final = ["nll_sum", "mean_nll", "perplexity", "bits_per_token", "mean_nll_finite"]
FIELDS: Final = [*SUMS, *["token_count", "infinite_count", "nan_count", "overflow"]]


def totals_of(*values: Any) -> Any:
    state = xe.Perplexity()
    for value in values:
        state.update_nll(value)
    return state.compute()


def bits(result: Any) -> bytes:
    return np.array([float(getattr(result, field)) for field in FIELDS]).tobytes()


def wide_values(count: int) -> Floats:
    """Values over 60 powers of ten, so that any rounded sum depends on its order."""
    generator = np.random.default_rng(5)
    return np.exp(generator.normal(0.0, 12.0, count)) * generator.random(count)


@pytest.mark.parametrize("updates", [0, 1, 2], ids=lambda updates: f"A1[{updates}]")
def test_no_token(updates: int) -> None:
    state = xe.Perplexity()
    for _ in range(updates):
        state.update(np.zeros((2, 5), np.float32), np.array([-100, -100]))
        state.update_nll(np.empty(0))
    result = state.compute()
    assert result.token_count == 0
    assert result.nll_sum == 0.0
    assert all(math.isnan(value) for value in (result.perplexity, result.mean_nll, result.bits_per_token))
    assert result.infinite_count == result.nan_count == 0
    assert result.overflow is False


@pytest.mark.parametrize(
    ("mean", "overflow"),
    [(709.0, False), (709.78, False), (709.79, True), (1e300, True)],
    ids=lambda value: f"A2[{value}]",
)
def test_mean_beyond_the_largest_exponent(mean: float, overflow: bool) -> None:
    result = totals_of(np.array([mean, mean]))
    assert result.mean_nll == mean
    assert result.overflow is overflow
    assert math.isinf(result.perplexity) is overflow
    if not overflow:
        assert result.perplexity == pytest.approx(math.exp(mean), rel=1e-14)
    assert result.bits_per_token == pytest.approx(mean / math.log(2), rel=1e-15)


@pytest.mark.parametrize("values", [[INF], [1.0, INF, 3.0], [INF, 2.0, INF, INF]], ids=lambda values: f"A3{values}")
def test_infinite_nll(values: list[float]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    for given in (np.array(values), np.array(values[::-1])):
        result = totals_of(given)
        assert result.nll_sum == result.mean_nll == result.perplexity == INF
        assert result.infinite_count == len(values) - len(finite)
        assert result.nan_count == 0
        assert result.token_count == len(values)
        wanted = math.fsum(finite) / len(finite) if finite else NAN
        assert result.mean_nll_finite == pytest.approx(wanted, rel=1e-15, nan_ok=True)


@pytest.mark.parametrize("values", [[NAN], [1.0, NAN, 3.0], [INF, NAN, 2.0, NAN]], ids=lambda values: f"A4{values}")
def test_nan_nll(values: list[float]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    for given in (np.array(values), np.array(values[::-1])):
        result = totals_of(given)
        assert math.isnan(result.nll_sum)
        assert math.isnan(result.mean_nll)
        assert math.isnan(result.perplexity)
        assert result.nan_count == sum(map(math.isnan, values))
        assert result.infinite_count == values.count(INF)
        wanted = math.fsum(finite) / len(finite) if finite else NAN
        assert result.mean_nll_finite == pytest.approx(wanted, rel=1e-15, nan_ok=True)


def test_a3_a4_through_logits() -> None:
    logits = noise(33, np.dtype(np.float32), 4)
    logits[1, 7], logits[2, 3] = -INF, NAN
    state = xe.Perplexity()
    state.update(logits, np.array([7, 7, 7, -100]))
    result = state.compute()
    assert (result.token_count, result.infinite_count, result.nan_count) == (3, 1, 1)
    alone = float(xe.row_stats(logits[0], np.array(7)).nll)
    assert result.mean_nll_finite == alone
    assert math.isnan(result.perplexity)


def test_a5_the_sum_is_that_of_fsum() -> None:
    """Rounded once: equal to math.fsum, bit for bit, over 60 powers of ten."""
    values = wide_values(100_000)
    result = totals_of(values)
    assert result.nll_sum == math.fsum(values)
    assert result.mean_nll == pytest.approx(math.fsum(values) / len(values), rel=3e-16)
    assert result.token_count == len(values)


@pytest.mark.parametrize("special", [[], [INF], [NAN, INF, INF]], ids=lambda special: f"A5{special}")
def test_shards_in_any_order(special: list[float]) -> None:
    values = np.concatenate([wide_values(50_000), special])
    wanted = bits(totals_of(values))
    generator = np.random.default_rng(6)
    for shard_count in (1, 2, 7, 64, 1000):
        shuffled = generator.permutation(values)
        states = []
        for shard in np.array_split(shuffled, shard_count):
            state = xe.Perplexity()
            state.update_nll(shard)
            states.append(pickle.loads(pickle.dumps(state)))
        while len(states) > 1:
            other = states.pop(int(generator.integers(len(states))))
            states[int(generator.integers(len(states)))].merge_state(other)
        assert bits(states[0].compute()) == wanted, shard_count


def test_a5_cancellation_and_range() -> None:
    """The accumulator is as wide as float64: nothing small is lost beside something large."""
    for values in (
        [1e308, 5e-324, 1e-300],
        [2.0**1000, 2.0**-1000, 2.0**-1074] * 3,
        [0.1] * 1001,
        [1e16, 1.0, 1.0],
    ):
        assert totals_of(np.array(values)).nll_sum == math.fsum(values)


def test_a5_batches_of_logits_in_any_order() -> None:
    logits = noise(1000, np.dtype(np.float32), 200)
    targets = np.random.default_rng(7).integers(0, 1000, 200)
    targets[::9] = -100
    whole = xe.Perplexity()
    whole.update(logits, targets)
    assert whole.compute().nll_sum == math.fsum(xe.row_stats(logits, targets).nll)
    assert whole.compute().token_count == int((targets != -100).sum())
    for batch in (1, 3, 64):
        parts = xe.Perplexity()
        for start in reversed(range(0, 200, batch)):
            parts.update(logits[start : start + batch], targets[start : start + batch])
        assert bits(parts.compute()) == bits(whole.compute()), batch
    assert whole.compute().perplexity == xe.perplexity(logits, targets)


def test_update_nll_takes_scalars_and_counts() -> None:
    state = xe.Perplexity()
    state.update_nll(6.0, 3)
    state.update_nll(np.array([1.0, 2.0, 3.0]))
    state.update_nll(2.0)
    result = state.compute()
    assert (result.nll_sum, result.token_count) == (14.0, 7)
    assert result.mean_nll == 2.0
    assert result.perplexity == pytest.approx(math.exp(2.0), rel=1e-15)


def test_other_ignore_index() -> None:
    state = xe.Perplexity(ignore_index=3)
    state.update(np.zeros((3, 5), np.float32), np.array([3, 0, 3]))
    assert state.compute().token_count == 1

"""Entropy: the rows H1 to H10 of the edge-case table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference as ref
import xentrs as xe
from test_edge_divergence import VOCABS, pair
from test_edge_lse import SMALL, constant, noise, positions, tied_maximum

DTYPE = pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
NAN, INF = math.nan, math.inf


@DTYPE
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0], ids=lambda scale: f"H1[{scale}]")
def test_entropy_of_finite_rows(scale: float, dtype: np.dtype[Any]) -> None:
    for vocab in (*SMALL, 32_000, 128_256):
        logits = np.concatenate([noise(vocab, dtype, 2, scale), tied_maximum(vocab, dtype)])
        got = xe.entropy(logits)
        assert got.dtype == np.float64
        assert not np.signbit(got).any()
        for row, value in zip(ref.decode(logits), got, strict=True):
            bound = ref.entropy_bound(row, dtype)
            assert abs(value - ref.entropy(row)) <= bound, (vocab, value, ref.entropy(row))
            assert 0 <= value <= math.log(vocab) + bound
        np.testing.assert_array_equal(xe.row_stats(logits).entropy, got)


@DTYPE
def test_h2_uniform(dtype: np.dtype[Any]) -> None:
    for vocab in (*SMALL, 32_000, 262_144):
        wanted = math.log(vocab)
        assert np.abs(xe.entropy(constant(vocab, dtype)) - wanted).max() <= ref.ulp_of(wanted, dtype)


@DTYPE
def test_h3_one_finite(dtype: np.dtype[Any]) -> None:
    for vocab in VOCABS:
        for value in (0.0, -37.0, 1000.0):
            logits = np.full((len(positions(vocab)), vocab), -INF, dtype)
            for row, place in enumerate(positions(vocab)):
                logits[row, place] = value
            got = xe.entropy(logits)
            np.testing.assert_array_equal(got, 0.0)
            assert not np.signbit(got).any()
            np.testing.assert_array_equal(xe.row_stats(logits).varentropy, 0.0)


@DTYPE
@pytest.mark.parametrize("vocab", [2, 17, 4096, 4097, 32_000])
def test_h4_small_entropy_keeps_its_digits(vocab: int, dtype: np.dtype[Any]) -> None:
    wanted = 1.7418252446695515e-16
    for low, high in ((0, vocab - 1), (vocab - 1, 0)):
        logits = np.full(vocab, -np.inf, dtype)
        logits[high], logits[low] = 0.0, -40.0
        assert abs(float(xe.entropy(logits)) - wanted) <= 8 * ref.ulp_of(wanted, dtype)


@DTYPE
@pytest.mark.parametrize("value", [-INF, INF, NAN], ids=lambda value: f"H5[{value}]")
def test_no_entropy(value: float, dtype: np.dtype[Any]) -> None:
    for vocab in VOCABS:
        logits = np.full((1, vocab), value, dtype)
        assert np.isnan(xe.entropy(logits)).all()
        flag = ref.NAN if math.isnan(value) else ref.POSINF if value > 0 else ref.ALL_NEGINF
        assert xe.row_stats(logits).flags[0] == flag


@DTYPE
def test_h6_difference_overflows(dtype: np.dtype[Any]) -> None:
    largest = ref.largest_finite(dtype)
    for vocab in VOCABS[1:]:
        for count in (1, 2):
            logits = np.full(vocab, -largest, dtype)
            logits[vocab // 2 : vocab // 2 + count] = largest
            value = float(xe.entropy(logits))
            wanted = math.log(min(count, vocab - vocab // 2))
            assert abs(value - wanted) <= ref.ulp_of(wanted, dtype), (vocab, count)


@DTYPE
def test_h7_no_or_one_column(dtype: np.dtype[Any]) -> None:
    with pytest.raises(xe.ShapeError):
        xe.entropy(np.empty((2, 0), dtype))
    got = xe.entropy(np.array([[0.0], [-55.0], [1000.0]], dtype))
    np.testing.assert_array_equal(got, 0.0)
    assert not np.signbit(got).any()


def test_h8_bits_are_rounded_once() -> None:
    """mean_nll / ln 2 within one float64 ulp, from rows and from totals."""
    logits, targets = noise(1000, np.dtype(np.float32), 64), np.arange(64)
    stats, totals = xe.row_stats(logits, targets), xe.Perplexity()
    totals.update(logits, targets)
    for result in (stats, totals.compute()):
        wanted = np.longdouble(result.mean_nll) / np.log(np.longdouble(2))
        assert abs(np.longdouble(result.bits_per_token) - wanted) <= np.spacing(result.bits_per_token)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)
def test_h9_cross_entropy_is_entropy_plus_divergence(dtype: np.dtype[Any]) -> None:
    """10,000 rows, CE(p, q) in float64; the errors of H and KL add."""
    for scale in (0.3, 2.0, 8.0, 20.0):
        p_logits, q_logits = pair(24, dtype, 2500, scale)
        total = xe.entropy(p_logits) + xe.kl_divergence(p_logits, q_logits)
        for p_row, q_row, value in zip(ref.decode(p_logits), ref.decode(q_logits), total, strict=True):
            bound = ref.entropy_bound(p_row, dtype) + ref.kl_bound(p_row, q_row, dtype)
            # And one float64 rounding each in the sum here and in the reference.
            assert abs(value - ref.cross_entropy(p_row, q_row)) <= bound + np.spacing(value)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF, -INF], ids=lambda value: f"H10[{value}]")
def test_entropy_bad_temperature(value: float) -> None:
    with pytest.raises(xe.ParamError, match="temperature"):
        xe.entropy(np.zeros((2, 7), np.float32), temperature=value)


@DTYPE
@pytest.mark.parametrize("temperature", [0.5, 2.0, 16.0], ids=lambda value: f"H10[{value}]")
def test_entropy_temperature(temperature: float, dtype: np.dtype[Any]) -> None:
    logits = noise(1000, dtype, 4)
    scaled = ref.decode(logits) / temperature
    for row, value in zip(scaled, xe.entropy(logits, temperature=temperature), strict=True):
        assert abs(value - ref.entropy(row)) <= ref.entropy_bound(row, dtype)

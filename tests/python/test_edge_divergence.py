"""KL divergence: the rows K1 to K10, K12, K13 and K16 of the edge-case table."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pytest
import reference as ref
import xentrs as xe
from reference import Array, Floats
from test_edge_lse import SMALL, noise, positions, some_negative_infinity

DTYPE = pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
NAN, INF = math.nan, math.inf
VOCABS: Final = (1, 2, 3, 15, 16, 17, 257, 4095, 4096, 4097, 32_000)


def pair(vocab: int, dtype: np.dtype[Any], rows: int, scale: float = 3.0) -> tuple[Array, Array]:
    """Two independent blocks of noise."""
    both = noise(vocab, dtype, 2 * rows, scale)
    return both[:rows].copy(), both[rows:].copy()


def check_kl(p_logits: Array, q_logits: Array, dtype: np.dtype[Any], allowed: int = ref.CLAMPED) -> Floats:
    """Values within the bound of the reference, never below 0, no flag but those allowed."""
    got, flags = xe.kl_divergence(p_logits, q_logits, return_flags=True)
    assert got.dtype == np.float64
    assert flags.dtype == np.uint8
    assert (flags & ~np.uint8(allowed) == 0).all(), flags
    assert (got >= 0).all()
    assert not np.signbit(got).any()
    for p_row, q_row, value in zip(ref.decode(p_logits), ref.decode(q_logits), got, strict=True):
        wanted = ref.kl_divergence(p_row, q_row)
        assert abs(value - wanted) <= ref.kl_bound(p_row, q_row, dtype), (value, wanted, p_row.size)
    return np.asarray(got)


@DTYPE
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_k0_finite_rows(scale: float, dtype: np.dtype[Any]) -> None:
    for vocab in (*SMALL, 128_256):
        check_kl(*pair(vocab, dtype, 2, scale), dtype)


@DTYPE
def test_k1_equal_bytes(dtype: np.dtype[Any]) -> None:
    for vocab in VOCABS:
        logits = noise(vocab, dtype, 3, 10.0)
        logits[1, :: max(2, vocab // 3)] = 20.0
        for other in (logits, logits.copy()):
            got, flags = xe.kl_divergence(logits, other, return_flags=True)
            np.testing.assert_array_equal(got, 0.0)
            assert not np.signbit(got).any()
            assert not (flags & ~np.uint8(ref.CLAMPED)).any()


@DTYPE
def test_k2_p_is_zero_somewhere(dtype: np.dtype[Any]) -> None:
    """Whatever q has there: a value, the row's maximum, or -inf."""
    for vocab in VOCABS[1:]:
        for q_value in (0.0, 25.0, -INF):
            p_logits, q_logits = pair(vocab, dtype, len(positions(vocab)))
            for row, place in enumerate(positions(vocab)):
                p_logits[row, place], q_logits[row, place] = -INF, q_value
            check_kl(p_logits, q_logits, dtype)


@DTYPE
def test_k3_q_is_zero_where_p_is_not(dtype: np.dtype[Any]) -> None:
    for vocab in VOCABS[1:]:
        places = positions(vocab)
        p_logits, q_logits = pair(vocab, dtype, len(places))
        q_logits[np.arange(len(places)), places] = -INF
        got, flags = xe.kl_divergence(p_logits, q_logits, return_flags=True)
        np.testing.assert_array_equal(got, INF)
        np.testing.assert_array_equal(flags, ref.SUPPORT)


@DTYPE
def test_k4_same_mask(dtype: np.dtype[Any]) -> None:
    """Finite, and that of the columns both keep."""
    for vocab in VOCABS[2:]:
        p_logits = some_negative_infinity(vocab, dtype)
        q_logits = np.where(np.isneginf(ref.decode(p_logits)), -INF, noise(vocab, dtype, 3, 2.0)).astype(dtype)
        got = check_kl(p_logits, q_logits, dtype)
        for row in range(3):
            kept = ~np.isneginf(ref.decode(p_logits[row]))
            p_row, q_row = p_logits[row][kept], q_logits[row][kept]
            bound = ref.kl_bound(ref.decode(p_row), ref.decode(q_row), dtype)
            assert abs(float(xe.kl_divergence(p_row, q_row)) - got[row]) <= 2 * bound


@DTYPE
@pytest.mark.parametrize(
    ("p_value", "q_value", "flag", "everywhere"),
    [
        pytest.param(-INF, None, ref.ALL_NEGINF, True, id="K5-p"),
        pytest.param(None, -INF, ref.ALL_NEGINF, True, id="K5-q"),
        pytest.param(-INF, -INF, ref.ALL_NEGINF, True, id="K5-both"),
        pytest.param(NAN, None, ref.NAN, False, id="K6-p"),
        pytest.param(None, NAN, ref.NAN, False, id="K6-q"),
        pytest.param(-INF, NAN, ref.NAN, False, id="K6-where-p-is-zero"),
        pytest.param(NAN, -INF, ref.NAN, False, id="K6-where-q-is-zero"),
        pytest.param(NAN, INF, ref.NAN, False, id="K6-with-inf"),
        pytest.param(INF, None, ref.POSINF, False, id="K7-p"),
        pytest.param(None, INF, ref.POSINF, False, id="K7-q"),
        pytest.param(INF, INF, ref.POSINF, False, id="K7-both"),
        pytest.param(-INF, INF, ref.POSINF, False, id="K7-where-p-is-zero"),
    ],
)
def test_no_divergence(
    p_value: float | None, q_value: float | None, flag: int, everywhere: bool, dtype: np.dtype[Any]
) -> None:
    for vocab in VOCABS[1:]:
        places = positions(vocab)
        p_logits, q_logits = pair(vocab, dtype, len(places))
        for row, place in enumerate(places):
            column = slice(None) if everywhere else place
            if p_value is not None:
                p_logits[row, column] = p_value
            if q_value is not None:
                q_logits[row, column] = q_value
        got, flags = xe.kl_divergence(p_logits, q_logits, return_flags=True)
        assert np.isnan(got).all(), vocab
        assert (flags & flag == flag).all(), (vocab, flags)
        np.testing.assert_array_equal(xe.kl_divergence(p_logits, q_logits), got)


@pytest.mark.parametrize("vocab", [2, 3, 8, 17, 33], ids=lambda vocab: f"K8[{vocab}]")
def test_near_equal_pairs(vocab: int) -> None:
    """200,000 pairs for each size, a million in all: q is p with columns moved by up to two float32 ulps."""
    generator = np.random.default_rng(8 + vocab)
    for scale in (0.5, 3.0, 10.0, 30.0):
        p_logits = generator.normal(0, scale, (50_000, vocab)).astype(np.float32)
        steps = generator.integers(-2, 3, p_logits.shape).astype(np.float32)
        q_logits = p_logits + steps * np.spacing(p_logits)
        got, flags = xe.kl_divergence(p_logits, q_logits, return_flags=True)
        assert (got >= 0).all()
        assert not np.signbit(got).any()
        np.testing.assert_array_equal(got[flags != 0], 0.0)
        assert np.isin(flags, (0, ref.CLAMPED)).all()
        # KL <= (largest |ln p - ln q|)^2 / 2 for close rows; each ratio is at most 2 * moved, each weight off
        # by u (4 + d_i), where sum p_i d_i <= ln V. The gaps d_i are rounded too, which moves each by u d_i.
        largest_gap = (p_logits.max(axis=1) - p_logits.min(axis=1)).astype(np.float64)
        moved = np.abs(q_logits.astype(np.float64) - p_logits).max(axis=1) + 2 * ref.UNIT_F32 * largest_gap
        assert (got <= 4 * moved**2 + 2 * (4 + math.log(vocab)) * ref.UNIT_F32 * moved + 1e-15).all()


@pytest.mark.parametrize(
    ("p_shape", "q_shape"),
    [
        ((2, 7), (2, 8)),
        ((2, 7), (3, 7)),
        ((2, 7), (7,)),
        ((2, 7), (1, 7)),
        ((2, 3, 7), (6, 7)),
        ((2, 7), (2, 0)),
    ],
    ids=lambda shape: f"K9{shape}",
)
def test_shapes_differ(p_shape: tuple[int, ...], q_shape: tuple[int, ...]) -> None:
    for one, other in ((p_shape, q_shape), (q_shape, p_shape)):
        with pytest.raises(xe.ShapeError):
            xe.kl_divergence(np.zeros(one, np.float32), np.zeros(other, np.float32))


@pytest.mark.parametrize("p_dtype", ref.DTYPES.values(), ids=[f"K10-{name}" for name in ref.DTYPES])
@DTYPE
def test_dtypes_differ(p_dtype: np.dtype[Any], dtype: np.dtype[Any]) -> None:
    """The wider of the two decides; every 16-bit value is a float32, so those rows have the float32 bits."""
    p_logits, q_logits = noise(4097, p_dtype, 2), noise(4097, dtype, 3)[1:]
    compute = np.float64 if np.float64 in (p_dtype, dtype) else np.float32
    wanted = xe.kl_divergence(p_logits.astype(compute), q_logits.astype(compute))
    np.testing.assert_array_equal(xe.kl_divergence(p_logits, q_logits), wanted)


@DTYPE
def test_k12_p_underflows(dtype: np.dtype[Any]) -> None:
    """exp(-800) is 0 in every compute type: the term is 0 whatever q has there."""
    for vocab in VOCABS[1:]:
        for q_value in (-INF, -800.0, 0.0):
            p_logits, q_logits = np.full((2, vocab), -800.0, dtype), np.full((2, vocab), q_value, dtype)
            for row, place in enumerate((0, vocab - 1)):
                p_logits[row, place] = q_logits[row, place] = 0.0
            got, flags = xe.kl_divergence(p_logits, q_logits, return_flags=True)
            wanted = math.log(vocab) if q_value == 0.0 else 0.0
            assert np.abs(got - wanted).max() <= ref.lse_bound(vocab, wanted, dtype), (vocab, q_value, got)
            assert not (flags & ~np.uint8(ref.CLAMPED)).any()


@DTYPE
def test_k13_differences_overflow(dtype: np.dtype[Any]) -> None:
    largest = ref.largest_finite(dtype)
    for vocab in VOCABS[1:]:
        peaked, flat = np.full((2, vocab), -largest, dtype), np.zeros((2, vocab), dtype)
        peaked[0, 0] = peaked[1, -1] = largest
        np.testing.assert_array_equal(xe.kl_divergence(peaked, peaked.copy()), 0.0)
        wanted = math.log(vocab)
        assert np.abs(xe.kl_divergence(peaked, flat) - wanted).max() <= ref.lse_bound(vocab, wanted, dtype), vocab
        reverse, flags = xe.kl_divergence(flat, peaked, return_flags=True)
        # (V - 1) / V of p lies where q's logit is 2 * largest below its maximum: huge, never NaN.
        assert (reverse >= 0.5 * largest).all(), (vocab, reverse)
        assert not (flags & (ref.NAN | ref.POSINF | ref.ALL_NEGINF)).any()


@DTYPE
@pytest.mark.parametrize("temperature", [0.5, 2.0, 8.0], ids=lambda value: f"K16[{value}]")
def test_temperature(temperature: float, dtype: np.dtype[Any]) -> None:
    """Powers of two: the division is exact, so scaled logits have the same divergence."""
    p_logits, q_logits = pair(1000, dtype, 4)
    scaled = [(logits / dtype.type(temperature)).astype(dtype) for logits in (p_logits, q_logits)]
    got = xe.kl_divergence(p_logits, q_logits, temperature=temperature)
    for row, value in enumerate(got):
        p_row, q_row = ref.decode(scaled[0][row]), ref.decode(scaled[1][row])
        assert abs(value - ref.kl_divergence(p_row, q_row)) <= ref.kl_bound(p_row, q_row, dtype)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF, -INF], ids=lambda value: f"K16[{value}]")
def test_bad_temperature(value: float) -> None:
    with pytest.raises(xe.ParamError, match="temperature"):
        xe.kl_divergence(np.zeros((2, 7), np.float32), np.zeros((2, 7), np.float32), temperature=value)

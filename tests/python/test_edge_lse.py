"""Log-sum-exp: the rows L1 to L20 of the edge-case table, over dtypes, vocabulary sizes and positions.

`CASES` is also what test_edge_isa.py runs on every instruction set: there the bits must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pytest
import reference as ref
import xentrs as xe
from reference import Array, Floats

SMALL: Final = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 4095, 4096, 4097)
LARGE: Final = (32_000, 49_152, 128_256, 151_936, 256_000, 262_144)
SEED: Final = 20_250_101
Stats = Any


class Case(NamedTuple):
    """One table row: how to build logits of (rows, vocab), and what must hold of the statistics."""

    build: Callable[[int, np.dtype[Any]], Array]
    check: Callable[[Stats, Floats, np.dtype[Any]], None]
    vocabs: tuple[int, ...]


def positions(vocab: int) -> list[int]:
    """First, last, middle, both sides of a lane edge (16) and of a leaf edge (4,096)."""
    wanted = (0, 15, 16, vocab // 2, 4095, 4096, vocab - 1)
    return sorted({place for place in wanted if place < vocab})


def noise(vocab: int, dtype: np.dtype[Any], rows: int, scale: float = 3.0) -> Array:
    generator = np.random.default_rng([SEED, vocab, rows])
    return generator.normal(0.0, scale, (rows, vocab)).astype(dtype)


def with_special(*values: float) -> Callable[[int, np.dtype[Any]], Array]:
    """Noise, one row per position; the values stand at that position and the columns after it (wrapping)."""

    def build(vocab: int, dtype: np.dtype[Any]) -> Array:
        places = positions(vocab)
        logits = noise(vocab, dtype, len(places))
        for row, place in enumerate(places):
            for offset, value in enumerate(values[:vocab]):
                logits[row, (place + offset) % vocab] = value
        return logits

    return build


def signalling_nan(vocab: int, dtype: np.dtype[Any]) -> Array:
    bits = {"float16": 0x7D00, "bfloat16": 0x7FA0, "float32": 0x7FA0_0000, "float64": 0x7FF4_0000_0000_0000}
    logits = with_special(0.0)(vocab, dtype)
    as_integers = logits.view(f"u{dtype.itemsize}")
    for row, place in enumerate(positions(vocab)):
        as_integers[row, place] = bits[dtype.name]
    return logits


def tied_maximum(vocab: int, dtype: np.dtype[Any]) -> Array:
    """The maximum once, twice, ... up to everywhere, each as often as the vocabulary allows."""
    counts = sorted({count for count in (1, 2, 3, 16, 17, vocab) if count <= vocab})
    logits = noise(vocab, dtype, len(counts))
    for row, count in enumerate(counts):
        logits[row, np.linspace(0, vocab - 1, count).astype(int)] = 20.0
    return logits


def some_negative_infinity(vocab: int, dtype: np.dtype[Any]) -> Array:
    """Every third column masked, in three phases; column `row` keeps its value so that no row is all -inf."""
    logits = noise(vocab, dtype, 3)
    for row in range(3):
        kept = logits[row, row % vocab].copy()
        logits[row, (row + 1) % 3 :: 3] = -np.inf
        logits[row, row % vocab] = kept
    return logits


def constant(vocab: int, dtype: np.dtype[Any]) -> Array:
    return np.repeat(np.array([0.0, 1.5, -7.0, 100.0, -1000.0], dtype)[:, None], vocab, axis=1)


def subnormals(vocab: int, dtype: np.dtype[Any]) -> Array:
    """Rows of +0.0 and -0.0 in turn, and of subnormals of both signs."""
    tiny = ref.smallest_subnormal(dtype)
    logits = np.zeros((3, vocab), dtype)
    logits[0, 1::2] = -0.0
    logits[1, :] = tiny
    logits[2, ::2] = -3 * tiny
    return logits


def largest_finite(vocab: int, dtype: np.dtype[Any]) -> Array:
    """All +MAX; MAX once among -MAX at each position; all -MAX."""
    largest = ref.largest_finite(dtype)
    places = positions(vocab)
    logits = np.full((len(places) + 2, vocab), -largest, dtype)
    logits[0] = largest
    for row, place in enumerate(places):
        logits[row + 1, place] = largest
    return logits


def shifted(vocab: int, dtype: np.dtype[Any]) -> Array:
    """x + c for the c that the dtype can hold, rounded to it: the reference sees the rounded values."""
    shifts = (1e3, -1e3) if dtype == np.float16 else (1e3, -1e3, 1e6, -1e6, 1e8, -1e8)
    base = noise(vocab, np.dtype(np.float64), 1)
    return np.concatenate([base + shift for shift in shifts]).astype(dtype)


def check_finite(stats: Stats, rows: Floats, dtype: np.dtype[Any]) -> None:
    for row, got in zip(rows, stats.lse, strict=True):
        wanted = ref.logsumexp(row)
        assert abs(got - wanted) <= ref.lse_bound(row.size, wanted, dtype), (got, wanted, row.size)
        high = row.max() + np.log(row.size)
        assert row.max() <= got <= high + ref.ulp_of(high, dtype)
    assert (stats.flags == 0).all()
    np.testing.assert_array_equal(stats.max_logit, rows.max(axis=1))
    np.testing.assert_array_equal(stats.argmax, rows.argmax(axis=1))


def check_constant(stats: Stats, rows: Floats, dtype: np.dtype[Any]) -> None:
    assert (stats.flags == 0).all()
    for row, got in zip(rows, stats.lse, strict=True):
        wanted = row[0] + np.log(row.size)
        assert abs(got - wanted) <= ref.ulp_of(wanted, dtype), (got, wanted, row.size)


def check_sums(stats: Stats, rows: Floats, dtype: np.dtype[Any]) -> None:
    for row, got in zip(rows, stats.lse, strict=True):
        wanted = ref.logsumexp(row)
        assert abs(got - wanted) <= ref.lse_bound(row.size, wanted, dtype), (got, wanted, row.size)
    assert (stats.flags == 0).all()


def check_single(stats: Stats, rows: Floats, dtype: np.dtype[Any]) -> None:
    np.testing.assert_array_equal(stats.lse, rows[:, 0])
    np.testing.assert_array_equal(np.signbit(stats.lse), np.signbit(rows[:, 0]))
    np.testing.assert_array_equal(stats.margin, np.inf)


def flagged(lse: float, flag: int, max_logit: float) -> Callable[[Stats, Floats, np.dtype[Any]], None]:
    def check(stats: Stats, rows: Floats, dtype: np.dtype[Any]) -> None:
        np.testing.assert_array_equal(stats.lse, lse)
        np.testing.assert_array_equal(stats.flags, flag)
        np.testing.assert_array_equal(stats.max_logit, max_logit)
        np.testing.assert_array_equal(stats.argmax, -1)
        for field in (stats.nll, stats.entropy, stats.varentropy, stats.margin, stats.sum_sq_prob):
            assert np.isnan(field).all()

    return check


def all_negative_infinity(vocab: int, dtype: np.dtype[Any]) -> Array:
    return np.full((2, vocab), -np.inf, dtype)


NAN, INF = float("nan"), float("inf")
IS_NAN, IS_POSINF = flagged(NAN, ref.NAN, NAN), flagged(INF, ref.POSINF, INF)
SOME: Final = (*SMALL, 32_000)
CASES: Final[dict[str, Case]] = {
    "L1": Case(lambda v, t: noise(v, t, 3), check_finite, SMALL + LARGE),
    "L1-wide": Case(lambda v, t: noise(v, t, 3, 30.0), check_finite, SOME),
    "L4": Case(lambda v, t: np.array([[0.0], [-3.75], [1000.0], [-0.0]], t), check_single, (1,)),
    "L5": Case(all_negative_infinity, flagged(-INF, ref.ALL_NEGINF, -INF), (*SMALL, 128_256)),
    "L6": Case(some_negative_infinity, check_sums, (*SMALL[2:], 49_152)),
    "L7": Case(with_special(INF), IS_POSINF, (*SMALL, 151_936)),
    "L7-twice": Case(with_special(INF, INF), IS_POSINF, SMALL),
    "L8": Case(with_special(INF, -INF), IS_POSINF, (*SMALL[1:], 256_000)),
    "L9": Case(with_special(NAN), IS_NAN, (*SMALL, 262_144)),
    "L9-negative": Case(with_special(float(np.copysign(np.nan, -1))), IS_NAN, SMALL),
    "L9-with-inf": Case(with_special(INF, NAN, -INF), IS_NAN, (*SMALL[1:], 32_000)),
    "L9-after-inf": Case(with_special(-INF, INF, NAN), IS_NAN, SMALL[2:]),
    "L10": Case(signalling_nan, IS_NAN, SOME),
    "L11": Case(constant, check_constant, SMALL + LARGE),
    "L12": Case(tied_maximum, check_finite, (*SMALL, 49_152)),
    "L17": Case(largest_finite, check_sums, (*SMALL, 128_256)),
    "L18": Case(shifted, check_sums, (*SMALL, 128_256)),
    "L19": Case(subnormals, check_finite, (*SMALL, 128_256)),
}


@pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
@pytest.mark.parametrize("name", CASES)
def test_table_row(name: str, dtype: np.dtype[Any]) -> None:
    case = CASES[name]
    for vocab in case.vocabs:
        logits = case.build(vocab, dtype)
        stats = xe.row_stats(logits)
        assert stats.lse.dtype == np.float64
        assert stats.lse.shape == logits.shape[:1]
        with np.errstate(all="ignore"):
            case.check(stats, ref.decode(logits), dtype)
        np.testing.assert_array_equal(xe.logsumexp(logits), stats.lse)


LITERALS: Final[list[tuple[str, list[float], float]]] = [
    ("L13-pair", [1000.0, 1000.0], 1000.6931471805599),
    ("L13-many", [10_000.0] * 1000, 10_006.907755278982),
    ("L14-large", [1e10, 1e-10], 1e10),
    ("L14-masked", [-1e10, -INF], -1e10),
    ("L16-spread", [20.0, 30.0, 100.0], 100.0),
    ("L16-inf", [INF], INF),
    ("L17-pair", [3e38, -3e38], 3e38),
]


@pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
@pytest.mark.parametrize(("values", "wanted"), [row[1:] for row in LITERALS], ids=[row[0] for row in LITERALS])
def test_literal(values: list[float], wanted: float, dtype: np.dtype[Any]) -> None:
    with np.errstate(over="ignore"):
        logits = np.array(values).astype(dtype)
    if np.isfinite(wanted):
        # The figure is that of the exact input; the dtype holds its own nearest value (10,000 in bfloat16 is
        # 9,984, 1e10 in float16 is inf, which makes the row L7 or L5).
        wanted += float(logits[0]) - values[0]
    got = float(xe.logsumexp(logits))
    if np.isinf(wanted):
        assert got == wanted
    else:
        assert abs(got - wanted) <= ref.lse_bound(len(values), wanted, dtype)


@pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
@pytest.mark.parametrize("vocab", [2, 17, 4096, 4097, 32_000])
def test_l15_small_rest_keeps_its_digits(vocab: int, dtype: np.dtype[Any]) -> None:
    """-inf padding changes no bit, so the two columns may stand anywhere; -40 is exact in every dtype."""
    for low, high in ((0, vocab - 1), (vocab - 1, 0), (vocab // 2, 0)):
        if low == high:
            continue
        logits = np.full(vocab, -np.inf, dtype)
        logits[high], logits[low] = 0.0, -40.0
        wanted = 4.248354255291589e-18
        assert abs(float(xe.logsumexp(logits)) - wanted) <= 4 * ref.ulp_of(wanted, dtype)
        assert abs(float(xe.row_stats(logits, np.array(high)).nll) - wanted) <= 4 * ref.ulp_of(wanted, dtype)


@pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
def test_l2_no_column(dtype: np.dtype[Any]) -> None:
    np.testing.assert_array_equal(xe.logsumexp(np.empty((3, 0), dtype)), [-np.inf] * 3)
    stats = xe.row_stats(np.empty((3, 0), dtype))
    np.testing.assert_array_equal(stats.lse, -np.inf)
    np.testing.assert_array_equal(stats.argmax, -1)
    np.testing.assert_array_equal(stats.flags, ref.ALL_NEGINF)
    assert np.isnan(stats.nll).all()
    assert np.isnan(stats.varentropy).all()


@pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (0, 3, 7), (2, 0, 7)], ids=str)
def test_l3_no_row(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    top_k = min(2, shape[-1])
    stats = xe.row_stats(np.empty(shape, dtype), top_k=top_k)
    assert stats.lse.shape == stats.flags.shape == shape[:-1]
    assert stats.top_ids.shape == stats.top_log_probs.shape == (*shape[:-1], top_k)
    assert stats.lse.dtype == np.float64
    assert stats.flags.dtype == np.uint8
    assert stats.argmax.dtype == np.int64
    assert xe.logsumexp(np.empty(shape, dtype)).shape == shape[:-1]


@pytest.mark.parametrize("dtype", [ref.DTYPES[name] for name in ("float16", "float32")], ids=str)
def test_l20_rows_beyond_2_to_31_and_2_to_32_elements(dtype: np.dtype[Any], tmp_path: Path) -> None:
    """Rows of a sparse file, 3 * 2^30 and 4.5 * 2^30 elements from its start; no memory is needed."""
    vocab, rows = 4097, 4
    row_length = 2**30 + 2**29
    path = tmp_path / "sparse"
    holder = np.memmap(path, dtype=f"u{dtype.itemsize}", mode="w+", shape=(rows, row_length))
    logits = holder.view(dtype)[:, -vocab:]
    values = noise(vocab, dtype, rows)
    logits[...] = values
    targets = np.array([0, 17, 4095, 4096])
    far, near = xe.row_stats(logits, targets, top_k=3), xe.row_stats(values, targets, top_k=3)
    for field in ("lse", "nll", "entropy", "argmax", "rank", "top_ids"):
        np.testing.assert_array_equal(getattr(far, field), getattr(near, field), err_msg=field)
    del logits, holder
    path.unlink()

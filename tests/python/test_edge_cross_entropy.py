"""Cross-entropy with labels: the rows C1 to C17, C26 and C27 of the edge-case table.

C28 is in test_bindings_threads.py, the values of C26 in test_edge_scaled.py.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pytest
import reference as ref
import xentrs as xe
from reference import Array
from test_edge_lse import LARGE, SMALL, noise, positions

DTYPE = pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
NAN, INF = math.nan, math.inf
VOCABS: Final = (1, 2, 3, 15, 16, 17, 255, 257, 4095, 4096, 4097, 32_000)


def targeted(vocab: int, dtype: np.dtype[Any], scale: float = 3.0) -> tuple[Array, Array]:
    """One row of noise for each target position."""
    targets = np.array(positions(vocab))
    return noise(vocab, dtype, len(targets), scale), targets


@DTYPE
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_c1_finite_row(scale: float, dtype: np.dtype[Any]) -> None:
    sizes = SMALL + LARGE[:1] + ((LARGE[2], LARGE[-1]) if scale == 3.0 else ())
    for vocab in sizes:
        logits, targets = targeted(vocab, dtype, scale)
        stats = xe.row_stats(logits, targets)
        for index, (row, target) in enumerate(zip(ref.decode(logits), targets, strict=True)):
            wanted = ref.nll(row, target)
            got = float(stats.nll[index])
            assert got >= 0
            assert not np.signbit(got)
            assert abs(got - wanted) <= ref.lse_bound(vocab, wanted, dtype), (vocab, index, got, wanted)
            assert stats.rank[index] == ref.rank(row, target)
            assert stats.ties[index] == ref.ties(row, target)
            assert stats.margin[index] == pytest.approx(ref.margin(row), rel=2 * ref.UNIT_F32)
            varentropy_error = abs(stats.varentropy[index] - ref.varentropy(row))
            assert varentropy_error <= ref.varentropy_bound(row, dtype), (vocab, index)
            # Weights are off by u (2 + d_i), squared, over a sum squared; sum p_i d_i <= ln V.
            relative = ref.unit_of(dtype) * (8 + 4 * math.log(vocab))
            assert stats.sum_sq_prob[index] == pytest.approx(ref.sum_sq_prob(row), rel=relative)
        np.testing.assert_array_equal(stats.log_prob, -stats.nll)
        assert stats.token_count == len(targets)
        assert (stats.flags == 0).all()
        np.testing.assert_array_equal(xe.cross_entropy(logits, targets, reduction="none"), stats.nll)


@DTYPE
@pytest.mark.parametrize("gap", [1.0, 10.0, 30.0, 60.0, 80.0])
@pytest.mark.parametrize("vocab", [2, 17, 4097, 32_000])
def test_c1_small_nll_keeps_its_digits(vocab: int, gap: float, dtype: np.dtype[Any]) -> None:
    """The target holds the maximum: nll = log1p(r), whose relative error is u (2 + gap) and half an ulp."""
    for target in positions(vocab):
        logits = np.full(vocab, -gap, dtype)
        logits[target] = 0.0
        wanted = ref.nll(ref.decode(logits), target)
        relative = ref.unit_of(dtype) * (4 + gap)
        assert abs(float(xe.row_stats(logits, np.array(target)).nll) - wanted) <= relative * wanted


@DTYPE
def test_c2_large_offset(dtype: np.dtype[Any]) -> None:
    offset = 6e4 if dtype == np.float16 else 1e8
    got = float(xe.row_stats(np.array([offset, offset], dtype), np.array(1)).nll)
    assert abs(got - math.log(2)) <= ref.lse_bound(2, got, dtype)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)
def test_c3_shifted_rows_agree(dtype: np.dtype[Any]) -> None:
    """rand - 1e7, rounded; adding 1e7 back is exact, so both rows have the same cross-entropy."""
    low = (np.random.default_rng(3).random((8, 1000)) * 10 - 1e7).astype(dtype)
    near = (low.astype(np.float64) + 1e7).astype(dtype)
    assert (near.astype(np.float64) == low.astype(np.float64) + 1e7).all()
    targets = np.arange(8)
    far_nll, near_nll = (xe.row_stats(rows, targets).nll for rows in (low, near))
    bounds = [2 * ref.lse_bound(1000, value, dtype) for value in near_nll]
    assert (np.abs(far_nll - near_nll) <= bounds).all()


@DTYPE
def test_c4_target_has_probability_zero(dtype: np.dtype[Any]) -> None:
    for vocab in VOCABS[1:]:
        logits, targets = targeted(vocab, dtype)
        logits[np.arange(len(targets)), targets] = -INF
        stats = xe.row_stats(logits, targets)
        np.testing.assert_array_equal(stats.nll, INF)
        np.testing.assert_array_equal(stats.flags, ref.TARGET_NEGINF)
        assert np.isfinite(stats.lse).all()
        assert np.isfinite(stats.entropy).all()
        assert float(xe.cross_entropy(logits, targets)) == INF


@DTYPE
@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ((-INF,), ref.ALL_NEGINF),
        ((INF,), ref.POSINF),
        ((INF, -INF), ref.POSINF),
        ((NAN,), ref.NAN),
        ((NAN, INF), ref.NAN),
    ],
    ids=["C5-all-neginf", "C6-posinf", "C6-both-inf", "C7-nan", "C7-nan-and-inf"],
)
def test_rows_without_a_loss(values: tuple[float, ...], flag: int, dtype: np.dtype[Any]) -> None:
    """The special value stands at each position, the target at, before and after it."""
    for vocab in VOCABS:
        if len(values) > vocab:
            continue
        places = positions(vocab)
        logits = noise(vocab, dtype, len(places))
        for row, place in enumerate(places):
            if flag == ref.ALL_NEGINF:
                logits[row] = -INF
            for offset, value in enumerate(values):
                logits[row, (place + offset) % vocab] = value
        for step in (0, 1, -1):
            stats = xe.row_stats(logits, (np.array(places) + step) % vocab, top_k=min(2, vocab))
            assert np.isnan([stats.nll, stats.log_prob]).all(), (vocab, step)
            assert (stats.flags & ~np.uint8(ref.TARGET_NEGINF) == flag).all(), (vocab, step, stats.flags)
            for field in (stats.entropy, stats.varentropy, stats.margin, stats.sum_sq_prob):
                assert np.isnan(field).all()
            np.testing.assert_array_equal(stats.argmax, -1)
            np.testing.assert_array_equal(stats.rank, 0)
            assert stats.token_count == len(places)
            assert math.isnan(stats.mean_nll)


@DTYPE
@pytest.mark.parametrize("ignore_index", [-100, 0, 2, 50], ids=["C8", "C9-first", "C9-inside", "C8-beyond"])
def test_ignored_rows(ignore_index: int, dtype: np.dtype[Any]) -> None:
    """Rows 1, 3 and 4 are ignored and hold what must not leak; 0 and 2 count."""
    logits = noise(33, dtype, 5)
    logits[1], logits[3, 4], logits[4] = NAN, INF, -INF
    targets = np.array([7, ignore_index, 8, ignore_index, ignore_index])
    stats = xe.row_stats(logits, targets, ignore_index=ignore_index)
    alone = xe.row_stats(logits[[0, 2]], targets[[0, 2]])
    ignored = np.array([False, True, False, True, True])
    np.testing.assert_array_equal(stats.flags, np.where(ignored, ref.IGNORED, 0))
    np.testing.assert_array_equal(stats.nll[~ignored], alone.nll)
    for name, value in {"nll": 0.0, "log_prob": 0.0, "argmax": -1, "rank": 0, "ties": 0}.items():
        np.testing.assert_array_equal(getattr(stats, name)[ignored], value, err_msg=name)
    for name in ("lse", "entropy", "varentropy", "max_logit", "margin", "sum_sq_prob"):
        assert np.isnan(getattr(stats, name)[ignored]).all(), name
    assert stats.token_count == 2
    assert stats.mean_nll == pytest.approx(math.fsum(alone.nll) / 2, rel=1e-15)
    total = xe.cross_entropy(logits, targets, reduction="sum", ignore_index=ignore_index)
    assert float(total) == pytest.approx(math.fsum(alone.nll), rel=1e-15)


@pytest.mark.parametrize("bad", [7, -1, -101, 2**31, 2**63 - 1, -(2**63)], ids=lambda bad: f"C10[{bad}]")
def test_target_outside(bad: int) -> None:
    for function in (xe.row_stats, xe.cross_entropy, xe.perplexity):
        with pytest.raises(xe.TargetError) as caught:
            function(np.zeros((4, 7), np.float32), np.array([0, 6, bad, 99]))
        assert f"targets[2] = {bad} is outside [0, 7)" in str(caught.value)


def test_c10_ignore_index_is_no_licence() -> None:
    """-100 is an error where another id is ignored."""
    with pytest.raises(xe.TargetError, match=r"targets\[0\] = -100"):
        xe.row_stats(np.zeros((1, 7), np.float32), np.array([-100]), ignore_index=3)


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (np.full((3, 5), NAN, np.float32), np.full(3, -100)),
        (np.empty((0, 5), np.float32), np.empty(0, np.int64)),
    ],
    ids=["C11-all-ignored", "C11-no-row"],
)
def test_no_counted_row(logits: Array, targets: Array) -> None:
    stats = xe.row_stats(logits, targets)
    assert stats.token_count == 0
    assert all(math.isnan(value) for value in (stats.mean_nll, stats.perplexity, stats.bits_per_token))
    assert float(xe.cross_entropy(logits, targets, reduction="sum")) == 0.0
    assert math.isnan(float(xe.cross_entropy(logits, targets, reduction="mean")))
    np.testing.assert_array_equal(xe.cross_entropy(logits, targets, reduction="none"), np.zeros(len(targets)))
    assert math.isnan(xe.perplexity(logits, targets))


INTEGERS: Final = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", ">i4", ">u8")


@pytest.mark.parametrize("kind", INTEGERS, ids=lambda kind: f"C12[{kind}]")
def test_integer_targets(kind: str) -> None:
    logits = noise(100, np.dtype(np.float32), 3)
    wanted = xe.row_stats(logits, np.array([0, 99, 50])).nll
    np.testing.assert_array_equal(xe.row_stats(logits, np.array([0, 99, 50]).astype(kind)).nll, wanted)


@pytest.mark.parametrize("value", [2**63, 2**64 - 100, 2**64 - 1], ids=lambda value: f"C13[{value}]")
def test_unsigned_target_beyond_int64(value: int) -> None:
    """2^64 - 100 must not wrap to the ignore_index -100."""
    with pytest.raises(xe.TargetError, match=str(value)):
        xe.row_stats(np.zeros((1, 7), np.float32), np.array([value], np.uint64))


BAD_TARGETS: Final[dict[str, Array]] = {
    "C14-float": np.array([0.0, 1.0]),
    "C14-bool": np.array([True, False]),
    "C14-object": np.array([0, 1], object),
    "C14-str": np.array(["0", "1"]),
    "C14-complex": np.array([0j, 1j]),
    "C14-datetime": np.array([0, 1], "datetime64[s]"),
}


@pytest.mark.parametrize("targets", BAD_TARGETS.values(), ids=list(BAD_TARGETS))
def test_targets_of_another_type(targets: Array) -> None:
    with pytest.raises(xe.DTypeError, match="targets"):
        xe.row_stats(np.zeros((2, 7), np.float32), targets)


@pytest.mark.parametrize("shape", [(1,), (3,), (0,), (), (2, 1), (1, 2), (2, 7)], ids=lambda shape: f"C15{shape}")
def test_targets_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(xe.ShapeError, match="targets"):
        xe.row_stats(np.zeros((2, 7), np.float32), np.zeros(shape, np.int64))


def test_c15_class_axis_second_names_movedim() -> None:
    with pytest.raises(xe.ShapeError, match="movedim"):
        xe.cross_entropy(np.zeros((2, 7, 5), np.float32), np.zeros((2, 5), np.int64))


@DTYPE
def test_c16_no_column(dtype: np.dtype[Any]) -> None:
    with pytest.raises(xe.ShapeError):
        xe.row_stats(np.empty((1, 0), dtype), np.array([0]))
    stats = xe.row_stats(np.empty((1, 0), dtype), np.array([-100]))
    assert stats.nll[0] == 0.0
    assert stats.flags[0] == ref.IGNORED
    assert stats.token_count == 0


@DTYPE
def test_c17_one_column(dtype: np.dtype[Any]) -> None:
    logits = np.array([[0.0], [-1000.0], [6e4], [-0.0]], dtype)
    stats = xe.row_stats(logits, np.zeros(4, np.int64))
    np.testing.assert_array_equal(stats.nll, 0.0)
    assert not np.signbit(stats.nll).any()
    np.testing.assert_array_equal(stats.rank, 1)
    np.testing.assert_array_equal(stats.sum_sq_prob, 1.0)


BAD_TEMPERATURES: Final = (0.0, -0.0, -1.0, NAN, INF, -INF)
BAD_SOFTCAPS: Final = (0.0, -0.0, -30.0, NAN, -INF)


@pytest.mark.parametrize("value", BAD_TEMPERATURES, ids=lambda value: f"C26[{value}]")
def test_temperature(value: float) -> None:
    logits, targets = np.zeros((2, 7), np.float32), np.zeros(2, np.int64)
    for function in (xe.row_stats, xe.cross_entropy, xe.perplexity):
        with pytest.raises(xe.ParamError, match="temperature"):
            function(logits, targets, temperature=value)
    for unary in (xe.logsumexp, xe.entropy):
        with pytest.raises(xe.ParamError, match="temperature"):
            unary(logits, temperature=value)
    with pytest.raises(xe.ParamError, match="temperature"):
        xe.RowStatsState(7, rows=2, temperature=value)


@pytest.mark.parametrize("value", BAD_SOFTCAPS, ids=lambda value: f"C26[{value}]")
def test_softcap(value: float) -> None:
    logits, targets = np.zeros((2, 7), np.float32), np.zeros(2, np.int64)
    for function in (xe.row_stats, xe.cross_entropy, xe.perplexity):
        with pytest.raises(xe.ParamError, match="softcap"):
            function(logits, targets, softcap=value)
    for unary in (xe.logsumexp, xe.entropy):
        with pytest.raises(xe.ParamError, match="softcap"):
            unary(logits, softcap=value)


@pytest.mark.parametrize("value", ["", "Mean", "avg", "batchmean", None, 3], ids=lambda value: f"C27[{value!r}]")
def test_reduction(value: Any) -> None:
    with pytest.raises(xe.ParamError, match="reduction"):
        xe.cross_entropy(np.zeros((2, 7), np.float32), np.zeros(2, np.int64), reduction=value)
    with pytest.raises(xe.ParamError, match="reduction"):
        xe.kl_divergence(np.zeros((2, 7), np.float32), np.zeros((2, 7), np.float32), reduction=value)

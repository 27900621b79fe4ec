"""Losses: label smoothing, z-loss, class weights and soft targets; the rows C18 to C25 of the edge-case table.

Longer than other files: class ids and target distributions are held to the same bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
import reference as ref
import torch
import xentrs as xe
from reference import Array, Floats
from test_bindings_torch import as_torch
from test_edge_lse import noise
from xentrs.adapters import numpy as of_numpy
from xentrs.arguments import settings

DTYPE = pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
NAN, INF = math.nan, math.inf
SCALINGS: Final[list[dict[str, Any]]] = [{}, {"softcap": 5.0}, {"softcap": 30.0, "temperature": 0.7}]


def scaled(logits: Array, softcap: float | None = None, temperature: float = 1.0) -> Floats:
    """z = softcap(x) / temperature in float64."""
    decoded = ref.decode(logits)
    capped = decoded if softcap is None else softcap * np.tanh(decoded / softcap)
    z: Floats = capped / temperature
    return z


def row_bound(z: Floats, dtype: np.dtype[Any], scaling: dict[str, Any]) -> Floats:
    """Allowed error of nll and of mean(lse - z), for each row.

    Both are ln s plus one distance, or the mean of distances, below the largest logit. ln s and the rounding of the
    result are `lse_bound`. Each distance is a difference, maybe times a weight that was rounded, and is added: 4 u of
    the largest distance. A soft cap or temperature rounds each z, up to twice: 2 u max|z|, in lse and in z.
    """
    unit, spans = ref.unit_of(dtype), z.max(-1) - z.min(-1)
    moved = 4 * unit * np.abs(z).max(-1) if scaling else np.zeros(z.shape[:-1])
    sums = [ref.lse_bound(z.shape[-1], span + 20.0, dtype) for span in spans.reshape(-1).tolist()]
    bound: Floats = np.reshape(sums, spans.shape) + 4 * unit * spans + moved
    return bound


def torch_loss(
    z: Floats, targets: Array, weight: Array | None, reduction: str, z_loss: float, **options: Any
) -> tuple[Floats, Floats]:
    """torch's cross-entropy in float64 plus the documented z-loss; also lse."""
    flat, ids = torch.from_numpy(z).reshape(-1, z.shape[-1]), torch.from_numpy(targets).reshape(-1)
    weights = None if weight is None else torch.from_numpy(weight)
    loss = torch.nn.functional.cross_entropy(flat, ids, weight=weights, reduction=reduction, **options)
    lse = flat.logsumexp(-1)
    counted = ids != options["ignore_index"]
    added = z_loss * lse**2 * counted
    z_part = {"none": added, "sum": added.sum(), "mean": added.sum() / counted.sum()}[reduction]
    total = loss + z_part
    return (total.reshape(targets.shape) if reduction == "none" else total).numpy(), lse.numpy()


def total_bound(
    rows: Floats, lse: Floats, targets: Array, weight: Array | None, reduction: str, z_loss: float, ignore_index: int
) -> Floats | float:
    """The rows' bounds, times the largest weight, with z-loss's own 2 |lse| times as much, summed or averaged."""
    counted = targets.reshape(-1) != ignore_index
    heaviest = 1.0 if weight is None else max(1.0, float(weight.max()))
    likelihood = heaviest * rows.reshape(-1) * counted
    squares = z_loss * (2 * np.abs(lse) + 1) * rows.reshape(-1) * counted
    if reduction == "none":
        return np.asarray(likelihood + squares).reshape(targets.shape)
    if reduction == "sum":
        return float((likelihood + squares).sum())
    weight_sum = counted.sum() if weight is None else weight[targets.reshape(-1)[counted]].sum()
    if weight_sum == 0:
        return INF
    return float(likelihood.sum() / weight_sum + squares.sum() / counted.sum())


def weights_for(kind: str, vocab: int) -> Array | None:
    if kind == "none":
        return None
    weight = np.random.default_rng(vocab).uniform(0.1, 2.0, vocab)
    if kind == "zeros":
        weight[::3] = 0.0
    return weight


@DTYPE
@pytest.mark.parametrize("weighting", ["none", "random", "zeros"], ids=lambda kind: f"C19-weight[{kind}]")
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0], ids=lambda value: f"C23-smoothing[{value}]")
def test_equals_torch(smoothing: float, weighting: str, dtype: np.dtype[Any]) -> None:
    """Everything together: smoothing, weights, ignored rows, shift, soft cap, temperature, z-loss, reductions."""
    for vocab in (2, 17, 5000):
        logits, weight = noise(vocab, dtype, 10).reshape(2, 5, vocab), weights_for(weighting, vocab)
        targets = np.random.default_rng(vocab).integers(0, vocab, (2, 5))
        targets[0, 0], targets[0, 2], targets[1, 4] = 1, -100, 1
        for scaling in SCALINGS:
            for shift, z_loss, ignore_index in ((0, 0.0, -100), (1, 1e-3, -100), (0, 0.1, 1)):
                ids = np.where(targets == -100, ignore_index, targets)
                z, kept = (scaled(logits, **scaling)[:, : 5 - shift], ids[:, shift:])
                for reduction in ("none", "sum", "mean"):
                    settled: dict[str, Any] = {"label_smoothing": smoothing, "ignore_index": ignore_index}
                    wanted, lse = torch_loss(z, kept, weight, reduction, z_loss, **settled)
                    settled |= {"weight": weight, "z_loss": z_loss, "reduction": reduction, "shift": shift}
                    got = np.asarray(xe.cross_entropy(logits, ids, **settled, **scaling))
                    rows = row_bound(z, dtype, scaling)
                    allowed = total_bound(rows, lse, kept, weight, reduction, z_loss, ignore_index)
                    assert got.shape == wanted.shape
                    assert got.dtype == np.float64
                    if np.isnan(wanted).any():  # the sum of the weights is 0: test_c19 has that
                        assert reduction == "mean"
                    else:
                        assert (np.abs(got - wanted) <= allowed).all(), (vocab, scaling, settled, got, wanted)


WRONG_LENGTHS: Final[dict[str, Any]] = {
    "short": np.ones(6),
    "long": np.ones(8),
    "empty": [],
    "two-dimensional": np.ones((1, 7)),
    "single-number": np.float64(1.0),
}


@pytest.mark.parametrize("weight", WRONG_LENGTHS.values(), ids=[f"C18-{name}" for name in WRONG_LENGTHS])
def test_weight_of_another_shape(weight: Any) -> None:
    for smoothing in (0.0, 0.1):
        with pytest.raises(xe.ShapeError, match="weight"):
            xe.cross_entropy(np.zeros((2, 7), np.float32), [0, 1], weight=weight, label_smoothing=smoothing)


@pytest.mark.parametrize("value", [NAN, INF, -INF, -1.0, -1e-30], ids=lambda value: f"C18[{value}]")
def test_bad_weight(value: float) -> None:
    """Also for a class that no target names."""
    for smoothing in (0.0, 0.1):
        with pytest.raises(xe.ParamError, match="weight"):
            xe.cross_entropy(np.zeros((1, 3), np.float32), [0], weight=[1, 1, value], label_smoothing=smoothing)


@pytest.mark.parametrize(
    "weight",
    [
        np.ones(3) * 1j,
        np.array(["1", "2", "3"]),
        np.ma.masked_array(np.ones(3), mask=[False, True, False]),
        ["a"] * 3,
    ],
    ids=["C18-complex", "C18-str", "C18-masked", "C18-words"],
)
def test_weight_of_another_type(weight: Any) -> None:
    with pytest.raises(xe.DTypeError, match="weight"):
        xe.cross_entropy(np.zeros((1, 3), np.float32), [0], weight=weight)


@DTYPE
def test_c19_weights_without_a_sum(dtype: np.dtype[Any]) -> None:
    """The mean is over the targets' weights: 3 and 1 here; their sum may be 0: NaN, with smoothing too."""
    logits, weight = noise(5, dtype, 3), [3.0, 1.0, 0.0, 0.0, 9.0]
    nll = np.asarray(xe.row_stats(logits, [0, 1, 2]).nll)
    for smoothing in (0.0, 1e-30):
        options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing}
        mean = float(xe.cross_entropy(logits, [0, 1, 2], **options))
        assert mean == pytest.approx((3 * nll[0] + nll[1]) / 4, rel=8 * ref.unit_of(dtype))
        assert math.isnan(float(xe.cross_entropy(logits, [2, 3, 2], **options)))
        assert float(xe.cross_entropy(logits, [2, 3, 2], reduction="sum", **options)) == pytest.approx(0.0, abs=1e-28)
        assert math.isnan(float(xe.cross_entropy(logits, [-100] * 3, z_loss=0.1, **options)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0], ids=lambda value: f"C19-smoothing[{value}]")
def test_weight_zero_meets_an_impossible_target(smoothing: float) -> None:
    """A class of weight 0 counts nothing, with smoothing and without: 0 * inf is 0."""
    logits, weight = np.array([[0.0, -INF, 0.0]], np.float32), [1.0, 0.0, 1.0]
    got = xe.cross_entropy(logits, [1], weight=weight, label_smoothing=smoothing, reduction="none")
    assert got[0] == pytest.approx(smoothing * 2 / 3 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("value", [-0.1, 1.0000001, 2.0, NAN, INF, -INF], ids=lambda value: f"C20[{value}]")
def test_bad_smoothing(value: float) -> None:
    with pytest.raises(xe.ParamError, match="label_smoothing"):
        xe.cross_entropy(np.zeros((1, 3), np.float32), [0], label_smoothing=value)


@pytest.mark.parametrize("value", [-0.1, NAN, INF, -INF], ids=str)
def test_bad_z_loss(value: float) -> None:
    with pytest.raises(xe.ParamError, match="z_loss"):
        xe.cross_entropy(np.zeros((1, 3), np.float32), [0], z_loss=value)


@DTYPE
def test_c21_defaults_change_no_bit(dtype: np.dtype[Any]) -> None:
    for vocab in (1, 17, 5000):
        logits, targets = noise(vocab, dtype, 3), np.array([0, vocab // 2, -100])
        nll = np.asarray(xe.row_stats(logits, targets).nll)
        for weight in (None, np.ones(vocab)):
            got = xe.cross_entropy(logits, targets, label_smoothing=0.0, z_loss=0.0, weight=weight, reduction="none")
            assert np.asarray(got).tobytes() == nll.tobytes()


def flags_of(logits: Array, targets: list[int], smoothing: float, weight: Any = None) -> list[int]:
    """`cross_entropy` returns no flags; the engines do."""
    lent, known = of_numpy.lend(logits, "logits"), settings(-100, 1.0, None, None, 1)
    ids, weights = lent.place(np.array(targets)), None if weight is None else lent.place(weight)
    options: dict[str, Any] = {"label_smoothing": smoothing, "z_loss": 0.0, "weight": weights}
    flags: list[int] = lent.engine.loss(lent.array, lent.element, ids, known, **options)["flags"].tolist()
    return flags


@DTYPE
@pytest.mark.parametrize("smoothing", [0.1, 1.0], ids=lambda value: f"C22[{value}]")
def test_smoothing_meets_minus_infinity(smoothing: float, dtype: np.dtype[Any]) -> None:
    """Row 0 has an impossible column, row 1 is ignored, row 2 is plain; weight 0 leaves the column out."""
    for vocab in (3, 300, 5000):
        logits, place = noise(vocab, dtype, 3), vocab - 1
        plain = logits.copy()
        logits[0, place], logits[1] = -INF, NAN
        targets, weight = [0, -100, 0], np.ones(vocab)
        options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": "none"}
        got = np.asarray(xe.cross_entropy(logits, targets, **options))
        alone = np.asarray(xe.cross_entropy(plain[2:], [0], **options))
        np.testing.assert_array_equal(got, [INF, 0.0, alone[0]])
        assert flags_of(logits, targets, smoothing) == [ref.TARGET_NEGINF, ref.IGNORED, 0]
        weighted = np.asarray(xe.cross_entropy(logits, targets, weight=weight, **options))
        np.testing.assert_array_equal(weighted[:2], [INF, 0.0])
        weight[place] = 0.0
        weighted = np.asarray(xe.cross_entropy(logits, targets, weight=weight, **options))
        row, unit = ref.decode(logits[0]), ref.unit_of(dtype)
        even = ref.total(np.delete(ref.surprisals(row), place)) / vocab
        wanted = (1 - smoothing) * ref.nll(row, 0) + smoothing * even
        allowed = ref.lse_bound(vocab, wanted, dtype) + 4 * unit * float(np.ptp(np.delete(row, place)))
        assert abs(weighted[0] - wanted) <= allowed
        assert flags_of(logits, targets, smoothing, weight) == [0, ref.IGNORED, 0]


@DTYPE
@pytest.mark.parametrize(
    ("value", "everywhere", "flag"),
    [(NAN, False, ref.NAN), (INF, False, ref.POSINF), (-INF, True, ref.ALL_NEGINF)],
    ids=["C7", "C6", "C5"],
)
def test_rows_without_a_loss(value: float, everywhere: bool, flag: int, dtype: np.dtype[Any]) -> None:
    """Whatever is added to the likelihood, also where the weights of target and special column are 0."""
    logits = noise(33, dtype, 2)
    logits[0, slice(None) if everywhere else 7] = value
    weight = np.where(np.arange(33) < 9, 0.0, 1.0)
    for options in ({"label_smoothing": 0.1}, {"label_smoothing": 1.0}, {"z_loss": 0.1}):
        for weights in (None, weight):
            both: dict[str, Any] = {**options, "weight": weights, "reduction": "none"}
            got = np.asarray(xe.cross_entropy(logits, [3, 20], **both))
            assert np.isnan(got).tolist() == [True, False], both
            assert math.isnan(float(xe.cross_entropy(logits, [3, 20], **{**both, "reduction": "mean"})))
    assert flags_of(logits, [3, 20], 0.1) == [flag, 0]


@DTYPE
@pytest.mark.parametrize("gap", [1.0, 40.0, 80.0])
@pytest.mark.parametrize("vocab", [2, 300, 5000])
def test_peaked_rows_keep_their_digits(vocab: int, gap: float, dtype: np.dtype[Any]) -> None:
    """Where only the largest column has weight every loss is a multiple of log1p(rest), which is 1e-18 here.

    Its relative error is u (4 + gap), as for nll; a weight is rounded and multiplied.
    """
    logits = np.full((1, vocab), -gap, dtype)
    logits[0, vocab // 2] = 0.0
    log_probs, _ = ref.exact_log_probs(ref.decode(logits[0]))
    wanted, weight = -float(log_probs[vocab // 2]), np.zeros(vocab)
    weight[vocab // 2] = 2.0
    lent, ids = logits, np.array([[vocab // 2, -100, 0]])
    found: dict[str, tuple[Callable[[], Any], float]] = {
        "weight": (lambda: xe.cross_entropy(lent, ids[:, 0], weight=weight, reduction="sum"), 2.0),
        "smoothing": (
            lambda: xe.cross_entropy(lent, ids[:, 0], weight=weight, label_smoothing=0.5, reduction="sum"),
            1 + 1 / vocab,
        ),
        "soft": (lambda: xe.soft_cross_entropy(lent, ids, [[1.0, 7.0, 0.0]]), 1.0),
    }
    for name, (function, factor) in found.items():
        got, relative = float(function()), ref.unit_of(dtype) * (8 + gap)
        assert abs(got - factor * wanted) <= relative * factor * wanted, (name, got, factor * wanted)


def soft_bound(row: Floats, dtype: np.dtype[Any], scaling: dict[str, Any]) -> float:
    """As for nll: a mean of distances below the largest logit, and ln s."""
    return float(row_bound(row[None], dtype, scaling)[0])


@DTYPE
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_soft_targets_equal_torch(scaling: dict[str, Any], dtype: np.dtype[Any]) -> None:
    """Against torch's cross-entropy with probabilities for targets; ids may repeat and be padding."""
    generator = np.random.default_rng(24)
    for vocab in (3, 1000, 5000):
        logits = noise(vocab, dtype, 6).reshape(2, 3, vocab)
        ids, shares = generator.integers(0, vocab, (2, 3, 4)), generator.uniform(0.1, 1.0, (2, 3, 4))
        ids[0, 0, 1:], ids[1, 2] = -100, -100
        known = ids != -100
        with np.errstate(invalid="ignore"):
            exact = shares / (shares * known).sum(-1, keepdims=True)
        dense, z = np.zeros((2, 3, vocab)), scaled(logits, **scaling)
        for row in np.ndindex(2, 3):
            np.add.at(dense[row], ids[row][known[row]], exact[row][known[row]])
        wanted = torch.nn.functional.cross_entropy(
            torch.from_numpy(z).flatten(0, 1), torch.from_numpy(dense).flatten(0, 1), reduction="none"
        ).reshape(2, 3)
        allowed = row_bound(z, dtype, scaling)
        for probs, normalize in ((shares, True), (np.where(known, exact, 0.5), False)):
            options: dict[str, Any] = {"normalize": normalize, **scaling}
            got = np.asarray(xe.soft_cross_entropy(logits, ids, probs, reduction="none", **options))
            assert (np.abs(got - wanted.numpy()) <= allowed).all(), (vocab, got, wanted)
            assert got[1, 2] == 0.0
            total = float(xe.soft_cross_entropy(logits, ids, probs, reduction="sum", **options))
            assert total == pytest.approx(math.fsum(got.ravel()), rel=1e-15)
            mean = float(xe.soft_cross_entropy(logits, ids, probs, **options))
            assert mean == pytest.approx(total / 5, rel=1e-15)


def soft(ids: Any, probs: Any, **options: Any) -> Any:
    return xe.soft_cross_entropy(np.zeros((2, 3), np.float32), ids, probs, **options)


@pytest.mark.parametrize("value", [-0.5, -1e-300, NAN, INF, -INF], ids=lambda value: f"C24[{value}]")
@pytest.mark.parametrize("normalize", [False, True])
def test_bad_share(normalize: bool, value: float) -> None:
    with pytest.raises(xe.ParamError, match="target_probs"):
        soft([[0, 1], [0, 1]], [[0.5, 0.5], [value, 1.0]], normalize=normalize)
    # Padding is not looked at.
    assert float(soft([[0, 1], [-100, 1]], [[0.5, 0.5], [value, 1.0]], normalize=normalize)) > 0


@pytest.mark.parametrize("row", [[0.5, 0.498], [0.5, 0.502], [0.0, 0.0], [3.0, 3.0]], ids=lambda row: f"C24{row}")
def test_shares_that_do_not_sum_to_one(row: list[float]) -> None:
    with pytest.raises(xe.NotNormalizedError, match=r"target_probs\[1\]"):
        soft([[0, 1], [0, 1]], [[0.5, 0.5], row])
    if sum(row) > 0:
        assert float(soft([[0, 1], [0, 1]], [[0.5, 0.5], row], normalize=True)) == pytest.approx(math.log(3))
    else:
        with pytest.raises((xe.NotNormalizedError, xe.ParamError), match="target_probs"):
            soft([[0, 1], [0, 1]], [[0.5, 0.5], row], normalize=True)


def test_c24_sums_within_the_tolerance() -> None:
    """The shares are used as they come."""
    got = soft([[0], [1]], [[0.9995], [1.0005]], reduction="none")
    np.testing.assert_allclose(got, [0.9995 * math.log(3), 1.0005 * math.log(3)], rtol=1e-7)


@DTYPE
def test_c25_share_of_an_impossible_column(dtype: np.dtype[Any]) -> None:
    """Rows: share 0 at -inf first or last, share above 0 there, everything impossible, NaN, +inf, not read."""
    for vocab in (4, 300, 5000):
        logits, place = noise(vocab, dtype, 7), vocab - 1
        logits[:3, place], logits[3] = -INF, -INF
        logits[4, 1], logits[5, 1], logits[6] = NAN, INF, NAN
        ids = np.array([[place, 0], [0, place], [0, place], [0, 2], [0, 2], [0, 2], [-100, -100]])
        probs = np.array([[0.0, 1.0], [1.0, 0.0], [0.999, 0.001], *[[0.5, 0.5]] * 4])
        got = np.asarray(xe.soft_cross_entropy(logits, ids, probs, reduction="none"))
        for row in (0, 1):
            decoded = ref.decode(logits[row])
            assert abs(got[row] - ref.nll(decoded, 0)) <= soft_bound(np.delete(decoded, place), dtype, {})
        np.testing.assert_array_equal(got[2:], [INF, NAN, NAN, NAN, 0.0])


@pytest.mark.parametrize("bad", [3, -1, 2**40], ids=lambda bad: f"C10[{bad}]")
def test_soft_id_outside(bad: int) -> None:
    with pytest.raises(xe.TargetError, match=f"{bad} is outside"):
        soft([[0, 1], [0, bad]], [[0.5, 0.5], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("ids_shape", "probs_shape"),
    [((2,), (2,)), ((2, 1), (2, 2)), ((1, 2), (1, 2)), ((3, 1), (3, 1)), ((), ()), ((2, 1, 1), (2, 1, 1))],
    ids=lambda shape: f"C15{shape}",
)
def test_soft_targets_of_another_shape(ids_shape: tuple[int, ...], probs_shape: tuple[int, ...]) -> None:
    with pytest.raises(xe.ShapeError, match="target_ids and target_probs"):
        soft(np.zeros(ids_shape, np.int64), np.ones(probs_shape))


@pytest.mark.parametrize("probs", [np.ones((2, 1)) * 1j, [["1.0"], ["1.0"]]], ids=["C24-complex", "C24-str"])
def test_shares_of_another_type(probs: Any) -> None:
    with pytest.raises(xe.DTypeError, match="target_probs"):
        soft([[0], [1]], probs)


def test_soft_targets_without_a_counted_row() -> None:
    """Also where no column is given at all."""
    for ids, probs in ((np.full((2, 2), 7), np.ones((2, 2))), (np.zeros((2, 0), np.int64), np.zeros((2, 0)))):
        np.testing.assert_array_equal(soft(ids, probs, ignore_index=7, reduction="none"), [0.0, 0.0])
        assert float(soft(ids, probs, ignore_index=7, reduction="sum")) == 0.0
        assert math.isnan(float(soft(ids, probs, ignore_index=7)))


@pytest.mark.parametrize("reduction", ["", "batchmean", None], ids=lambda value: f"C27[{value!r}]")
def test_bad_reduction(reduction: Any) -> None:
    for function, targets in ((xe.cross_entropy, ([0, 1],)), (xe.soft_cross_entropy, ([[0], [1]], np.ones((2, 1))))):
        with pytest.raises(xe.ParamError, match="reduction"):
            function(np.zeros((2, 3), np.float32), *targets, reduction=reduction)


@pytest.mark.parametrize("name", ref.DTYPES, ids=lambda name: f"B18-{name}")
@pytest.mark.rust_only("the bits of numpy")
def test_torch_tensors(name: str) -> None:
    """A tensor comes back with the bits of numpy, those of a function with a backward rounded once, wherever the other
    arguments live; nothing is written.
    """
    logits, ids = noise(300, ref.DTYPES[name], 4), np.array([0, 7, -100, 299])
    probs, kept = np.full((4, 2), 0.5), logits.copy()
    pairs = np.array([[0, 1], [7, 8], [-100, -100], [299, 0]])
    calls: list[Callable[[Any, Any], Any]] = [
        lambda x, to: xe.cross_entropy(x, to(ids), label_smoothing=0.1, weight=to(np.ones(300)), reduction="none"),
        lambda x, to: xe.cross_entropy(x, to(ids), z_loss=0.1),
        lambda x, to: xe.soft_cross_entropy(x, to(pairs), to(probs), reduction="none"),
        lambda x, to: xe.soft_cross_entropy(x, to(pairs).tolist(), to(probs).tolist()),
    ]
    narrow = np.float64 if name == "float64" else np.float32
    for call, dtype in zip(calls, (narrow, narrow, np.float64, np.float64), strict=True):
        wanted, got = call(logits, np.asarray), call(as_torch(logits), torch.from_numpy)
        assert isinstance(wanted, np.ndarray)
        assert isinstance(got, torch.Tensor)
        assert got.numpy().dtype == dtype
        assert got.numpy().tobytes() == wanted.astype(dtype).tobytes()
    assert logits.tobytes() == kept.tobytes()
    with pytest.raises(xe.DTypeError, match="requires grad"):
        xe.soft_cross_entropy(as_torch(logits).requires_grad_(), pairs, probs)

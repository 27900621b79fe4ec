"""Hidden states and a head against the float64 product of the same stored numbers.

Layouts, ties, special values, packed heads, bad input and instruction sets are in test_linear_inputs.py.
A little longer than other files: what each field is allowed is derived beside the code that grants it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import pytest
import reference as ref
import torch
import xentrs as xe
from reference import Array, Floats
from test_bindings_torch import as_torch
from test_edge_isa import FIELDS, same_bytes

SEED: Final = 20_250_301
DTYPE = pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
PAIRS: Final = [(hidden, weight) for hidden in ref.DTYPES for weight in ref.DTYPES]
PAIR = pytest.mark.parametrize("names", PAIRS, ids=["-".join(names) for names in PAIRS])
F32: Final = ref.DTYPES["float32"]
F64: Final = ref.DTYPES["float64"]


class Wanted(NamedTuple):
    """What the rows must be: logits in float64, what nll and the largest logits are allowed, and the compute type."""

    logits: Floats
    bound: Floats
    extreme: Floats
    compute: np.dtype[Any]


def draw(seed: list[int], *shape: int, dtype: np.dtype[Any] = F32, scale: float = 1.0) -> Array:
    return np.random.default_rng([SEED, *seed]).normal(0.0, scale, shape).astype(dtype)


def wanted_of(
    hidden: Array,
    weight: Array,
    *,
    bias: Array | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> Wanted:
    """z = softcap(logit_scale * (hidden . weight + bias)) / temperature, for the flattened rows.

    The contract for float32 and 16 bits is |delta nll| <= u sqrt(width) max(1, max|z|) + 1e-6 (the last for the
    kernel after the product, `ref.lse_bound`). With settings, z is taken before the cap, whose slope is at most 1,
    with |product| and |bias| apart, as they may cancel; and bias, sum, factor, product, cap and temperature round once
    each: 6 u more. float64: 1e-12 of the same size, far above 2^-53 * width for the widths here.

    The largest logits are picked from all columns, so that theirs are the largest of many errors: a chain that rounds
    at each of its sums, random and at most u |h|.|w|, is off by sqrt(width / 3) of that at one standard deviation;
    sums reach about a third of |h|.|w|, so that u sqrt(width) |h|.|w| is five deviations.
    """
    product = ref.decode(hidden).reshape(-1, hidden.shape[-1]) @ ref.decode(weight[:vocab_size]).T
    added = np.zeros(len(weight)) if bias is None else ref.decode(bias)
    affine = logit_scale * (product + added[:vocab_size])
    logits: Floats = (affine if softcap is None else softcap * np.tanh(affine / softcap)) / temperature
    settled = (bias is not None) + abs(logit_scale - 1) + abs(temperature - 1) > 0 or softcap is not None
    finite = added[np.isfinite(added)]
    largest = np.abs(product).max(-1, initial=0.0) + np.abs(finite).max(initial=0.0)
    size = np.maximum(1.0, abs(logit_scale) / temperature * largest)
    if F64 in (hidden.dtype, weight.dtype):
        return Wanted(logits, 1e-12 * size, 1e-12 * size, F64)
    rounds = ref.UNIT_F32 * (hidden.shape[-1] ** 0.5 + 6 * settled)
    lengths = np.abs(ref.decode(hidden).reshape(-1, hidden.shape[-1])) @ np.abs(ref.decode(weight)).T
    longest = abs(logit_scale) / temperature * lengths.max(-1)
    return Wanted(logits, rounds * size + 1e-6, rounds * (size + longest) + 1e-6, F32)


def flat(values: Any) -> Array:
    return np.asarray(values).reshape(-1)


def assert_stats(stats: Any, wanted: Wanted, targets: Array, ignored: int = -100, top_k: int = 0) -> None:
    """Every field of every row that counts; entropies and their like, which take long, of three rows."""
    rows, vocab = wanted.logits.shape
    ids = targets.reshape(-1)
    skipped = ids == ignored
    counted = np.flatnonzero(~skipped)
    top_log_probs, top_ids = (np.asarray(top).reshape(rows, top_k) for top in (stats.top_log_probs, stats.top_ids))
    assert stats.token_count == counted.size
    assert flat(stats.lse).shape == (rows,)
    assert (flat(stats.flags) == np.where(skipped, xe.Flag.IGNORED, 0)).all()
    assert np.isnan(flat(stats.lse)[skipped]).all()
    assert (flat(stats.nll)[skipped] == 0).all()
    assert (flat(stats.rank)[skipped] == 0).all()
    assert (flat(stats.argmax)[skipped] == -1).all()
    np.testing.assert_array_equal(flat(stats.log_prob), -flat(stats.nll))
    for row in counted.tolist():
        z, allowed, extreme, target = wanted.logits[row], wanted.bound[row], wanted.extreme[row], int(ids[row])
        lse, descending = ref.logsumexp(z), np.sort(z)[::-1]
        near = [
            (flat(stats.lse)[row], lse, allowed),
            (flat(stats.max_logit)[row], descending[0], extreme),
            (flat(stats.max_log_prob)[row], descending[0] - lse, extreme),
            *zip(top_log_probs[row], descending[:top_k] - lse, [extreme] * top_k, strict=True),
        ]
        if vocab > 1:
            near.append((flat(stats.margin)[row], ref.margin(z), 2 * extreme))
        near.append((flat(stats.nll)[row], ref.nll(z, target), allowed))
        above, close = z > z[target] + 2 * extreme, np.abs(z - z[target]) <= 2 * extreme
        extra = close.sum() - 1
        assert 1 + above.sum() <= flat(stats.rank)[row] <= 1 + above.sum() + extra
        assert 0 <= flat(stats.ties)[row] <= extra
        for got, right, most in near:
            assert abs(got - right) <= most, (row, got, right, most)
        chosen = top_ids[row]
        assert len(set(chosen.tolist())) == top_k
        assert (np.abs(z[chosen] - descending[:top_k]) <= 2 * extreme).all()
        assert z[flat(stats.argmax)[row]] >= descending[0] - 2 * extreme
        assert top_k == 0 or chosen[0] == flat(stats.argmax)[row]
    for row in counted[:3].tolist():
        assert_moments(stats, row, wanted.logits[row], wanted.bound[row], wanted.compute)


def assert_moments(stats: Any, row: int, z: Floats, moved: float, compute: np.dtype[Any]) -> None:
    """Logits that are off by `moved` change, to first order and with -ln p = s:

    H by sum p delta (s - H) <= moved sqrt(varentropy); the varentropy V by sum p delta (g - V) with g = (s - H)^2 -
    2 (s - H), at most moved (2 V + 2 sqrt V); sum p^2 by 2 sum p^2 (delta - mean) <= 4 moved sum p^2.
    """
    entropy, varentropy, squares = ref.entropy(z), ref.varentropy(z), ref.sum_sq_prob(z)
    spread = varentropy**0.5
    near = {
        "entropy": (entropy, moved * spread + ref.entropy_bound(z, compute)),
        "varentropy": (varentropy, moved * 2 * (varentropy + spread) + ref.varentropy_bound(z, compute)),
        # Weights off by u (4 + d) each in numerator and sum: at most 2 u (4 + ln V) of the result.
        "sum_sq_prob": (squares, (4 * moved + 2 * ref.unit_of(compute) * (4 + np.log(z.size))) * squares),
    }
    for name, (right, most) in near.items():
        got = float(flat(getattr(stats, name))[row])
        assert abs(got - right) <= most, (name, row, got, right, most)


SHAPES: Final = [(1, 1, 1), (2, 5, 17), (7, 33, 4095), (130, 100, 4097), (2, 1, 5003), (300, 33, 17), (7, 64, 5003)]


@PAIR
@pytest.mark.parametrize("shape", SHAPES, ids=[f"rows{n}-width{d}-vocab{v}" for n, d, v in SHAPES])
def test_every_field(shape: tuple[int, int, int], names: tuple[str, str]) -> None:
    """Without settings: numpy arrays of each pair of types."""
    rows, width, vocab = shape
    hidden = draw([1, *shape], rows, width, dtype=ref.DTYPES[names[0]])
    weight = draw([2, *shape], vocab, width, dtype=ref.DTYPES[names[1]])
    targets = np.random.default_rng([SEED, *shape]).integers(0, vocab, rows)
    top_k = min(3, vocab)
    stats = xe.linear_row_stats(hidden, weight, targets, top_k=top_k)
    assert_stats(stats, wanted_of(hidden, weight), targets, top_k=top_k)
    bare = xe.linear_row_stats(hidden, weight, top_k=top_k)
    assert (bare.token_count, bare.rank.any(), bare.ties.any(), np.isnan(bare.nll).all()) == (0, False, False, True)
    for field in set(FIELDS) - {"nll", "log_prob", "rank", "ties"}:
        assert same_bytes(getattr(bare, field)) == same_bytes(getattr(stats, field)), field


@pytest.mark.parametrize("seed", range(40), ids=lambda seed: f"seed-{seed}")
def test_every_setting_at_random(seed: int) -> None:
    """Types, shapes, shift, ignored rows and settings drawn from the seed; half of the seeds with torch tensors."""
    dice = np.random.default_rng([SEED, seed])
    batch, length, width = int(dice.integers(1, 4)), int(dice.integers(2, 9)), int(dice.choice([1, 5, 33, 100]))
    vocab, shift, ignored = (
        int(dice.choice([17, 50, 4097, 5003])),
        int(dice.integers(0, 2)),
        int(dice.choice([-100, 3])),
    )
    pair = PAIRS[seed % len(PAIRS)]
    hidden = dice.normal(0.0, 1.0, (batch, length, width)).astype(ref.DTYPES[pair[0]])
    weight = dice.normal(0.0, 1.0, (vocab, width)).astype(ref.DTYPES[pair[1]])
    options: dict[str, Any] = {
        "logit_scale": float(dice.choice([1.0, 0.125, -1.5, 3.3])),
        "softcap": [None, 5.0, 30.0][int(dice.integers(3))],
        "temperature": float(dice.choice([1.0, 0.7, 2.0])),
        "vocab_size": [None, int(dice.integers(6, vocab + 1))][int(dice.integers(2))],
        "bias": dice.normal(0.0, 2.0, vocab).astype(ref.DTYPES[pair[0]]) if dice.integers(2) else None,
    }
    targets = dice.integers(0, options["vocab_size"] or vocab, (batch, length))
    targets[0, -1] = ignored
    given: Callable[[Array], Any] = as_torch if seed % 2 else np.asarray
    lent = options | {"bias": None if options["bias"] is None else given(options["bias"])}
    stats = xe.linear_row_stats(
        given(hidden), given(weight), targets, shift=shift, ignore_index=ignored, top_k=5, **lent
    )
    assert isinstance(stats.lse, torch.Tensor if seed % 2 else np.ndarray)
    assert tuple(stats.lse.shape) == (batch, length - shift)
    kept = hidden[:, : length - shift]
    assert_stats(stats, wanted_of(kept, weight, **options), targets[:, shift:], ignored, 5)


@PAIR
def test_exact_products_have_the_bits_of_row_stats(names: tuple[str, str]) -> None:
    """Small whole numbers multiply exactly, so that what follows the product is `row_stats` to the bit, with ties."""
    dice = np.random.default_rng([SEED, 5])
    for rows, width, vocab in ((1, 1, 1), (2, 33, 17), (130, 100, 4097), (7, 5, 5003)):
        hidden, weight = (dice.integers(-3, 4, (count, width)).astype(float) for count in (rows, vocab))
        bias, targets = dice.integers(-9, 10, vocab), dice.integers(0, vocab, rows)
        compute = F64 if "float64" in names else F32
        lent = hidden.astype(ref.DTYPES[names[0]]), weight.astype(ref.DTYPES[names[1]])
        for settled in ({}, {"softcap": 30.0}, {"temperature": 0.7}, {"softcap": 5.0, "temperature": 2.0}):
            options: dict[str, Any] = {"top_k": min(4, vocab), **settled}
            got = xe.linear_row_stats(*lent, targets, bias=bias, logit_scale=-0.125, **options)
            logits = (-0.125 * (hidden @ weight.T + bias)).astype(compute)
            wanted = xe.row_stats(logits, targets, **options)
            for field in FIELDS:
                assert same_bytes(getattr(got, field)) == same_bytes(getattr(wanted, field)), (field, vocab, settled)
            ranks = [ref.rank(row, target) for row, target in zip(logits, targets, strict=True)]
            assert settled or got.rank.tolist() == ranks


LOSSES: Final[list[dict[str, Any]]] = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 1e-3},
    {"label_smoothing": 1.0, "z_loss": 0.1, "softcap": 5.0, "temperature": 0.7, "logit_scale": -1.5},
]


@PAIR
@pytest.mark.parametrize("losses", LOSSES, ids=lambda losses: "-".join(losses) or "plain")
def test_cross_entropy(losses: dict[str, Any], names: tuple[str, str]) -> None:
    """Against `cross_entropy` of the float64 product, and torch's of it without settings; each reduction."""
    options = dict(losses)
    smoothing, z_loss = options.pop("label_smoothing", 0.0), options.pop("z_loss", 0.0)
    for rows, width, vocab in ((7, 33, 5003), (2, 5, 17)):
        hidden = draw([6], rows, width, dtype=ref.DTYPES[names[0]])
        weight = draw([7], vocab, width, dtype=ref.DTYPES[names[1]])
        targets = np.random.default_rng([SEED, vocab]).integers(0, vocab, rows)
        targets[1] = -100
        wanted = wanted_of(hidden, weight, **options)
        lse = np.array([ref.logsumexp(row) for row in wanted.logits])
        spans = wanted.logits.max(-1) - wanted.logits.min(-1)
        # nll and mean(lse - z) each have the contract; the mean of distances adds 4 u of the largest (test_losses.py);
        # the square of lse moves by 2 |lse| times as much as lse.
        moved = (
            wanted.bound * (1 + z_loss * (2 * np.abs(lse) + 1)) + 4 * ref.unit_of(wanted.compute) * smoothing * spans
        )
        moved = np.where(targets == -100, 0.0, moved)
        allowed = {"none": moved, "sum": moved.sum(), "mean": moved.sum() / (rows - 1)}
        for reduction in ("none", "sum", "mean"):
            got = xe.linear_cross_entropy(hidden, weight, targets, reduction=reduction, **losses)
            settled: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
            right = xe.cross_entropy(wanted.logits, targets, z_loss=z_loss, **settled)
            assert got.dtype == np.float64
            assert got.shape == right.shape
            assert (np.abs(got - right) <= allowed[reduction]).all(), (reduction, got, right)
            if not options and not z_loss:
                logits, ids = torch.from_numpy(wanted.logits), torch.from_numpy(targets)
                by_torch = torch.nn.functional.cross_entropy(logits, ids, **settled).numpy()
                assert (np.abs(got - by_torch) <= allowed[reduction] + 1e-13).all(), (reduction, got, by_torch)


@DTYPE
def test_cross_entropy_of_ignored_rows(dtype: np.dtype[Any]) -> None:
    hidden, weight = draw([8], 3, 5, dtype=dtype), draw([9], 17, 5, dtype=dtype)
    hidden[:] = np.nan  # never read
    for options in ({}, {"label_smoothing": 0.1, "z_loss": 0.1}):
        calls = {
            name: xe.linear_cross_entropy(hidden, weight, [7] * 3, ignore_index=7, reduction=name, **options)
            for name in ("none", "sum", "mean")
        }
        assert calls["none"].tolist() == [0.0, 0.0, 0.0]
        assert float(calls["sum"]) == 0.0
        assert np.isnan(calls["mean"])


@PAIR
def test_kl_divergence(names: tuple[str, str]) -> None:
    """Two heads of other widths and types, numpy and torch.

    Logits off by m_p and m_q move KL by m_p sum p |ln(p/q) - KL| + m_q sum |p - q|; the rest is `ref.kl_bound`.
    """
    p_side: dict[str, Any] = {"bias": draw([10], 5003), "logit_scale": 0.5, "softcap": 4.0}
    q_side: dict[str, Any] = {"bias": draw([11], 5003, dtype=F64), "logit_scale": -0.75, "softcap": 30.0}
    p_hidden, q_hidden = (draw([12], 3, d, dtype=ref.DTYPES[n]) for d, n in zip((33, 5), names, strict=True))
    p_weight, q_weight = (draw([13], 5003, d, dtype=ref.DTYPES[n]) for d, n in zip((33, 5), names, strict=True))
    for p_options, q_options in (({}, {}), (p_side, {}), ({}, q_side), (p_side, q_side)):
        for both in ({}, {"vocab_size": 4097, "temperature": 0.7}):
            p = wanted_of(p_hidden, p_weight, **p_options, **both)
            q = wanted_of(q_hidden, q_weight, **q_options, **both)
            compute = F64 if "float64" in names else F32
            right, allowed = np.zeros(3), np.zeros(3)
            for row, (p_row, q_row) in enumerate(zip(p.logits, q.logits, strict=True)):
                right[row] = ref.kl_divergence(p_row, q_row)
                p_share, q_share = ref.probabilities(p_row), ref.probabilities(q_row)
                from_p = p.bound[row] * ref.total(p_share * np.abs(ref.log_ratios(p_row, q_row) - right[row]))
                from_q = q.bound[row] * ref.total(np.abs(p_share - q_share))
                allowed[row] = from_p + from_q + ref.kl_bound(p_row, q_row, compute)
            for given in (as_torch, np.asarray):
                lent = [given(side) for side in (p_hidden, p_weight, q_hidden, q_weight)]
                options: dict[str, Any] = {f"p_{name}": value for name, value in p_options.items()} | both
                options |= {f"q_{name}": value for name, value in q_options.items()}
                got, flags = xe.linear_kl_divergence(*lent, **options, return_flags=True)
                assert isinstance(got, type(lent[0]))
                assert not np.asarray(flags).any()
                assert (np.abs(np.asarray(got) - right) <= allowed).all(), (options, got, right, allowed)
            # numpy's "sum" and "mean" are of the same rows' values, rounded once: 2^-52 covers numpy's sum of three.
            total, mean = (float(xe.linear_kl_divergence(*lent, **options, reduction=name)) for name in ("sum", "mean"))
            assert total == pytest.approx(np.asarray(got).sum(), rel=2**-52)
            assert mean == pytest.approx(total / 3, rel=2**-52)


@DTYPE
def test_kl_divergence_of_a_model_and_itself_is_0(dtype: np.dtype[Any]) -> None:
    """The same numbers give exactly 0; stored as bfloat16 and as float32, 0 within what both logits are off by.

    KL is of second order there: logits off by m move it by m^2 / 2 and the rounding of `ref.kl_bound`.
    """
    hidden, weight = draw([14], 7, 33, dtype=dtype), draw([15], 4097, 33, dtype=dtype)
    assert xe.linear_kl_divergence(hidden, weight, hidden, weight).tolist() == [0.0] * 7
    assert xe.linear_kl_divergence(hidden, weight, hidden.copy(), xe.PackedHead(weight)).tolist() == [0.0] * 7
    if dtype != F64:
        got, flags = xe.linear_kl_divergence(hidden, weight, hidden.astype(F32), weight.astype(F32), return_flags=True)
        wanted = wanted_of(hidden, weight)
        allowed = [ref.kl_bound(row, row, F32) + 2 * m * m for row, m in zip(wanted.logits, wanted.bound, strict=True)]
        assert (np.abs(got) <= allowed).all()
        assert (got >= 0).all()
        assert set(flags.tolist()) <= {0, int(xe.Flag.CLAMPED)}

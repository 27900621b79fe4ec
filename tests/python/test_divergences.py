"""Divergences beyond KL one way, and of truncated distributions; rows K1 to K11, K14 and K16 of the edge-case table.

KL itself is in test_edge_divergence.py. Longer than other files: whole and truncated distributions share the bounds.
"""

from __future__ import annotations

import decimal
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
from test_edge_divergence import VOCABS, pair
from test_edge_lse import noise, positions
from test_losses import SCALINGS, scaled

DTYPE = pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
NAN, INF = math.nan, math.inf
FIELDS: Final = (
    "kl_divergence",
    "reverse_kl_divergence",
    "symmetric_kl_divergence",
    "cross_entropy",
    "cross_varentropy",
)
BOTH_WAYS: Final = FIELDS[:3]
NO_ROW: Final = ref.NAN | ref.POSINF | ref.ALL_NEGINF


def log_ratio_error(p_row: Floats, q_row: Floats, dtype: np.dtype[Any]) -> Floats:
    """Allowed error of ln(p_i / q_i): both gaps, their difference and both normalisers are rounded."""
    p_gap, q_gap = ref.gaps(p_row), ref.gaps(q_row)
    ratio = np.abs(np.where(np.isinf(p_gap) | np.isinf(q_gap), 0.0, p_gap - q_gap))
    logs = math.log1p(ref.rest(p_row)) + math.log1p(ref.rest(q_row))
    error: Floats = ref.unit_of(dtype) * (p_gap + q_gap + 2 * ratio + 3 * logs + 2)
    return error


def close_kl_bound(p_row: Floats, q_row: Floats, value: float, dtype: np.dtype[Any]) -> float:
    """Allowed error of a small KL: half the variance of the log ratio a, whose error is delta.

    Var(a + delta) <= (sd a + sd delta)^2, so 2 sqrt(KL K) + K with K = E[delta^2] / 2. The weights' and the sums' own
    u (16 + d_i) is relative to the value.
    """
    delta, gap = log_ratio_error(p_row, q_row, dtype), ref.gaps(p_row)
    moved = ref.total(ref.probabilities(p_row) * delta**2) / 2
    return 2 * math.sqrt(value * moved) + moved + ref.unit_of(dtype) * (16 + float(gap.max())) * value


def js_bound(p_row: Floats, q_row: Floats, dtype: np.dtype[Any]) -> float:
    """Allowed error of JS = sum m J(a): m = (p + q) / 2, a = ln p - ln q, J(a) = ln 2 less the entropy of odds e^a.

    m is off by u (12 + gaps) of itself. J'(a) = a s (1 - s) <= |a| / 4 with s = 1 / (1 + e^-a), and J'' <= 1/4:
    an error delta of a moves J by J'(a) delta + delta^2 / 8. Where p or q is 0 J is ln 2 whatever a is.
    """
    p, q, unit = ref.probabilities(p_row), ref.probabilities(q_row), ref.unit_of(dtype)
    shared = (p > 0) & (q > 0)
    p_gap, q_gap, delta = ref.gaps(p_row)[shared], ref.gaps(q_row)[shared], log_ratio_error(p_row, q_row, dtype)[shared]
    a = ref.surprisals(q_row)[shared] - ref.surprisals(p_row)[shared]
    slope = np.abs(a) * np.exp(-np.abs(a)) / (1 + np.exp(-np.abs(a))) ** 2
    middle = (p + q)[shared] / 2
    jensen = np.minimum(a**2 / 8, math.log(2))
    moved = ref.total(middle * (slope * delta + delta**2 / 8))
    logs = math.log1p(ref.rest(p_row)) + math.log1p(ref.rest(q_row))
    weighed = ref.total((p[shared] * (12 + p_gap + logs) + q[shared] * (12 + q_gap + logs)) / 2 * jensen)
    alone = (p + q)[~shared]
    gaps = np.minimum(ref.gaps(p_row), ref.gaps(q_row))[~shared]
    weighed += ref.total(alone[alone > 0] * (12 + gaps[alone > 0] + logs)) / 2
    return moved + unit * weighed + 4 * ref.UNIT_F64 * math.log(2)


def cross_varentropy_bound(p_row: Floats, q_row: Floats, dtype: np.dtype[Any]) -> float:
    """As `reference.varentropy_bound`: the raw second moment of q's gaps under p's weights."""
    p = ref.probabilities(p_row)
    present = p > 0
    p_gap, q_gap = ref.gaps(p_row)[present], ref.gaps(q_row)[present]
    return ref.unit_of(dtype) * ref.total(p[present] * (8 + p_gap) * (1 + q_gap) ** 2) + ref.ulp_of(1.0, dtype)


def bounds(p_row: Floats, q_row: Floats, dtype: np.dtype[Any], wanted: dict[str, float]) -> dict[str, float]:
    """For each field; the cross-entropy is made as entropy + KL."""
    forward, reverse = ref.kl_bound(p_row, q_row, dtype), ref.kl_bound(q_row, p_row, dtype)
    total = ref.entropy_bound(p_row, dtype) + forward + float(np.spacing(wanted["cross_entropy"]))
    return {
        "kl_divergence": forward,
        "reverse_kl_divergence": reverse,
        "symmetric_kl_divergence": forward + reverse,
        "cross_entropy": total,
        "cross_varentropy": cross_varentropy_bound(p_row, q_row, dtype),
        "js_divergence": js_bound(p_row, q_row, dtype),
    }


def every_field(p_logits: Array, q_logits: Array, **options: Any) -> dict[str, Floats]:
    """What `divergences` and `js_divergence` give; KL has the bits of `kl_divergence`."""
    p, q = p_logits, q_logits
    found = xe.divergences(p, q, **options)
    fields = {name: np.asarray(getattr(found, name)) for name in FIELDS}
    fields["js_divergence"] = np.asarray(xe.js_divergence(p, q, **options))
    for name, (one, other) in {"kl_divergence": (p, q), "reverse_kl_divergence": (q, p)}.items():
        alone = np.asarray(xe.kl_divergence(one, other, **options))
        np.testing.assert_array_equal(fields[name], alone, err_msg=name)
    for name, values in fields.items():
        assert values.dtype == np.float64, name
        assert values.shape == p_logits.shape[:-1], name
        assert (np.isnan(values) | (values >= 0)).all(), (name, values)
    assert (np.isnan(fields["js_divergence"]) | (fields["js_divergence"] <= math.log(2))).all()
    return fields


@DTYPE
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_far_pairs(scale: float, dtype: np.dtype[Any]) -> None:
    for vocab in (1, 2, 17, 300) + ((4097,) if scale == 3.0 else ()):
        p_logits, q_logits = pair(vocab, dtype, 1 if vocab > 300 else 2, scale)
        fields = every_field(p_logits, q_logits)
        for row, (p_row, q_row) in enumerate(zip(ref.decode(p_logits), ref.decode(q_logits), strict=True)):
            wanted = ref.exact_divergences(p_row, q_row)
            allowed = bounds(p_row, q_row, dtype, wanted)
            for name, values in fields.items():
                assert abs(values[row] - wanted[name]) <= allowed[name], (vocab, name, values[row], wanted[name])


@pytest.mark.parametrize("step", [1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)
def test_close_pairs_keep_their_digits(dtype: np.dtype[Any], step: float) -> None:
    """q = p + noise. KL is about step^2 / 2; in float64 it is right to 1e-7 of itself at least.

    In float32 the logits' own rounding is as large as a step of 1e-6, and the bound says so.
    """
    for vocab in (2, 300, 4097):
        p_logits = noise(vocab, dtype, 1 if vocab > 300 else 3)
        q_logits = (p_logits + step * noise(vocab, np.dtype(np.float64), 4, 1.0)[: len(p_logits)]).astype(dtype)
        fields = every_field(p_logits, q_logits)
        for row, (p_row, q_row) in enumerate(zip(ref.decode(p_logits), ref.decode(q_logits), strict=True)):
            wanted = ref.exact_divergences(p_row, q_row)
            forward = close_kl_bound(p_row, q_row, wanted["kl_divergence"], dtype)
            reverse = close_kl_bound(q_row, p_row, wanted["reverse_kl_divergence"], dtype)
            allowed = dict(zip(BOTH_WAYS, (forward, reverse, forward + reverse), strict=True))
            # JS has the same form with a quarter of the variance, under (p + q) / 2.
            allowed["js_divergence"] = min(forward + reverse, js_bound(p_row, q_row, dtype))
            for name, bound in allowed.items():
                error = abs(fields[name][row] - wanted[name])
                assert error <= bound, (vocab, name, fields[name][row], wanted[name])
                if dtype == np.float64:
                    assert error <= 1e-7 * wanted[name], (vocab, name, error / wanted[name])


@DTYPE
def test_k1_equal_rows(dtype: np.dtype[Any], engine: str) -> None:
    """Exactly 0, also with masked columns; the cross-entropy is the entropy, which torch operations make in float32."""
    for vocab in VOCABS:
        logits = noise(vocab, dtype, 3, 10.0)
        logits[1, :: max(2, vocab // 3)] = 20.0
        logits[2, 1::2] = -INF
        fields = every_field(logits, logits.copy())
        for name in (*BOTH_WAYS, "js_divergence"):
            np.testing.assert_array_equal(fields[name], 0.0, err_msg=name)
            assert not np.signbit(fields[name]).any(), name
        tolerance = 0.0 if engine == "kernels" else 64 * ref.unit_of(dtype)
        np.testing.assert_allclose(fields["cross_entropy"], np.asarray(xe.entropy(logits)), rtol=tolerance)


@DTYPE
def test_k14_disjoint_supports(dtype: np.dtype[Any]) -> None:
    """K3 both ways: JS is ln 2, everything else has no finite value."""
    for vocab in VOCABS[1:]:
        p_logits, q_logits = pair(vocab, dtype, 2)
        p_logits[:, ::2], q_logits[:, 1::2] = -INF, -INF
        for one, other in ((p_logits, q_logits), (q_logits, p_logits)):
            fields = every_field(one, other)
            for name in (*BOTH_WAYS, "cross_entropy"):
                np.testing.assert_array_equal(fields[name], INF, err_msg=name)
            assert np.isnan(fields["cross_varentropy"]).all()
            error = np.abs(fields["js_divergence"] - math.log(2))
            assert error.max() <= ref.unit_of(dtype) * (16 + 2 * math.log(vocab) + 60), (vocab, error)
            np.testing.assert_array_equal(xe.divergences(one, other).flags, ref.SUPPORT)
            _, flags = xe.js_divergence(one, other, return_flags=True)
            np.testing.assert_array_equal(flags, 0)


@DTYPE
@pytest.mark.parametrize("p_masked", [True, False], ids=["K2-K14-p-is-zero", "K4-both-are-zero"])
def test_masked_columns(p_masked: bool, dtype: np.dtype[Any]) -> None:
    """Where only p is 0 the reverse is inf, and SUPPORT says so; where both are, everything is finite."""
    for vocab in (2, 17, 300) + ((4097,) if dtype == np.float32 else ()):
        places = positions(vocab)[-1:] if vocab > 300 else positions(vocab)[:3]
        p_logits, q_logits = pair(vocab, dtype, len(places))
        p_logits[np.arange(len(places)), places] = -INF
        if not p_masked:
            q_logits[np.arange(len(places)), places] = -INF
        fields = every_field(p_logits, q_logits)
        flags = np.asarray(xe.divergences(p_logits, q_logits).flags)
        np.testing.assert_array_equal(flags & ~np.uint8(ref.CLAMPED), ref.SUPPORT if p_masked else 0)
        for row, (p_row, q_row) in enumerate(zip(ref.decode(p_logits), ref.decode(q_logits), strict=True)):
            wanted = ref.exact_divergences(p_row, q_row)
            rows = (p_row, q_row) if p_masked else (p_row[p_row > -INF], q_row[q_row > -INF])
            js_allowed = js_bound(*rows, dtype)
            assert abs(fields["js_divergence"][row] - wanted["js_divergence"]) <= js_allowed
            assert abs(fields["kl_divergence"][row] - wanted["kl_divergence"]) <= ref.kl_bound(*rows, dtype)
            allowed = cross_varentropy_bound(*rows, dtype)
            assert abs(fields["cross_varentropy"][row] - wanted["cross_varentropy"]) <= allowed, (vocab, row)
            if p_masked:
                assert fields["reverse_kl_divergence"][row] == fields["symmetric_kl_divergence"][row] == INF


@DTYPE
def test_k12_p_underflows(dtype: np.dtype[Any]) -> None:
    """A column that counts as 0 for p is none for the variance either, also where its own leaf is far below."""
    p_logits, q_logits = np.zeros((1, 8192), dtype), np.zeros((1, 8192), dtype)
    beside, below = (-640.0, -800.0) if dtype == np.float64 else (-80.0, -100.0)
    p_logits[0, 4096:], p_logits[0, 5000], q_logits[0, 5000] = beside, below, -INF
    fields = every_field(p_logits, q_logits)
    assert fields["kl_divergence"][0] == pytest.approx(math.log(8191 / 4096), abs=1e-6)
    assert fields["cross_entropy"][0] == pytest.approx(math.log(8191), abs=1e-5)
    assert fields["cross_varentropy"][0] == pytest.approx(0.0, abs=1e-6)


@DTYPE
@pytest.mark.parametrize(
    ("p_value", "q_value", "flag", "everywhere"),
    [
        pytest.param(-INF, None, ref.ALL_NEGINF, True, id="K5-one"),
        pytest.param(-INF, -INF, ref.ALL_NEGINF, True, id="K5-both"),
        pytest.param(NAN, None, ref.NAN, False, id="K6-one"),
        pytest.param(-INF, NAN, ref.NAN, False, id="K6-where-the-other-is-zero"),
        pytest.param(NAN, INF, ref.NAN, False, id="K6-and-inf"),
        pytest.param(INF, None, ref.POSINF, False, id="K7-one"),
        pytest.param(INF, INF, ref.POSINF, False, id="K7-both"),
        pytest.param(INF, -INF, ref.POSINF, False, id="K7-where-the-other-is-zero"),
    ],
)
def test_no_divergence(
    p_value: float, q_value: float | None, flag: int, everywhere: bool, dtype: np.dtype[Any]
) -> None:
    """Both ways: NaN everywhere and the flag, in this row alone."""
    for vocab in (2, 17, 4097):
        logits, others = pair(vocab, dtype, 2)
        column = slice(None) if everywhere else vocab - 1
        logits[0, column] = p_value
        if q_value is not None:
            others[0, column] = q_value
        for p, q in ((logits, others), (others, logits)):
            for name, values in every_field(p, q).items():
                assert np.isnan(values).tolist() == [True, False], name
            _, js_flags = xe.js_divergence(p, q, return_flags=True)
            for flags in (xe.divergences(p, q).flags, js_flags):
                assert int(flags[0]) & flag == flag
                assert int(flags[1]) & NO_ROW == 0


@DTYPE
def test_js_is_symmetric(dtype: np.dtype[Any]) -> None:
    for vocab, scale in ((3, 1.0), (300, 3.0), (5000, 30.0)):
        p_logits, q_logits = pair(vocab, dtype, 8, scale)
        q_logits[4:] = np.nextafter(p_logits[4:], dtype.type(9))
        there, back = (np.asarray(xe.js_divergence(a, b)) for a, b in ((p_logits, q_logits), (q_logits, p_logits)))
        allowed = [2 * js_bound(*rows, dtype) for rows in zip(ref.decode(p_logits), ref.decode(q_logits), strict=True)]
        assert (np.abs(there - back) <= allowed).all(), (there, back)


@DTYPE
@pytest.mark.parametrize("temperature", [0.5, 2.0, 8.0], ids=lambda value: f"K16[{value}]")
def test_temperature(temperature: float, dtype: np.dtype[Any]) -> None:
    """Powers of two: the division is exact, so that scaled logits have the same divergences."""
    both = pair(1000, dtype, 3)
    p_scaled, q_scaled = ((logits / dtype.type(temperature)).astype(dtype) for logits in both)
    got, wanted = every_field(*both, temperature=temperature), every_field(p_scaled, q_scaled)
    for row, rows in enumerate(zip(ref.decode(p_scaled), ref.decode(q_scaled), strict=True)):
        allowed = bounds(*rows, dtype, {name: float(values[row]) for name, values in wanted.items()})
        for name, values in got.items():
            assert abs(values[row] - wanted[name][row]) <= 2 * allowed[name], name


TWO: Final[list[Callable[..., Any]]] = [xe.js_divergence, xe.divergences]


@pytest.mark.parametrize("function", TWO, ids=lambda function: function.__name__)
def test_bad_arguments(function: Callable[..., Any]) -> None:
    """K9 and K16, and a vocabulary of nothing."""
    zeros = np.zeros((2, 7), np.float32)
    for value in (0.0, -1.0, NAN, INF):
        with pytest.raises(xe.ParamError, match="temperature"):
            function(zeros, zeros, temperature=value)
    for shape in ((2, 8), (3, 7), (7,), (1, 7), (2, 0)):
        with pytest.raises(xe.ShapeError):
            function(zeros, np.zeros(shape, np.float32))
    with pytest.raises(xe.ShapeError):
        function(zeros[:, :0], zeros[:, :0])


@pytest.mark.parametrize("p_dtype", ref.DTYPES.values(), ids=[f"K10-{name}" for name in ref.DTYPES])
@DTYPE
def test_dtypes_differ(p_dtype: np.dtype[Any], dtype: np.dtype[Any]) -> None:
    """The wider of the two decides; every 16-bit value is a float32, so those rows have the float32 bits."""
    p_logits, q_logits = noise(4097, p_dtype, 2), noise(4097, dtype, 3)[1:]
    compute = np.dtype(np.float64 if np.float64 in (p_dtype, dtype) else np.float32)
    got, wanted = every_field(p_logits, q_logits), every_field(p_logits.astype(compute), q_logits.astype(compute))
    for name, values in got.items():
        np.testing.assert_array_equal(values, wanted[name], err_msg=name)


def normalized(logits: Array) -> Floats:
    """Log-probabilities in float64."""
    rows = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    return np.reshape([-ref.surprisals(row) for row in rows], logits.shape)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=lambda dtype: f"K11-{dtype}")
def test_log_probs(dtype: np.dtype[Any]) -> None:
    """Log-probabilities pass with the same bits as logits; rows off by more than 1e-3 do not."""
    p_logits, q_logits = pair(4097, dtype, 4)
    log_probs = normalized(p_logits).astype(dtype)
    log_probs[1, 5], log_probs[2] = NAN, -INF
    for shift in (0.0, 9e-4, -9e-4):
        moved = (log_probs + shift).astype(dtype)
        got = xe.kl_divergence(moved, q_logits, log_probs=True)
        np.testing.assert_array_equal(got, xe.kl_divergence(moved, q_logits))
    for shift in (1.1e-3, -1.1e-3, 5.0):
        with pytest.raises(xe.NotNormalizedError, match="p_logits"):
            xe.kl_divergence((log_probs + shift).astype(dtype), q_logits, log_probs=True)


def test_k11_log_probs_with_a_temperature() -> None:
    """What is stored sums to 1; what the temperature makes of it does not."""
    p_logits, q_logits = pair(300, np.dtype(np.float64), 2)
    log_probs = normalized(p_logits)
    got = xe.kl_divergence(log_probs, q_logits, log_probs=True, temperature=2.0)
    np.testing.assert_array_equal(got, xe.kl_divergence(log_probs, q_logits, temperature=2.0))


def test_k11_names_the_first_row() -> None:
    """However many rows are wrong, and whichever thread meets one first."""
    p_logits, q_logits = pair(300, np.dtype(np.float64), 6)
    log_probs = normalized(p_logits)
    log_probs[2:] += 1
    for threads in (1, 2, 3):
        with pytest.raises(xe.NotNormalizedError, match=r"p_logits\[2\]"):
            xe.kl_divergence(log_probs, q_logits, log_probs=True, num_threads=threads)


def test_reductions_and_flags() -> None:
    p_logits, q_logits = pair(300, np.dtype(np.float32), 6)
    p, q = p_logits.reshape(2, 3, 300), q_logits.reshape(2, 3, 300)
    ids = np.broadcast_to(np.arange(3), (2, 3, 3))
    calls: list[Callable[..., Any]] = [
        lambda **options: xe.js_divergence(p, q, **options),
        lambda **options: xe.kl_divergence(p, q, **options),
        lambda **options: xe.top_k_kl_divergence(ids, np.full((2, 3, 3), -2.0), q, **options),
    ]
    for call in calls:
        values, flags = call(return_flags=True)
        assert values.shape == flags.shape == (2, 3)
        assert flags.dtype == np.uint8
        total, total_flags = call(reduction="sum", return_flags=True)
        assert float(total) == pytest.approx(math.fsum(values.ravel()), rel=1e-15)
        np.testing.assert_array_equal(total_flags, flags)
        assert float(call(reduction="mean")) == pytest.approx(math.fsum(values.ravel()) / 6, rel=1e-15)
        with pytest.raises(xe.ParamError, match="reduction"):
            call(reduction="batchmean")
    assert math.isnan(float(xe.js_divergence(p[:0], q[:0], reduction="mean")))
    assert xe.divergences(p[:, :0], q[:, :0]).kl_divergence.shape == (2, 0)


def exact_top_k(ids: list[int], log_probs: list[float], q_row: Floats, inverse_temperature: float = 1.0) -> float:
    """The plain formula over the known columns and the rest as one more, with 60 digits."""
    log_q, _ = ref.exact_log_probs(q_row, inverse_temperature)
    with decimal.localcontext(ref.EXACT):
        known = [(decimal.Decimal(log_p), log_q[column]) for column, log_p in zip(ids, log_probs, strict=True)]
        p_rest = max(1 - sum((log_p.exp() for log_p, _ in known), start=decimal.Decimal(0)), decimal.Decimal(0))
        q_rest = sum((log_q[column].exp() for column in set(range(q_row.size)) - set(ids)), start=decimal.Decimal(0))
        if p_rest > 0:
            known.append((p_rest.ln(), q_rest.ln()))
        log_p_all, log_q_all = ([pair[side] for pair in known] for side in (0, 1))
        return float(ref.exact_mean(log_p_all, ref.exact_ratios(log_p_all, log_q_all)))


def top_k_bound(k: int, z: Floats, dtype: np.dtype[Any], is_scaled: bool = False) -> float:
    """ln of q's rest is off by u (2 + ln V) and counts at most once in lse and once in the rest's own term.

    1 - sum p is off by k 2^-53, times its slope ln(p_rest / q_rest) + 1 <= 38 + max - min of z. A soft cap or
    temperature rounds each z: u max|z|, in a known logit and in the rest.
    """
    unit, span = ref.unit_of(dtype), float(np.ptp(z[z > -INF]))
    moved = 4 * unit * float(np.abs(z[z > -INF]).max()) if is_scaled else 0.0
    return 2 * unit * (2 + math.log(z.size)) + (k + 8) * ref.UNIT_F64 * (40 + span) + moved


@DTYPE
@pytest.mark.parametrize("k", [1, 5, 50])
def test_top_k_equals_the_plain_formula(k: int, dtype: np.dtype[Any]) -> None:
    """Also with a soft cap, a temperature, padded columns and padding ids; at most the KL over all columns."""
    for vocab in (64, 300, 5000):
        p_logits, q_logits = pair(vocab, dtype, 2)
        log_probs = normalized(p_logits)
        ids = np.argsort(-log_probs, axis=1)[:, :k]
        kept = np.take_along_axis(log_probs, ids, axis=1)
        padded = np.concatenate([ids, np.full((2, 2), -7)], axis=1), np.concatenate([kept, [[NAN, 9.0]] * 2], axis=1)
        wide = np.concatenate([q_logits, np.full((2, 5), 60.0, dtype)], axis=1)
        full = np.asarray(xe.kl_divergence(log_probs, ref.decode(q_logits)))
        for scaling in SCALINGS:
            z = scaled(q_logits, **{key: value for key, value in scaling.items() if key == "softcap"})
            got, flags = xe.top_k_kl_divergence(ids, kept, q_logits, return_flags=True, **scaling)
            assert not np.asarray(flags).any()
            options: dict[str, Any] = {"ignore_index": -7, "vocab_size": vocab, **scaling}
            np.testing.assert_array_equal(np.asarray(xe.top_k_kl_divergence(*padded, wide, **options)), got)
            inverse = 1 / scaling.get("temperature", 1.0)
            for row in range(2 if vocab < 5000 else 1):
                wanted = exact_top_k(ids[row].tolist(), kept[row].tolist(), z[row], inverse)
                allowed = top_k_bound(k, z[row] * inverse, dtype, bool(scaling))
                assert abs(float(got[row]) - wanted) <= allowed, (vocab, scaling, float(got[row]), wanted)
                assert scaling or float(got[row]) <= full[row] + allowed


def test_top_k_of_everything_is_the_full_divergence() -> None:
    """Where all columns are known nothing is left, though the stored probabilities sum to 1 only up to rounding."""
    for dtype in (np.float32, np.float64):
        p_logits, q_logits = pair(300, np.dtype(dtype), 32)
        log_probs = normalized(p_logits).astype(dtype)
        ids = np.broadcast_to(np.arange(300), (32, 300))
        full = xe.kl_divergence(log_probs, q_logits)
        got, flags = xe.top_k_kl_divergence(ids, log_probs, q_logits, return_flags=True)
        np.testing.assert_array_equal(flags, 0)
        # Each stored value is rounded by |ln p| units, 6 in the mean, and weighs a log-ratio of up to 16.
        assert np.abs(got - full).max() <= 6 * 16 * ref.unit_of(np.dtype(dtype))


def test_top_k_without_a_rest() -> None:
    """p is 1 on one column or exactly 1 on a few: -ln q, whatever the rest of q is."""
    q = np.array([[0.0, 1.0, -2.0, -INF]] * 4, np.float32)
    ids, log_probs = [[1, 0], [1, 3], [-100, 1], [0, 2]], [[0.0, -INF], [0.0, -INF], [5.0, 0.0], [math.log(0.5)] * 2]
    got, flags = xe.top_k_kl_divergence(ids, log_probs, q, return_flags=True)
    nll = [ref.nll(ref.decode(q[0]), column) for column in range(3)]
    np.testing.assert_allclose(got, [nll[1], nll[1], nll[1], (nll[0] + nll[2]) / 2 - math.log(2)], rtol=1e-6)
    np.testing.assert_array_equal(flags, 0)
    np.testing.assert_array_equal(xe.top_k_kl_divergence([[-100]] * 4, [[NAN]] * 4, q), 0.0)


def test_top_k_support() -> None:
    """Rows: mass left where q has none, mass on a column where q has none, and neither."""
    q = np.array([[0.0, 0.0, -INF, -INF], [0.0, 0.0, 0.0, -INF], [0.0, 0.0, -INF, -INF]], np.float32)
    half = math.log(0.5)
    got, flags = xe.top_k_kl_divergence(
        [[0, 1], [0, 3], [0, 1]], [[half, -5.0], [half, half], [half, half]], q, return_flags=True
    )
    np.testing.assert_array_equal(got[:2], INF)
    assert got[2] == pytest.approx(0.0, abs=1e-15)
    np.testing.assert_array_equal(flags & ~np.uint8(ref.CLAMPED), [ref.SUPPORT, ref.SUPPORT, 0])


@DTYPE
@pytest.mark.parametrize("place", [0, 1], ids=["known", "rest"])
def test_top_k_rows_without_a_divergence(place: int, dtype: np.dtype[Any]) -> None:
    logits = np.zeros((4, 5000), dtype)
    logits[0, place * 4999], logits[1, place * 4999], logits[2] = NAN, INF, -INF
    got, flags = xe.top_k_kl_divergence([[0]] * 4, [[-1.0]] * 4, logits, return_flags=True)
    assert np.isnan(np.asarray(got)).tolist() == [True, True, True, False]
    assert np.asarray(flags).tolist() == [ref.NAN, ref.POSINF, ref.ALL_NEGINF, 0]


@pytest.mark.parametrize("gap", [40.0, 80.0])
@pytest.mark.parametrize("vocab", [4, 5000])
@DTYPE
def test_top_k_of_a_peaked_q(dtype: np.dtype[Any], vocab: int, gap: float) -> None:
    """q's rest is 1e-17 and less, which 1 - sum q would lose; its logarithm is right to the bound."""
    q_row = np.full(vocab, -gap, dtype)
    q_row[1] = 0.0
    for log_prob in (math.log(0.5), math.log(1e-3), -1e-9):
        got = xe.top_k_kl_divergence([[1]], [[log_prob]], q_row[None])
        wanted = exact_top_k([1], [log_prob], ref.decode(q_row))
        assert wanted > 1e-9
        assert abs(float(got[0]) - wanted) <= top_k_bound(1, ref.decode(q_row), dtype), (log_prob, wanted)


def top_k(ids: Any, log_probs: Any, **options: Any) -> Any:
    return xe.top_k_kl_divergence(ids, log_probs, np.zeros((2, 4), np.float32), **options)


def test_bad_top_k() -> None:
    fine = [[-1.0, -2.0], [-1.0, -2.0]]
    with pytest.raises(xe.ParamError, match="p_ids = 3 twice in row 1"):
        top_k([[0, 1], [3, 3]], fine)
    assert np.isfinite(top_k([[0, 1], [-100, -100]], fine)).all()
    with pytest.raises(xe.ParamError, match="p_log_probs = NaN in row 1"):
        top_k([[0, 1], [0, 1]], [[-1.0, -2.0], [-1.0, NAN]])
    for bad in (4, -1, 2**40):
        with pytest.raises(xe.TargetError, match=f"{bad} is outside"):
            top_k([[0, 1], [0, bad]], fine)
    for row in ([math.log(1.0011), -INF], [0.0, -6.0], [INF, -1.0]):
        with pytest.raises(xe.NotNormalizedError, match=r"p_log_probs\[1\]"):
            top_k([[0, 1], [0, 1]], [[-1.0, -2.0], row])
    assert (np.asarray(top_k([[0], [1]], [[math.log(1.0009)]] * 2)) >= 0).all()
    for shape in ((2,), (1, 2), (3, 2), (2, 1, 2), ()):
        with pytest.raises(xe.ShapeError, match="p_ids and p_log_probs"):
            top_k(np.zeros(shape, np.int64), np.full(shape, -1.0))
    with pytest.raises(xe.DTypeError, match="p_ids"):
        top_k([[0.0], [1.0]], [[-1.0], [-1.0]])


@pytest.mark.parametrize("name", ref.DTYPES, ids=lambda name: f"B18-{name}")
@pytest.mark.rust_only("the bits of numpy")
def test_torch_tensors(name: str) -> None:
    """Tensors come back with the bits of numpy, KL and JS rounded once; nothing is written; what requires grad is
    refused where there is no backward.
    """
    logits = noise(300, ref.DTYPES[name], 4)
    kept, (p, q) = logits.copy(), (logits[:2], logits[2:])
    calls: list[Callable[[Any, Any], Any]] = [
        xe.js_divergence,
        xe.kl_divergence,
        lambda p, q: xe.js_divergence(p, q, reduction="mean"),
        lambda p, q: xe.top_k_kl_divergence(torch.tensor([[3], [4]]), torch.tensor([[-1.0], [-2.0]]), q),
        *[lambda p, q, field=field: getattr(xe.divergences(p, q), field) for field in (*FIELDS, "flags")],
    ]
    for place, call in enumerate(calls):
        wanted, got, has_backward = call(p, q), call(as_torch(p), as_torch(q)), place < 3
        assert isinstance(wanted, np.ndarray)
        assert isinstance(got, torch.Tensor)
        dtype = np.float32 if has_backward and name != "float64" else wanted.dtype
        assert got.numpy().dtype == dtype
        assert got.numpy().tobytes() == wanted.astype(dtype).tobytes()
        if has_backward:
            assert call(as_torch(p), as_torch(q).requires_grad_()).requires_grad
            continue
        with pytest.raises(xe.DTypeError, match="requires grad"):
            call(as_torch(p), as_torch(q).requires_grad_())
    assert logits.tobytes() == kept.tobytes()

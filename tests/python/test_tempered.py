"""Several inverse temperatures, Renyi entropies and moments of log-probabilities, held to 60 digits or to float64.

Run as a script this module prints one hash for each function that reads logits in a way of its own; the tests run it
on every instruction set. Longer than other files: one module's functions share their bounds.
"""

from __future__ import annotations

import decimal
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final, cast

import numpy as np
import pytest
import reference as ref
import torch
import xentrs as xe
from reference import Array, Floats
from test_bindings_torch import as_torch
from test_edge_isa import ISAS, digest
from test_edge_lse import noise, some_negative_infinity

DTYPE = pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
NAN, INF = math.nan, math.inf
FIELDS: Final = ("lse", "mean", "variance", "entropy", "nll")
GRID: Final = (4.0, 0.0, 1.0, 0.5, 2.0, 0.25, 8.0, 3.3, 1.0, 1e-30, 64.0, 0.1, 1e-3)
"""Unsorted, with a duplicate, and chains of doublings that are longer than one exponential serves."""
ORDERS: Final = (0.0, 0.5, 0.999, 1.0, 1.001, 2.0, 3.7, 30.0, INF)


def given(logits: Array) -> Any:
    """bfloat16 as a torch tensor, everything else as numpy."""
    return as_torch(logits) if logits.dtype == ref.DTYPES["bfloat16"] else logits


def exact_fields(row: Floats, target: int, inverse_temperature: float) -> dict[str, float]:
    """The definitions with 60 digits. -inf columns are left out, also at 0, where all others weigh the same."""
    log_p, lse = ref.exact_log_probs(row[row > -INF], inverse_temperature)
    with decimal.localcontext(ref.EXACT):
        z = [decimal.Decimal(value) for value in row[row > -INF].tolist()]
        mean = ref.exact_mean(log_p, z)
        nll = lse - decimal.Decimal(inverse_temperature) * decimal.Decimal(float(row[target]))
        return {
            "lse": float(lse),
            "mean": float(mean),
            "variance": float(ref.exact_mean(log_p, [(value - mean) ** 2 for value in z])),
            "entropy": -float(ref.exact_mean(log_p, log_p)),
            "nll": float(nll),
        }


def field_bounds(row: Floats, b: float, dtype: np.dtype[Any]) -> dict[str, float]:
    """Allowed error of each field, from the relative error eps_i <= u (23 + 3 b d_i) of a weight e^(-b d_i).

    d_i, b and their product are rounded: 3 u b d_i. exp adds 2 u, and each of up to three squarings doubles what is
    there and adds u: 2^3 * 2 + 7 = 23. The moments move as in `reference.entropy_bound` and `varentropy_bound`, with u
    for each d_i, each product and each addition. b max and the sum with it round in float64, which float64 logits feel.
    """
    row, unit = row[row > -INF], ref.unit_of(dtype)
    gap, tempered = ref.gaps(row), b * row
    p, surprisal, entropy = ref.probabilities(tempered), ref.surprisals(tempered), ref.entropy(tempered)
    eps, mean_gap = 23 + 3 * b * gap, ref.total(ref.probabilities(tempered) * gap)
    lse = unit * (ref.total(p * eps) + math.log2(row.size + 1)) + 8 * ref.UNIT_F64 * (abs(b * row.max()) + 1)
    flushed = 1e-30 * float(gap.max())
    return {
        "lse": lse,
        "nll": lse + 8 * ref.UNIT_F64 * b * float(gap.max()),
        "entropy": unit * (ref.total(p * (eps * np.abs(surprisal - entropy) + 3 * b * gap)) + entropy + 1) + flushed,
        "mean": unit * ref.total(p * (eps * np.abs(gap - mean_gap) + 3 * gap))
        + 8 * ref.UNIT_F64 * (float(np.abs(row).max()) + 1)
        + flushed,
        "variance": unit * ref.total(p * (7 + eps) * gap**2) + flushed * float(gap.max()),
    }


def check_grid(logits: Array, grid: tuple[float, ...], targets: list[int], exact_rows: int) -> None:
    dtype = logits.dtype
    found = xe.temperature_grid(given(logits), grid, targets)
    np.testing.assert_array_equal(found.inverse_temperatures, grid)
    for row in range(exact_rows):
        decoded = ref.decode(logits[row])
        for place, b in enumerate(grid):
            wanted, allowed = exact_fields(decoded, targets[row], b), field_bounds(decoded, b, dtype)
            for name in FIELDS:
                got = float(getattr(found, name)[row, place])
                assert abs(got - wanted[name]) <= allowed[name], (decoded.size, b, name, got, wanted[name])
                assert name in ("lse", "mean") or got >= 0, (b, name)


@DTYPE
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_grid(scale: float, dtype: np.dtype[Any]) -> None:
    for vocab in (1, 2, 17, 300):
        check_grid(noise(vocab, dtype, 2, scale), GRID, [0, vocab - 1], 2)


@DTYPE
def test_grid_over_two_leaves(dtype: np.dtype[Any]) -> None:
    check_grid(noise(4097, dtype, 1), (0.0, 0.25, 0.5, 1.0, 2.0), [4096], 1)


@DTYPE
def test_grid_with_impossible_columns(dtype: np.dtype[Any]) -> None:
    """They have no weight at 0 either."""
    for vocab in (17, 300):
        check_grid(some_negative_infinity(vocab, dtype), (0.0, 1e-30, 0.5, 1.0, 64.0), [0, 1, 2], 3)


@DTYPE
def test_inverse_temperature_one_is_row_stats(dtype: np.dtype[Any]) -> None:
    """And 1 / T is the temperature T; over any vocabulary, in float64 to the rounding of both."""
    for vocab in (33, 5000, 32_000):
        logits, targets = noise(vocab, dtype, 3), np.array([0, vocab // 2, vocab - 1])
        grid = xe.temperature_grid(given(logits), [1.0, 0.5, 2.0], targets)
        for place, b in enumerate((1.0, 0.5, 2.0)):
            stats = xe.row_stats(given(logits), targets, temperature=1 / b)
            for row in range(3):
                allowed = field_bounds(ref.decode(logits[row]), b, dtype)
                for name in ("lse", "nll", "entropy"):
                    error = abs(float(getattr(stats, name)[row]) - float(getattr(grid, name)[row, place]))
                    assert error <= 2 * allowed[name], (vocab, b, name)


def test_chains_and_order_change_little() -> None:
    """A value alone or in a chain: within the bounds. The order of the list changes no bit."""
    logits, full = noise(5000, np.dtype(np.float32), 2), sorted(set(GRID))
    found = xe.temperature_grid(logits, full)
    shuffled = xe.temperature_grid(logits, full[::-1])
    for place, b in enumerate(full):
        alone = xe.temperature_grid(logits, [b])
        for name in FIELDS[:4]:
            values = getattr(found, name)[:, place]
            np.testing.assert_array_equal(values, getattr(shuffled, name)[:, -1 - place], err_msg=name)
            for row in range(2):
                allowed = field_bounds(ref.decode(logits[row]), b, logits.dtype)[name]
                assert abs(values[row] - getattr(alone, name)[row, 0]) <= 2 * allowed, (b, name)


def test_no_inverse_temperature() -> None:
    """Shapes and flags remain."""
    logits = np.array([[[NAN, 1.0], [0.0, 1.0]]], np.float32)
    grid = xe.temperature_grid(logits, [])
    assert all(getattr(grid, name).shape == (1, 2, 0) for name in FIELDS)
    assert xe.renyi_entropy(logits, []).shape == (1, 2, 0)
    np.testing.assert_array_equal(grid.flags, [[ref.NAN, 0]])


@pytest.mark.parametrize("value", [NAN, -1.0, -1e-300, INF, 1e31], ids=str)
def test_bad_inverse_temperature(value: float) -> None:
    with pytest.raises(xe.ParamError, match="inverse_temperatures"):
        xe.temperature_grid(np.zeros((1, 3), np.float32), [1.0, value])


def test_bad_arguments() -> None:
    zeros = np.zeros((2, 3), np.float32)
    for value in (-1.0, NAN, -INF):
        with pytest.raises(xe.ParamError, match="orders"):
            xe.renyi_entropy(zeros, [2.0, value])
    for shape in ((), (1, 1)):
        with pytest.raises(xe.ShapeError, match="inverse_temperatures"):
            xe.temperature_grid(zeros, cast(Any, np.ones(shape)))
        with pytest.raises(xe.ShapeError, match="orders"):
            xe.renyi_entropy(zeros, cast(Any, np.ones(shape)))
    with pytest.raises(xe.DTypeError, match="inverse_temperatures"):
        xe.temperature_grid(zeros, cast(Any, ["a"]))
    with pytest.raises(xe.TargetError):
        xe.temperature_grid(zeros, [1.0], [0, 3])
    with pytest.raises(xe.ShapeError, match="targets"):
        xe.temperature_grid(zeros, [1.0], [0])
    functions: list[Callable[..., Any]] = [xe.renyi_entropy, xe.log_prob_moments]
    for function in functions:
        for options in ({"temperature": 0.0}, {"softcap": -1.0}):
            with pytest.raises(xe.ParamError):
                function(zeros, **options)


@pytest.mark.parametrize("function", [xe.renyi_entropy, xe.log_prob_moments], ids=["H7-renyi", "H7-moments"])
def test_no_column(function: Any) -> None:
    with pytest.raises(xe.ShapeError):
        function(np.zeros((2, 0), np.float32))


@DTYPE
def test_rows_without_a_distribution(dtype: np.dtype[Any]) -> None:
    """Rows: NaN, +inf, all -inf, ignored, impossible target, plain; row 3 holds what must not leak."""
    for vocab in (3, 300, 5000):
        logits = noise(vocab, dtype, 6)
        logits[0, -1], logits[1, 0], logits[2], logits[3], logits[4, 1] = NAN, INF, -INF, NAN, -INF
        grid = xe.temperature_grid(given(logits), [0.0, 0.5, 1.0, 2.0], [0, 0, 0, -100, 1, 0])
        flags = [ref.NAN, ref.POSINF, ref.ALL_NEGINF, ref.IGNORED, ref.TARGET_NEGINF, 0]
        assert np.asarray(grid.flags).tolist() == flags
        for name in FIELDS:
            values = np.asarray(getattr(grid, name))
            defined = name == "lse"
            np.testing.assert_array_equal(values[0], NAN, err_msg=name)
            np.testing.assert_array_equal(values[1], INF if defined else NAN, err_msg=name)
            np.testing.assert_array_equal(values[2], -INF if defined else NAN, err_msg=name)
            np.testing.assert_array_equal(values[3], 0.0 if name == "nll" else NAN, err_msg=name)
            assert (values[4] == INF if name == "nll" else np.isfinite(values[4])).all(), name
            assert np.isfinite(values[5]).all(), name
        renyi = np.asarray(xe.renyi_entropy(given(logits), ORDERS))
        assert np.isnan(renyi).all(axis=1).tolist() == [True] * 4 + [False] * 2
        assert np.isfinite(renyi[4:]).all()
        moments = xe.log_prob_moments(given(logits))
        np.testing.assert_array_equal(np.isnan(moments.mean), [True] * 4 + [False] * 2)
        assert float(moments.mean[4]) == -INF
        np.testing.assert_array_equal(np.isnan(moments.variance), [True] * 5 + [False])


def test_shift_padding_and_softcap() -> None:
    """As everywhere: equal to the rows cut out by hand."""
    logits, targets = noise(5000, np.dtype(np.float32), 6).reshape(2, 3, 5000), np.array([[0, 1, -100], [7, 8, 4000]])
    options: dict[str, Any] = {"softcap": 5.0, "vocab_size": 4500}
    found = xe.temperature_grid(logits, [0.0, 1.0], targets, shift=1, **options)
    plain = xe.temperature_grid(logits[:, :2, :4500].copy(), [0.0, 1.0], targets[:, 1:], softcap=5.0)
    for name in (*FIELDS, "flags"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name), err_msg=name)
    capped = 5 * np.tanh(logits[0, 0, :4500].astype(np.float64) / 5)
    assert found.mean[0, 0, 0] == pytest.approx(capped.mean(), abs=1e-6)
    assert found.nll[0, 0, 1] == pytest.approx(ref.nll(capped, 1), abs=5e-6)
    moments, narrow = (
        xe.log_prob_moments(logits, **options),
        xe.log_prob_moments(logits[..., :4500].copy(), softcap=5.0),
    )
    np.testing.assert_array_equal(moments.mean, narrow.mean)
    np.testing.assert_array_equal(moments.variance, narrow.variance)


@DTYPE
def test_renyi_entropies(dtype: np.dtype[Any]) -> None:
    """ln(sum p^a) is off by E_a + a E_1, each the bound of an lse, over |1 - a|; orders 1 and inf have no quotient."""
    for vocab, temperature in ((1, 1.0), (2, 1.0), (300, 1.0), (300, 2.0), (4097, 1.0)):
        logits = some_negative_infinity(vocab, dtype)[:1] if vocab > 2 else noise(vocab, dtype, 1)
        got = np.asarray(xe.renyi_entropy(given(logits), ORDERS, temperature=temperature))[0]
        row = ref.decode(logits[0]) / temperature
        log_p, _ = ref.exact_log_probs(row[row > -INF])
        for order, value in zip(ORDERS, got, strict=True):
            with decimal.localcontext(ref.EXACT):
                if order in (1, INF):
                    wanted = float(-ref.exact_mean(log_p, log_p) if order == 1 else -max(log_p))
                else:
                    power = decimal.Decimal(order)
                    powers = sum(((log * power).exp() for log in log_p), start=decimal.Decimal(0))
                    wanted = float(powers.ln() / (1 - power))
            one = field_bounds(row, 1.0, dtype)
            allowed = one["entropy"] if order == 1 else one["lse"]
            if order not in (1, INF):
                allowed = (field_bounds(row, order, dtype)["lse"] + order * one["lse"]) / abs(1 - order)
            assert value >= 0
            assert abs(value - wanted) <= allowed, (vocab, order, value, wanted)
        assert float(got[ORDERS.index(1.0)]) == pytest.approx(
            float(xe.entropy(given(logits), temperature=temperature)[0]), rel=40 * ref.unit_of(dtype)
        )


@DTYPE
def test_renyi_of_simple_rows(dtype: np.dtype[Any]) -> None:
    """H3: one possible column gives 0 at every order, exactly. H2: equal columns give ln V."""
    for vocab in (1, 2, 17, 5000):
        logits = np.zeros((2, vocab), dtype)
        logits[0, 1:] = -INF
        got = np.asarray(xe.renyi_entropy(given(logits), ORDERS))
        np.testing.assert_array_equal(got[0], 0.0)
        assert not np.signbit(got).any()
        np.testing.assert_allclose(got[1], math.log(vocab), rtol=1e-12)


@DTYPE
def test_renyi_entropies_do_not_rise(dtype: np.dtype[Any]) -> None:
    """Order after order, also next to 1, where ln(sum p^a) / (1 - a) is 0 / 0."""
    near = (0.5, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12, 1.0, 1 + 1e-12, 1 + 1e-9, 1 + 1e-6, 1.001, 2.0, INF)
    got = np.asarray(xe.renyi_entropy(given(noise(5000, dtype, 4)), near))
    assert (np.diff(got, axis=1) <= 1e-3).all(), got


@DTYPE
@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_log_prob_moments(temperature: float, dtype: np.dtype[Any]) -> None:
    """The mean is the grid's at 0 less the lse at 1; the variance is that of the scaled logits."""
    for vocab in (1, 2, 300, 5000, 32_000):
        logits = noise(vocab, dtype, 2)
        moments = xe.log_prob_moments(given(logits), temperature=temperature)
        for row, decoded in enumerate(ref.decode(logits) / temperature):
            log_probs = -ref.surprisals(decoded)
            even, one = field_bounds(decoded, 0.0, dtype), field_bounds(decoded, 1.0, dtype)
            assert abs(float(moments.mean[row]) - ref.total(log_probs) / vocab) <= even["mean"] + one["lse"]
            variance = ref.total((log_probs - ref.total(log_probs) / vocab) ** 2) / vocab
            assert abs(float(moments.variance[row]) - variance) <= even["variance"] + 1e-15


@DTYPE
def test_h6_largest_logits(dtype: np.dtype[Any]) -> None:
    """A finite column is a possible one, also where its distance from the largest is beyond the compute type."""
    largest = ref.largest_finite(dtype)
    logits = given(np.array([[largest, -largest]], dtype))
    np.testing.assert_allclose(np.asarray(xe.renyi_entropy(logits, [0.0]))[0, 0], math.log(2), rtol=1e-12)
    grid = xe.temperature_grid(logits, [0.0, 1.0])
    np.testing.assert_allclose(np.asarray(grid.lse)[0], [math.log(2), largest], rtol=1e-12)
    np.testing.assert_allclose(np.asarray(grid.entropy)[0], [math.log(2), 0.0], rtol=1e-12)


def test_torch_tensors() -> None:
    for name, dtype in ref.DTYPES.items():
        logits = noise(300, dtype, 2)
        kept, tensor = logits.copy(), as_torch(logits)
        grid, wanted = (xe.temperature_grid(x, [0.5, 1.0], [0, -100]) for x in (tensor, logits))
        pairs = [(getattr(grid, field), getattr(wanted, field)) for field in (*FIELDS, "flags")]
        pairs.append((xe.renyi_entropy(tensor), xe.renyi_entropy(logits)))
        both = xe.log_prob_moments(tensor), xe.log_prob_moments(logits)
        pairs += [(getattr(both[0], field), getattr(both[1], field)) for field in ("mean", "variance")]
        for got, array in pairs:
            assert isinstance(got, torch.Tensor), name
            assert isinstance(array, np.ndarray), name
            assert digest(got.numpy()) == digest(array), name
        assert logits.tobytes() == kept.tobytes()
        for function in (xe.renyi_entropy, xe.log_prob_moments, lambda x: xe.temperature_grid(x, [1.0])):
            with pytest.raises(xe.DTypeError, match="requires grad"):
                function(as_torch(logits).requires_grad_())


def all_digests(num_threads: int | None = None) -> dict[str, str]:
    """One hash for each function, dtype and vocabulary."""
    found: dict[str, str] = {}
    threads: dict[str, Any] = {"num_threads": num_threads}
    for name, dtype in ref.DTYPES.items():
        for vocab in (17, 4097, 32_000):
            x, y = noise(vocab, dtype, 3), noise(vocab, dtype, 4)[1:]
            x[1, 3], ids, weight = -INF, np.array([0, vocab - 1, 5]), np.linspace(0, 2, vocab)
            columns, shares = np.array([[0, 5], [vocab - 1, 2], [4, 1]]), np.full((3, 2), 0.3)
            for softcap in (None, 5.0):
                key, options = f"{name} {vocab} {softcap}", {"softcap": softcap, **threads}
                grid = xe.temperature_grid(x, GRID, ids, **options)
                moments = xe.log_prob_moments(y, **options)
                smooth: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 1e-3, "reduction": "none"}
                found |= {
                    f"grid {key}": digest(*(getattr(grid, field) for field in (*FIELDS, "flags"))),
                    f"renyi {key}": digest(xe.renyi_entropy(x, ORDERS, **options)),
                    f"moments {key}": digest(moments.mean, moments.variance),
                    f"smooth {key}": digest(xe.cross_entropy(y, ids, **smooth, **options)),
                    f"weighted {key}": digest(xe.cross_entropy(x, ids, weight=weight, **smooth, **options)),
                    f"soft {key}": digest(xe.soft_cross_entropy(x, columns, shares, normalize=True, **options)),
                    f"top-k {key}": digest(xe.top_k_kl_divergence(columns, np.log(shares), y, **options)),
                }
            pair = xe.divergences(x, y, **threads)
            found[f"pair {name} {vocab}"] = digest(*vars(pair).values())
            found[f"js {name} {vocab}"] = digest(xe.js_divergence(x, y, temperature=0.7, **threads))
    return found


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.rust_only("instruction sets")
def test_every_instruction_set_has_the_same_bits(isa: str) -> None:
    if isa not in xe.available_isas():
        pytest.skip(f"this machine lacks {isa}: it has {', '.join(xe.available_isas())}")
    environment = {**os.environ, "XENTRS_ISA": isa}
    ended = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert answer.pop("isa") == isa
    here = all_digests()
    assert [key for key in here if here[key] != answer.get(key)] == []


@pytest.mark.rust_only("bits for any threads")
def test_every_thread_count_has_the_same_bits() -> None:
    wanted = all_digests(1)
    for num_threads in (2, 3):
        found = all_digests(num_threads)
        assert [key for key in wanted if wanted[key] != found[key]] == []


def main() -> None:
    print(json.dumps({"isa": xe.isa(), **all_digests()}))


if __name__ == "__main__":
    main()

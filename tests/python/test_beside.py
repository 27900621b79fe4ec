"""Moments, Renyi entropies and temperature grids beside the statistics of rows: for logits the bits of their own
functions, for heads the same of the logits, within what the products may be off.
"""

from __future__ import annotations

import math
from typing import Any, Final, cast

import numpy as np
import pytest
import reference as ref
import torch
import xentrs as xe
from test_bindings_torch import as_torch
from test_edge_isa import FIELDS, same_bytes
from test_edge_lse import noise
from test_linear import DTYPE, F32, F64, PAIR, draw, wanted_of
from test_tempered import field_bounds, given

NAN, INF = math.nan, math.inf
ORDERS: Final = (0.5, 2.0, 1.0, INF, 0.0, 0.999)
GRID: Final = (2.0, 0.0, 1.0, 0.25, 3.3, 1.0)
GRID_FIELDS: Final = ("lse", "mean", "variance", "entropy", "nll", "flags")
EVERY: Final[dict[str, Any]] = {"moments": True, "renyi_orders": ORDERS, "inverse_temperatures": GRID}
MOMENTS: Final = ("log_prob_mean", "log_prob_variance")


def assert_same(got: Any, wanted: Any, what: str = "") -> None:
    np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted), err_msg=what)


def parts(stats: xe.RowStats) -> dict[str, Any]:
    """All that stands beside the statistics, by name."""
    grid: Any = stats.temperature_grid
    found = {name: getattr(stats, name) for name in (*MOMENTS, "renyi_entropy")}
    return found | {f"grid {name}": getattr(grid, name) for name in GRID_FIELDS}


def assert_same_parts(got: xe.RowStats, wanted: xe.RowStats) -> None:
    for (name, values), other in zip(parts(got).items(), parts(wanted).values(), strict=True):
        assert_same(values, other, name)


@DTYPE
@pytest.mark.parametrize("settings", [{}, {"softcap": 5.0}, {"temperature": 0.7}, {"vocab_size": 16}], ids=str)
def test_logits_have_the_bits_of_the_separate_functions(settings: dict[str, Any], dtype: np.dtype[Any]) -> None:
    for vocab in (17, 300, 4097, 50_000):
        logits, targets = given(noise(vocab, dtype, 3)), np.array([0, -100, 15])
        plain = xe.row_stats(logits, targets, top_k=2, **settings)
        got = xe.row_stats(logits, targets, top_k=2, **EVERY, **settings)
        for name in FIELDS:
            assert same_bytes(getattr(got, name)) == same_bytes(getattr(plain, name)), (name, vocab)
        moments = xe.log_prob_moments(logits, **settings)
        renyi = np.asarray(xe.renyi_entropy(logits, ORDERS, **settings))
        for row in (0, 2):
            assert_same(got.log_prob_mean[row], moments.mean[row], f"mean {vocab}")
            assert_same(got.log_prob_variance[row], moments.variance[row], f"variance {vocab}")
            assert_same(got.renyi_entropy[row], renyi[row], f"renyi {vocab}")
        # The grid's own function knows no temperature: z is the logits over it.
        known = {name: value for name, value in settings.items() if name != "temperature"}
        scale = 1.0 / settings.get("temperature", 1.0)
        grid, beside = xe.temperature_grid(logits, [b * scale for b in GRID], targets, **known), got.temperature_grid
        assert beside is not None
        assert_same(beside.inverse_temperatures, GRID)
        for name in GRID_FIELDS:
            factor = {"mean": scale, "variance": scale * scale}.get(name)
            wanted = np.asarray(getattr(grid, name))
            if factor is None or scale == 1:
                assert_same(getattr(beside, name), wanted, f"{name} {vocab}")
            else:
                np.testing.assert_allclose(getattr(beside, name), wanted * factor, rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("asked", [["moments"], ["renyi_orders"], ["inverse_temperatures"]], ids=str)
def test_each_alone_is_what_it_is_beside_the_others(asked: list[str]) -> None:
    logits, head = noise(5000, F32, 3), draw([90], 8, 5000)
    calls = [
        lambda **known: xe.row_stats(logits, [1, 2, -100], **known),
        lambda **known: xe.linear_row_stats(logits[:, :8], head.T.copy(), [1, 2, -100], **known),
    ]
    for call in calls:
        every = call(**EVERY)
        alone = call(**{name: EVERY[name] for name in asked})
        empty = {"renyi_orders": [], "inverse_temperatures": np.zeros(0)}
        same = call(**(empty | {name: EVERY[name] for name in asked}))
        for found in (alone, same):
            is_none = [getattr(found, name) is None for name in (*MOMENTS, "renyi_entropy", "temperature_grid")]
            wanted = [name not in asked for name in ("moments", "moments", "renyi_orders", "inverse_temperatures")]
            assert is_none == wanted
            if found.temperature_grid is not None and every.temperature_grid is not None:
                for name in GRID_FIELDS:
                    assert_same(getattr(found.temperature_grid, name), getattr(every.temperature_grid, name))
            for name in (*MOMENTS, "renyi_entropy"):
                if getattr(found, name) is not None:
                    assert_same(getattr(found, name), getattr(every, name), name)


def test_nothing_asked_for_is_none() -> None:
    logits = noise(300, F32, 2)
    head = draw([91], 300, 4)
    asked: dict[str, Any] = {"moments": False, "renyi_orders": (), "inverse_temperatures": []}
    for stats in (
        xe.row_stats(logits),
        xe.row_stats(logits, **asked),
        xe.linear_row_stats(logits[:, :4], head),
        xe.linear_row_stats(logits[:, :4], head, **asked),
    ):
        assert all(getattr(stats, name) is None for name in (*MOMENTS, "renyi_entropy", "temperature_grid"))


@DTYPE
def test_rows_without_a_distribution(dtype: np.dtype[Any]) -> None:
    """Rows: NaN, +inf, all -inf, ignored, an impossible target, plain; row 3 holds what must not leak."""
    for vocab in (3, 300, 5000):
        logits = noise(vocab, dtype, 6)
        logits[0, -1], logits[1, 0], logits[2], logits[3], logits[4, 1] = NAN, INF, -INF, NAN, -INF
        got = xe.row_stats(given(logits), [0, 0, 0, -100, 1, 0], **EVERY)
        grid = xe.temperature_grid(given(logits), GRID, [0, 0, 0, -100, 1, 0])
        for name in GRID_FIELDS:
            assert_same(getattr(got.temperature_grid, name), getattr(grid, name), name)
        assert np.asarray(grid.flags).tolist() == [ref.NAN, ref.POSINF, ref.ALL_NEGINF, ref.IGNORED, 8, 0]
        assert np.isnan(np.asarray(got.renyi_entropy)).all(-1).tolist() == [True] * 4 + [False] * 2
        mean, variance = np.asarray(got.log_prob_mean), np.asarray(got.log_prob_variance)
        assert np.isnan(mean).tolist() == [True] * 4 + [False] * 2
        assert mean[4] == -INF
        assert np.isnan(variance).tolist() == [True] * 5 + [False]


def test_no_rows_and_no_columns() -> None:
    none = xe.row_stats(np.zeros((2, 0, 5), np.float32), **EVERY)
    assert none.renyi_entropy.shape == (2, 0, len(ORDERS))
    assert none.log_prob_mean.shape == (2, 0)
    grid = xe.row_stats(np.zeros((2, 0), np.float32), inverse_temperatures=[1.0]).temperature_grid
    assert grid is not None
    assert_same(grid.lse, [[-INF]] * 2)
    assert_same(grid.flags, [ref.ALL_NEGINF] * 2)
    head = np.zeros((0, 4), np.float32)
    for asked in ({"moments": True}, {"renyi_orders": [2.0]}):
        with pytest.raises(xe.ShapeError, match="vocab 0"):
            xe.row_stats(np.zeros((2, 0), np.float32), **cast(Any, asked))
        with pytest.raises(xe.ShapeError, match="vocab 0"):
            xe.linear_row_stats(np.zeros((2, 4), np.float32), head, **cast(Any, asked))


def test_bad_arguments() -> None:
    zeros, head = np.zeros((2, 3), np.float32), np.zeros((5, 3), np.float32)
    calls: list[Any] = [lambda **known: xe.row_stats(zeros, **known)]
    calls.append(lambda **known: xe.linear_row_stats(zeros, head, **known))
    for call in calls:
        for value in (-1.0, NAN, -INF, 1e31):
            with pytest.raises(xe.ParamError, match=r"renyi_orders = .*numbers from 0"):
                call(renyi_orders=[2.0, value])
        for value in (-1e-300, NAN, INF, 1e31):
            with pytest.raises(xe.ParamError, match=r"inverse_temperatures = .*numbers from 0"):
                call(inverse_temperatures=[1.0, value])
        for name in ("renyi_orders", "inverse_temperatures"):
            for shape in ((), (1, 1)):
                with pytest.raises(xe.ShapeError, match=f"{name} have shape"):
                    call(**{name: np.ones(shape)})
            with pytest.raises(xe.DTypeError, match=name):
                call(**{name: ["a"]})


def test_shift_and_leading_axes() -> None:
    logits, targets = noise(700, F32, 6).reshape(2, 3, 700), np.array([[0, 1, -100], [7, 8, 699]])
    got = xe.row_stats(logits, targets, shift=1, **EVERY)
    assert_same_parts(got, xe.row_stats(logits[:, :2].copy(), targets[:, 1:].copy(), **EVERY))
    assert got.renyi_entropy.shape == (2, 2, len(ORDERS))
    head = draw([92], 900, 700)
    linear = xe.linear_row_stats(logits, head, targets, shift=1, **EVERY)
    assert_same_parts(linear, xe.linear_row_stats(logits[:, :2].copy(), head, targets[:, 1:].copy(), **EVERY))


@PAIR
def test_exact_products_have_the_bits_of_the_logits(names: tuple[str, str]) -> None:
    """Small whole numbers multiply exactly, so that what follows the product is that of the logits to the bit."""
    dice = np.random.default_rng([7, 5])
    for rows, width, vocab in ((1, 1, 1), (130, 100, 4097), (7, 5, 9003)):
        hidden, weight = (dice.integers(-3, 4, (count, width)).astype(float) for count in (rows, vocab))
        bias, targets = dice.integers(-9, 10, vocab), dice.integers(0, vocab, rows)
        compute = F64 if "float64" in names else F32
        lent = hidden.astype(ref.DTYPES[names[0]]), weight.astype(ref.DTYPES[names[1]])
        logits = (-0.125 * (hidden @ weight.T + bias)).astype(compute)
        for settled in ({}, {"softcap": 5.0, "temperature": 2.0, "vocab_size": 1 + vocab // 2}):
            ids = np.where(targets < settled.get("vocab_size", vocab), targets, -100)
            got = xe.linear_row_stats(*lent, ids, bias=bias, logit_scale=-0.125, **EVERY, **cast(Any, settled))
            wanted = xe.row_stats(logits, ids, **EVERY, **cast(Any, settled))
            assert_same_parts(got, wanted)
            plain = xe.linear_row_stats(*lent, ids, bias=bias, logit_scale=-0.125, **cast(Any, settled))
            for name in FIELDS:
                assert same_bytes(getattr(got, name)) == same_bytes(getattr(plain, name)), name


@PAIR
def test_heads_are_near_the_functions_of_the_logits(names: tuple[str, str]) -> None:
    """A product may be off by e in each z, what follows by the bounds of a grid (`field_bounds`). To first order in e,
    with |cov(x, e)| <= sd(x) e and |cov((z - mean)^2, e)| <= 2 var e under softmax(b z), lse moves by e b, mean by
    e (b sd + 1), variance by e (2 b var + 2 sd), entropy by e b^2 sd; a Renyi entropy by 2 a e / |1 - a|.
    """
    hidden = draw([93], 9, 64, dtype=ref.DTYPES[names[0]])
    weight = draw([94], 5000, 64, dtype=ref.DTYPES[names[1]], scale=0.4)
    wanted, settled = wanted_of(hidden, weight, logit_scale=0.5, temperature=0.8), {"temperature": 0.8}
    orders, targets = (0.5, 2.0, 1.0, INF), np.arange(9) * 200
    asked: dict[str, Any] = {**EVERY, "renyi_orders": orders}
    exact = xe.row_stats(wanted.logits, targets, **asked)
    got = xe.linear_row_stats(given(hidden), given(weight), targets, logit_scale=0.5, **settled, **asked)
    grid, right = got.temperature_grid, exact.temperature_grid
    assert grid is not None
    assert right is not None
    for row in range(9):
        z, e = wanted.logits[row], 1.1 * wanted.extreme[row]
        one, even = (field_bounds(z, b, wanted.compute) for b in (1.0, 0.0))
        sd = math.sqrt(exact.log_prob_variance[row])
        near = [
            ("mean", got.log_prob_mean[row], exact.log_prob_mean[row], 2 * e + even["mean"] + one["lse"]),
            ("variance", got.log_prob_variance[row], sd * sd, 2 * e * sd + even["variance"]),
        ]
        for place, order in enumerate(orders):
            if order == 1:
                allowed = e * math.sqrt(exact.varentropy[row]) + one["entropy"]
            elif order == INF:
                allowed = 2 * e + one["lse"]
            else:
                of_order = field_bounds(z, order, wanted.compute)["lse"]
                allowed = (2 * order * e + of_order + order * one["lse"]) / abs(1 - order)
            near.append((f"order {order}", got.renyi_entropy[row, place], exact.renyi_entropy[row, place], allowed))
        for place, b in enumerate(GRID):
            bounds, variance = field_bounds(z, b, wanted.compute), float(right.variance[row, place])
            sd = math.sqrt(variance)
            slopes = {"lse": b, "nll": 2 * b, "entropy": b * b * sd, "mean": b * sd + 1}
            slopes["variance"] = 2 * b * variance + 2 * sd
            for name, slope in slopes.items():
                pair = (float(getattr(values, name)[row, place]) for values in (grid, right))
                near.append((f"{name} at {b}", *pair, e * slope + bounds[name]))
        for name, value, expected, allowed in near:
            assert abs(value - expected) <= allowed, (row, name, value, expected, allowed)


@pytest.mark.rust_only("bits for any threads, and packed heads")
def test_threads_and_packing_change_no_bit() -> None:
    for rows in (1, 5, 300):
        hidden, weight = as_torch(draw([95], rows, 33, dtype=ref.DTYPES["bfloat16"])), draw([96], 9000, 33)
        logits = noise(70_000, F32, min(rows, 5))
        weights = as_torch(weight.astype(ref.DTYPES["bfloat16"]))
        wanted = xe.linear_row_stats(hidden, weights, num_threads=1, **EVERY)
        of_logits = xe.row_stats(logits, num_threads=1, **EVERY)
        for threads in (2, 3):
            packed = xe.PackedHead(weights)
            assert_same_parts(xe.linear_row_stats(hidden, packed, num_threads=threads, **EVERY), wanted)
            assert_same_parts(xe.row_stats(logits, num_threads=threads, **EVERY), of_logits)


def test_torch_tensors_give_torch_tensors() -> None:
    for dtype in ref.DTYPES.values():
        logits = noise(300, dtype, 2)
        got, wanted = (xe.row_stats(values, [0, -100], **EVERY) for values in (as_torch(logits), logits))
        assert all(isinstance(value, torch.Tensor) for value in parts(got).values())
        assert all(value.dtype == torch.float64 for name, value in parts(got).items() if "flags" not in name)
        assert all(isinstance(value, np.ndarray) for value in parts(wanted).values())
        assert_same_parts(got, wanted)

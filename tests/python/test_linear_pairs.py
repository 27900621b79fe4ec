"""Two models' heads at once: divergences against float64 arithmetic, and the joint call against its three parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference as ref
import xentrs as xe
from reference import Array, Floats
from test_bindings_torch import as_torch
from test_divergences import cross_varentropy_bound
from test_edge_isa import FIELDS, same_bytes
from test_linear import F32, F64, PAIR, draw, wanted_of
from xentrs.heads import GivenSide
from xentrs.linear_pairs import linear_joint_row_stats

VOCAB = 4099
DIVERGENCES = ("kl_divergence", "reverse_kl_divergence", "symmetric_kl_divergence", "cross_entropy", "cross_varentropy")


def sides(names: tuple[str, str], rows: int) -> tuple[GivenSide, GivenSide]:
    """Two models of other widths, types and settings."""
    made = [
        (draw([seed], rows, width, dtype=ref.DTYPES[name]), draw([seed + 1], VOCAB, width, dtype=ref.DTYPES[name]))
        for seed, width, name in zip((20, 22), (33, 5), names, strict=True)
    ]
    return (*made[0], draw([24], VOCAB), 0.5, 4.0), (*made[1], None, -0.75, None)


def options_of(p: GivenSide, q: GivenSide) -> dict[str, Any]:
    known = zip("pq", (p, q), strict=True)
    return {f"{name}_{what}": side[place] for name, side in known for place, what in SETTLED}


SETTLED = ((2, "bias"), (3, "logit_scale"), (4, "softcap"))


def right_and_allowed(p: Floats, q: Floats, p_off: float, q_off: float, dtype: Any) -> dict[str, tuple[float, float]]:
    """By field, from rows of logits that are off by so much.

    With l = ln q, m its mean under p: KL moves by p (ln(p/q) - KL) with a logit of p and by q - p with one of q,
    the cross-entropy by p (m - l) and q - p, the variance by p ((l - m)^2 - V) and 2 p (l - m). Of second order is at
    most a hundredth of that here. The rest is what the kernels are allowed for exact logits.
    """
    p_share, q_share, log_q = ref.probabilities(p), ref.probabilities(q), -ref.surprisals(q)
    apart = ref.total(np.abs(p_share - q_share))
    found = {}
    for name, one, other, offs in (
        ("kl_divergence", p, q, (p_off, q_off)),
        ("reverse_kl_divergence", q, p, (q_off, p_off)),
    ):
        value = ref.kl_divergence(one, other)
        spread = ref.total(ref.probabilities(one) * np.abs(ref.log_ratios(one, other) - value))
        found[name] = value, 1.01 * (offs[0] * spread + offs[1] * apart) + ref.kl_bound(one, other, dtype)
    forward, reverse = found["kl_divergence"], found["reverse_kl_divergence"]
    found["symmetric_kl_divergence"] = forward[0] + reverse[0], forward[1] + reverse[1]
    mean = ref.total(p_share * log_q)
    distance = log_q - mean
    variance = ref.total(p_share * distance**2)
    moved = p_off * ref.total(p_share * np.abs(distance)) + q_off * apart
    kernels = ref.entropy_bound(p, dtype) + ref.kl_bound(p, q, dtype)
    found["cross_entropy"] = -mean, 1.01 * moved + kernels
    moved = p_off * ref.total(p_share * np.abs(distance**2 - variance)) + q_off * 2 * ref.total(p_share * abs(distance))
    found["cross_varentropy"] = variance, 1.01 * moved + cross_varentropy_bound(p, q, dtype)
    return found


@PAIR
def test_divergences_of_two_heads(names: tuple[str, str]) -> None:
    p, q = sides(names, 3)
    known = options_of(p, q)
    dtype = F64 if "float64" in names else F32
    for both in ({}, {"vocab_size": 4097, "temperature": 0.7}):
        p_side, q_side = (
            wanted_of(side[0], side[1], **{what: side[place] for place, what in SETTLED}, **both) for side in (p, q)
        )
        if "float64" in names:  # then all products are
            p_side, q_side = (
                side._replace(bound=np.full(3, 1e-12 * np.abs(side.logits).max())) for side in (p_side, q_side)
            )
        for given in (np.asarray, as_torch):
            lent = [given(array) for array in (p[0], p[1], q[0], q[1])]
            found = xe.linear_divergences(*lent, **known, **both)
            assert not np.asarray(found.flags).any()
            for row in range(3):
                rows = p_side.logits[row], q_side.logits[row], p_side.bound[row], q_side.bound[row]
                for name, (right, allowed) in right_and_allowed(*rows, dtype).items():
                    got = np.asarray(getattr(found, name))[row]
                    assert abs(got - right) <= allowed, (both, name, row, got, right, allowed)


def same(got: Any, wanted: Any, fields: tuple[str, ...], rows: Array) -> None:
    for name in fields:
        assert same_bytes(np.asarray(getattr(got, name))[rows]) == same_bytes(np.asarray(getattr(wanted, name))[rows])


@pytest.mark.parametrize(
    "names", [("float32", "float16"), ("float64", "float64"), ("bfloat16", "bfloat16"), ("bfloat16", "float64")]
)
@pytest.mark.parametrize("beside", [False, True])
def test_the_joint_call_has_the_bits_of_its_parts(names: tuple[str, str], beside: bool) -> None:
    """Also where one model is float64 and the other is not, on any number of threads, with ignored rows."""
    p, q = sides(names, 300)
    targets = np.arange(300) * 37 % VOCAB
    targets[[0, 7]] = -100
    more: dict[str, Any] = {"moments": True, "renyi_orders": (0.5, 2.0), "inverse_temperatures": (0.5, 1.0), "top_k": 3}
    options = more if beside else {}
    alone = [
        xe.linear_row_stats(side[0], side[1], targets, **{what: side[place] for place, what in SETTLED}, **asked)
        for side, asked in ((p, {}), (q, options))
    ]
    both = xe.linear_divergences(p[0], p[1], q[0], q[1], **options_of(p, q))
    every, counted = np.arange(300), targets >= 0
    for threads in (1, 2):
        p_stats, q_stats, divergences = linear_joint_row_stats(p, q, targets, num_threads=threads, **options)
        for got, wanted in zip((p_stats, q_stats), alone, strict=True):
            same(got, wanted, (*FIELDS, "top_ids", "top_log_probs"), every)
            assert (got.isa, got.token_count) == (wanted.isa, 298)
        if beside:
            same(q_stats, alone[1], ("log_prob_mean", "log_prob_variance", "renyi_entropy"), every)
            same(q_stats.temperature_grid, alone[1].temperature_grid, ("lse", "nll", "variance", "flags"), every)
        same(divergences, both, (*DIVERGENCES, "flags"), counted)
        assert divergences.flags[~counted].tolist() == [xe.Flag.IGNORED] * 2
        assert np.isnan(divergences.cross_entropy[~counted]).all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (5, 3), (3, 3), (5, 3)), r"q_hidden has rows \(3,\), expected \(2,\) as p_hidden has"),
        (((2, 3), (5, 3), (2, 3), (6, 3)), r"the logits of q has shape \(2, 6\), expected \(2, 5\)"),
        (((2, 3), (5, 3), (2, 4), (5, 3)), r"q_hidden has shape \(2, 4\), expected \(..., 3\)"),
        (((2, 3), (0, 3), (2, 3), (0, 3)), "a divergence"),
    ],
)
def test_pairs_that_do_not_go_together(shapes: tuple[tuple[int, int], ...], message: str) -> None:
    with pytest.raises(xe.ShapeError, match=message):
        xe.linear_divergences(*(np.zeros(shape, np.float32) for shape in shapes))
    with pytest.raises(xe.ParamError, match="temperature"):
        xe.linear_divergences(*(np.zeros((1, 1), np.float32) for _ in range(4)), temperature=0.0)

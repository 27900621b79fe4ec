"""Hidden states and heads as they come: layouts, threads, ties, special values, packed heads, bad input, ISAs.

Longer than other files: the table of bad input, and the functions that make its calls.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest
import reference as ref
import torch
import xentrs as xe
from reference import Array
from test_bindings_torch import as_torch
from test_edge_isa import FIELDS, ISAS, same_bytes
from test_inputs import between, in_records, misaligned, unwritable
from test_linear import DTYPE, F32, F64, PAIR, draw, wanted_of

NAN, INF = float("nan"), float("inf")
ROWS, WIDTH, VOCAB = 300, 33, 4096 + 21


def given(rows: int, dtype: np.dtype[Any], *, vocab: int = VOCAB, width: int = WIDTH) -> tuple[Array, Array, Array]:
    """Hidden states, weights and targets."""
    targets = np.random.default_rng(rows).integers(0, vocab, rows)
    return draw([21], rows, width, dtype=dtype), draw([22], vocab, width, dtype=dtype), targets


def assert_same_rows(got: Any, wanted: Any, picked: Any = slice(None), message: str = "") -> None:
    """The rows of `got` are the picked ones of `wanted`, to the bit."""
    for field in FIELDS:
        one, other = np.asarray(getattr(got, field)), np.asarray(getattr(wanted, field))[picked]
        assert same_bytes(one) == same_bytes(other), f"{message} {field}"


@DTYPE
@pytest.mark.rust_only("bits of the products")
def test_threads_and_other_rows_change_no_bit(dtype: np.dtype[Any]) -> None:
    """Any number of threads; rows alone, in another order, in small batches, beside ignored rows."""
    hidden, weight, targets = given(ROWS, dtype)
    wanted = xe.linear_row_stats(hidden, weight, targets, top_k=3, num_threads=1)
    assert wanted.token_count == ROWS
    for threads in (2, 3, 5, None):
        got = xe.linear_row_stats(hidden, weight, targets, top_k=3, num_threads=threads)
        assert_same_rows(got, wanted, message=f"{threads} threads")
    order = np.random.default_rng(ROWS).permutation(ROWS)
    for picked in ([0], [127], [128], [299], [5, 200], list(range(100, 117)), order):
        got = xe.linear_row_stats(hidden[picked], weight, targets[picked], top_k=3)
        assert_same_rows(got, wanted, picked, f"rows {picked}")
    counted = np.flatnonzero(np.random.default_rng(1).integers(0, 3, ROWS) == 0)
    some = np.full(ROWS, -100)
    some[counted] = targets[counted]
    got = xe.linear_row_stats(hidden, weight, some, top_k=3)
    assert got.token_count == counted.size
    assert_same_rows(xe.linear_row_stats(hidden[counted], weight, targets[counted], top_k=3), wanted, counted)
    for field in FIELDS:
        assert same_bytes(getattr(got, field)[counted]) == same_bytes(getattr(wanted, field)[counted]), field


@PAIR
@pytest.mark.rust_only("bits of the products")
def test_packed_heads_and_torch_change_no_bit(names: tuple[str, str]) -> None:
    """Also in a loss and a divergence, with a bias and without the last columns."""
    hidden, weight, targets = given(7, F64)
    hidden, weight = hidden.astype(ref.DTYPES[names[0]]), weight.astype(ref.DTYPES[names[1]])
    for options in ({}, {"bias": np.arange(VOCAB) % 7, "vocab_size": 4099, "softcap": 5.0, "logit_scale": -0.3}):
        ids = np.minimum(targets, 4098)
        wanted = xe.linear_row_stats(hidden, weight, ids, top_k=3, **options)
        loss = xe.linear_cross_entropy(hidden, weight, ids, reduction="none", **options)
        kl = xe.linear_kl_divergence(hidden, weight, hidden[::-1], weight)
        heads: list[Any] = [xe.PackedHead(weight), xe.PackedHead(as_torch(weight)), as_torch(weight)]
        for head in heads:
            for states in (hidden, as_torch(hidden)):
                assert_same_rows(xe.linear_row_stats(states, head, ids, top_k=3, **options), wanted)
                again = xe.linear_cross_entropy(states, head, ids, reduction="none", **options)
                # Torch tensors get float32, or float64 where one of them is: the same float64 bits, rounded once.
                kept = F64 if "float64" in names or states is hidden else F32
                assert isinstance(again, type(states))
                assert same_bytes(again) == same_bytes(loss.astype(kept))
                divergence = xe.linear_kl_divergence(states, head, hidden[::-1], head)
                assert same_bytes(divergence) == same_bytes(kl.astype(kept))
                both_ways = xe.linear_divergences(states, head, hidden[::-1], head)
                assert isinstance(both_ways.cross_entropy, type(states))
                assert same_bytes(both_ways.kl_divergence) == same_bytes(kl)


LAYOUTS: Final[dict[str, Callable[[Array], Array]]] = {
    "transposed": np.asfortranarray,
    "every-second-row": lambda rows: between(rows, 0),
    "every-second-column": lambda rows: between(rows, 1),
    "rows-backwards": lambda rows: rows[::-1].copy()[::-1],
    "columns-backwards": lambda rows: rows[:, ::-1].copy()[:, ::-1],
    "both-backwards": lambda rows: rows[::-1, ::-1].copy()[::-1, ::-1],
    "misaligned": lambda rows: misaligned(rows, 1),
    "records": in_records,
    "read-only": unwritable,
}


@DTYPE
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.rust_only("bits of the products")
def test_layouts_change_no_bit(layout: Callable[[Array], Array], dtype: np.dtype[Any]) -> None:
    hidden, weight, targets = given(20, dtype)
    wanted = xe.linear_row_stats(hidden, weight, targets, top_k=3)
    assert_same_rows(xe.linear_row_stats(layout(hidden), weight, targets, top_k=3), wanted)
    assert_same_rows(xe.linear_row_stats(hidden, layout(weight), targets, top_k=3), wanted)
    assert_same_rows(xe.linear_row_stats(layout(hidden), xe.PackedHead(layout(weight)), targets, top_k=3), wanted)


@DTYPE
@pytest.mark.rust_only("bits of the products")
def test_broadcast_and_leading_axes(dtype: np.dtype[Any]) -> None:
    hidden, weight, targets = given(6, dtype)
    wanted = xe.linear_row_stats(hidden, weight, targets)
    got = xe.linear_row_stats(np.broadcast_to(hidden[2], (6, WIDTH)), weight, np.full(6, targets[2]))
    assert_same_rows(got, wanted, [2] * 6)
    folded = xe.linear_row_stats(hidden.reshape(2, 3, WIDTH), weight, targets.reshape(2, 3))
    assert folded.nll.shape == (2, 3)
    assert same_bytes(folded.nll.reshape(6)) == same_bytes(wanted.nll)
    single = xe.linear_row_stats(hidden[1], weight, targets[1])
    assert single.nll.shape == ()
    assert same_bytes(single.nll) == same_bytes(wanted.nll[1])


COPIES: Final = [3, 19, 3 + 4096, 2048, 4096, 8192, 8200]
"""Columns of one weight row: in one tile, in other tiles and leaves, first of a leaf, the last column of all."""


@DTYPE
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.rust_only("bits of the products")
def test_equal_weights_tie_exactly(packed: bool, dtype: np.dtype[Any]) -> None:
    """Ranks count columns strictly above; no other column lies within the error of the copies."""
    hidden, weight = draw([31], 5, 100, dtype=dtype), draw([32], 8201, 100, dtype=dtype)
    weight[COPIES] = weight[3]
    wanted = wanted_of(hidden, weight)
    others = np.setdiff1d(np.arange(8201), COPIES)
    head = xe.PackedHead(weight) if packed else weight
    kept = np.abs(wanted.logits[:, others] - wanted.logits[:, [3]]).min(-1) > 2 * wanted.extreme
    assert kept.sum() >= 3  # rows whose rank is certain
    first = xe.linear_row_stats(hidden, head, np.full(5, 3))
    for column in COPIES:
        got = xe.linear_row_stats(hidden, head, np.full(5, column))
        assert_same_rows(got, first, message=str(column))
        ranks = 1 + (wanted.logits > wanted.logits[:, [column]] + 2 * wanted.extreme[:, None]).sum(-1)
        assert (got.rank[kept] == ranks[kept]).all()
        assert (got.ties[kept] == len(COPIES) - 1).all()
    # The largest of all, so that the copies lead the top columns, in ascending order.
    top = xe.linear_row_stats(weight[[3]] * 2, head, [8200], top_k=8)
    assert top.top_ids[0, :7].tolist() == sorted(COPIES)
    assert (int(top.argmax[0]), int(top.rank[0]), int(top.ties[0]), float(top.margin[0])) == (3, 1, 6, 0.0)


@pytest.mark.parametrize(
    ("dtype", "kept", "count"),
    [
        ("float32", "float32", 32 * 33 * 4),
        ("float16", "float32", 32 * 33 * 4),
        ("bfloat16", "bfloat16", 32 * 64 * 2),
        ("float64", "float64", 32 * 33 * 8),
    ],
)
@pytest.mark.rust_only("packed heads")
def test_packed_head_says_what_it_holds(dtype: str, kept: str, count: int) -> None:
    """Rows padded to 16, bfloat16 with the width padded to 32; a copy, so that the weights may change after."""
    hidden, weight, targets = given(3, ref.DTYPES[dtype], vocab=17)
    head = xe.PackedHead(weight)
    assert (head.shape, head.dtype, head.byte_count) == ((17, 33), kept, count)
    assert repr(head) == f"PackedHead(shape=(17, 33), dtype={kept}, byte_count={count})"
    wanted = xe.linear_row_stats(hidden, weight, targets)
    weight[:] = 0
    assert_same_rows(xe.linear_row_stats(hidden, head, targets), wanted)
    example = xe.PackedHead(np.eye(3, 2, dtype=np.float32))
    assert (example.shape, example.dtype, example.byte_count) == ((3, 2), "float32", 128)


@pytest.mark.parametrize(("shape", "byte_count"), [((0, 3), 0), ((3, 0), 64), ((0, 0), 0)], ids=str)
@pytest.mark.rust_only("packed heads")
def test_packed_head_of_nothing(shape: tuple[int, int], byte_count: int) -> None:
    """A width of 0 counts as 1."""
    head = xe.PackedHead(np.zeros(shape, np.float32))
    assert (head.shape, head.byte_count) == (shape, byte_count)


@DTYPE
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.rust_only("bits of the products")
def test_special_hidden_states_stay_in_their_row(packed: bool, dtype: np.dtype[Any]) -> None:
    """NaN, and infinities times weights of one sign, of both signs."""
    hidden, weight, targets = given(20, dtype)
    weight[:, 0] = np.abs(weight[:, 0]) + 1
    head = xe.PackedHead(weight) if packed else weight
    clean = xe.linear_row_stats(hidden, head, targets, top_k=2)
    hidden[3, 32], hidden[16, 0], hidden[17, 0], hidden[18, 1] = NAN, INF, -INF, INF
    got = xe.linear_row_stats(hidden, head, targets, top_k=2)
    touched = {3: xe.Flag.NAN, 16: xe.Flag.POSINF, 17: xe.Flag.ALL_NEGINF, 18: xe.Flag.POSINF}
    assert {row: got.flags[row] for row in touched} == touched
    assert got.lse[[3, 16, 17, 18]].tolist() == pytest.approx([NAN, INF, -INF, INF], nan_ok=True)
    assert np.isnan(got.nll[list(touched)]).all()
    rest = np.setdiff1d(np.arange(20), list(touched))
    for field in FIELDS:
        assert same_bytes(getattr(got, field)[rest]) == same_bytes(getattr(clean, field)[rest]), field
    for row, value in ((3, "NaN"), (16, "inf")):
        with pytest.raises(xe.NonFiniteError, match=rf"logits\[{row - row // 16 * 16}, \d+\] = {value}"):
            xe.linear_row_stats(hidden[row // 16 * 16 :], head, strict=True)


@DTYPE
@pytest.mark.parametrize("column", [0, 4095, 4096, VOCAB - 1])
@pytest.mark.rust_only("bits of the products")
def test_nan_in_a_weight_row_is_in_every_row_that_is_read(column: int, dtype: np.dtype[Any]) -> None:
    """But in none where the column is padding, and in no ignored row."""
    hidden, weight, _ = given(5, dtype)
    weight[column, 7] = NAN
    targets = [0, -100, 1, 2, 3]
    for head in (weight, xe.PackedHead(weight)):
        got = xe.linear_row_stats(hidden, head, targets)
        assert got.flags.tolist() == [xe.Flag.NAN, xe.Flag.IGNORED] + [xe.Flag.NAN] * 3
        assert np.isnan(got.nll).tolist() == [True, False, True, True, True]
        if column > 3:
            cut = xe.linear_row_stats(hidden, head, targets, vocab_size=column)
            assert_same_rows(cut, xe.linear_row_stats(hidden, weight[:column], targets))
            assert not np.isnan(cut.nll).any()


@DTYPE
def test_a_bias_of_minus_infinity_makes_a_column_impossible(dtype: np.dtype[Any]) -> None:
    hidden, weight, _ = given(3, dtype, vocab=17)
    bias = np.zeros(17)
    bias[5] = -INF
    got = xe.linear_row_stats(hidden, weight, [5, 0, -100], bias=bias, top_k=17)
    assert got.flags.tolist() == [xe.Flag.TARGET_NEGINF, 0, xe.Flag.IGNORED]
    assert got.nll[0] == INF
    assert got.rank[0] == 17
    assert got.top_ids[0, -1] == 5
    kept = np.delete(np.arange(17), 5)
    wanted = wanted_of(hidden, weight[kept], bias=bias[kept])
    assert abs(got.lse[1] - ref.logsumexp(wanted.logits[1])) <= wanted.bound[1]
    assert float(xe.linear_cross_entropy(hidden, weight, [5, 0, -100], bias=bias)) == INF
    for sides, value, flag in (("q", INF, xe.Flag.SUPPORT), ("p", None, 0), ("pq", 0.0, 0)):
        biases: dict[str, Any] = {f"{side}_bias": bias for side in sides}
        kl, flags = xe.linear_kl_divergence(hidden, weight, hidden, weight, **biases, return_flags=True)
        assert flags.tolist() == [flag] * 3
        assert (np.isfinite(kl) & (kl > 0)).all() if value is None else kl.tolist() == [value] * 3
        found = xe.linear_divergences(hidden, weight, hidden, weight, **biases)
        assert found.kl_divergence.tolist() == kl.tolist()
        assert found.flags.tolist() == [xe.Flag.SUPPORT if len(sides) == 1 else 0] * 3
        assert np.isnan(found.cross_varentropy).tolist() == [sides == "q"] * 3


@DTYPE
@pytest.mark.rust_only("bits of the products")
def test_no_rows_and_no_width(dtype: np.dtype[Any]) -> None:
    hidden, weight, _ = given(2, dtype, vocab=17)
    empty = xe.linear_row_stats(hidden[:0], weight, [], top_k=2)
    assert (empty.lse.shape, empty.top_ids.shape, empty.token_count) == ((0,), (0, 2), 0)
    assert np.isnan(xe.linear_cross_entropy(hidden[:0], weight, []))
    assert float(xe.linear_cross_entropy(hidden[:0], weight, [], reduction="sum")) == 0.0
    assert xe.linear_kl_divergence(hidden[:0], weight, hidden[:0], weight).shape == (0,)
    assert xe.linear_divergences(hidden[:0], weight, hidden[:0], weight).flags.shape == (0,)
    bias = np.arange(17.0)
    for head in (weight[:, :0], xe.PackedHead(weight[:, :0])):
        plain = xe.linear_row_stats(hidden[:, :0], head, [0, 16])
        assert_same_rows(plain, xe.row_stats(np.zeros((2, 17), F64 if dtype == F64 else F32), [0, 16]))
        biased = xe.linear_row_stats(hidden[:, :0], head, [0, 16], bias=bias)
        logits = np.stack([bias] * 2).astype(F64 if dtype == F64 else F32)
        assert_same_rows(biased, xe.row_stats(logits, [0, 16]))


def call(*arguments: Any, function: Callable[..., Any] = xe.linear_row_stats, **options: Any) -> Callable[[], Any]:
    """With hidden states (2, 3) and weights (5, 3) where none are given."""
    defaults: tuple[Any, ...] = (np.zeros((2, 3), np.float32), np.zeros((5, 3), np.float32))
    return lambda: function(*arguments, *defaults[len(arguments) :], **options)


def loss(*arguments: Any, **options: Any) -> Callable[[], Any]:
    hidden, weight = np.zeros((2, 3), np.float32), np.zeros((5, 3), np.float32)
    return lambda: xe.linear_cross_entropy(hidden, weight, *arguments, **options)


def kl(*shapes: tuple[int, ...], **options: Any) -> Callable[[], Any]:
    return lambda: xe.linear_kl_divergence(*(np.zeros(shape, np.float32) for shape in shapes), **options)


def tensor(**options: Any) -> Any:
    return torch.zeros(2, 3, **options)


DRAWN: Final = tensor(requires_grad=True)
BAD: Final[dict[str, tuple[Callable[[], Any], type[Exception], str]]] = {
    "width": (call(np.zeros((2, 4))), xe.ShapeError, r"hidden has shape \(2, 4\), expected \(..., 3\)"),
    "width-packed": (call(np.zeros((2, 4)), xe.PackedHead(np.zeros((5, 3)))), xe.ShapeError, r"expected \(..., 3\)"),
    "weight-1-axis": (
        call(np.zeros((2, 3)), np.zeros(3)),
        xe.ShapeError,
        r"weight has shape \(3,\), expected \(vocab, w",
    ),
    "weight-3-axes": (call(np.zeros((2, 3)), np.zeros((1, 5, 3))), xe.ShapeError, r"weight has shape \(1, 5, 3\)"),
    "weight-integers": (call(np.zeros((2, 3)), np.zeros((5, 3), int)), xe.DTypeError, "weight has dtype int64"),
    "hidden-integers": (call(np.zeros((2, 3), int)), xe.DTypeError, "hidden has dtype int64"),
    "hidden-0-axes": (call(np.float32(1)), xe.ShapeError, r"hidden is 0-dimensional, expected shape \(..., width\)"),
    "bias-length": (call(bias=np.zeros(4)), xe.ShapeError, r"bias has shape \(4,\), expected \(5,\)"),
    "bias-text": (call(bias=["a"] * 5), xe.DTypeError, "bias"),
    "bias-grad": (call(bias=torch.zeros(5, requires_grad=True)), xe.DTypeError, r"bias\.detach\(\)"),
    "target-above": (call(targets=[0, 5]), xe.TargetError, r"targets\[1\] = 5 is outside \[0, 5\)"),
    "target-below": (call(targets=[-1, 0]), xe.TargetError, r"targets\[0\] = -1 is outside \[0, 5\)"),
    "target-padding": (call(targets=[0, 4], vocab_size=4), xe.TargetError, r"targets\[1\] = 4 is outside \[0, 4\)"),
    "targets-shape": (call(targets=[0]), xe.ShapeError, r"targets have shape \(1,\), expected \(2,\).*hidden \(2, 3\)"),
    "targets-axes": (call(targets=[[0, 1]]), xe.ShapeError, r"targets have shape \(1, 2\)"),
    "targets-floats": (call(targets=[0.0, 1.0]), xe.DTypeError, "targets has dtype float64, expected integers"),
    "targets-none": (loss(None), xe.DTypeError, "targets is None, expected class ids"),
    "hidden-grad": (call(DRAWN), xe.DTypeError, r"hidden requires grad.*hidden\.detach\(\)"),
    "weight-grad": (call(tensor(), DRAWN), xe.DTypeError, r"weight requires grad.*weight\.detach\(\)"),
    "packed-grad": (lambda: xe.PackedHead(DRAWN), xe.DTypeError, r"weight\.detach\(\)"),
    "hidden-meta": (call(tensor(device="meta")), xe.DTypeError, "hidden is on device meta, expected cpu"),
    "weight-meta": (call(tensor(), tensor(device="meta")), xe.DTypeError, "weight is on device meta, expected cpu"),
    "hidden-sparse": (call(tensor().to_sparse()), xe.DTypeError, "hidden is a sparse"),
    "weight-sparse": (call(tensor(), tensor().to_sparse()), xe.DTypeError, "weight is a sparse"),
    "masked": (call(np.ma.masked_array(np.zeros((2, 3)))), xe.DTypeError, "hidden is a masked array"),
    "reduction": (loss([0, 1], reduction="average"), xe.ParamError, "reduction = 'average', expected 'none'"),
    "kl-reduction": (kl((2, 3), (5, 3), (2, 3), (5, 3), reduction="all"), xe.ParamError, "reduction = 'all'"),
    "label_smoothing": (loss([0, 1], label_smoothing=1.5), xe.ParamError, "label_smoothing = 1.5"),
    "z_loss": (loss([0, 1], z_loss=-1.0), xe.ParamError, "z_loss = -1"),
    "shift": (call(shift=-1), xe.ParamError, "shift = -1"),
    "top_k": (call(top_k=6), xe.ParamError, "top_k = 6"),
    "threads": (call(num_threads=-1), xe.ParamError, "num_threads"),
    "vocab_size-0": (call(vocab_size=0), xe.ParamError, r"vocab_size = 0 is outside \[1, 5\]"),
    "vocab_size-6": (call(vocab_size=6), xe.ParamError, r"vocab_size = 6 is outside \[1, 5\]"),
    "no-vocabulary": (call(np.zeros((2, 3)), np.zeros((0, 3)), [0, 0]), xe.ShapeError, "vocab 0"),
    "packed-packed": (lambda: xe.PackedHead(xe.PackedHead(np.zeros((5, 3)))), xe.DTypeError, "weight is a PackedHead"),
    "packed-1-axis": (lambda: xe.PackedHead(np.zeros(3)), xe.ShapeError, r"weight has shape \(3,\)"),
    "kl-rows": (kl((2, 3), (5, 3), (1, 3), (5, 3)), xe.ShapeError, r"q_hidden has rows \(1,\), expected \(2,\)"),
    "kl-vocab": (kl((2, 3), (5, 3), (2, 3), (6, 3)), xe.ShapeError, r"\(2, 6\).*\(2, 5\)"),
    "kl-width": (kl((2, 3), (5, 3), (2, 4), (5, 3)), xe.ShapeError, r"q_hidden has shape \(2, 4\).*q_weight"),
    "kl-p-width": (kl((2, 4), (5, 3), (2, 3), (5, 3)), xe.ShapeError, r"p_hidden has shape \(2, 4\).*p_weight"),
    "kl-no-vocabulary": (kl((2, 3), (0, 3), (2, 3), (0, 3)), xe.ShapeError, "vocab 0"),
    "kl-bias": (kl((2, 3), (5, 3), (2, 3), (5, 3), q_bias=[0.0]), xe.ShapeError, r"q_bias has shape \(1,\)"),
    "kl-vocab_size": (kl((2, 3), (5, 3), (2, 3), (5, 3), vocab_size=6), xe.ParamError, "vocab_size = 6"),
    "kl-softcap": (kl((2, 3), (5, 3), (2, 3), (5, 3), q_softcap=0.0), xe.ParamError, "softcap = 0"),
    **{
        f"{name}={value}": (call(**{name: value}), xe.ParamError, f"{name} = {value:.0f}".replace("nan", "NaN"))
        for name, values in {
            "logit_scale": (0.0, NAN, INF, -INF),
            "softcap": (0.0, -1.0, NAN, INF),
            "temperature": (0.0, -1.0, NAN, INF),
        }.items()
        for value in values
    },
}


OF_PACKED: Final = {name: BAD.pop(name) for name in list(BAD) if "packed" in name}


@pytest.mark.parametrize(("bad", "error", "message"), OF_PACKED.values(), ids=list(OF_PACKED))
@pytest.mark.rust_only("packed heads")
def test_bad_input_of_packed_heads(bad: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        bad()
    assert type(raised.value) is error


@pytest.mark.parametrize(("bad", "error", "message"), BAD.values(), ids=list(BAD))
def test_bad_input(bad: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        bad()
    assert type(raised.value) is error


@pytest.mark.rust_only("instruction sets")
def test_isa_names_what_made_the_products() -> None:
    tiles = {"scalar", "avx2", "avx512", "avx512bf16", "amx"}
    for name in ref.DTYPES:
        for other in ref.DTYPES:
            isa = xe.linear_row_stats(np.zeros((1, 3), ref.DTYPES[name]), np.zeros((2, 3), ref.DTYPES[other])).isa
            assert isa in tiles if name == other == "bfloat16" else isa == xe.isa(), (name, other)


def digests() -> list[str]:
    """One for each pair of types but bfloat16 tiles, of every field; also run as the source of a subprocess."""
    found = []
    for hidden_type, weight_type in [
        ("f4", "f4"),
        ("f2", "f4"),
        ("f2", "f2"),
        (ml_dtypes.bfloat16, "f4"),
        ("f8", "f8"),
    ]:
        dice = np.random.default_rng(5)
        hidden, weight = dice.normal(size=(5, 33)).astype(hidden_type), dice.normal(size=(4101, 33)).astype(weight_type)
        options = {"bias": dice.normal(size=4101), "logit_scale": -0.7, "softcap": 8.0, "temperature": 0.9}
        for settled in ({}, options):
            stats = xe.linear_row_stats(hidden, weight, [0, 4100, -100, 7, 4096], top_k=3, **settled)
            arrays = [np.asarray(value) for name, value in sorted(vars(stats).items()) if hasattr(value, "shape")]
            assert len(arrays) == 15
            found.append(hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest())
    return found


@functools.cache
def output_of(isa: str) -> list[str]:
    """The last line is what bfloat16 was multiplied with, as a name and as whether it has the bits of float32."""
    source = "import hashlib, ml_dtypes, numpy as np, xentrs as xe\n" + inspect.getsource(digests)
    source += "print(*digests())\nassert xe.isa() == " + repr(isa)
    source += "\nrows = np.random.default_rng(6).normal(size=(9, 33)).astype(ml_dtypes.bfloat16)"
    source += "\none, other = (xe.linear_row_stats(kind[:4], kind[4:]) for kind in (rows, rows.astype('f4')))"
    source += "\nprint(one.isa, other.isa, one.lse.tobytes() == other.lse.tobytes())"
    environment = {**os.environ, "XENTRS_ISA": isa}
    command = [sys.executable, "-c", source]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.rust_only("instruction sets")
def test_float_products_have_the_same_bits_on_every_instruction_set(isa: str) -> None:
    """And without tiles bfloat16 is multiplied as float32."""
    if isa not in xe.available_isas():
        pytest.skip(f"this machine lacks {isa}: it has {', '.join(xe.available_isas())}")
    digested, last = output_of(isa)
    assert digested.split() == digests()
    assert last == f"{isa} {isa} True"

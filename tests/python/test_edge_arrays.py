"""Arrays and buffers: the rows B1 to B18 of the edge-case table that one process can show."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest
import reference as ref
import xentrs as xe
from reference import Array
from test_edge_isa import FIELDS
from test_edge_lse import noise

DTYPE = pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
F32: Final = np.dtype(np.float32)
ROWS, VOCAB = 6, 4099


def assert_same_stats(got: Any, wanted: Any, message: str = "") -> None:
    """The same bits in every field."""
    for field in FIELDS:
        np.testing.assert_array_equal(
            np.asarray(getattr(got, field)), np.asarray(getattr(wanted, field)), f"{message} {field}"
        )


def misaligned(logits: Array) -> Array:
    holder = np.zeros(logits.nbytes + 1, np.uint8)
    view: Array = np.ndarray(logits.shape, logits.dtype, buffer=holder.data, offset=1)
    view[...] = logits
    assert view.ctypes.data % 2 == 1
    return view


def every_other(logits: Array, axis: int) -> Array:
    wide: Array = np.repeat(logits, 2, axis=axis)
    return wide[::2] if axis == 0 else wide[:, ::2]


def column_slice(logits: Array) -> Array:
    wide = np.full((len(logits), logits.shape[1] + 8), np.nan, logits.dtype)
    wide[:, 3:-5] = logits
    return wide[:, 3:-5]


def read_only(logits: Array) -> Array:
    copy: Array = logits.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS: Final[dict[str, Callable[[Array], Array]]] = {
    "B1-contiguous": lambda logits: logits,
    "B2-fortran": np.asfortranarray,
    "B2-transposed": lambda logits: np.ascontiguousarray(logits.T).T,
    "B2-every-other-row": lambda logits: every_other(logits, 0),
    "B2-every-other-column": lambda logits: every_other(logits, 1),
    "B2-column-slice": column_slice,
    "B3-rows-backwards": lambda logits: np.ascontiguousarray(logits[::-1])[::-1],
    "B3-columns-backwards": lambda logits: np.ascontiguousarray(logits[:, ::-1])[:, ::-1],
    "B3-both-backwards": lambda logits: np.ascontiguousarray(logits[::-1, ::-1])[::-1, ::-1],
    "B5-misaligned": misaligned,
    "B5-misaligned-fortran": lambda logits: misaligned(np.ascontiguousarray(logits.T)).T,
    "B7-read-only": read_only,
}


@DTYPE
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_layout(layout: Callable[[Array], Array], dtype: np.dtype[Any]) -> None:
    logits, targets = noise(VOCAB, dtype, ROWS), np.arange(ROWS) * 800
    laid = layout(logits)
    before = laid.tobytes()
    assert_same_stats(xe.row_stats(laid, targets, top_k=3), xe.row_stats(logits, targets, top_k=3))
    np.testing.assert_array_equal(xe.kl_divergence(laid, logits[::-1]), xe.kl_divergence(logits, logits[::-1].copy()))
    assert laid.tobytes() == before


@DTYPE
def test_layout_of_three_axes(dtype: np.dtype[Any]) -> None:
    """Leading axes whose strides do not fold into one."""
    logits = noise(300, dtype, 24).reshape(2, 3, 4, 300)
    targets = np.arange(24).reshape(2, 3, 4)
    wanted = xe.row_stats(logits, targets, top_k=2)
    assert wanted.lse.shape == (2, 3, 4)
    assert wanted.top_ids.shape == (2, 3, 4, 2)
    swapped = np.ascontiguousarray(np.moveaxis(logits, 0, 2))
    assert_same_stats(xe.row_stats(np.moveaxis(swapped, 2, 0), targets, top_k=2), wanted)
    assert_same_stats(
        xe.row_stats(logits[:, ::-1], targets[:, ::-1], top_k=2),
        xe.row_stats(logits[:, ::-1].copy(), targets[:, ::-1].copy(), top_k=2),
    )


TARGET_LAYOUTS: Final[dict[str, Callable[[Array], Array]]] = {
    "B2-every-other": lambda targets: np.repeat(targets, 2)[::2],
    "B2-fortran": lambda targets: np.asfortranarray(targets.reshape(2, 3)),
    "B3-backwards": lambda targets: targets[::-1].copy()[::-1],
    "B4-broadcast": lambda targets: np.broadcast_to(targets[:1], 6),
    "B5-misaligned": misaligned,
    "B7-read-only": read_only,
}


@pytest.mark.parametrize("layout", TARGET_LAYOUTS.values(), ids=list(TARGET_LAYOUTS))
def test_layout_of_targets(layout: Callable[[Array], Array]) -> None:
    laid = layout(np.array([3, 1, 4, 1, 5, 9]))
    logits = noise(50, F32, 6).reshape(*laid.shape, 50)
    assert_same_stats(xe.row_stats(logits, laid), xe.row_stats(logits, np.array(laid.tolist())))


@DTYPE
def test_b4_broadcast(dtype: np.dtype[Any]) -> None:
    row = noise(VOCAB, dtype, 1)
    targets = np.arange(5)
    wanted = xe.row_stats(np.repeat(row, 5, axis=0), targets)
    assert_same_stats(xe.row_stats(np.broadcast_to(row, (5, VOCAB)), targets), wanted)
    column = row[:, :3].T
    wide = xe.row_stats(np.broadcast_to(column, (3, VOCAB)))
    assert_same_stats(wide, xe.row_stats(np.repeat(column, VOCAB, axis=1)))


@DTYPE
def test_b6_nothing_at_an_odd_address(dtype: np.dtype[Any]) -> None:
    odd = np.ndarray((0, 7), dtype, buffer=bytearray(9), offset=1)
    assert odd.ctypes.data % 2 == 1
    pickled = pickle.loads(pickle.dumps(np.empty((0, 7), dtype), protocol=5))
    for logits in (odd, pickled, np.ndarray((3, 0), dtype, buffer=bytearray(9), offset=1)):
        assert xe.row_stats(logits).lse.shape == logits.shape[:1]
        assert xe.kl_divergence(odd, odd.copy()).shape == (0,)
    targets = np.ndarray((0,), np.int64, buffer=bytearray(9), offset=1)
    assert xe.row_stats(odd, targets).token_count == 0


@pytest.mark.parametrize("kind", [">f2", ">f4", ">f8"], ids=lambda kind: f"B8[{kind}]")
def test_big_endian(kind: str) -> None:
    """Right, or refused by name; never read as if it were little-endian."""
    logits = noise(300, F32, 3).astype(kind)
    try:
        got = xe.row_stats(logits)
    except xe.DTypeError as error:
        refusal = str(error)
    else:
        assert_same_stats(got, xe.row_stats(logits.astype(kind.replace(">", "<"))))
        refusal = kind
    assert kind in refusal or "endian" in refusal


@pytest.mark.parametrize("name", ["float16", "bfloat16"], ids=lambda name: f"B9-{name}")
def test_16_bit_rows_have_the_bits_of_their_float32_values(name: str) -> None:
    logits = noise(VOCAB, ref.DTYPES[name], ROWS)
    targets = np.arange(ROWS)
    assert_same_stats(xe.row_stats(logits, targets, top_k=3), xe.row_stats(logits.astype(np.float32), targets, top_k=3))


REFUSED: Final[dict[str, Any]] = {
    "B9-uint16": np.zeros((2, 7), np.uint16),
    "B10-int64": np.zeros((2, 7), np.int64),
    "B10-int8": np.zeros((2, 7), np.int8),
    "B10-bool": np.zeros((2, 7), bool),
    "B10-complex": np.zeros((2, 7), np.complex64),
    "B10-object": np.zeros((2, 7), object),
    "B10-str": np.full((2, 7), "0.5"),
    "B10-bytes": np.full((2, 7), b"0.5"),
    "B10-structured": np.zeros((2, 7), [("logit", np.float32)]),
    "B10-datetime": np.zeros((2, 7), "datetime64[s]"),
    "B10-masked": np.ma.masked_array(np.zeros((2, 7), np.float32), mask=False),
    "B11-longdouble": np.zeros((2, 7), np.longdouble),
    "B11-float8_e4m3fn": np.zeros((2, 7), ml_dtypes.float8_e4m3fn),
    "B11-float8_e5m2": np.zeros((2, 7), ml_dtypes.float8_e5m2),
}


@pytest.mark.parametrize(("name", "logits"), REFUSED.items(), ids=list(REFUSED))
def test_dtype_refused(name: str, logits: Any) -> None:
    """The message says what came: the dtype, or the masked array."""
    came = "masked" if name == "B10-masked" else str(logits.dtype) if logits.dtype.names is None else "logit"
    good = np.zeros((2, 7), np.float32)
    calls: list[Callable[[], Any]] = [
        lambda: xe.row_stats(logits),
        lambda: xe.logsumexp(logits),
        lambda: xe.entropy(logits),
        lambda: xe.cross_entropy(logits, np.zeros(2, np.int64)),
        lambda: xe.kl_divergence(logits, good),
        lambda: xe.kl_divergence(good, logits),
        lambda: xe.RowStatsState(7).update(logits, 0),
    ]
    for call in calls:
        with pytest.raises(xe.DTypeError) as caught:
            call()
        assert came in str(caught.value)


@DTYPE
def test_b12_axes(dtype: np.dtype[Any]) -> None:
    with pytest.raises(xe.ShapeError):
        xe.row_stats(np.array(1.0, dtype))
    with pytest.raises(xe.ShapeError):
        xe.logsumexp(np.array(1.0, dtype))
    block = noise(33, dtype, 8)
    one = xe.row_stats(block[0], np.array(5), top_k=2)
    assert one.lse.shape == ()
    assert one.top_ids.shape == (2,)
    assert float(one.nll) == float(xe.row_stats(block, np.full(8, 5)).nll[0])
    assert xe.logsumexp(block[0]).shape == ()
    assert xe.entropy(block[0]).shape == ()
    flat = xe.row_stats(block, np.arange(8), top_k=2)
    deep = xe.row_stats(block.reshape(2, 1, 4, 33), np.arange(8).reshape(2, 1, 4), top_k=2)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(deep, field).reshape(getattr(flat, field).shape), getattr(flat, field))


@DTYPE
def test_shift_takes_each_row_with_the_next_target(dtype: np.dtype[Any]) -> None:
    logits, targets = noise(33, dtype, 12).reshape(3, 4, 33), np.arange(12).reshape(3, 4)
    assert_same_stats(xe.row_stats(logits, targets, shift=1), xe.row_stats(logits[:, :-1], targets[:, 1:]))
    one = xe.row_stats(logits[0], targets[0], shift=1)
    assert_same_stats(one, xe.row_stats(logits[0, :-1], targets[0, 1:]))
    assert xe.row_stats(logits[:, :1], targets[:, :1], shift=1).lse.shape == (3, 0)
    with pytest.raises(xe.ShapeError):
        xe.row_stats(logits[0, 0], np.array(0), shift=1)


@pytest.mark.rust_only("4.3e9 elements take minutes")
def test_b13_more_than_2_to_32_elements_without_memory() -> None:
    """One row of 262,144 logits, given as 16,400 rows: 4.3e9 elements, all rows equal."""
    vocab, rows = 262_144, 16_400
    row = noise(vocab, ref.DTYPES["float16"], 1)
    assert rows * vocab > 2**32
    targets = np.arange(rows) * 15
    stats = xe.row_stats(np.broadcast_to(row, (rows, vocab)), targets)
    wanted = xe.row_stats(row, targets[:1])
    assert (stats.lse == wanted.lse[0]).all()
    assert (stats.argmax == wanted.argmax[0]).all()
    for place in (0, 8191, 8192, rows - 1):
        assert stats.nll[place] == xe.row_stats(row, targets[place : place + 1]).nll[0]


@pytest.mark.rust_only("4.3e9 elements take minutes")
def test_b13_one_row_longer_than_2_to_31() -> None:
    """Untouched zero pages, and one logit past the border of a 32-bit column number."""
    vocab, place = 2**31 + 5000, 2**31 + 4099
    row = np.zeros(vocab, np.float16)
    row[place] = 12.0
    stats = xe.row_stats(row, np.array(place), top_k=1)
    wanted = np.logaddexp(np.log(vocab - 1), 12.0)
    assert abs(float(stats.lse) - wanted) <= ref.lse_bound(vocab, wanted, row.dtype)
    assert int(stats.argmax) == int(stats.top_ids[0]) == place
    assert int(stats.rank) == 1
    with pytest.raises(xe.TargetError, match=str(vocab)):
        xe.row_stats(row, np.array(vocab))


def test_b15_overlapping_inputs() -> None:
    """p and q may share memory: nothing is written."""
    logits = noise(300, F32, 9)
    wanted = xe.kl_divergence(logits[:-1].copy(), logits[1:].copy())
    np.testing.assert_array_equal(xe.kl_divergence(logits[:-1], logits[1:]), wanted)
    integers = np.zeros((3, 8), np.int32)
    both = xe.row_stats(integers.view(np.float32), integers[:, 0])
    np.testing.assert_array_equal(both.argmax, 0)


@pytest.mark.rust_only("other threads see no backend")
def test_b17_the_only_reference_is_the_call() -> None:
    logits, targets = noise(VOCAB, F32, 64), np.arange(64)
    wanted = xe.row_stats(logits, targets).nll
    found: list[Array] = []
    workers = [
        threading.Thread(target=lambda: found.append(xe.row_stats(logits.copy(), targets.copy()).nll)) for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 8
    assert all((nll == wanted).all() for nll in found)


def test_b21_memmap(tmp_path: Path) -> None:
    logits = noise(VOCAB, F32, ROWS)
    logits.tofile(tmp_path / "logits")
    mapped = np.memmap(tmp_path / "logits", np.float32, "r", shape=logits.shape)
    assert_same_stats(xe.row_stats(mapped), xe.row_stats(logits))


@pytest.mark.rust_only("numpy alone")
def test_b22_array_subclass_is_asked_once() -> None:
    calls = 0

    class Counted(np.ndarray[Any, Any]):
        def __array__(self, *arguments: Any, **options: Any) -> Array:  # type: ignore[override]
            nonlocal calls
            calls += 1
            return np.ndarray.__array__(self, *arguments, **options)

    logits = noise(300, F32, 4)
    got = xe.row_stats(logits.view(Counted))
    assert calls <= 1
    assert_same_stats(got, xe.row_stats(logits))
    assert type(got.lse) is np.ndarray


@pytest.mark.parametrize("value", [None, "abc", object(), b"1234", {1.0}], ids=lambda value: type(value).__name__)
def test_b10_not_an_array(value: Any) -> None:
    with pytest.raises(xe.DTypeError, match="logits"):
        xe.row_stats(value)

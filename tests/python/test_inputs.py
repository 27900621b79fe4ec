"""Every way to lay out the same logits gives the same bits as a contiguous copy of them."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
import xentrs as xe
from reference import Array
from test_edge_isa import same_bytes
from test_edge_lse import noise

NUMPY = pytest.mark.parametrize("dtype", [np.dtype(kind) for kind in ("f2", "f4", "f8")], ids=lambda dtype: dtype.name)
TORCH = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
ROWS: Final = 6
VOCAB: Final = 4096 + 261
"""A leaf, a whole block and a part of one."""


def special(logits: Array) -> Array:
    """A row with minus infinity, one with NaN in its last column and one with plus infinity in its first."""
    logits[1, 40:4000:7], logits[2, -1], logits[3, 0] = -np.inf, np.nan, np.inf
    return logits


def assert_same_bits(got: Any, wanted: Any, message: str) -> None:
    """Both are results of row_stats or of a state, which names no instruction set, or single arrays."""
    if not isinstance(wanted, xe.RowStats):
        assert same_bytes(got) == same_bytes(wanted), message
        return
    for field in fields(wanted):
        if not field.name.startswith("_") and field.name != "isa":
            one, other = getattr(got, field.name), getattr(wanted, field.name)
            assert same_bytes(one) == same_bytes(other), f"{message} {field.name}"


def assert_every_call_agrees(laid: Any, copy: Any) -> None:
    """All functions and a state, with `laid` and with its contiguous copy; no function writes to it."""
    rows, vocab = laid.shape[:-1], laid.shape[-1]
    targets = (np.arange(np.prod(rows, dtype=int)) * 31 % vocab).reshape(rows)
    top_k = min(3, vocab)
    calls: dict[str, Callable[[Any], Any]] = {
        "row_stats": lambda logits: xe.row_stats(logits, targets, top_k=top_k),
        "temperature": lambda logits: xe.row_stats(logits, temperature=0.7, softcap=30.0),
        "logsumexp": xe.logsumexp,
        "entropy": xe.entropy,
        "cross_entropy": lambda logits: xe.cross_entropy(logits, targets, reduction="none"),
        "kl of it": lambda logits: xe.kl_divergence(logits, other),
        "kl from it": lambda logits: xe.kl_divergence(other, logits),
        "vocab_size": lambda logits: xe.row_stats(logits, vocab_size=max(1, vocab - 3)),
    }
    flat = copy.reshape(-1, vocab)
    other = (flat[::-1].copy() if isinstance(flat, np.ndarray) else flat.flip(0)).reshape(copy.shape)
    before = copy[...].tolist()
    for name, call in calls.items():
        assert_same_bits(call(laid), call(copy), name)
    if len(rows) == 1 and vocab > 1:
        assert_same_bits(in_chunks(laid), in_chunks(copy), "state")
        assert_same_bits(in_chunks(laid), xe.row_stats(copy), "state")
    np.testing.assert_array_equal(np.array(laid.tolist()), np.array(before))


def in_chunks(logits: Any) -> Any:
    """Three chunks whose borders lie inside leaves, the last one first."""
    vocab = logits.shape[-1]
    borders = [0, vocab // 3, vocab - vocab // 4, vocab]
    state = xe.RowStatsState(vocab, rows=logits.shape[0])
    for place in (2, 0, 1):
        state.update(logits[:, borders[place] : borders[place + 1]], borders[place])
    return state.compute()


def misaligned(logits: Array, offset: int) -> Array:
    """A read-only view that starts `offset` bytes into a buffer, by way of uint8."""
    holder = np.frombuffer(bytes(offset) + logits.tobytes(), np.uint8)
    view: Array = holder[offset:].view(logits.dtype).reshape(logits.shape)
    assert not view.flags.aligned
    assert not view.flags.writeable
    return view


def in_records(logits: Array) -> Array:
    """Rows behind a byte each: neither a row nor the distance between rows is a multiple of the element."""
    records = np.zeros(len(logits), [("tag", "u1"), ("logits", logits.dtype, logits.shape[1:])])
    records["logits"] = logits
    view: Array = records["logits"]
    assert view.strides[0] % 2 == 1
    return view


def in_column_records(logits: Array) -> Array:
    """A byte between neighbouring columns."""
    records = np.zeros(logits.shape, [("tag", "u1"), ("logit", logits.dtype)])
    records["logit"] = logits
    view: Array = records["logit"]
    assert view.strides[-1] == logits.itemsize + 1
    return view


def between(logits: Array, axis: int) -> Array:
    """Every second row or column of an array that holds NaN in between."""
    wide = np.full([length * (1 + (place == axis)) for place, length in enumerate(logits.shape)], np.nan, logits.dtype)
    view: Array = wide[::2] if axis == 0 else wide[:, ::2]
    view[...] = logits
    return view


def unwritable(logits: Array) -> Array:
    copy: Array = logits.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS: Final[dict[str, Callable[[Array], Array]]] = {
    "fortran": np.asfortranarray,
    "transposed": lambda logits: np.ascontiguousarray(logits.T).T,
    "every-second-column": lambda logits: between(logits, 1),
    "every-second-row": lambda logits: between(logits, 0),
    "every-second-of-both": lambda logits: between(between(logits, 1), 0),
    "rows-backwards": lambda logits: logits[::-1].copy()[::-1],
    "columns-backwards": lambda logits: logits[:, ::-1].copy()[:, ::-1],
    "both-backwards": lambda logits: logits[::-1, ::-1].copy()[::-1, ::-1],
    "every-second-column-backwards": lambda logits: between(logits[:, ::-1], 1)[:, ::-1],
    "broadcast-rows": lambda logits: np.broadcast_to(logits[:1], logits.shape),
    "broadcast-columns": lambda logits: np.broadcast_to(logits[:, :1], logits.shape),
    "broadcast-both": lambda logits: np.broadcast_to(logits[:1, :1], logits.shape),
    "overlapping-rows": lambda logits: np.lib.stride_tricks.sliding_window_view(logits[1], VOCAB - 5),
    "misaligned-1": lambda logits: misaligned(logits, 1),
    "misaligned-2": lambda logits: misaligned(logits, 2) if logits.itemsize > 2 else misaligned(logits, 5),
    "misaligned-3": lambda logits: misaligned(logits, 3),
    "misaligned-transposed": lambda logits: misaligned(np.ascontiguousarray(logits.T), 1).T,
    "misaligned-backwards": lambda logits: misaligned(logits[:, ::-1].copy(), 3)[:, ::-1],
    "records": in_records,
    "column-records": in_column_records,
    "read-only": unwritable,
    "one-row": lambda logits: logits[1],
    "one-column": lambda logits: logits[:, 5:6],
    "one-row-of-a-column": lambda logits: np.asfortranarray(logits)[2],
    "three-axes": lambda logits: np.asfortranarray(logits.reshape(2, 3, VOCAB)),
    "three-axes-moved": lambda logits: np.moveaxis(np.moveaxis(logits.reshape(2, 3, VOCAB), 0, 1).copy(), 1, 0),
    "three-axes-broadcast": lambda logits: np.broadcast_to(logits[:2, None], (2, 3, VOCAB)),
}


@NUMPY
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.rust_only("the same bits for any layout")
def test_numpy_layout(layout: Callable[[Array], Array], dtype: np.dtype[Any]) -> None:
    laid = layout(special(noise(VOCAB, dtype, ROWS)))
    assert_every_call_agrees(laid, np.array(laid, order="C"))


@NUMPY
@pytest.mark.parametrize("offset", [0, 1, 64], ids=lambda offset: f"offset-{offset}")
@pytest.mark.parametrize("mode", ["r", "c", "r+"])
@pytest.mark.rust_only("the same bits for any layout")
def test_memory_mapped(mode: Any, offset: int, dtype: np.dtype[Any], tmp_path: Path) -> None:
    """A file, its transposed and its strided view; a private change is seen, and never reaches the file."""
    logits, path = special(noise(VOCAB, dtype, ROWS)), tmp_path / "logits"
    path.write_bytes(bytes(offset) + logits.tobytes())
    mapped = np.memmap(path, dtype, mode, offset=offset, shape=logits.shape)
    if mode == "c":
        mapped[0, 4095], logits[0, 4095] = 7.0, 7.0
    assert_every_call_agrees(mapped, logits)
    assert_every_call_agrees(mapped[::2, ::-3], logits[::2, ::-3].copy())
    assert_every_call_agrees(mapped[:, :ROWS].T, logits[:, :ROWS].T.copy())
    assert len(path.read_bytes()) == offset + logits.nbytes
    assert (np.fromfile(path, dtype, offset=offset)[4095] == logits[0, 4095]) == (mode != "c")


@NUMPY
def test_axes(dtype: np.dtype[Any]) -> None:
    with pytest.raises(xe.ShapeError, match="0-dimensional"):
        xe.row_stats(noise(3, dtype, 1)[0, 0, ...])
    flat = special(noise(VOCAB, dtype, ROWS))
    wanted = xe.row_stats(flat, top_k=2)
    for shape in ((1, ROWS), (2, 3), (3, 1, 2)):
        got = xe.row_stats(flat.reshape(*shape, VOCAB), top_k=2)
        assert got.lse.shape == shape
        assert_same_bits(got.top_ids.reshape(ROWS, 2), wanted.top_ids, "top_ids")
        assert_same_bits(got.lse.reshape(ROWS), wanted.lse, "lse")


def after_offset(logits: torch.Tensor) -> torch.Tensor:
    """A view three elements into its storage."""
    holder = torch.cat([logits.flatten()[:3], logits.flatten()])
    view = holder[3:].view(logits.shape)
    assert view.storage_offset() == 3
    return view


TORCH_LAYOUTS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "t": lambda logits: logits.t().contiguous().t(),
    "expand-rows": lambda logits: logits[:1].expand(ROWS, VOCAB),
    "expand-columns": lambda logits: logits[:, :1].expand(ROWS, VOCAB),
    "expand-both": lambda logits: logits[:1, :1].expand(ROWS, VOCAB),
    "every-second-column": lambda logits: logits.repeat_interleave(2, 1)[:, ::2],
    "every-second-row": lambda logits: logits.repeat_interleave(2, 0)[::2],
    "flip": lambda logits: logits.flip(0, 1),
    "storage-offset": after_offset,
    "narrow": lambda logits: logits.narrow(1, 3, VOCAB - 7),
    "overlapping-rows": lambda logits: logits[1].as_strided((ROWS, VOCAB - ROWS), (1, 1)),
    "unfold": lambda logits: logits[1].unfold(0, 900, 500),
    "select": lambda logits: logits.t().contiguous()[:, 2],
    "three-axes": lambda logits: logits.view(2, 3, VOCAB).transpose(0, 1),
    "three-axes-expand": lambda logits: logits[:2, None].expand(2, 3, VOCAB),
    "permute": lambda logits: logits.view(2, 3, VOCAB).permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "negative-bit": lambda logits: torch.complex(logits.float(), -logits.float()).conj().imag.to(logits.dtype),
}


@TORCH
@pytest.mark.parametrize("layout", TORCH_LAYOUTS.values(), ids=list(TORCH_LAYOUTS))
@pytest.mark.rust_only("the same bits for any layout")
def test_torch_layout(layout: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> None:
    logits = torch.from_numpy(special(noise(VOCAB, np.dtype(np.float64), ROWS))).to(dtype)
    laid = layout(logits)
    assert_every_call_agrees(laid, laid.clone(memory_format=torch.contiguous_format))


@pytest.fixture
def sparse_file(tmp_path: Path) -> Iterator[Path]:
    """The path of a file of many gigabytes and few pages; removed at once, as temporary folders are kept."""
    path = tmp_path / "sparse"
    yield path
    path.unlink(missing_ok=True)


LONG: Final = 2**20
MANY: Final = 2**32 // LONG + 3
FAR: Final = [0, 2**32 // LONG + 1, MANY - 1]
"""The first row, one past 2^32 elements, and the last."""


def only_far_rows() -> Array:
    """Targets that ignore every other row, so that only these are read."""
    targets = np.full(MANY, -100)
    targets[FAR] = [5, LONG - 1, 4096]
    return targets


def assert_far_rows_agree(logits: Any, copies: Array) -> None:
    got = xe.row_stats(logits, only_far_rows(), top_k=2)
    wanted = xe.row_stats(copies, only_far_rows()[FAR], top_k=2)
    assert got.token_count == wanted.token_count == len(FAR)
    for name in ("lse", "nll", "entropy", "varentropy", "margin", "argmax", "rank", "ties", "flags", "top_ids"):
        assert same_bytes(np.asarray(getattr(got, name))[FAR]) == same_bytes(getattr(wanted, name)), name
    nll = np.asarray(xe.cross_entropy(logits, only_far_rows(), reduction="none"))[FAR]
    assert nll.dtype == (np.float32 if isinstance(logits, torch.Tensor) else np.float64)
    assert same_bytes(nll) == same_bytes(wanted.nll.astype(nll.dtype))


def test_rows_past_2_to_32_elements_of_a_broadcast() -> None:
    """Numpy and torch; the rows of one memory, ignored but for three."""
    row = noise(LONG, np.dtype(np.float16), 1)
    assert MANY * LONG > 2**32
    assert_far_rows_agree(np.broadcast_to(row, (MANY, LONG)), np.repeat(row, 3, axis=0))
    assert_far_rows_agree(torch.from_numpy(row).expand(MANY, LONG), np.repeat(row, 3, axis=0))


@pytest.mark.rust_only("memory maps")
def test_rows_past_2_to_32_elements_of_a_sparse_file(sparse_file: Path) -> None:
    """Forwards and backwards, so that byte offsets past 2^33 are added and taken away."""
    mapped = np.memmap(sparse_file, np.float16, "w+", shape=(MANY, LONG))
    copies = noise(LONG, mapped.dtype, len(FAR))
    mapped[FAR] = copies
    assert_far_rows_agree(mapped, copies)
    mirrored = [MANY - 1 - row for row in reversed(FAR)]
    mapped[mirrored[1]] = copies[1]
    mapped[FAR[1]] = 0
    mapped[mirrored[0]], mapped[mirrored[2]] = copies[2], copies[0]
    assert_far_rows_agree(mapped[::-1], copies)


@pytest.mark.parametrize("step", [1, -1], ids=["forwards", "backwards"])
@pytest.mark.rust_only("the same bits for any layout")
def test_columns_past_2_to_32_bytes(step: int) -> None:
    """5,000 columns a mebibyte apart, as in the transpose of a large array; only the pages that are used are real."""
    vocab, between_columns = 5_000, 2**19
    assert vocab * between_columns * 2 > 2**32
    mapped = np.frombuffer(mmap.mmap(-1, vocab * between_columns * 2), np.float16).reshape(vocab, between_columns)
    mapped[:, :3] = special(noise(vocab, mapped.dtype, 4))[:3].T
    laid = mapped[::step, :3].T
    assert_every_call_agrees(laid, np.array(laid, order="C"))

"""Rows of logits, a block at a time: no call sees the whole input, and a block's temporaries fit into one constant.

What comes in is a tensor of any strides, or hidden states and a head; what goes out are blocks `(rows, columns)` in the
type that is computed in, float32 or, for float64, float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

BLOCK_BYTES = 2**28
"""No call holds more than this beyond its inputs and what the size of its results asks for."""
LIVE_NUMBERS = 12
"""At most so many numbers of the type that is computed in are held for each of a block's, masks and copies counted."""


class Span(NamedTuple):
    """Rows or columns from `start` to `stop`."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many."""
        return self.stop - self.start


def spans(count: int, step: int) -> Iterator[Span]:
    """Cuts `[0, count)`; one empty span if there is nothing, so that results get their types."""
    for start in range(0, max(count, 1), step):
        yield Span(start, min(start + step, count))


class Rows:
    """The rows of a tensor `(..., width)`, or those among them that `index` names, without a copy of the whole."""

    def __init__(self, values: Tensor, index: Tensor | None = None) -> None:
        """Keeps a view; where strides do not let one axis stand for all rows, blocks are gathered."""
        self.count = values.shape[:-1].numel() if index is None else index.numel()
        self.width = values.shape[-1]
        self._index, self._values, self._flat = index, values, None
        shape = (values.shape[:-1].numel(), self.width)
        if values.numel() == 0 or values.ndim <= 2:
            self._flat = values.reshape(shape)
        else:
            with contextlib.suppress(RuntimeError):
                self._flat = values.view(shape)

    def take(self, rows: Span, columns: Span) -> Tensor:
        """The stored numbers of a block: a view if every row counts, else a copy of the block."""
        if self._flat is not None:
            part = self._flat[:, columns.start : columns.stop]
            return part[rows.start : rows.stop] if self._index is None else part[self._index[rows.start : rows.stop]]
        return self._values[..., columns.start : columns.stop][self._places(rows)]

    def gather(self, rows: Span, columns: Tensor) -> Tensor:
        """The stored numbers of columns `(rows,)` or `(rows, k)` of these rows."""
        places = self._places(rows)
        index = (*(places if columns.ndim == 1 else [place[:, None] for place in places]), columns)
        return self._values[index]

    def _places(self, rows: Span) -> tuple[Tensor, ...]:
        if self._index is None:
            index = torch.arange(rows.start, rows.stop, device=self._values.device)
        else:
            index = self._index[rows.start : rows.stop]
        if self._values.ndim == 1:
            return ()
        if self._values.ndim == 2:
            return (index,)
        return torch.unravel_index(index, self._values.shape[:-1])


class Source(Protocol):
    """Rows of logits after the soft cap, in the type that is computed in."""

    rows: int
    vocab: int
    compute: torch.dtype
    device: torch.device

    def row_spans(self, live: int = LIVE_NUMBERS) -> Iterator[Span]:
        """Cuts the rows into blocks, of which `live` numbers are held for each of a block's."""

    def column_spans(self, live: int = LIVE_NUMBERS) -> Iterator[Span]:
        """Cuts the columns."""

    def logits(self, rows: Span, columns: Span) -> Tensor:
        """One block; minus infinity alone where there is no vocabulary. It may be the caller's own memory."""


class Logits:
    """A tensor of logits as a source."""

    def __init__(
        self, logits: Tensor, vocab: int, softcap: float | None, index: Tensor | None, compute: torch.dtype
    ) -> None:
        """Takes the first `vocab` columns of the rows that `index` names."""
        self._rows, self._softcap = Rows(logits, index), softcap
        self.rows, self.vocab, self.device, self.compute = self._rows.count, vocab, logits.device, compute

    def row_spans(self, live: int = LIVE_NUMBERS) -> Iterator[Span]:
        """As many whole rows as a block holds, at least one."""
        return spans(self.rows, max(block_numbers(self.compute, live) // max(self.vocab, 1), 1))

    def column_spans(self, live: int = LIVE_NUMBERS) -> Iterator[Span]:
        """All columns, or for a longer row as many as a block holds."""
        return spans(self.vocab, block_numbers(self.compute, live))

    def logits(self, rows: Span, columns: Span) -> Tensor:
        """One block."""
        if self.vocab == 0:
            return torch.full((rows.size, 1), -torch.inf, dtype=self.compute, device=self.device)
        return capped(self._rows.take(rows, columns).to(self.compute), self._softcap)

    def targets(self, rows: Span, columns: Tensor) -> Tensor:
        """The logits of one column, or of `(rows, k)`, of each of the rows."""
        return capped(self._rows.gather(rows, columns).to(self.compute), self._softcap)


def block_numbers(compute: torch.dtype, live: int = LIVE_NUMBERS) -> int:
    """Numbers of a block of which `live` are held at a time."""
    return max(BLOCK_BYTES // (live * compute.itemsize), 1)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """`softcap * tanh(logits / softcap)`."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def compute_type(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if one of them is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def total(values: Tensor) -> Tensor:
    """The sum of each row, in float64."""
    return values.sum(-1, dtype=torch.float64)


def joined(blocks: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The columns of all blocks, one after the other."""
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def spread(values: Tensor, index: Tensor | None, rows: int, default: float) -> Tensor:
    """Values of the rows that count among `rows` rows; `default` in the others."""
    if index is None:
        return values
    whole = torch.full((rows, *values.shape[1:]), default, dtype=values.dtype, device=values.device)
    return whole.index_copy_(0, index, values)


def place(array: Any, like: Tensor) -> Tensor:
    """A copy that the caller made, numpy or torch, on the device of a tensor."""
    return torch.as_tensor(array).to(like.device)

"""Streaming classes: `update`, `merge_state`, `compute`. Any split of the data gives the same bits; all pickle."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np

from xentrs import _xentrs
from xentrs.adapters.numpy import promote
from xentrs.arguments import align, check_count, check_index, lend_ids
from xentrs.dispatch import Adapter, adapter_named, adapter_of, backend
from xentrs.errors import DTypeError, ParamError, ShapeError
from xentrs.heads import lend_side, lend_to_kernels
from xentrs.results import PerplexityResult, RowStats, on_cpu, wrap_row_stats

_Metric = TypeVar("_Metric")


class Perplexity:
    """Totals of nll over a corpus: exact sums, so shards merge to the same bits in any order.

    Args:
        ignore_index: rows with this target are neither read nor counted.

    Example:
        >>> import numpy as np, xentrs
        >>> metric = xentrs.Perplexity()
        >>> metric.update(np.zeros((2, 5), dtype=np.float32), np.array([0, -100]))
        >>> result = metric.compute()
        >>> result.token_count, round(result.perplexity, 6)
        (1, 5.0)
    """

    def __init__(self, ignore_index: int = -100) -> None:
        """Starts without a token."""
        self.ignore_index = check_index(ignore_index)
        self._state = _xentrs.Perplexity()

    def update(self, logits: Any, targets: Any, *, shift: int = 0, num_threads: int | None = None) -> None:
        """Adds the rows of `logits` `(..., vocab)`, with their targets. Errors as in `cross_entropy`."""
        lent = adapter_of(logits).lend(logits, "logits")
        array, ids = align(lent.array, lend_ids(targets, "targets", lent, "logits"), shift)
        options: dict[str, Any] = {"ignore_index": self.ignore_index, "num_threads": num_threads}
        if lent.engine is _xentrs:
            self._state.update(array, lent.element, ids, **options)
        else:
            self._state.update_nll(*lent.engine.counted_nll(array, lent.element, ids, **options))

    def update_nll(self, nll: Any, token_count: int | None = None) -> None:
        """Adds nll values in nats, a number or an array of counted rows.

        Args:
            nll: float64, or narrower and then widened.
            token_count: tokens that they cover together; their number if not given.
        """
        values = on_cpu(nll)
        count = values.size if token_count is None else check_count(token_count, "token_count")
        self._state.update_nll(values, count)

    def merge_state(self, other: Perplexity) -> Perplexity:
        """Adds the totals of another metric, or its own once more.

        Raises:
            DTypeError: not a metric of this kind.
            ParamError: one that ignores another index.
        """
        other = _distinct(self, other)
        if self.ignore_index != other.ignore_index:
            raise ParamError(f"ignore_index = {other.ignore_index}, expected {self.ignore_index} as in this metric")
        self._state.merge_state(other._state)
        return self

    def compute(self) -> PerplexityResult:
        """Returns the totals so far."""
        return PerplexityResult(**self._state.compute())

    def to_bytes(self) -> bytes:
        """The exact totals, the same bytes for the same totals; some hundred bytes, for `from_bytes`."""
        saved: bytes = self._state.to_bytes()
        return saved

    @classmethod
    def from_bytes(cls, saved: bytes, ignore_index: int = -100) -> Perplexity:
        """The metric that `to_bytes` saved.

        Raises:
            FormatError, TruncatedError: it was not.
        """
        metric = cls(ignore_index)
        metric._state = _xentrs.Perplexity.from_bytes(saved)
        return metric

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as `to_bytes`."""
        return Perplexity.from_bytes, (self.to_bytes(), self.ignore_index)


class RowStatsState:
    """Row statistics whose vocabulary arrives in chunks, in any order and over any number of states: the same bits as
    one `row_stats` call over whole rows.

    Leaves of 4,096 columns that are complete keep only their sums; a leaf held in part keeps its columns. After the
    first chunk the state computes in float32 lanes (float32, float16 and bfloat16 chunks) or in float64.

    Args:
        vocab: columns of the whole rows.
        targets: class ids, one for each row, or None.
        target_logits: the targets' logits, float, one for each row. Rank and ties need them before the chunks come;
            without them both are 0.
        rows: number of rows; needed only without targets, and then taken from the first chunk if not given.
        temperature, top_k, ignore_index: as in `row_stats`.

    Example:
        >>> import numpy as np, xentrs
        >>> logits = np.arange(6, dtype=np.float32).reshape(1, 6)
        >>> state = xentrs.RowStatsState(6, np.array([5]))
        >>> state.update(logits[:, 4:], 4)
        >>> state.update(logits[:, :4], 0)
        >>> bool(state.compute().nll == xentrs.row_stats(logits, np.array([5])).nll)
        True
    """

    def __init__(
        self,
        vocab: int,
        targets: Any = None,
        target_logits: Any = None,
        *,
        rows: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        ignore_index: int = -100,
    ) -> None:
        """Checks the settings; no column has come yet."""
        self._ids = None if targets is None else _copy_ids(targets)
        self._target_logits = None if target_logits is None else _as_float64(target_logits)
        self._rows = None if rows is None else check_count(rows, "rows")
        if self._ids is not None:
            self._rows = len(self._ids)
        self._vocab = check_count(vocab, "vocab")
        self._temperature = temperature
        self._top_k = check_count(top_k, "top_k")
        self._ignore_index = check_index(ignore_index)
        self._adapter: Adapter = adapter_of(targets)
        self._state: _xentrs.RowStatsState | None = None
        if self._target_logits is not None and self._ids is None:
            raise ParamError("target_logits were given without targets")
        if self._rows is not None:
            self._make(self._rows, is_double=False)  # raises what is wrong with the settings now, not later

    def _make(self, rows: int, is_double: bool) -> _xentrs.RowStatsState:
        return _xentrs.RowStatsState(
            rows,
            self._vocab,
            self._ids,
            self._target_logits,
            is_double=is_double,
            ignore_index=self._ignore_index,
            temperature=self._temperature,
            top_k=self._top_k,
        )

    def update(self, logits_chunk: Any, start_column: int, *, num_threads: int | None = None) -> None:
        """Takes the columns from `start_column` on, `(rows, columns)`.

        Raises:
            ShapeError: another number of rows, columns that came before, or columns outside the vocabulary. The state
                is then as before.
            DTypeError: float64 after narrower chunks or the other way round.

        An interrupted call leaves the state empty: half a chunk is worth nothing.
        """
        adapter = adapter_of(logits_chunk)
        array, element = lend_to_kernels(logits_chunk, "logits_chunk")[:2]
        if array.ndim == 1:
            array = array[np.newaxis]
        if array.ndim != 2:
            raise ShapeError(f"logits_chunk has shape {array.shape}, expected (rows, columns)")
        state = self._expecting(array.shape[0], element, adapter, "logits_chunk")
        state.update(array, element, check_count(start_column, "start_column"), num_threads=num_threads)

    def update_linear(
        self,
        hidden: Any,
        weight: Any,
        start_column: int,
        *,
        bias: Any = None,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Takes the columns that a shard of a head makes, without its logits: the weights are the rows of the head from
        `start_column` on, as in a tensor-parallel model, or read block by block from a file. Shards in any order, over
        any number of states, give the result of `linear_row_stats` over the whole head.

        Args:
            hidden: `(rows, width)`.
            weight: `(columns, width)`, or a `PackedHead`.
            bias, logit_scale, softcap: as in `linear_row_stats`; the bias is that of these columns.

        Raises:
            ShapeError, DTypeError, ParamError: as `update`.
        """
        lend_to_kernels(hidden, "hidden")
        with backend("auto"):
            lent = lend_side(hidden, weight, None, 0, bias, logit_scale, softcap, None)
        adapter, side, shape = lent.adapter, lent.side, lent.shape
        if len(shape) != 1:
            raise ShapeError(f"hidden has rows {shape}, expected (rows, width)")
        elements = (side["hidden_element"], side["weight_element"])
        element = "float64" if "float64" in elements else "float32"
        state = self._expecting(shape[0], element, adapter, "the head's product")
        state.update_linear(side, check_count(start_column, "start_column"), num_threads=num_threads)

    def _expecting(self, rows: int, element: str, adapter: Adapter, what: str) -> _xentrs.RowStatsState:
        """The state, made by the first columns that come."""
        is_double = element == "float64"
        if self._state is None:
            self._adapter = adapter
            self._rows = rows if self._rows is None else self._rows
            self._state = self._make(self._rows, is_double)
        if self._state.is_double != is_double:
            expected = "float64" if self._state.is_double else "float32, float16 or bfloat16"
            raise DTypeError(f"{what} has dtype {element}, expected {expected} as the chunks before")
        return self._state

    def merge_state(self, other: RowStatsState) -> RowStatsState:
        """Takes the columns of another state of the same rows, vocabulary, targets and settings.

        Raises:
            ParamError: the states are not of one kind.
            ShapeError: a column came in both. The state is then as before.
        """
        other = _distinct(self, other)
        # A state that no column has come for takes precision and, if it has none, rows from the other.
        given = other._state or self._state
        is_double = given is not None and given.is_double
        rows = self._rows if self._rows is not None else other._rows or 0
        mine = self._state or self._make(rows, is_double)
        mine.merge_state(other._state or other._make(rows if other._rows is None else other._rows, is_double))
        if self._state is None and other._state is not None:
            self._rows, self._state, self._adapter = rows, mine, other._adapter
        return self

    def compute(self) -> RowStats:
        """Returns the statistics, arrays of shape `(rows,)`.

        Raises:
            ShapeError: columns that never came.
        """
        state = self._make(self._rows or 0, is_double=False) if self._state is None else self._state
        columns = state.compute()
        return wrap_row_stats(columns, columns["lse"].shape, self._top_k, self._adapter)

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the extension's state as bytes."""
        saved = None if self._state is None else (self._state.to_bytes(), self._state.is_double)
        return {name: value for name, value in vars(self).items() if name not in ("_state", "_adapter")} | {
            "saved": saved,
            "adapter": self._adapter.__name__.rpartition(".")[2],
        }

    def __setstate__(self, values: dict[str, Any]) -> None:
        """Restores what `__getstate__` kept."""
        values = dict(values)
        saved, adapter = values.pop("saved"), values.pop("adapter")
        vars(self).update(values)
        self._state = None if saved is None else _xentrs.RowStatsState.from_bytes(*saved)
        self._adapter = adapter_named(adapter)


def _distinct(mine: _Metric, other: _Metric) -> _Metric:
    """Returns the other metric, or a copy where it is the same object."""
    if type(other) is not type(mine):
        raise DTypeError(f"other is {type(other).__name__}, expected {type(mine).__name__}")
    return copy.deepcopy(other) if other is mine else other


def _copy_ids(targets: Any) -> Any:
    ids = adapter_of(targets).copy_targets(targets)
    if not isinstance(ids, np.ndarray):
        raise DTypeError(f"targets is on device {ids.device}, expected cpu: pass targets.cpu()")
    return ids.reshape(-1)


def _as_float64(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    lent = lend_to_kernels(values, "target_logits")
    return np.ascontiguousarray(promote(lent, "float64").array).reshape(-1)

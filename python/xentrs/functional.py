"""The functions: logits in, statistics out. numpy arrays give numpy results, torch tensors torch results.

Storage float32, float16 and bfloat16 compute in float32 lanes with float64 totals, float64 in float64; results are
float64 and have the same bits for any number of threads, any batch of rows and any instruction set.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from xentrs import _xentrs
from xentrs.adapters.numpy import promote
from xentrs.dispatch import Adapter, adapter_of
from xentrs.errors import DTypeError, ParamError, ShapeError
from xentrs.results import RowStats, total, wrap_row_stats

Reduction = Literal["none", "sum", "mean"]


def row_stats(
    logits: Any,
    targets: Any = None,
    *,
    shift: int = 0,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    strict: bool = False,
    num_threads: int | None = None,
) -> RowStats:
    """Computes every statistic of each row in one read of the logits.

    Args:
        logits: `(..., vocab)`, float32, float16, bfloat16 or float64; any strides, read-only is fine, never copied.
        targets: class ids, shape `logits.shape[:-1]`, any integer dtype; copied, then checked.
        shift: 1 scores `logits[..., :-1, :]` against `targets[..., 1:]` without a copy, as causal models need it.
        temperature: divides the logits; from 1e-30 to 1e30.
        softcap: `softcap * tanh(logits / softcap)` before the temperature, as Gemma 2 does; from 1e-30 to 1e30.
        top_k: how many of the largest logits to return with their ids.
        ignore_index: rows with this target are neither read nor counted.
        vocab_size: columns from this one on are padding and left out.
        strict: raise for the first row that has no finite result.
        num_threads: None or 0 takes all cores this process may use.

    Returns:
        Arrays of shape `logits.shape[:-1]`, with `shift` one shorter on the last axis.

    Raises:
        ShapeError, DTypeError, TargetError, ParamError, NonFiniteError (with `strict`).

    Example:
        >>> import numpy as np, xentrs
        >>> stats = xentrs.row_stats(np.array([[2.0, 1.0, 0.0]], dtype=np.float32), np.array([0]))
        >>> round(float(stats.nll[0]), 6), int(stats.rank[0])
        (0.407606, 1)
    """
    adapter, columns, shape = _scan(
        logits,
        targets,
        shift,
        num_threads,
        all=True,
        ignore_index=ignore_index,
        temperature=temperature,
        softcap=softcap,
        top_k=top_k,
        vocab_size=vocab_size,
        strict=strict,
    )
    return wrap_row_stats(columns, shape, top_k, adapter)


def logsumexp(
    logits: Any,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    num_threads: int | None = None,
) -> Any:
    """Computes ln sum e^z of each row, float64, shape `logits.shape[:-1]`; z as in `row_stats`.

    Raises:
        ShapeError, DTypeError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> float(xentrs.logsumexp(np.zeros(8, dtype=np.float32)))  # ln 8
        2.0794415416798357
    """
    adapter, columns, shape = _scan(logits, None, 0, num_threads, temperature=temperature, softcap=softcap)
    return adapter.wrap(columns["lse"].reshape(shape))


def entropy(
    logits: Any,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    num_threads: int | None = None,
) -> Any:
    """Computes the entropy of the softmax of each row in nats, float64, shape `logits.shape[:-1]`; never below 0.

    Raises:
        ShapeError: also for a vocabulary of 0.
        DTypeError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> float(xentrs.entropy(np.array([0.0, -np.inf], dtype=np.float32)))
        0.0
    """
    if adapter_of(logits).lend(logits, "logits").array.shape[-1] == 0:
        raise ShapeError("logits have vocab 0, expected at least 1 column for an entropy")
    return row_stats(logits, temperature=temperature, softcap=softcap, num_threads=num_threads).entropy


def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    shift: int = 0,
    temperature: float = 1.0,
    softcap: float | None = None,
    num_threads: int | None = None,
) -> Any:
    """Computes the negative log-likelihood of each target in nats, float64: the meaning of
    `torch.nn.functional.cross_entropy` with the class dimension last.

    Args:
        logits: `(..., vocab)`.
        targets: `logits.shape[:-1]`.
        reduction: "none" gives each row's nll, 0 where ignored; "sum" and "mean" a single number over the counted rows,
            "mean" NaN if there is none. Sums are exact: their bits depend on no order.
        ignore_index, shift, temperature, softcap, num_threads: as in `row_stats`.

    Raises:
        ShapeError, DTypeError, TargetError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> logits = np.array([[1e8, 1e8], [0.0, 0.0]], dtype=np.float32)
        >>> float(xentrs.cross_entropy(logits, np.array([1, -100]), reduction="sum"))  # ln 2
        0.6931471805599453
    """
    if reduction not in ("none", "sum", "mean"):
        raise ParamError(f"reduction = {reduction!r}, expected 'none', 'sum' or 'mean'")
    adapter, columns, shape = _scan_targets(
        logits, targets, shift, num_threads, ignore_index=ignore_index, temperature=temperature, softcap=softcap
    )
    if reduction == "none":
        return adapter.wrap(columns["nll"].reshape(shape))
    totals = total(columns["nll"], columns["token_count"])
    return adapter.wrap(np.array(totals.nll_sum if reduction == "sum" else totals.mean_nll))


def perplexity(
    logits: Any,
    targets: Any,
    *,
    shift: int = 0,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    num_threads: int | None = None,
) -> float:
    """Computes e to the mean nll over the counted rows; NaN if there is none, inf beyond float64. Arguments and errors
    are those of `cross_entropy`.

    Example:
        >>> import numpy as np, xentrs
        >>> round(xentrs.perplexity(np.zeros((3, 7), dtype=np.float32), np.array([0, 3, 6])), 6)
        7.0
    """
    _, columns, _ = _scan_targets(
        logits, targets, shift, num_threads, ignore_index=ignore_index, temperature=temperature, softcap=softcap
    )
    return total(columns["nll"], columns["token_count"]).perplexity


def kl_divergence(
    p_logits: Any,
    q_logits: Any,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "none",
    return_flags: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Computes KL(p||q) = sum p ln(p / q) of the softmaxes of each row, p first, in nats, float64, never below 0.

    Args:
        p_logits, q_logits: both `(..., vocab)`. If their dtypes differ, both are copied to the wider one: float64 if
            one is, else float32.
        temperature: divides both.
        reduction: "none" gives each row's divergence, "sum" and "mean" a single number over all rows.
        return_flags: also return the rows' flags (see `Flag`), shape `p_logits.shape[:-1]`.
        num_threads: as in `row_stats`.

    Raises:
        ShapeError, DTypeError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> p, q = np.array([0.0, 1.0]), np.array([1.0, 1.0])
        >>> round(float(xentrs.kl_divergence(p, q)), 9)
        0.110944072
    """
    if reduction not in ("none", "sum", "mean"):
        raise ParamError(f"reduction = {reduction!r}, expected 'none', 'sum' or 'mean'")
    adapter = adapter_of(p_logits)
    p = adapter.lend(p_logits, "p_logits")
    q = adapter_of(q_logits).lend(q_logits, "q_logits")
    if p.array.shape != q.array.shape:
        raise ShapeError(f"q_logits have shape {q.array.shape}, expected {p.array.shape} as p_logits have")
    if p.element != q.element:
        wider = "float64" if "float64" in (p.element, q.element) else "float32"
        p, q = promote(p, wider), promote(q, wider)
    values, flags = _xentrs.kl_divergence(p.array, q.array, p.element, temperature=temperature, num_threads=num_threads)
    shape = p.array.shape[:-1]
    if reduction == "none":
        result = adapter.wrap(values.reshape(shape))
    else:
        totals = total(values, values.size)
        result = adapter.wrap(np.array(totals.nll_sum if reduction == "sum" else totals.mean_nll))
    return (result, adapter.wrap(flags.reshape(shape))) if return_flags else result


def _scan(
    logits: Any,
    targets: Any,
    shift: int,
    num_threads: int | None,
    *,
    all: bool = False,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
    vocab_size: int | None = None,
    strict: bool = False,
) -> tuple[Adapter, dict[str, Any], tuple[int, ...]]:
    """Runs the extension: the caller's adapter, the flat columns and the shape of the rows."""
    adapter = adapter_of(logits)
    array, element = adapter.lend(logits, "logits")
    ids = None if targets is None else adapter_of(targets).copy_targets(targets)
    array, ids = _align(array, ids, shift)
    columns = _xentrs.row_stats(
        array,
        element,
        ids,
        all=all,
        ignore_index=_index(ignore_index),
        temperature=temperature,
        softcap=softcap,
        top_k=_count(top_k, "top_k"),
        vocab_size=None if vocab_size is None else _count(vocab_size, "vocab_size"),
        strict=strict,
        num_threads=num_threads,
    )
    return adapter, columns, array.shape[:-1]


def _scan_targets(
    logits: Any, targets: Any, shift: int, num_threads: int | None, **settings: Any
) -> tuple[Adapter, dict[str, Any], tuple[int, ...]]:
    """Runs the extension where there is nothing to compute without targets."""
    if targets is None:
        raise DTypeError("targets is None, expected class ids")
    return _scan(logits, targets, shift, num_threads, **settings)


def _align(array: Any, ids: Any, shift: int) -> tuple[Any, Any]:
    """Checks that there is one target for each row, applies the shift as a view, and flattens the targets."""
    rows = array.shape[:-1]
    if ids is not None and ids.shape != rows:
        message = f"targets have shape {ids.shape}, expected {rows}: one for each row of logits {array.shape}"
        if array.ndim > 2 and ids.shape == (array.shape[0], *array.shape[2:]):
            message += "; classes on axis 1, as torch has them, go last by logits.movedim(1, -1) or np.moveaxis"
        raise ShapeError(message)
    shift = _count(shift, "shift")
    if shift:
        if not rows:
            raise ShapeError(f"shift = {shift} needs logits of shape (..., length, vocab), not {array.shape}")
        length = max(rows[-1] - shift, 0)
        array = array[..., :length, :]
        ids = None if ids is None else np.ascontiguousarray(ids[..., rows[-1] - length :])
    return array, None if ids is None else ids.reshape(-1)


def _count(value: int, name: str) -> int:
    """Checks a whole number, at least 0."""
    if _whole(value, name) < 0:
        raise ParamError(f"{name} = {value}, expected a whole number, at least 0")
    return int(value)


def _index(value: int) -> int:
    """Checks `ignore_index`, which is any 64-bit integer."""
    if not -(2**63) <= _whole(value, "ignore_index") < 2**63:
        raise ParamError(f"ignore_index = {value}, expected a 64-bit integer")
    return int(value)


def _whole(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DTypeError(f"{name} = {value!r}, expected a whole number")
    return int(value)

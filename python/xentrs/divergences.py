"""Divergences of two arrays of logits, row by row, in nats and float64; p comes first."""

from __future__ import annotations

from typing import Any

import numpy as np

from xentrs.adapters.numpy import Lent, promote
from xentrs.arguments import Reduction, check_lists, check_reduction, lend_beside, lend_floats, lend_ids, settings
from xentrs.dispatch import Adapter, adapter_of, traceable, wants_operator
from xentrs.errors import ShapeError
from xentrs.results import Divergences, total


def kl_divergence(
    p_logits: Any,
    q_logits: Any,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "none",
    log_probs: bool = False,
    return_flags: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Computes KL(p||q) = sum p ln(p / q) of the softmaxes of each row, p first, in nats, never below 0.

    It has a backward for torch tensors, by either side or both, which reads both once more and holds nothing of their
    size but the gradients.

    Args:
        p_logits, q_logits: both `(..., vocab)`. If their dtypes differ, both are copied to the wider one: float64 if
            one is, else float32.
        temperature: divides both.
        reduction: "none" gives each row's divergence, "sum" and "mean" a single number over all rows.
        log_probs: `p_logits` are stored log-probabilities; a row that does not sum to 1 within 1e-3 is an error.
        return_flags: also return the rows' flags (see `Flag`), shape `p_logits.shape[:-1]`.
        num_threads: as in `row_stats`.

    Returns:
        float64; for torch tensors float32, or float64 where one of them is.

    Raises:
        ShapeError, DTypeError, ParamError, NotNormalizedError (with `log_probs`).

    Example:
        >>> import numpy as np, xentrs
        >>> p, q = np.array([0.0, 1.0]), np.array([1.0, 1.0])
        >>> round(float(xentrs.kl_divergence(p, q)), 9)
        0.110944072
    """
    check_reduction(reduction)
    if wants_operator(p_logits, q_logits):
        from xentrs.torch_operators import pairs

        found = pairs.divergence(p_logits, q_logits, False, log_probs, temperature, num_threads)
        return pairs.finish(*found, reduction, return_flags)
    adapter, p, q = lend_pair(p_logits, q_logits)
    values, flags, _ = p.engine.kl_divergence(
        p.array, q.array, p.element, temperature=temperature, log_probs=log_probs, num_threads=num_threads
    )
    return finish_divergence(values, flags, p.array.shape[:-1], adapter, reduction, return_flags, p.element)


def js_divergence(
    p_logits: Any,
    q_logits: Any,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "none",
    return_flags: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Computes the Jensen-Shannon divergence of each row, in [0, ln 2]: the mean of KL(p||m) and KL(q||m), m the mean
    of p and q. Terms are of one sign, so close pairs keep their accuracy. The logarithm of a mixture needs both
    normalisers first: this is the one function that reads its arrays twice, and so does its backward.

    Arguments, results and errors are those of `kl_divergence`.

    Example:
        >>> import numpy as np, xentrs
        >>> p, q = np.array([0.0, -np.inf]), np.array([-np.inf, 0.0])
        >>> float(xentrs.js_divergence(p, q))  # ln 2
        0.6931471805599453
    """
    check_reduction(reduction)
    if wants_operator(p_logits, q_logits):
        from xentrs.torch_operators import pairs

        found = pairs.divergence(p_logits, q_logits, True, False, temperature, num_threads)
        return pairs.finish(*found, reduction, return_flags)
    adapter, p, q = lend_pair(p_logits, q_logits)
    values, flags, _ = p.engine.js_divergence(
        p.array, q.array, p.element, temperature=temperature, num_threads=num_threads
    )
    return finish_divergence(values, flags, p.array.shape[:-1], adapter, reduction, return_flags, p.element)


@traceable
def divergences(
    p_logits: Any, q_logits: Any, *, temperature: float = 1.0, num_threads: int | None = None
) -> Divergences:
    """Computes KL both ways, their sum, the cross-entropy of q under p and the variance of ln q under p, from one read
    of both arrays. Arguments and errors are those of `kl_divergence`.

    Example:
        >>> import numpy as np, xentrs
        >>> found = xentrs.divergences(np.array([0.0, 1.0]), np.array([1.0, 1.0]))
        >>> round(float(found.cross_entropy), 6)  # ln 2
        0.693147
    """
    adapter, p, q = lend_pair(p_logits, q_logits)
    columns = p.engine.divergences(p.array, q.array, p.element, temperature=temperature, num_threads=num_threads)
    return wrap_divergences(columns, p.array.shape[:-1], adapter)


@traceable
def top_k_kl_divergence(
    p_ids: Any,
    p_log_probs: Any,
    q_logits: Any,
    *,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    reduction: Reduction = "none",
    return_flags: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Computes KL(p||q) where only the k largest probabilities of p are stored: over these columns and the rest of the
    vocabulary as one more, `sum p ln(p / q) + p_rest ln(p_rest / q_rest)`. It is at most the KL over all columns. One
    read of q; its rest is summed without the k columns, never by a difference.

    Args:
        p_ids: `(..., k)`, each id once in a row; ids equal to `ignore_index` are left out.
        p_log_probs: `(..., k)`, natural logarithms; a row may sum to at most 1.001.
        q_logits: `(..., vocab)`.
        temperature, softcap, vocab_size: of `q_logits`.
        reduction, return_flags, num_threads: as in `kl_divergence`.

    Raises:
        ShapeError, DTypeError, TargetError, ParamError, NotNormalizedError.

    Example:
        >>> import numpy as np, xentrs
        >>> q = np.array([[0.0, 0.0, 0.0, 0.0]])
        >>> round(float(xentrs.top_k_kl_divergence(np.array([[1]]), np.log([[0.5]]), q)[0]), 6)
        0.143841
    """
    check_reduction(reduction)
    adapter = adapter_of(q_logits)
    lent = adapter.lend(q_logits, "q_logits")
    array = lent.array
    ids = lend_ids(p_ids, "p_ids", lent, "q_logits")
    log_probs = lend_floats(p_log_probs, "p_log_probs", lent, "q_logits")
    check_lists(ids, log_probs, array, ("p_ids", "p_log_probs", "q_logits"))
    values, flags = lent.engine.top_k_kl_divergence(
        ids.reshape(-1),
        log_probs.reshape(-1),
        ids.shape[-1],
        array,
        lent.element,
        settings(ignore_index, temperature, softcap, vocab_size, num_threads),
    )
    return finish_divergence(values, flags, array.shape[:-1], adapter, reduction, return_flags)


def lend_pair(p_logits: Any, q_logits: Any) -> tuple[Adapter, Lent, Lent]:
    """Lends two arrays of one shape, both in the wider of their dtypes."""
    adapter = adapter_of(p_logits)
    p = adapter.lend(p_logits, "p_logits")
    q = lend_beside(q_logits, "q_logits", p, "p_logits")
    if p.array.shape != q.array.shape:
        shapes = tuple(q.array.shape), tuple(p.array.shape)
        raise ShapeError(f"q_logits have shape {shapes[0]}, expected {shapes[1]} as p_logits have")
    if p.element != q.element:
        wider = "float64" if "float64" in (p.element, q.element) else "float32"
        p, q = promote(p, wider), promote(q, wider)
    return adapter, p, q


def wrap_divergences(columns: dict[str, Any], shape: tuple[int, ...], adapter: Adapter) -> Divergences:
    """Makes the result from an engine's flat columns."""
    symmetric = columns["kl_divergence"] + columns["reverse_kl_divergence"]
    arrays = {name: adapter.wrap(column.reshape(shape)) for name, column in columns.items()}
    return Divergences(**arrays, symmetric_kl_divergence=adapter.wrap(symmetric.reshape(shape)))


def finish_divergence(
    values: Any,
    flags: Any,
    shape: tuple[int, ...],
    adapter: Adapter,
    reduction: Reduction,
    return_flags: bool,
    element: str = "float64",
) -> Any:
    """Takes from the rows' values what the caller asked for. `element` is that of the logits of a function with a
    backward.
    """
    if reduction == "none":
        result = values.reshape(shape)
    elif isinstance(values, np.ndarray):
        totals = total(values, values.size)
        result = totals.nll_sum if reduction == "sum" else totals.mean_nll
    else:
        result = values.sum() if reduction == "sum" else values.mean()
    result = adapter.wrap_differentiable(result, element)
    return (result, adapter.wrap(flags.reshape(shape))) if return_flags else result

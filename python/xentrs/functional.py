"""The functions: logits in, statistics out. numpy arrays give numpy results, torch tensors torch results.

Storage float32, float16 and bfloat16 compute in float32 lanes with float64 totals, float64 in float64; results are
float64 and have the same bits for any number of threads, any batch of rows and any instruction set. Functions with a
backward, `logsumexp`, `entropy` and `cross_entropy`, round theirs to float32 for torch tensors that are not float64.
Longer than other files: most of it says what the arguments are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from xentrs.adapters.numpy import Lent
from xentrs.arguments import (
    Reduction,
    check_class_weights,
    check_count,
    check_index,
    check_lists,
    check_reduction,
    lend_floats,
    lend_ids,
    lend_with_targets,
    reduced,
    settings,
    tempered_settings,
)
from xentrs.dispatch import Adapter, adapter_of, traceable, wants_operator
from xentrs.errors import DTypeError, ShapeError
from xentrs.results import RowStats, total, wrap_row_stats


@traceable
def row_stats(
    logits: Any,
    targets: Any = None,
    *,
    shift: int = 0,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
    moments: bool = False,
    renyi_orders: Sequence[float] | NDArray[Any] = (),
    inverse_temperatures: Sequence[float] | NDArray[Any] = (),
    ignore_index: int = -100,
    vocab_size: int | None = None,
    strict: bool = False,
    num_threads: int | None = None,
) -> RowStats:
    """Computes every statistic of each row in one read of the logits.

    Args:
        logits: `(..., vocab)`, float32, float16, bfloat16 or float64; any strides, read-only is fine, never copied.
            numpy arrays, torch tensors on any device, or another library's with `__dlpack__` or `__array__`.
        targets: class ids, shape `logits.shape[:-1]`, any integer dtype; copied, then checked.
        shift: 1 scores `logits[..., :-1, :]` against `targets[..., 1:]` without a copy, as causal models need it.
        temperature: divides the logits; from 1e-30 to 1e30.
        softcap: `softcap * tanh(logits / softcap)` before the temperature, as Gemma 2 does; from 1e-30 to 1e30.
        top_k: how many of the largest logits to return with their ids.
        moments: also `log_prob_mean` and `log_prob_variance`, those of `log_prob_moments`.
        renyi_orders: also `renyi_entropy` at these orders, as the function of that name gives it.
        inverse_temperatures: also `temperature_grid`, as the function of that name gives it, at softmax(b z) for each b
            of the list. z is what every other field speaks of, after soft cap and temperature.
        ignore_index: rows with this target are neither read nor counted.
        vocab_size: columns from this one on are padding and left out.
        strict: raise for the first row that has no finite result.
        num_threads: None or 0 takes all cores this process may use.

    Returns:
        Arrays of shape `logits.shape[:-1]`, with `shift` one shorter on the last axis; a list adds an axis of its
        length. Fields that were not asked for are None and cost nothing; those that were change no other bit.

    Raises:
        ShapeError (with `moments` or `renyi_orders` also for a vocabulary of 0), DTypeError (also for a tensor that
        requires grad: this function has no backward), TargetError, ParamError, NonFiniteError (with `strict`).

    Example:
        >>> import numpy as np, xentrs
        >>> stats = xentrs.row_stats(np.array([[2.0, 1.0, 0.0]], dtype=np.float32), np.array([0]), renyi_orders=[2.0])
        >>> round(float(stats.nll[0]), 6), int(stats.rank[0]), stats.renyi_entropy.round(6).tolist()
        (0.407606, 1, [[0.67228]])
    """
    tempered = tempered_settings(moments, renyi_orders, inverse_temperatures)
    adapter, lent, columns = _scan(
        logits,
        targets,
        shift,
        num_threads,
        all=True,
        tempered=tempered,
        ignore_index=ignore_index,
        temperature=temperature,
        softcap=softcap,
        top_k=top_k,
        vocab_size=vocab_size,
        strict=strict,
    )
    return wrap_row_stats(columns, lent.array.shape[:-1], top_k, adapter, tempered)


def logsumexp(
    logits: Any,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    num_threads: int | None = None,
) -> Any:
    """Computes ln sum e^z of each row, shape `logits.shape[:-1]`; z as in `row_stats`.

    It has a backward for torch tensors, which reads the logits once more and holds nothing of their size but the
    gradient.

    Returns:
        float64; for torch tensors float32, or float64 where they are.

    Raises:
        ShapeError, DTypeError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> float(xentrs.logsumexp(np.zeros(8, dtype=np.float32)))  # ln 8
        2.0794415416798357
    """
    if wants_operator(logits):
        from xentrs.torch_operators import rows

        return rows.logsumexp(logits, -100, temperature, softcap, vocab_size, num_threads)
    adapter, lent, columns = _scan(
        logits, None, 0, num_threads, temperature=temperature, softcap=softcap, vocab_size=vocab_size
    )
    return adapter.wrap_differentiable(columns["lse"].reshape(lent.array.shape[:-1]), lent.element)


def entropy(
    logits: Any,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    num_threads: int | None = None,
) -> Any:
    """Computes the entropy of the softmax of each row in nats, shape `logits.shape[:-1]`; never below 0.

    It has a backward for torch tensors, as `logsumexp` has.

    Returns:
        float64; for torch tensors float32, or float64 where they are.

    Raises:
        ShapeError: also for a vocabulary of 0.
        DTypeError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> float(xentrs.entropy(np.array([0.0, -np.inf], dtype=np.float32)))
        0.0
    """
    if wants_operator(logits):
        from xentrs.torch_operators import rows

        return rows.entropy(logits, -100, temperature, softcap, vocab_size, num_threads)
    adapter, lent, columns = _scan(
        logits, None, 0, num_threads, all=True, temperature=temperature, softcap=softcap, vocab_size=vocab_size
    )
    if lent.array.shape[-1] == 0:
        raise ShapeError("logits have vocab 0, expected at least 1 column for an entropy")
    return adapter.wrap_differentiable(columns["entropy"].reshape(lent.array.shape[:-1]), lent.element)


def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    weight: Any = None,
    shift: int = 0,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    num_threads: int | None = None,
) -> Any:
    """Computes the cross-entropy of each target in nats: the meaning of `torch.nn.functional.cross_entropy` with the
    class dimension last. It has a backward for torch tensors, as `logsumexp` has; the gradient of ignored rows is 0.

    Args:
        logits: `(..., vocab)`.
        targets: `logits.shape[:-1]`.
        reduction: "none" gives each row's loss, 0 where ignored; "sum" and "mean" a single number over the counted
            rows, "mean" NaN if there is none. Sums are exact: their bits depend on no order.
        label_smoothing: share e of the target's probability that is spread evenly, from 0 to 1:
            `(1 - e) * nll + e * mean(lse - z)`. With e > 0 a logit of minus infinity makes the loss inf.
        z_loss: adds `z_loss * lse**2` to each row (PaLM, arXiv 2204.02311).
        weight: one weight for each class, `(vocab,)`; "mean" divides by the sum of the targets' weights, as torch does,
            and the z-loss by the number of rows.
        ignore_index, shift, temperature, softcap, vocab_size, num_threads: as in `row_stats`.

    Returns:
        float64; for torch tensors float32, or float64 where the logits are.

    Raises:
        ShapeError, DTypeError, TargetError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> logits = np.array([[1e8, 1e8], [0.0, 0.0]], dtype=np.float32)
        >>> float(xentrs.cross_entropy(logits, np.array([1, -100]), reduction="sum"))  # ln 2
        0.6931471805599453
    """
    check_reduction(reduction)
    if targets is None:
        raise DTypeError("targets is None, expected class ids")
    known = (ignore_index, temperature, softcap, vocab_size, num_threads)
    if wants_operator(logits):
        from xentrs.torch_operators import rows

        return rows.cross_entropy(logits, targets, weight, shift, reduction, (label_smoothing, z_loss), *known)
    adapter, lent, ids = lend_with_targets(logits, targets, shift)
    array = lent.array
    weights = None if weight is None else lend_floats(weight, "weight", lent)
    if weights is not None:
        check_class_weights(weights, array.shape[-1])
    columns = lent.engine.loss(
        array,
        lent.element,
        ids,
        settings(*known),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        weight=weights,
    )
    return adapter.wrap_differentiable(reduced(columns, reduction, array.shape[:-1]), lent.element)


@traceable
def soft_cross_entropy(
    logits: Any,
    target_ids: Any,
    target_probs: Any,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    normalize: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    num_threads: int | None = None,
) -> Any:
    """Computes the cross-entropy under a target distribution that is given by a few columns of each row, in nats,
    float64: `sum(target_probs * (lse - z[target_ids]))`. One read of the logits.

    Args:
        logits: `(..., vocab)`.
        target_ids: `(..., k)`; ids equal to `ignore_index` are left out, a row of nothing else is ignored.
        target_probs: `(..., k)`, at least 0. A probability of 0 counts as 0 also where the logit is minus infinity.
        normalize: divide each row of `target_probs` by its sum, as the k largest of a distribution need it. Without it
            each row must sum to 1 within 1e-3.
        reduction, ignore_index, temperature, softcap, vocab_size, num_threads: as in `cross_entropy`.

    Raises:
        NotNormalizedError, ShapeError, DTypeError, TargetError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> logits = np.array([[0.0, 1.0, 2.0]])
        >>> float(xentrs.soft_cross_entropy(logits, np.array([[0, 2]]), np.array([[0.5, 0.5]])).round(6))
        1.407606
    """
    check_reduction(reduction)
    adapter = adapter_of(logits)
    lent = adapter.lend(logits, "logits")
    array = lent.array
    ids = lend_ids(target_ids, "target_ids", lent, "logits")
    shares = lend_floats(target_probs, "target_probs", lent)
    check_lists(ids, shares, array, ("target_ids", "target_probs", "logits"))
    columns = lent.engine.soft_cross_entropy(
        array,
        lent.element,
        ids.reshape(-1),
        shares.reshape(-1),
        settings(ignore_index, temperature, softcap, vocab_size, num_threads),
        normalize=normalize,
    )
    return adapter.wrap(reduced(columns, reduction, array.shape[:-1]))


def perplexity(
    logits: Any,
    targets: Any,
    *,
    shift: int = 0,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    num_threads: int | None = None,
) -> float:
    """Computes e to the mean nll over the counted rows; NaN if there is none, inf beyond float64. Arguments and errors
    are those of `cross_entropy`.

    Example:
        >>> import numpy as np, xentrs
        >>> round(xentrs.perplexity(np.zeros((3, 7), dtype=np.float32), np.array([0, 3, 6])), 6)
        7.0
    """
    if targets is None:
        raise DTypeError("targets is None, expected class ids")
    _, _, columns = _scan(
        logits,
        targets,
        shift,
        num_threads,
        ignore_index=ignore_index,
        temperature=temperature,
        softcap=softcap,
        vocab_size=vocab_size,
    )
    return total(columns["nll"], columns["token_count"]).perplexity


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
    tempered: dict[str, Any] | None = None,
) -> tuple[Adapter, Lent, dict[str, Any]]:
    """Runs the engine: the caller's adapter, what was lent and the flat columns."""
    adapter, lent, ids = lend_with_targets(logits, targets, shift)
    columns = lent.engine.row_stats(
        lent.array,
        lent.element,
        ids,
        all=all,
        ignore_index=check_index(ignore_index),
        temperature=temperature,
        softcap=softcap,
        top_k=check_count(top_k, "top_k"),
        vocab_size=None if vocab_size is None else check_count(vocab_size, "vocab_size"),
        strict=strict,
        num_threads=num_threads,
        tempered=tempered,
    )
    return adapter, lent, columns

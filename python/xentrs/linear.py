"""Hidden states and a head in, statistics out: the logits never exist.

z = softcap(logit_scale * (hidden . weight + bias)) / temperature. bfloat16 times bfloat16 is multiplied in tiles of
bfloat16 where the machine has them (AMX, AVX512-BF16), float64 in float64, every other pair in float32; sums are
float32 and never rounded to 16 bits. A row has the same bits whatever the other rows are and however many threads run.
The method is that of "Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009), for CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from numpy.typing import NDArray

from xentrs.arguments import Reduction, check_count, check_reduction, reduced, settings, tempered_settings
from xentrs.dispatch import namespace_of, traceable, wants_operator
from xentrs.divergences import finish_divergence
from xentrs.errors import DTypeError
from xentrs.heads import LossCall, check_filter, lend_side, lend_sides
from xentrs.results import RowStats, wrap_row_stats


@traceable
def linear_row_stats(
    hidden: Any,
    weight: Any,
    targets: Any = None,
    *,
    bias: Any = None,
    logit_scale: float = 1.0,
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
    """Computes every statistic of `row_stats` for the logits of a head, without the logits: a few MiB for each thread,
    whatever the number of rows.

    Args:
        hidden: `(..., width)`, float32, float16, bfloat16 or float64; any strides, never copied as a whole.
        weight: `(vocab, width)` of any of these types, or a `PackedHead`.
        targets: class ids, shape `hidden.shape[:-1]`. Rows to ignore cost nothing.
        bias: one for each row of the weights, `(vocab,)`.
        logit_scale: multiplies `hidden . weight + bias`, as Cohere has it; its inverse is Granite's `logits_scaling`.
        softcap: `softcap * tanh(logits / softcap)` after the factor, before the temperature, as Gemma 2 does.
        vocab_size: rows of the weights from this one on are padding and left out.
        shift, temperature, top_k, ignore_index, strict, num_threads: as in `row_stats`.
        moments, renyi_orders, inverse_temperatures: as in `row_stats`; the head is multiplied once whatever is asked.

    Returns:
        Arrays of shape `hidden.shape[:-1]`, with `shift` one shorter on the last axis; a list adds an axis of its
        length, and fields that were not asked for are None. `isa` names what the products
        were made with: scalar, avx2, avx512, avx512bf16 or amx.

    Raises:
        ShapeError (with `moments` or `renyi_orders` also for a head of no rows), DTypeError, TargetError, ParamError,
        NonFiniteError (with `strict`).

    Example:
        >>> import numpy as np, xentrs
        >>> hidden, weight = np.array([[1.0, 2.0]], dtype=np.float32), np.eye(3, 2, dtype=np.float32)
        >>> stats = xentrs.linear_row_stats(hidden, weight, np.array([1]), moments=True)
        >>> round(float(stats.nll[0]), 6), int(stats.rank[0]), round(float(stats.log_prob_mean[0]), 6)
        (0.407606, 1, -1.407606)
    """
    lent = lend_side(hidden, weight, targets, shift, bias, logit_scale, softcap, vocab_size)
    tempered = tempered_settings(moments, renyi_orders, inverse_temperatures)
    columns = lent.engine.linear_row_stats(
        lent.side,
        lent.ids,
        settings(ignore_index, temperature, None, None, num_threads),
        all=True,
        top_k=check_count(top_k, "top_k"),
        strict=strict,
        tempered=tempered,
    )
    return wrap_row_stats(columns, lent.shape, top_k, lent.adapter, tempered)


def linear_cross_entropy(
    hidden: Any,
    weight: Any,
    targets: Any,
    *,
    bias: Any = None,
    reduction: Reduction = "mean",
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    shift: int = 0,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    filter_eps: float | Literal["auto"] | None = None,
    order_vocabulary: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Computes the cross-entropy of `cross_entropy` for the logits of a head, without the logits. With torch tensors it
    has a backward, which makes the logits again, 512 columns of the vocabulary at a time: beyond the gradients it takes
    about 4 bytes for each number of `hidden`, a packed copy of `hidden`, and the derivatives of 512 columns of each
    row. Its bits do not depend on threads. A second derivative raises.

    Args:
        hidden, weight, bias, logit_scale, softcap, vocab_size: as in `linear_row_stats`.
        targets: `hidden.shape[:-1]`.
        reduction, label_smoothing, z_loss, ignore_index, shift, temperature, num_threads: as in `cross_entropy`.

        filter_eps: the backward leaves out blocks of up to 128 rows and 64 columns where every derivative of a row's
            loss by a logit, |softmax - target| of the plain loss, is below this; None leaves out nothing, "auto" takes
            the paper's `finfo(hidden.dtype).eps / 32`.
        order_vocabulary: the backward takes the vocabulary by falling mean logit, so that the filter finds more.

    Returns:
        Nats. float64 for numpy arrays; for torch tensors float32, or float64 where `hidden` or `weight` is.

    Raises:
        ShapeError, DTypeError, TargetError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> hidden, weight = np.zeros((2, 4), dtype=np.float32), np.ones((8, 4), dtype=np.float32)
        >>> float(xentrs.linear_cross_entropy(hidden, weight, np.array([0, 7])).round(6))  # ln 8
        2.079442
    """
    check_reduction(reduction)
    if targets is None:
        raise DTypeError("targets is None, expected class ids")
    if filter_eps is not None:
        filter_eps = check_filter(filter_eps, str(getattr(hidden, "dtype", "")).rpartition(".")[2])
    if wants_operator(hidden, weight, bias):
        from xentrs.torch_operators import heads

        settled = (reduction, logit_scale, softcap, vocab_size, label_smoothing, z_loss)
        known = (ignore_index, temperature, num_threads, filter_eps, bool(order_vocabulary))
        return heads.cross_entropy(hidden, weight, bias, targets, shift, *settled, *known)
    lent = lend_side(hidden, weight, targets, shift, bias, logit_scale, softcap, vocab_size)
    call = LossCall(
        engine=lent.engine,
        side=lent.side,
        ids=lent.ids,
        settings=settings(ignore_index, temperature, None, None, num_threads),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    return lent.adapter.wrap_differentiable(reduced(call.forward_only(), reduction, lent.shape), lent.element)


@traceable
def linear_expected_embedding(
    hidden: Any,
    weight: Any,
    *,
    bias: Any = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    num_threads: int | None = None,
) -> Any:
    """Computes sum_v p_v weight_v of each row, p the softmax of its logits, in one pass over the head and without the
    logits. For a plain head it is the gradient of the log-sum-exp with respect to the hidden state; EMO
    (arXiv 2310.04691) compares it with the target's embedding.

    Args:
        hidden, weight, bias, logit_scale, temperature, softcap, vocab_size, num_threads: as in `linear_row_stats`.

    Returns:
        float64, the shape of `hidden`. bfloat16 tiles take p as the sum of two bfloat16, 16 bits of it.

    Raises:
        ShapeError, DTypeError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> xentrs.linear_expected_embedding(np.zeros((1, 2)), np.array([[1.0, 0.0], [3.0, 4.0]]))
        array([[2., 2.]])
    """
    lent = lend_side(hidden, weight, None, 0, bias, logit_scale, softcap, vocab_size)
    values = lent.engine.linear_expected_embedding(lent.side, temperature=temperature, num_threads=num_threads)
    return lent.adapter.wrap(values.reshape(*lent.shape, lent.side["hidden"].shape[-1]))


@traceable
def linear_target_logits(
    hidden: Any,
    weight: Any,
    targets: Any,
    *,
    start_column: int = 0,
    bias: Any = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    num_threads: int | None = None,
) -> Any:
    """Computes the logits of the targets alone, those that lie in this shard of a head: what `RowStatsState` needs as
    `target_logits` for rank and ties, with the bits that `update_linear` gives them.

    Args:
        hidden: `(..., width)`.
        weight: `(columns, width)`, the rows of the head from `start_column` on, or a `PackedHead`.
        targets: ids in the whole vocabulary, shape `hidden.shape[:-1]`.
        bias, logit_scale, softcap, num_threads: as in `linear_row_stats`.

    Returns:
        float64, shape `hidden.shape[:-1]`; NaN where the target lies in another shard.

    Raises:
        ShapeError, DTypeError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> hidden, weight = np.array([[1.0], [2.0]]), np.array([[3.0], [5.0]])
        >>> xentrs.linear_target_logits(hidden, weight, np.array([7, 1]), start_column=6)
        array([ 5., nan])
    """
    lent = lend_side(hidden, weight, targets, 0, bias, logit_scale, softcap, None)
    ids, columns = lent.ids, weight.shape[0]
    start = check_count(start_column, "start_column")
    of = namespace_of(ids)
    # As int64 an id of 2^63 or more is negative, and so in no shard.
    ids = ids.view(of.int64)
    inside = (ids >= start) & (ids < start + columns)
    logits = lent.engine.linear_target_logits(lent.side, of.where(inside, ids - start, -100), num_threads=num_threads)
    return lent.adapter.wrap(logits.reshape(lent.shape))


def linear_kl_divergence(
    p_hidden: Any,
    p_weight: Any,
    q_hidden: Any,
    q_weight: Any,
    *,
    p_bias: Any = None,
    q_bias: Any = None,
    p_logit_scale: float = 1.0,
    q_logit_scale: float = 1.0,
    p_softcap: float | None = None,
    q_softcap: float | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    reduction: Reduction = "none",
    return_flags: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Computes KL(p||q) = sum p ln(p / q) of two models over one vocabulary, without the logits of either. With torch
    tensors it has a backward by either side, as `linear_cross_entropy` has: a student may be trained on a teacher.

    Args:
        p_hidden, q_hidden: `(..., width)` each; the rows are the same tokens, the widths and types may differ.
        p_weight, q_weight: `(vocab, width)` each, or `PackedHead`.
        p_bias, q_bias, p_logit_scale, q_logit_scale, p_softcap, q_softcap: as in `linear_row_stats`, for each model.
        temperature, reduction, return_flags, num_threads: as in `kl_divergence`.
        vocab_size: as in `linear_row_stats`, for both.

    Returns:
        Nats, shape `p_hidden.shape[:-1]` with "none". float64 for numpy arrays; for torch tensors float32, or float64
        where hidden states or weights are.

    Raises:
        ShapeError, DTypeError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> p_hidden, q_hidden = np.array([[0.0, 1.0]]), np.array([[1.0]])
        >>> p_weight, q_weight = np.eye(2), np.array([[1.0], [1.0]])
        >>> float(xentrs.linear_kl_divergence(p_hidden, p_weight, q_hidden, q_weight)[0].round(6))
        0.110944
    """
    check_reduction(reduction)
    p_side = (p_hidden, p_weight, p_bias, p_logit_scale, p_softcap)
    q_side = (q_hidden, q_weight, q_bias, q_logit_scale, q_softcap)
    if wants_operator(p_hidden, q_hidden, p_weight, q_weight, p_bias, q_bias):
        from xentrs.torch_operators import heads, pairs

        found = heads.kl_divergence(p_side, q_side, vocab_size, temperature, num_threads)
        return pairs.finish(*found, reduction, return_flags)
    p, q = lend_sides(p_side, q_side, vocab_size)
    values, flags, _ = p.engine.linear_kl_divergence(p.side, q.side, temperature=temperature, num_threads=num_threads)
    element = "float64" if "float64" in (p.element, q.element) else "float32"
    return finish_divergence(values, flags, p.shape, p.adapter, reduction, return_flags, element)

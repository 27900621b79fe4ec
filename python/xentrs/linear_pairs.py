"""Two models' hidden states and heads in, their divergences out, and the statistics of both: the logits never exist.

The products are those of `xentrs.linear`; each head is multiplied once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xentrs.arguments import check_count, settings, tempered_settings
from xentrs.dispatch import traceable
from xentrs.divergences import wrap_divergences
from xentrs.heads import GivenSide, lend_sides
from xentrs.results import Divergences, RowStats, wrap_row_stats


@traceable
def linear_divergences(
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
    num_threads: int | None = None,
) -> Divergences:
    """Computes every field of `divergences` for two models over one vocabulary, without the logits of either: KL both
    ways, their sum, the cross-entropy of q under p and the variance of ln q under p.

    Args:
        p_hidden, q_hidden: `(..., width)` each; the rows are the same tokens, the widths and types may differ.
        p_weight, q_weight: `(vocab, width)` each, or `PackedHead`.
        p_bias, q_bias, p_logit_scale, q_logit_scale, p_softcap, q_softcap: as in `linear_row_stats`, for each model.
        temperature, num_threads: as in `divergences`.
        vocab_size: as in `linear_row_stats`, for both.

    Returns:
        float64, in nats, shape `p_hidden.shape[:-1]`.

    Raises:
        ShapeError, DTypeError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> p_hidden, q_hidden = np.array([[0.0, 1.0]]), np.array([[1.0]])
        >>> p_weight, q_weight = np.eye(2), np.array([[1.0], [1.0]])
        >>> found = xentrs.linear_divergences(p_hidden, p_weight, q_hidden, q_weight)
        >>> round(float(found.cross_entropy[0]), 6)  # ln 2
        0.693147
    """
    p, q = lend_sides(
        (p_hidden, p_weight, p_bias, p_logit_scale, p_softcap),
        (q_hidden, q_weight, q_bias, q_logit_scale, q_softcap),
        vocab_size,
    )
    columns = p.engine.linear_divergences(p.side, q.side, temperature=temperature, num_threads=num_threads)
    return wrap_divergences(columns, p.shape, p.adapter)


def linear_joint_row_stats(
    p: GivenSide,
    q: GivenSide,
    targets: Any,
    *,
    top_k: int = 0,
    moments: bool = False,
    renyi_orders: Sequence[float] = (),
    inverse_temperatures: Sequence[float] = (),
    num_threads: int | None = None,
) -> tuple[RowStats, RowStats, Divergences]:
    """Computes `linear_row_stats` of p and of q, with the settings given here for q alone, and `linear_divergences`,
    with the same bits, from one product of each head.

    Args:
        p, q: hidden states, weights, bias, factor and soft cap of each model.
        targets: those of both; divergences of ignored rows are NaN and flagged.
        top_k, moments, renyi_orders, inverse_temperatures, num_threads: as in `linear_row_stats`.

    Example:
        >>> import numpy as np
        >>> p = (np.array([[0.0, 1.0]]), np.eye(2), None, 1.0, None)
        >>> q = (np.array([[1.0]]), np.array([[1.0], [1.0]]), None, 1.0, None)
        >>> p_stats, q_stats, both = linear_joint_row_stats(p, q, np.array([1]))
        >>> [round(float(value[0]), 6) for value in (p_stats.nll, q_stats.nll, both.cross_entropy)]
        [0.313262, 0.693147, 0.693147]
    """
    lent_p, lent_q = lend_sides(p, q, None, targets)
    tempered = tempered_settings(moments, renyi_orders, inverse_temperatures)
    p_columns, q_columns, both = lent_p.engine.linear_joint_row_stats(
        lent_p.side,
        lent_q.side,
        lent_p.ids,
        settings(-100, 1.0, None, None, num_threads),
        top_k=check_count(top_k, "top_k"),
        tempered=tempered,
    )
    shape, adapter = lent_p.shape, lent_p.adapter
    return (
        wrap_row_stats(p_columns, shape, 0, adapter),
        wrap_row_stats(q_columns, shape, top_k, adapter, tempered),
        wrap_divergences(both, shape, adapter),
    )

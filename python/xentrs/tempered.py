"""Quantities at several inverse temperatures, all from one read of the logits; nats and float64.

`row_stats` and `linear_row_stats` give them beside all else, from the same read or product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xentrs.arguments import lend_list, lend_with_targets, settings
from xentrs.dispatch import adapter_of, namespace_of, traceable
from xentrs.errors import ShapeError
from xentrs.results import LogProbMoments, TemperatureGrid


@traceable
def temperature_grid(
    logits: Any,
    inverse_temperatures: Sequence[float] | NDArray[Any],
    targets: Any = None,
    *,
    shift: int = 0,
    ignore_index: int = -100,
    softcap: float | None = None,
    vocab_size: int | None = None,
    num_threads: int | None = None,
) -> TemperatureGrid:
    """Computes lse, mean, variance, entropy and nll at each inverse temperature b, with p_b = softmax(b z).

    Where the list holds a value, its double and so on, up to three times, one exponential serves all of them: a grid
    that doubles every few steps costs little more than its first octave. The relative error of a sum doubles with each.

    Args:
        logits: `(..., vocab)`.
        inverse_temperatures: from 0 to 1e30. At 0 every column that is not minus infinity has the same probability.
        targets: class ids, `logits.shape[:-1]`.
        shift, ignore_index, softcap, vocab_size, num_threads: as in `row_stats`.

    Returns:
        Arrays of shape `(..., len(inverse_temperatures))`.

    Raises:
        ShapeError, DTypeError, TargetError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> grid = xentrs.temperature_grid(np.array([0.0, 1.0, 2.0]), [0.0, 1.0])
        >>> [round(float(value), 6) for value in grid.mean]
        [1.0, 1.57521]
    """
    adapter, lent, ids = lend_with_targets(logits, targets, shift)
    grid = lend_list(inverse_temperatures, "inverse_temperatures")
    known = settings(ignore_index, 1.0, softcap, vocab_size, num_threads)
    columns = lent.engine.temperature_grid(lent.array, lent.element, ids, grid, known)
    rows = lent.array.shape[:-1]
    flags = adapter.wrap(columns.pop("flags").reshape(rows))
    arrays = {name: adapter.wrap(column.reshape(*rows, len(grid))) for name, column in columns.items()}
    return TemperatureGrid(inverse_temperatures=np.asarray(grid, dtype=np.float64), flags=flags, **arrays)


@traceable
def renyi_entropy(
    logits: Any,
    orders: Sequence[float] | NDArray[Any] = (0.5, 2.0, np.inf),
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    num_threads: int | None = None,
) -> Any:
    """Computes Renyi entropies of the softmax of each row, `ln(sum p**a) / (1 - a)`, shape `(..., len(orders))`.

    Args:
        logits: `(..., vocab)`, vocab at least 1.
        orders: at least 0. Order 1 is Shannon's entropy, order 0 the log of the number of columns that are not minus
            infinity, order inf `-max_log_prob`.
        temperature, softcap, vocab_size, num_threads: as in `row_stats`.

    Raises:
        ShapeError, DTypeError, ParamError.

    Example:
        >>> import numpy as np, xentrs
        >>> xentrs.renyi_entropy(np.zeros(8)).round(6).tolist()  # ln 8 at every order
        [2.079442, 2.079442, 2.079442]
    """
    adapter = adapter_of(logits)
    lent = adapter.lend(logits, "logits")
    wanted = lend_list(orders, "orders")
    known = settings(-100, temperature, softcap, vocab_size, num_threads)
    values, _ = lent.engine.renyi_entropy(lent.array, lent.element, wanted, known)
    return adapter.wrap(values.reshape(*lent.array.shape[:-1], len(wanted)))


@traceable
def log_prob_moments(
    logits: Any,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    num_threads: int | None = None,
) -> LogProbMoments:
    """Computes mean and variance of the log-probabilities over the vocabulary, every column with the same weight (a
    published variant of Min-K%++ standardises with them; `entropy` and `varentropy` are those under the softmax).

    Where a logit is minus infinity the mean is minus infinity and the variance NaN. Arguments and errors are those of
    `renyi_entropy`.

    Example:
        >>> import numpy as np, xentrs
        >>> moments = xentrs.log_prob_moments(np.log([0.5, 0.25, 0.25]))
        >>> round(float(moments.mean), 6), round(float(moments.variance), 6)
        (-1.155245, 0.106767)
    """
    adapter = adapter_of(logits)
    lent = adapter.lend(logits, "logits")
    if lent.array.shape[-1] == 0:
        raise ShapeError("logits have vocab 0, expected at least 1 column for a mean")
    known = settings(-100, temperature, softcap, vocab_size, num_threads)
    columns = lent.engine.temperature_grid(lent.array, lent.element, None, [1.0, 0.0], known)
    lse, mean, variance = (columns[name].reshape(-1, 2) for name in ("lse", "mean", "variance"))
    # At inverse temperature 0 the columns that are possible count, and lse is the log of their number.
    vocab, of = lent.array.shape[-1] if vocab_size is None else vocab_size, namespace_of(lse)
    is_whole = of.round(of.exp(lse[:, 1])) == vocab
    is_defined = of.isfinite(lse[:, 0])
    means = of.where(is_whole, mean[:, 1] - lse[:, 0], of.where(is_defined, -np.inf, np.nan))
    rows = lent.array.shape[:-1]
    return LogProbMoments(
        mean=adapter.wrap(means.reshape(rows)),
        variance=adapter.wrap(of.where(is_whole, variance[:, 1], np.nan).reshape(rows)),
    )

"""The order test: was a benchmark in the training data in the order in which it was published?

In: log-probabilities of the items in the published order and in shuffled ones, or the items and a function that gives
them; order_scoring.py has a model give them, in batches. Out: `OrderTest`. Needs scipy, of the extra `detect`.

After Oren, Meister, Chatterji, Ladhak and Hashimoto (Proving Test Set Contamination in Black-Box Language Models, arXiv
2310.17623): if the items are exchangeable, a model that has not seen them in this order has no reason to prefer it. The
items are cut into shards; each is scored in its order and in shuffles of it.

What it means. The test needs exchangeable items: a benchmark sorted by topic, or whose items refer to one another, is
preferred in its order by any good model. It finds a benchmark that was trained on as a whole and in order, not one
whose items were seen scattered or shuffled. A small p-value proves no more than that the order was preferred.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from xentrs.detect.checked_inputs import FloatColumn, count_of, optional_module, table_of
from xentrs.detect.random_draws import Draws
from xentrs.errors import ParamError

Item = TypeVar("Item")

_SHUFFLES, _PERMUTATIONS = 3, 4  # streams
_ROUNDING = 1e-12


@dataclass(frozen=True)
class OrderTest:
    """Whether the published order is more likely than shuffles; both p-values are one-sided."""

    permutation_p_value: float
    """Exact at any size: in each shard any of the orders could as well have been the published one."""
    t_p_value: float
    """Of the t-test over shards, as the paper has it; approximate. 1 where `t` is None."""
    t: float | None
    """None where the differences of all shards are the same number."""
    mean_difference: float
    """Log-probability of the published order less the mean of its shuffles, in nats, mean over the shards."""
    shards: int
    shuffles: int
    permutations: int
    seed: int

    def block(self) -> dict[str, Any]:
        """Plain data without NaN."""
        return asdict(self) | {"t_reason": "no_variance" if self.t is None else None}


def shard_bounds(item_count: int, shards: int) -> list[int]:
    """Where shards begin and end: neighbours stay together, sizes differ by at most one, the larger ones first."""
    size, larger = divmod(item_count, shards)
    return [place * size + min(place, larger) for place in range(shards + 1)]


def order_log_probs(
    log_prob: Callable[[Sequence[Item]], float],
    items: Sequence[Item],
    *,
    shards: int = 50,
    shuffles: int = 50,
    seed: int = 0,
) -> FloatColumn:
    """Log-probabilities `(shards, 1 + shuffles)`, the published order first: `shards * (1 + shuffles)` calls.

    `log_prob` takes items in an order and returns the log-probability of their concatenation, in nats.

    Raises:
        ParamError: fewer than two items for each shard; a setting outside its range.

    >>> order_log_probs(lambda items: -float(items[0]), range(4), shards=2, shuffles=1)[:, 0].tolist()
    [-0.0, -2.0]
    """
    orders_of_shards = shard_orders(len(items), shards=shards, shuffles=shuffles, seed=seed)
    log_probs = np.empty((shards, 1 + shuffles))
    for row, orders in enumerate(orders_of_shards):
        for column, order in enumerate(orders.tolist()):
            log_probs[row, column] = log_prob([items[place] for place in order])
    return log_probs


def shard_orders(item_count: int, *, shards: int, shuffles: int, seed: int) -> Iterator[npt.NDArray[np.intp]]:
    """For each shard its items' places in every order, `(1 + shuffles, items)`, the published order first.

    Raises:
        ParamError: fewer than two items for each shard; a setting outside its range.

    >>> [orders[0].tolist() for orders in shard_orders(5, shards=2, shuffles=1, seed=0)]
    [[0, 1, 2], [3, 4]]
    """
    count_of(shards, "shards", 2)
    count_of(shuffles, "shuffles")
    if item_count < 2 * shards:
        raise ParamError(f"items has {item_count} entries for {shards} shards, expected at least {2 * shards}")
    draws = Draws(seed, _SHUFFLES)
    bounds = itertools.pairwise(shard_bounds(item_count, shards))
    return (
        start + np.concatenate([np.arange(end - start)[None, :], draws.permutations(shuffles, end - start)])
        for start, end in bounds
    )


def order_test(log_probs: Any, *, permutations: int = 9999, seed: int = 0) -> OrderTest:
    """Test log-probabilities `(shards, 1 + shuffles)`, the published order in the first column.

    The permutation test puts an order drawn from its own row in the first place of each shard, `permutations` times,
    and compares sums: (1 + #{as large}) / (1 + permutations). The t-test takes each shard's difference to the mean of
    its shuffles, with the unbiased deviation.

    Raises:
        ParamError: fewer than two shards, no shuffle, a value that is not finite.
        ShapeError: not two axes.
        DTypeError: no numbers.

    >>> order_test([[-10.0, -12.0, -11.5], [-9.0, -9.5, -11.0], [-8.0, -9.0, -8.5]]).permutation_p_value < 0.1
    True
    """
    table = table_of(log_probs, "log_probs")
    count_of(permutations, "permutations")
    count_of(seed, "seed", 0)
    shards, orders = table.shape
    if shards < 2 or orders < 2:
        raise ParamError(
            f"log_probs has shape {table.shape}, expected at least 2 shards and 1 shuffle beside the order"
        )
    wrong = np.argwhere(~np.isfinite(table))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ParamError(f"log_probs[{row}, {column}] = {table[row, column]}, expected a finite number")
    differences = table[:, 0] - table[:, 1:].mean(axis=1)
    t, t_p_value = _t_test(differences)
    return OrderTest(
        permutation_p_value=_permutation_p_value(table, permutations, seed),
        t_p_value=t_p_value,
        t=t,
        mean_difference=float(differences.mean()),
        shards=shards,
        shuffles=orders - 1,
        permutations=permutations,
        seed=seed,
    )


def _t_test(differences: FloatColumn) -> tuple[float | None, float]:
    if np.ptp(differences) == 0.0:
        return None, 1.0
    statistic = float(differences.mean() / differences.std(ddof=1)) * math.sqrt(len(differences))
    return statistic, float(optional_module("scipy.stats").t.sf(statistic, len(differences) - 1))


def _permutation_p_value(table: FloatColumn, permutations: int, seed: int) -> float:
    """Each row less its first entry, so that the published order sums to 0. Sums that differ from it by rounding alone
    count as equal.
    """
    draws = Draws(seed, _PERMUTATIONS)
    sums, rounding = np.zeros(permutations), 0.0
    for row in table:
        sums += (row - row[0])[draws.integers(permutations, len(row))]
        rounding += _ROUNDING * float(np.abs(row).max())
    return (1 + int((sums >= -rounding).sum())) / (1 + permutations)

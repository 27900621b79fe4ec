"""Results: typed, in the caller's kind of array."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from xentrs import _xentrs
from xentrs.dispatch import Adapter


class Flag(enum.IntFlag):
    """What is unusual about a row; bits of `RowStats.flags`."""

    NAN = 1
    """A logit is NaN."""
    POSINF = 2
    """A logit is plus infinity, none is NaN."""
    ALL_NEGINF = 4
    """Every logit is minus infinity."""
    TARGET_NEGINF = 8
    """The target's logit is minus infinity."""
    IGNORED = 16
    """The target is `ignore_index`; the row was not read."""
    SUPPORT = 32
    """Of two distributions, p is positive where q is 0."""
    CLAMPED = 64
    """A result was below 0 by less than its error bound and was set to 0."""
    OVERFLOW = 128
    """A result is larger than a float64 can be, or a KL larger than the lanes that it is summed in."""


@dataclass(frozen=True)
class PerplexityResult:
    """Totals over a corpus, in nats unless the name says otherwise."""

    nll_sum: float
    """Sum of the negative log-likelihoods, rounded once."""
    token_count: int
    """Tokens counted."""
    mean_nll: float
    """`nll_sum / token_count`; NaN without a token."""
    perplexity: float
    """e to the mean, per token; inf where float64 cannot hold it."""
    bits_per_token: float
    """The mean in bits."""
    infinite_count: int
    """Tokens of probability 0."""
    nan_count: int
    """Tokens whose nll is NaN."""
    mean_nll_finite: float
    """Mean over the tokens whose nll is finite."""
    overflow: bool
    """Whether the mean is finite but its perplexity is not."""


@dataclass(frozen=True, eq=False)
class RowStats:
    """Statistics of each row of logits, in nats. Arrays have shape `logits.shape[:-1]` and are numpy arrays or torch
    tensors, as the logits were; floats are float64, `argmax`, `rank`, `ties` int64, `flags` uint8 (see `Flag`).

    A row that is ignored has nll and log_prob 0, other floats NaN, argmax -1, rank 0. A row with NaN or only infinities
    has NaN where nothing is defined, and a flag.
    """

    lse: Any
    """Log-sum-exp."""
    nll: Any
    """Negative log-likelihood of the target; NaN without targets."""
    log_prob: Any
    """`-nll`."""
    entropy: Any
    """Entropy of the softmax."""
    varentropy: Any
    """Variance of the log-probability under the softmax."""
    max_logit: Any
    """Largest logit, after soft cap and temperature."""
    max_log_prob: Any
    """Log-probability of the largest logit, exact where `max_logit - lse` cancels."""
    margin: Any
    """Largest less second largest logit; inf for a vocabulary of one."""
    sum_sq_prob: Any
    """Sum of squared probabilities."""
    argmax: Any
    """First column of the largest logit."""
    rank: Any
    """1 + number of logits above the target's; 0 without targets."""
    ties: Any
    """Other columns whose logit equals the target's."""
    flags: Any
    """What is unusual about the row."""
    top_log_probs: Any
    """Log-probabilities of the `top_k` largest logits, `(..., top_k)`."""
    top_ids: Any
    """Their columns, the lower first on equal logits, `(..., top_k)`."""
    isa: str
    """What computed it: scalar, avx2, avx512, or the head's tile class avx512bf16 or amx; the type of the device (cuda,
    cpu) where torch operations did; empty from a state.
    """
    _token_count: Any
    log_prob_mean: Any = None
    """Mean of the log-probabilities over the vocabulary, every column with the same weight; None unless `moments`."""
    log_prob_variance: Any = None
    """Variance of the same; None unless `moments`."""
    renyi_entropy: Any = None
    """Renyi entropies, `(..., len(renyi_orders))`; None without orders."""
    temperature_grid: TemperatureGrid | None = None
    """Statistics at each inverse temperature, `(..., len(inverse_temperatures))`; None without these."""

    @property
    def token_count(self) -> int:
        """Rows with a target that is not ignored."""
        return int(self._token_count)

    @cached_property
    def _totals(self) -> PerplexityResult:
        """Made when first asked for: it brings the nll of every row to the CPU."""
        return total(self.nll, self.token_count)

    @property
    def mean_nll(self) -> float:
        """Mean nll over the counted rows; NaN if there is none."""
        return self._totals.mean_nll

    @property
    def perplexity(self) -> float:
        """e to `mean_nll`."""
        return self._totals.perplexity

    @property
    def bits_per_token(self) -> float:
        """`mean_nll` in bits."""
        return self._totals.bits_per_token

    def __repr__(self) -> str:
        """Says shape and totals; the arrays are a field away."""
        return (
            f"RowStats(shape={tuple(self.lse.shape)}, token_count={self.token_count}, "
            f"mean_nll={self.mean_nll:.6g}, perplexity={self.perplexity:.6g})"
        )


@dataclass(frozen=True, eq=False)
class Divergences:
    """Divergences of two arrays of logits, row by row, in nats; arrays of shape `p_logits.shape[:-1]`, float64."""

    kl_divergence: Any
    """KL(p||q)."""
    reverse_kl_divergence: Any
    """KL(q||p)."""
    symmetric_kl_divergence: Any
    """Their sum (Jeffreys' divergence)."""
    cross_entropy: Any
    """-sum p ln q."""
    cross_varentropy: Any
    """Variance of ln q under p; NaN where q is 0 and p is not."""
    flags: Any
    """What is unusual about the rows, see `Flag`; of either direction."""


@dataclass(frozen=True, eq=False)
class TemperatureGrid:
    """Statistics at several inverse temperatures b, arrays of shape `(..., len(inverse_temperatures))`, float64."""

    inverse_temperatures: Any
    """The list, as numpy float64, in a graph of torch as it came."""
    lse: Any
    """ln sum e^(b z)."""
    mean: Any
    """Mean of z under softmax(b z)."""
    variance: Any
    """Variance of z under softmax(b z)."""
    entropy: Any
    """Entropy of softmax(b z)."""
    nll: Any
    """-ln softmax(b z) of the target; NaN without targets, 0 where ignored."""
    flags: Any
    """What is unusual about the rows, `logits.shape[:-1]`, see `Flag`."""


@dataclass(frozen=True, eq=False)
class LogProbMoments:
    """Moments of a row's log-probabilities over the vocabulary, arrays of shape `logits.shape[:-1]`, float64."""

    mean: Any
    """Mean, every column with the same weight."""
    variance: Any
    """Variance, every column with the same weight."""


def total(nll: Any, token_count: int) -> PerplexityResult:
    """Sums nll values exactly, on the CPU; zeros of ignored rows change nothing."""
    state = _xentrs.Perplexity()
    state.update_nll(on_cpu(nll), token_count)
    return PerplexityResult(**state.compute())


def on_cpu(nll: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers of any array as a flat float64 array of numpy."""
    plain = nll.detach().double().cpu() if hasattr(nll, "detach") else nll
    return np.ascontiguousarray(np.asarray(plain, dtype=np.float64).reshape(-1))


def wrap_row_stats(
    columns: dict[str, Any],
    shape: tuple[int, ...],
    top_k: int,
    adapter: Adapter,
    tempered: dict[str, Any] | None = None,
) -> RowStats:
    """Makes the result from the engine's flat columns; `tempered` is what the engine was asked for beside them."""
    token_count, isa = columns.pop("token_count"), columns.pop("isa")
    shapes = dict.fromkeys(columns, shape) | {"top_log_probs": (*shape, top_k), "top_ids": (*shape, top_k)}
    beside = {} if tempered is None else _take_tempered(columns, shape, tempered, adapter)
    arrays = {name: adapter.wrap(column.reshape(shapes[name])) for name, column in columns.items()}
    return RowStats(**arrays, isa=isa, _token_count=token_count, **beside)


def _take_tempered(
    columns: dict[str, Any], shape: tuple[int, ...], tempered: dict[str, Any], adapter: Adapter
) -> dict[str, Any]:
    """Takes what was asked for beside the statistics out of the columns, as fields of the result."""

    def take(name: str, *width: int) -> Any:
        return adapter.wrap(columns.pop(name).reshape((*shape, *width)))

    fields: dict[str, Any] = {}
    if tempered["moments"]:
        fields |= {name: take(name) for name in ("log_prob_mean", "log_prob_variance")}
    if tempered["renyi_orders"]:
        fields["renyi_entropy"] = take("renyi_entropy", len(tempered["renyi_orders"]))
    if tempered["inverse_temperatures"]:
        grid = np.asarray(tempered["inverse_temperatures"], dtype=np.float64)
        arrays = {name: take(f"grid_{name}", len(grid)) for name in ("lse", "mean", "variance", "entropy", "nll")}
        fields["temperature_grid"] = TemperatureGrid(inverse_temperatures=grid, flags=take("grid_flags"), **arrays)
    return fields

"""Divergences of two sources of logits, in float64 throughout.

With a = ln p - ln q: KL(p||q) = sum p (a + expm1(-a)), as sum p expm1(-a) = sum q - sum p = 0. Each term is at least 0,
so that close pairs keep their relative accuracy and equal rows give exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xentrs.torch_ops.blocks import Logits, Source, Span, joined
from xentrs.torch_ops.checks import (
    check_positive,
    check_rows,
    check_threads,
    check_vocabulary,
    first_row,
    not_normalized,
)
from xentrs.torch_ops.leaf import CLAMPED, OVERFLOW, SUPPORT, leaf_sums, merged, row_sums, undefined_flags

_LIVE = 16
"""Numbers of float64 that are held for each of a block's."""
_LOWEST = {"float64": -708.39}
_LOWEST_NARROW = -87.33
"""In float32 lanes e^d counts as 0 below this d; here too, so that the same columns have a probability."""


class Scales(NamedTuple):
    """What turns logits into log-probabilities, for each row; NaN where there is no distribution."""

    p_max: Tensor
    q_max: Tensor
    p_log_mass: Tensor
    q_log_mass: Tensor


class Pair:
    """Two sources of the same rows and vocabulary at one temperature."""

    def __init__(self, p: Source, q: Source, element: str, temperature: float, num_threads: int | None) -> None:
        """Checks that there is something to compare."""
        check_threads(num_threads)
        check_positive("temperature", temperature)
        check_vocabulary(p.vocab, "a divergence")
        self.p, self.q, self.scale = p, q, 1.0 / temperature
        self.lowest = _LOWEST.get(element, _LOWEST_NARROW)

    def row_spans(self) -> Iterator[Span]:
        """Blocks of rows."""
        return self.p.row_spans(_LIVE * 8 // self.p.compute.itemsize)

    def column_spans(self) -> Iterator[Span]:
        """Blocks of columns."""
        return self.p.column_spans(_LIVE * 8 // self.p.compute.itemsize)

    def logits(self, rows: Span, columns: Span) -> tuple[Tensor, Tensor]:
        """One block of either side."""
        return self.p.logits(rows, columns).double(), self.q.logits(rows, columns).double()

    def scales(self, rows: Span) -> tuple[Scales, Tensor]:
        """The scales of some rows, and why one has none."""
        found = [self._log_mass(side, rows) for side in (self.p, self.q)]
        (p_max, p_log_mass), (q_max, q_log_mass) = found
        p_flags, q_flags = undefined_flags(p_max), undefined_flags(q_max)
        # The first of NaN, +inf and all -inf, of either side: the lowest bit.
        both = p_flags | q_flags
        flags = both & (~both + 1)
        scales = Scales(p_max, q_max, p_log_mass, q_log_mass)
        return Scales(*(torch.where(flags == 0, values, torch.nan) for values in scales)), flags

    def _log_mass(self, side: Source, rows: Span) -> tuple[Tensor, Tensor]:
        """Largest logit, and ln sum e^d with its relative accuracy also where the largest is next to certain."""
        sums = None
        for columns in self.column_spans():
            sums = merged(sums, leaf_sums(side.logits(rows, columns).double(), self.scale, moments=False), self.scale)
        found = row_sums(sums)
        return found.max, torch.log1p(found.rest)

    def weigh(self, distance: Tensor) -> Tensor:
        """e^d, exactly 0 below the lowest exponent."""
        return torch.exp(distance).masked_fill_(distance < self.lowest, 0.0)

    def ratios(self, logits: tuple[Tensor, Tensor], scales: Scales) -> tuple[Tensor, Tensor, Tensor]:
        """p, q and a = ln p - ln q, which is NaN where both logits are minus infinity."""
        p_distance = logits[0].sub(scales.p_max[:, None]).mul_(self.scale)
        q_distance = logits[1].sub(scales.q_max[:, None]).mul_(self.scale)
        offset = scales.p_log_mass - scales.q_log_mass
        a = p_distance.sub(q_distance).sub_(offset[:, None])
        p = self.weigh(p_distance).mul_(torch.exp(-scales.p_log_mass)[:, None])
        q = self.weigh(q_distance).mul_(torch.exp(-scales.q_log_mass)[:, None])
        return p, q, a


def pair_of(p_logits: Tensor, q_logits: Tensor, element: str, temperature: float, num_threads: int | None) -> Pair:
    """Two tensors of logits as a pair."""
    vocab = p_logits.shape[-1]
    sides = [Logits(logits, vocab, None, None, torch.float64) for logits in (p_logits, q_logits)]
    check_rows(sides[1].rows, sides[0].rows, "q_logits", "p_logits")
    return Pair(sides[0], sides[1], element, temperature, num_threads)


def excess(a: Tensor) -> Tensor:
    """a + expm1(-a), at least 0, with its relative accuracy also where a is small."""
    series = torch.zeros_like(a)
    for power in range(10, 1, -1):  # sum over k >= 2 of (-a)^k / k!
        series = series.mul_(a).mul_(-1.0).add_(1.0 / math.factorial(power))
    near = series.mul_(a).mul_(a)
    return torch.where(a.abs() < 2.0**-5, near, a + torch.expm1(-a))


def kl_sums(p: Tensor, q: Tensor, a: Tensor) -> Tensor:
    """Two sums over columns that are both KL(p||q) once they are over all: of p (a + expm1(-a)), which is q where p is
    0, and of p a, which is as exact where the divergence is large. Infinite where q is 0 and p is not.
    """
    cross = torch.where(p > 0, p * a, 0.0)
    # Far apart p expm1(-a) could overflow, and nothing cancels.
    terms = torch.where(a.abs() < 1.0, p * excess(a), cross + (q - p))
    return torch.stack([terms.sum(-1), cross.sum(-1)])


def kl_rows(pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """KL of each row, flags, and four scales for each row, flat."""
    blocks = []
    for rows in pair.row_spans():
        scales, flags = pair.scales(rows)
        sums = torch.zeros(2, rows.size, dtype=torch.float64, device=flags.device)
        for columns in pair.column_spans():
            sums += kl_sums(*pair.ratios(pair.logits(rows, columns), scales))
        values, flags = _finish(sums, flags)
        blocks.append({"values": values, "flags": flags, "scales": torch.stack(scales, -1)})
    found = joined(blocks)
    return found["values"], found["flags"], found["scales"].reshape(-1)


def _finish(sums: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence and what is unusual about it: infinite for want of support, or below 0 by rounding."""
    is_defined = flags == 0
    values = torch.where(is_defined, torch.where(sums[1] > 1.0, sums[1], sums[0]), torch.nan)
    flags = torch.where(is_defined & (values == torch.inf), SUPPORT, flags)
    # Finite logits end here only where a difference of them is beyond float64.
    flags = torch.where(is_defined & values.isnan(), OVERFLOW, flags)
    values = torch.where(is_defined & values.isnan(), torch.inf, values)
    flags = torch.where(is_defined & (values < 0), CLAMPED, flags)
    return torch.where(is_defined & (values < 0), 0.0, values), flags


def kl_divergence(
    p_logits: Tensor,
    q_logits: Tensor,
    element: str,
    *,
    temperature: float,
    log_probs: bool,
    num_threads: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p||q) of each row; with `log_probs` p has to be normalised at temperature 1."""
    pair = pair_of(p_logits, q_logits, element, temperature, num_threads)
    if log_probs:
        _check_log_probs(p_logits, element)
    return kl_rows(pair)


def _check_log_probs(p_logits: Tensor, element: str) -> None:
    pair, first = pair_of(p_logits, p_logits, element, 1.0, None), 0
    for rows in pair.row_spans():
        scales, flags = pair.scales(rows)
        lse = scales.p_max + scales.p_log_mass
        row = first_row((flags == 0) & ~(lse.abs() <= 1e-3))
        if row is not None:
            raise not_normalized("p_logits", first + row, math.exp(min(float(lse[row]), 709.0)))
        first += rows.size


def divergences(
    p_logits: Tensor, q_logits: Tensor, element: str, *, temperature: float, num_threads: int | None
) -> dict[str, Any]:
    """KL both ways, the cross-entropy of q under p, and the variance of ln q under p."""
    return divergence_rows(pair_of(p_logits, q_logits, element, temperature, num_threads))


def divergence_rows(pair: Pair) -> dict[str, Any]:
    """The same of any pair."""
    return joined([_divergences(pair, rows) for rows in pair.row_spans()])


def _divergences(pair: Pair, rows: Span) -> dict[str, Tensor]:
    scales, undefined = pair.scales(rows)
    sums = torch.zeros(5, rows.size, dtype=torch.float64, device=undefined.device)
    for columns in pair.column_spans():
        logits = pair.logits(rows, columns)
        p, q, a = pair.ratios(logits, scales)
        sums[:2] += kl_sums(p, q, a)
        sums[2:4] += kl_sums(q, p, -a)
        sums[4] += _surprisal(pair, logits[1], scales, p).mul_(p).sum(-1)
    forward, flags = _finish(sums[:2], undefined)
    reverse, reverse_flags = _finish(sums[2:4], undefined)
    entropy = torch.where(undefined == 0, torch.where(forward == torch.inf, torch.inf, sums[4]), torch.nan)
    spread = torch.zeros_like(entropy)
    for columns in pair.column_spans():
        logits = pair.logits(rows, columns)
        p, _, _ = pair.ratios(logits, scales)
        distance = _surprisal(pair, logits[1], scales, p).sub_(entropy[:, None])
        spread += torch.where(p > 0, p * distance.square(), 0.0).sum(-1)
    return {
        "kl_divergence": forward,
        "reverse_kl_divergence": reverse,
        "cross_entropy": entropy,
        "cross_varentropy": torch.where(entropy.isfinite(), spread, torch.nan),
        "flags": flags | reverse_flags,
    }


def _surprisal(pair: Pair, q_logits: Tensor, scales: Scales, p: Tensor) -> Tensor:
    """-ln q, 0 where p is 0."""
    distance = (scales.q_max[:, None] - q_logits).mul_(pair.scale)
    return distance.add_(scales.q_log_mass[:, None]).masked_fill_(p == 0, 0.0)

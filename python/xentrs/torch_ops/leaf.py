"""The sums of a block of columns around its largest logit, and those of a row made of them, as `src/state` has them.

The largest logits stand apart from the sum of the others, so that ln(1 + rest) keeps its relative accuracy down to
1e-18; every other sum has terms of one sign.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xentrs.torch_ops.blocks import total

NAN, POSINF, ALL_NEGINF, TARGET_NEGINF, IGNORED, SUPPORT, CLAMPED, OVERFLOW = (1 << bit for bit in range(8))


class Sums(NamedTuple):
    """Sums over columns, a float64 for each row: d is `unit` times the logit less the largest, w is e^(factor d).

    Of a leaf `rest` leaves out every largest logit, of a row only one.
    """

    max: Tensor
    """Largest logit; NaN if there is a NaN."""
    peak_count: Tensor
    """Columns that hold it."""
    rest: Tensor
    """Sum of w."""
    drop: Tensor
    """Sum of w d."""
    spread: Tensor
    """Sum of w (d - mean d)^2."""
    squares: Tensor
    """Sum of w^2 over the columns below the largest."""

    @property
    def mass(self) -> Tensor:
        """Of a row: the sum of w over all columns."""
        return 1.0 + self.rest


def leaf_sums(logits: Tensor, unit: float, factor: float = 1.0, *, moments: bool = True) -> Sums:
    """Of one block of columns."""
    largest = logits.amax(-1, keepdim=True)
    is_largest = logits == largest
    distance = logits - reference_of(largest)
    if unit != 1.0:
        distance *= unit
    if factor == 0.0:
        weight = (logits != -torch.inf).to(logits.dtype)
    else:
        weight = torch.exp(distance if factor == 1.0 else distance * factor)
    # Where the weight is 0 the distance may be infinite, and NaN stays NaN in the weight.
    distance.masked_fill_(weight == 0, 0.0)
    below = weight.masked_fill(is_largest, 0.0)
    rest, count = total(below), is_largest.sum(-1).double()
    zero = torch.zeros_like(rest)
    sums = Sums(largest[:, 0].double(), count, rest, zero, zero, zero)
    if not moments:
        return sums
    squares = total(below.square_())
    weighted = weight * distance
    drop = total(weighted)
    mean = (drop / (count + rest)).to(logits.dtype)[:, None]
    del weighted, below
    spread = total(distance.sub_(mean).square_().mul_(weight))
    return sums._replace(drop=drop, spread=spread, squares=squares)


def merged(known: Sums | None, leaf: Sums, unit: float, factor: float = 1.0) -> Sums:
    """Of the columns of both, of which those of `leaf` come after; all around the largest logit of both."""
    if known is None:
        return leaf
    largest = torch.maximum(known.max, leaf.max)
    rest, drop, squares, peak_count = (torch.zeros_like(largest) for _ in range(4))
    masses, means = [], []
    for part in (known, leaf):
        is_largest = part.max == largest
        # A part with nothing but minus infinity has no weight, whatever it is measured from.
        shift = torch.where(part.max == -torch.inf, -torch.inf, (part.max - reference_of(largest)) * unit)
        weight = torch.ones_like(shift) if factor == 0 else torch.exp(shift * factor)
        weight = torch.where(part.max == -torch.inf, 0.0, weight)
        shift = torch.where(weight > 0, shift, 0.0)
        mass = part.peak_count + part.rest
        peak_count += torch.where(is_largest, part.peak_count, 0.0)
        rest += weight * torch.where(is_largest, part.rest, mass)
        squares += weight.square() * (part.squares + torch.where(is_largest, 0.0, part.peak_count))
        drop += weight * (part.drop + shift * mass)
        masses.append(weight * mass)
        means.append(torch.where(weight > 0, part.drop / mass + shift, 0.0))
    spread = known.spread * (masses[0] / (known.peak_count + known.rest))
    spread = torch.where(masses[0] > 0, spread, 0.0)
    spread += torch.where(masses[1] > 0, leaf.spread * (masses[1] / (leaf.peak_count + leaf.rest)), 0.0)
    share = torch.where((masses[0] > 0) & (masses[1] > 0), masses[0] * masses[1] / (masses[0] + masses[1]), 0.0)
    return Sums(largest, peak_count, rest, drop, spread + share * (means[0] - means[1]).square(), squares)


def row_sums(leaf: Sums | None) -> Sums:
    """Of a whole row, where one of the largest logits stands apart."""
    assert leaf is not None, "a source has at least one span of columns"
    return leaf._replace(rest=(leaf.peak_count - 1.0) + leaf.rest)


def reference_of(largest: Tensor) -> Tensor:
    """What logits are measured from: the largest, or 0 where it is infinite."""
    return torch.where(largest.isinf(), torch.zeros_like(largest), largest)


def undefined_flags(largest: Tensor) -> Tensor:
    """Why a row has no distribution: NAN, POSINF or ALL_NEGINF; 0 if it has one."""
    flags = torch.where(largest == -torch.inf, ALL_NEGINF, 0)
    flags = torch.where(largest == torch.inf, POSINF, flags)
    return torch.where(largest.isnan(), NAN, flags).to(torch.uint8)

"""Quantities at several inverse temperatures b: sums of e^(b d) and their moments, d the logit less the largest."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from xentrs.torch_ops.blocks import Logits, Source, compute_type, joined, spread
from xentrs.torch_ops.checks import Targets, check_list, check_rows, check_settings, check_targets, check_vocabulary
from xentrs.torch_ops.leaf import IGNORED, TARGET_NEGINF, Sums, leaf_sums, merged, row_sums, undefined_flags


class Tempered(NamedTuple):
    """Rows at one inverse temperature. All is NaN but `lse` where a row has no distribution."""

    lse: Tensor
    log_mass: Tensor
    """ln sum e^(b d), at least 0: -ln of the largest probability."""
    mean: Tensor
    variance: Tensor
    entropy: Tensor
    max: Tensor


def temperature_grid(
    logits: Tensor,
    element: str,
    targets: Tensor | None,
    inverse_temperatures: list[float],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """lse, mean, variance, entropy and nll of each row at each inverse temperature, and flags; flat."""
    vocab, scale = check_settings(settings, logits.shape[-1])
    rows = logits.shape[:-1].numel()
    checked = None if targets is None else check_targets(targets, vocab, settings["ignore_index"])
    if targets is not None:
        check_rows(len(targets), rows)
    check_list("inverse_temperatures", inverse_temperatures)
    index = checked and checked.counted
    source = Logits(logits, vocab, settings["softcap"], index, compute_type(logits.dtype))
    columns = joined(_grid_blocks(source, checked, [value * scale for value in inverse_temperatures], scale))
    defaults = {"nll": 0.0, "flags": IGNORED}
    return {
        name: spread(values, index, rows, defaults.get(name, torch.nan)).reshape(-1) for name, values in columns.items()
    }


def _grid_blocks(
    source: Logits, targets: Targets | None, exponents: list[float], scale: float
) -> list[dict[str, Tensor]]:
    blocks = []
    for rows, found in temper(source, exponents or [scale]):
        largest, target = found[0].max, None
        if targets is not None:
            target = source.targets(rows, targets.columns[rows.start : rows.stop]).double()
        fields = _grid_fields(exponents, found, scale, largest, target)
        blocks.append(fields | {"flags": _grid_flags(largest, target)})
    return blocks


def _grid_fields(
    exponents: list[float], found: list[Tempered], scale: float, largest: Tensor, target: Tensor | None
) -> dict[str, Tensor]:
    """What a grid has of rows at each exponent, `(rows, exponents)`."""
    empty = largest.new_zeros(len(largest), 0)
    fields: dict[str, list[Tensor]] = {name: [empty] for name in ("lse", "mean", "variance", "entropy", "nll")}
    for exponent, row in zip(exponents, found, strict=False):
        nll = torch.full_like(largest, torch.nan)
        if target is not None:
            nll = row.log_mass + _away(largest - target, exponent)
        values = (row.lse, row.mean * scale, row.variance * scale * scale, row.entropy, nll)
        for name, value in zip(fields, values, strict=True):
            fields[name].append(value[:, None])
    return {name: torch.cat(parts, -1) for name, parts in fields.items()}


def _grid_flags(largest: Tensor, target: Tensor | None) -> Tensor:
    flags = undefined_flags(largest)
    return flags if target is None else torch.where((target == -torch.inf) & (flags == 0), TARGET_NEGINF, flags)


def _away(difference: Tensor, exponent: float) -> Tensor:
    """`b` times a difference of logits, which is infinite where the target is impossible, also at 0."""
    return torch.where(difference == torch.inf, difference, difference * exponent)


def temper(source: Source, exponents: list[float]) -> Any:
    """Blocks of rows, and what each is at each of the exponents."""
    for rows in source.row_spans():
        sums: list[Sums | None] = [None for _ in exponents]
        for columns in source.column_spans():
            logits = source.logits(rows, columns)
            for place, exponent in enumerate(exponents):
                sums[place] = merged(sums[place], leaf_sums(logits, 1.0, exponent), 1.0, exponent)
            del logits
        yield rows, [_finish(row_sums(row), exponent) for row, exponent in zip(sums, exponents, strict=True)]


def _finish(sums: Sums, exponent: float) -> Tempered:
    is_defined = undefined_flags(sums.max) == 0
    mass, log_mass = sums.mass, torch.log1p(sums.rest)
    drop = sums.drop / mass
    # At 0 the distances count nothing, also where they are larger than float32 can hold.
    entropy = log_mass if exponent == 0 else log_mass - exponent * drop
    fields = (log_mass, sums.max + drop, sums.spread / mass, entropy)
    log_mass, mean, variance, entropy = (torch.where(is_defined, field, torch.nan) for field in fields)
    lse = torch.where(is_defined, exponent * sums.max + log_mass, sums.max)
    return Tempered(lse, log_mass, mean, variance, entropy, sums.max)


def renyi_entropy(logits: Tensor, element: str, orders: list[float], settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """ln(sum p^a) / (1 - a) of each row at each order, flat, and flags."""
    vocab, scale = check_settings(settings, logits.shape[-1])
    check_vocabulary(vocab, "an entropy")
    check_list("orders", [order for order in orders if order != float("inf")])
    compute = compute_type(logits.dtype)
    source = Logits(logits, vocab, settings["softcap"], None, compute)
    finite = [order for order in orders if order != float("inf")]
    blocks = []
    for _, (shannon, *found) in temper(source, [scale, *(order * scale for order in finite)]):
        rows = iter(found)
        values = [
            _renyi(order, shannon, None if order == float("inf") else next(rows), scale, compute) for order in orders
        ]
        shape = (len(shannon.max), len(orders))
        stacked = torch.stack(values, -1) if values else shannon.max.new_zeros(shape)
        blocks.append({"values": stacked, "flags": undefined_flags(shannon.max)})
    columns = joined(blocks)
    return columns["values"].reshape(-1), columns["flags"]


def _renyi(order: float, shannon: Tempered, row: Tempered | None, scale: float, compute: torch.dtype) -> Tensor:
    # Here the rounding errors of the difference and the square left out of the other formula are alike.
    near_one = (torch.finfo(compute).eps / 2) ** (1 / 3)
    if row is None:
        return shannon.log_mass
    if abs(order - 1.0) < near_one:
        # Next to order 1 the difference of logarithms cancels; there the entropy falls by half the varentropy.
        return shannon.entropy - (order - 1.0) / 2.0 * shannon.variance * scale * scale
    # Both logarithms are of sums around the largest logit, whose multiples cancel here exactly. Plus 0: never -0.
    return ((row.log_mass - order * shannon.log_mass) / (1.0 - order)).clamp(min=0.0) + 0.0


class Measures:
    """What `row_stats` makes of sums at several exponents beside all else; equal exponents are summed once."""

    def __init__(self, wanted: dict[str, Any], vocab: int, scale: float, compute: torch.dtype) -> None:
        """`wanted` names what the caller asked for; `scale` is the inverse temperature."""
        self.has_moments = bool(wanted["moments"])
        self.orders, self.grid = wanted["renyi_orders"], wanted["inverse_temperatures"]
        if self.has_moments or self.orders:
            check_vocabulary(vocab, "an entropy" if self.orders else "a mean")
        finite = [order for order in self.orders if order != float("inf")]
        check_list("renyi_orders", finite)
        check_list("inverse_temperatures", self.grid)
        self.vocab, self.scale, self.compute = vocab, scale, compute
        # Moments and entropies need the sums at 1 too.
        one = [scale] if self.has_moments or self.orders else []
        even = [0.0] if self.has_moments else []
        self.exponents = list(dict.fromkeys([*one, *even, *(value * scale for value in [*finite, *self.grid])]))

    def add(self, sums: dict[float, Sums], logits: Tensor) -> None:
        """Adds one block of columns to what is known of its rows."""
        for exponent in self.exponents:
            sums[exponent] = merged(sums.get(exponent), leaf_sums(logits, 1.0, exponent), 1.0, exponent)

    def finish(self, sums: dict[float, Sums], target: Tensor | None) -> dict[str, Tensor]:
        """The columns; `target` is the targets' logits in float64."""
        rows = {exponent: _finish(row_sums(found), exponent) for exponent, found in sums.items()}
        columns = self._moments(rows[self.scale], rows[0.0]) if self.has_moments else {}
        if self.orders:
            at = [rows.get(order * self.scale) for order in self.orders]
            values = [
                _renyi(order, rows[self.scale], row, self.scale, self.compute)
                for order, row in zip(self.orders, at, strict=True)
            ]
            columns["renyi_entropy"] = torch.stack(values, -1)
        if self.grid:
            exponents = [value * self.scale for value in self.grid]
            found = [rows[exponent] for exponent in exponents]
            fields = _grid_fields(exponents, found, self.scale, found[0].max, target)
            fields["flags"] = _grid_flags(found[0].max, target)
            columns |= {f"grid_{name}": values for name, values in fields.items()}
        return columns

    def _moments(self, one: Tempered, even: Tempered) -> dict[str, Tensor]:
        """Minus infinity and NaN where a column is impossible."""
        # At exponent 0 the columns that are possible count, and lse is the log of their number.
        is_whole = torch.round(torch.exp(even.lse)) == self.vocab
        otherwise = torch.where(torch.isfinite(one.lse), -torch.inf, torch.nan)
        return {
            "log_prob_mean": torch.where(is_whole, even.mean * self.scale - one.lse, otherwise),
            "log_prob_variance": torch.where(is_whole, even.variance * self.scale * self.scale, torch.nan),
        }

"""Hidden states and a head: blocks of logits are made by matrix products and never rounded to 16 bits.

Products of 16-bit numbers are summed in float32 by the device's matrix units where torch can say so (CUDA), else both
are widened. float32 operands follow torch's own setting of float32 matrix products, which on CUDA may be TF32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from xentrs.errors import ParamError, ShapeError
from xentrs.torch_ops.blocks import BLOCK_BYTES, LIVE_NUMBERS, Rows, Span, block_numbers, capped, compute_type, spans
from xentrs.torch_ops.checks import (
    check_positive,
    check_rows,
    check_settings,
    check_targets,
    check_threads,
    check_vocab,
    check_vocabulary,
    written,
)
from xentrs.torch_ops.leaf import IGNORED, reference_of
from xentrs.torch_ops.losses import loss_rows
from xentrs.torch_ops.pairs import Pair, divergence_rows, kl_rows
from xentrs.torch_ops.peers import cut_loss
from xentrs.torch_ops.rows import finish_columns, scan


class Head:
    """Hidden states and a head as a source: z = softcap(logit_scale * (hidden . weight + bias))."""

    def __init__(self, side: dict[str, Any], index: Tensor | None = None, *, is_wide: bool = False) -> None:
        """Takes the rows that `index` names; `is_wide` if the other model of two is float64."""
        hidden, weight = side["hidden"], side["weight"]
        self.vocab = check_vocab(side["vocab_size"], len(weight))
        self.logit_scale, self.softcap = float(side["logit_scale"]), side["softcap"]
        if not 1e-30 <= abs(self.logit_scale) <= 1e30:
            came = written(self.logit_scale)
            raise ParamError(f"logit_scale = {came}, expected a number of either sign from 1e-30 to 1e30")
        if self.softcap is not None:
            check_positive("softcap", self.softcap)
        self.compute = torch.float64 if is_wide else compute_type(hidden.dtype, weight.dtype)
        self.hidden, self.weight, self.device = Rows(hidden, index), weight[: self.vocab], hidden.device
        self.bias = None if side["bias"] is None else side["bias"][: self.vocab].to(self.compute)
        self.rows, self.width = self.hidden.count, self.hidden.width

    def row_spans(self, live: int = LIVE_NUMBERS) -> Iterator[Span]:
        """Blocks of rows, whose hidden states take a quarter of a block's bytes at most."""
        return spans(self.rows, max(min(block_numbers(self.compute, 2 * live) // self._columns(live), self._most()), 1))

    def column_spans(self, live: int = LIVE_NUMBERS) -> Iterator[Span]:
        """Blocks of columns, likewise."""
        return spans(self.vocab, self._columns(live))

    def _most(self) -> int:
        return max(BLOCK_BYTES // 4 // (self.compute.itemsize * max(self.width, 1)), 1)

    def _columns(self, live: int) -> int:
        """Many columns for few rows; a product of many rows wants about as many columns."""
        columns = block_numbers(self.compute, 2 * live) // min(max(self.rows, 1), 1024)
        return max(min(columns, self._most(), self.vocab), 1)

    def logits(self, rows: Span, columns: Span) -> Tensor:
        """One block."""
        if self.vocab == 0:
            return torch.full((rows.size, 1), -torch.inf, dtype=self.compute, device=self.device)
        hidden = self.hidden.take(rows, Span(0, self.width))
        logits = product(hidden, self.weight[columns.start : columns.stop].T, self.compute)
        if self.bias is not None:
            logits += self.bias[columns.start : columns.stop]
        if self.logit_scale != 1.0:
            logits *= self.logit_scale
        return capped(logits, self.softcap)


def product(left: Tensor, right: Tensor, compute: torch.dtype) -> Tensor:
    """A matrix product summed in `compute`, also where autocast would round; 16-bit operands of one type stay what they
    are on CUDA.
    """
    is_narrow = left.dtype == right.dtype and left.dtype.itemsize == 2 and compute == torch.float32
    with torch.autocast(left.device.type, enabled=False):
        if is_narrow and left.device.type == "cuda" and left.numel() and right.numel():
            return torch.mm(left, right, out_dtype=torch.float32)
        return left.to(compute) @ right.to(compute)


def linear_row_stats(
    side: dict[str, Any],
    targets: Tensor | None,
    settings: dict[str, Any],
    *,
    all: bool,
    top_k: int,
    strict: bool,
    tempered: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All statistics of each row's logits, and what `tempered` asks for."""
    source, checked, rows, scale = _prepare(side, targets, settings)
    columns = scan(source, checked, scale, top_k=top_k, all=all, tempered=tempered)
    return finish_columns(columns, source, checked, rows, strict)


def linear_loss(
    side: dict[str, Any],
    targets: Tensor,
    settings: dict[str, Any],
    *,
    label_smoothing: float,
    z_loss: float,
    class_weights: Tensor | None,
) -> dict[str, Any]:
    """The cross-entropy of each row, their sum and mean, and the likelihoods that a gradient is made from."""
    source, checked, rows, scale = _prepare(side, targets, settings)
    return loss_rows(source, checked, rows, scale, label_smoothing, z_loss, class_weights)


def linear_loss_only(
    side: dict[str, Any],
    targets: Tensor,
    settings: dict[str, Any],
    *,
    label_smoothing: float,
    z_loss: float,
    class_weights: Tensor | None,
) -> dict[str, Any]:
    """The same where no gradient follows. The plain loss of bfloat16 on CUDA goes to a kernel of another package, if
    that is installed (`peers`): float32 throughout, but nll is a difference there and so less exact next to 0.
    """
    source, checked, rows, scale = _prepare(side, targets, settings)
    is_plain = scale == source.logit_scale == 1 and label_smoothing == z_loss == 0
    if is_plain and source.bias is None and class_weights is None and checked is not None:
        found = cut_loss(source, checked, rows)
        if found is not None:
            return found
    return loss_rows(source, checked, rows, scale, label_smoothing, z_loss, class_weights)


def _prepare(side: dict[str, Any], targets: Tensor | None, settings: dict[str, Any]) -> tuple[Head, Any, int, float]:
    """The head's rows that count, checked targets, the number of all rows, and the inverse temperature."""
    rows, vocab = side["hidden"].shape[:-1].numel(), check_vocab(side["vocab_size"], len(side["weight"]))
    checked = None if targets is None else check_targets(targets, vocab, settings["ignore_index"])
    if targets is not None:
        check_rows(len(targets), rows)
    source = Head(side, checked and checked.counted)
    _, scale = check_settings(settings, vocab)
    return source, checked, rows, scale


def linear_kl_divergence(
    p: dict[str, Any], q: dict[str, Any], *, temperature: float, num_threads: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p||q) of two models over one vocabulary, flags, and four scales for each row, flat."""
    return kl_rows(head_pair(p, q, temperature, num_threads))


def linear_divergences(
    p: dict[str, Any], q: dict[str, Any], *, temperature: float, num_threads: int | None
) -> dict[str, Any]:
    """KL both ways, the cross-entropy of q under p, and the variance of ln q under p."""
    return divergence_rows(head_pair(p, q, temperature, num_threads))


def linear_joint_row_stats(
    p: dict[str, Any],
    q: dict[str, Any],
    targets: Tensor,
    settings: dict[str, Any],
    *,
    top_k: int,
    tempered: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """Statistics of p's rows, of q's with what `tempered` asks for, and divergences: three calls, as torch's blocks of
    logits are larger than what a pass over both could keep.
    """
    of_p = linear_row_stats(p, targets, settings, all=True, top_k=0, strict=False)
    of_q = linear_row_stats(q, targets, settings, all=True, top_k=top_k, strict=False, tempered=tempered)
    both = linear_divergences(p, q, temperature=settings["temperature"], num_threads=settings["num_threads"])
    ignored = targets == settings["ignore_index"]
    for name, column in both.items():
        column[ignored] = IGNORED if name == "flags" else torch.nan
    return [of_p, of_q, both]


def head_pair(p: dict[str, Any], q: dict[str, Any], temperature: float, num_threads: int | None) -> Pair:
    """Two heads as a pair; the products of both are float64 if an operand of either is."""
    tensors = [side[name] for side in (p, q) for name in ("hidden", "weight")]
    compute = compute_type(*(tensor.dtype for tensor in tensors))
    sides = [Head(side, is_wide=compute == torch.float64) for side in (p, q)]
    shapes = [(side.rows, side.vocab) for side in sides]
    if shapes[0] != shapes[1]:
        raise ShapeError(f"the logits of q has shape {shapes[1]}, expected {shapes[0]} as those of p has")
    element = "float64" if compute == torch.float64 else "float32"
    return Pair(sides[0], sides[1], element, temperature, num_threads)


def linear_target_logits(side: dict[str, Any], targets: Tensor, *, num_threads: int | None) -> Tensor:
    """The logit of each row's target; NaN where the id is -100. Its last bits are not those of a block of columns."""
    check_threads(num_threads)
    source = Head(side)
    check_rows(len(targets), source.rows)
    found = torch.full((source.rows,), torch.nan, dtype=torch.float64, device=source.device)
    if source.vocab == 0:
        return found
    for rows in source.row_spans():
        ids = targets[rows.start : rows.stop]
        column = ids.clamp(min=0)
        hidden = source.hidden.take(rows, Span(0, source.width)).to(source.compute)
        logits = (hidden * source.weight[column].to(source.compute)).sum(-1)
        if source.bias is not None:
            logits += source.bias[column]
        logits = capped(logits * source.logit_scale, source.softcap)
        found[rows.start : rows.stop] = torch.where(ids == -100, torch.nan, logits.double())
    return found


def linear_expected_embedding(side: dict[str, Any], *, temperature: float, num_threads: int | None) -> Tensor:
    """sum_v p_v weight_v of each row, flat, in one pass: sums around the largest logit so far, folded in float64."""
    check_threads(num_threads)
    check_positive("temperature", temperature)
    source = Head(side)
    check_vocabulary(source.vocab, "an expected embedding")
    found = torch.zeros(source.rows, source.width, dtype=torch.float64, device=source.device)
    for rows in source.row_spans(2 * LIVE_NUMBERS):
        embedding = found[rows.start : rows.stop]
        largest = torch.full((rows.size,), -torch.inf, dtype=torch.float64, device=source.device)
        mass = torch.zeros_like(largest)
        for columns in source.column_spans(2 * LIVE_NUMBERS):
            logits = source.logits(rows, columns)
            highest = logits.amax(-1)
            reference = reference_of(highest)
            weight = torch.exp(logits.sub_(reference[:, None]).mul_(1.0 / temperature))
            sums = product(weight, source.weight[columns.start : columns.stop], source.compute)
            higher = torch.maximum(largest, highest.double())
            shares = [_share(part, higher, 1.0 / temperature) for part in (largest, highest.double())]
            mass = mass * shares[0] + weight.sum(-1, dtype=torch.float64) * shares[1]
            embedding.mul_(shares[0][:, None]).add_(sums.double().mul_(shares[1][:, None]))
            largest = higher
        embedding.div_(torch.where(largest.isinf(), torch.nan, mass)[:, None])
    return found.reshape(-1)


def _share(part: Tensor, largest: Tensor, scale: float) -> Tensor:
    """e to the scaled distance of a part's largest logit from the row's; 0 where a part has none."""
    return torch.where(part == -torch.inf, 0.0, torch.exp((part - reference_of(largest)) * scale))

"""Gradients of a head: its logits are made again, some columns at a time, turned into derivatives and multiplied.

Beyond the gradients a call holds the sums of the hidden states', a number for each of theirs, and blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xentrs.torch_ops.blocks import Span, spread
from xentrs.torch_ops.checks import check_settings, check_targets, check_vocab
from xentrs.torch_ops.gradients import Likelihoods, LossTerms, kl_derivatives, slope_
from xentrs.torch_ops.linear import Head, head_pair, product
from xentrs.torch_ops.pairs import Scales

Wanted = tuple[bool, bool, bool]


class HeadSums:
    """Gradients of hidden states, weights and bias, added up from blocks of derivatives by the logits."""

    def __init__(self, head: Head, side: dict[str, Any], wanted: Wanted) -> None:
        """Makes room for those that are wanted."""
        self._head, self._dtype = head, side["hidden"].dtype
        shape, weight = (head.vocab, head.width), head.weight
        options: dict[str, Any] = {"device": head.device}
        self._hidden = torch.zeros(head.rows, head.width, dtype=head.compute, **options) if wanted[0] else None
        self._weight = torch.zeros(shape, dtype=weight.dtype, **options) if wanted[1] else None
        self._bias = torch.zeros(head.vocab, dtype=torch.float64, **options) if wanted[2] else None
        self._sums: Tensor | None = None

    def add(self, rows: Span, columns: Span, logits: Tensor, derivative: Tensor) -> None:
        """Adds a block: the derivative by z and temperature's quotient in it, the factor and the soft cap not."""
        head = self._head
        derivative = slope_(derivative, logits, head.softcap).to(head.compute).mul_(head.logit_scale)
        if self._bias is not None:
            self._bias[columns.start : columns.stop] += derivative.sum(0, dtype=torch.float64)
        # On CUDA the matrix units take bfloat16 derivatives, each rounded once.
        is_narrow = head.device.type == "cuda" and head.compute == torch.float32
        hidden, weight = head.hidden.take(rows, Span(0, head.width)), head.weight[columns.start : columns.stop]
        if is_narrow and hidden.dtype == weight.dtype == torch.bfloat16:
            derivative = derivative.to(torch.bfloat16)
        if self._hidden is not None:
            self._hidden[rows.start : rows.stop] += product(derivative, weight, head.compute)
        if self._weight is not None:
            sums = product(derivative.T, hidden, head.compute)
            self._sums = sums if self._sums is None else self._sums.add_(sums)

    def end_columns(self, columns: Span) -> None:
        """Rounds the weights' gradient of these columns, whose rows have all come."""
        if self._weight is not None and self._sums is not None:
            self._weight[columns.start : columns.stop] = self._sums
        self._sums = None

    def finish(self, index: Tensor | None, rows: int) -> list[Tensor | None]:
        """The gradients, flat; 0 in rows that do not count."""
        hidden = None if self._hidden is None else spread(self._hidden.to(self._dtype), index, rows, 0.0)
        return [None if each is None else each.reshape(-1) for each in (hidden, self._weight, self._bias)]


def linear_gradients(
    side: dict[str, Any],
    targets: Tensor,
    settings: dict[str, Any],
    likelihoods: Tensor,
    upstream: Tensor,
    *,
    label_smoothing: float,
    z_loss: float,
    wanted: Wanted,
    filter_eps: float | None,
    orders_vocabulary: bool,
) -> list[Tensor | None]:
    """Gradients of the sum of upstream times loss: `[hidden, weight, bias]`, flat, None where not wanted.

    `filter_eps` and `orders_vocabulary` let a kernel leave out work that counts for nothing; here all of it is done.
    """
    vocab = check_vocab(side["vocab_size"], len(side["weight"]))
    _, scale = check_settings(settings, vocab)
    checked = check_targets(targets, vocab, settings["ignore_index"])
    head, kept = Head(side, checked.counted), Likelihoods.of(likelihoods, checked.counted)
    terms = LossTerms(checked, kept, vocab, settings["temperature"], label_smoothing, z_loss)
    factor = (upstream if checked.counted is None else upstream[checked.counted]) * scale
    sums = HeadSums(head, side, wanted)
    for columns in head.column_spans():
        for rows in head.row_spans():
            if rows.size > 0 and columns.size > 0:
                logits = head.logits(rows, columns)
                derivative = terms(logits, rows, columns)
                derivative.mul_(factor[rows.start : rows.stop].to(derivative.dtype)[:, None])
                sums.add(rows, columns, logits, derivative)
        sums.end_columns(columns)
    return sums.finish(checked.counted, len(targets))


def linear_kl_gradients(
    p: dict[str, Any],
    q: dict[str, Any],
    values: Tensor,
    scales: Tensor,
    upstream: Tensor,
    *,
    temperature: float,
    num_threads: int | None,
    wanted: tuple[bool, bool, bool, bool, bool, bool],
) -> list[Tensor | None]:
    """Gradients of the sum of upstream times KL(p||q): hidden states, weights and bias of p, then those of q."""
    pair = head_pair(p, q, temperature, num_threads)
    heads: tuple[Any, Any] = (pair.p, pair.q)
    sums = (HeadSums(heads[0], p, wanted[:3]), HeadSums(heads[1], q, wanted[3:]))
    found, factor = Scales(*scales.reshape(-1, 4).unbind(-1)), upstream * pair.scale
    for columns in pair.column_spans():
        for rows in pair.row_spans():
            if rows.size > 0:
                part = slice(rows.start, rows.stop)
                logits = pair.logits(rows, columns)
                ratios = pair.ratios(logits, Scales(*(each[part] for each in found)))
                for side, block, derivative in zip(sums, logits, kl_derivatives(*ratios, values[part]), strict=True):
                    side.add(rows, columns, block, derivative.mul_(factor[part, None]))
        for side in sums:
            side.end_columns(columns)
    return [gradient for side in sums for gradient in side.finish(None, pair.p.rows)]

"""Derivatives with respect to logits, written block by block into a tensor that the caller made.

A row's probabilities come from what the forward kept of it: its largest logit and that logit's log-probability. The
derivative of a target is expm1(-nll), which next to a certainty a difference would lose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xentrs.torch_ops.blocks import Logits, Span, compute_type
from xentrs.torch_ops.checks import Targets, check_settings, check_targets
from xentrs.torch_ops.pairs import Pair, Scales, pair_of

Derivative = Callable[[Tensor, Span, Span], Tensor]
"""From a block of logits, its rows and its columns, the derivative by z times that of z by the capped logit."""


class Likelihoods(NamedTuple):
    """What the forward kept of each row."""

    lse: Tensor
    nll: Tensor
    max_logit: Tensor
    max_log_prob: Tensor

    @classmethod
    def of(cls, flat: Tensor, index: Tensor | None) -> Likelihoods:
        """Those of the rows that count."""
        rows = flat.reshape(-1, 4)
        return cls(*(rows if index is None else rows[index]).unbind(-1))

    def log_ratios(self, logits: Tensor, rows: Span, temperature: float) -> Tensor:
        """z less the largest z, at most 0."""
        # Times the temperature it is the largest logit again, to the bit in float32.
        largest = (self.max_logit[rows.start : rows.stop] * temperature).to(logits.dtype)
        return logits.sub(largest[:, None]).mul_(1.0 / temperature).clamp_(max=0.0)


class LossTerms:
    """The derivative of each row's loss: lse_factor p_v - (1 - e) w_t [v = t] - e w_v / vocab."""

    def __init__(
        self,
        targets: Targets,
        likelihoods: Likelihoods,
        vocab: int,
        temperature: float,
        label_smoothing: float,
        z_loss: float,
        weight: Tensor | None = None,
    ) -> None:
        """Of the rows that count."""
        self.columns, self.likelihoods, self.temperature = targets.columns, likelihoods, temperature
        even = label_smoothing / max(vocab, 1)
        of_target = 1.0 if weight is None else weight[targets.columns]
        total = float(vocab) if weight is None else weight.sum()
        pull = 2.0 * z_loss * likelihoods.lse
        plain = (1.0 - label_smoothing) * of_target
        probability = torch.exp(-likelihoods.nll)
        own = plain * torch.expm1(-likelihoods.nll) + pull * probability
        self.target = own + even * (total * probability - of_target)
        self.share = torch.exp(likelihoods.max_log_prob) * (plain + even * total + pull)
        self.even = even if weight is None else even * weight

    def __call__(self, logits: Tensor, rows: Span, columns: Span) -> Tensor:
        """The derivative by z of one block."""
        part = slice(rows.start, rows.stop)
        derivative = self.likelihoods.log_ratios(logits, rows, self.temperature).exp_()
        derivative.mul_(self.share[part].to(logits.dtype)[:, None])
        if isinstance(self.even, Tensor):
            derivative.sub_(self.even[columns.start : columns.stop].to(logits.dtype))
        elif self.even:
            derivative.sub_(self.even)
        ids = self.columns[part]
        places = (ids - columns.start).clamp(0, columns.size - 1)[:, None]
        is_here = ((ids >= columns.start) & (ids < columns.stop))[:, None]
        own = torch.where(is_here, self.target[part].to(logits.dtype)[:, None], derivative.gather(-1, places))
        return derivative.scatter_(-1, places, own)


def loss_gradient(
    logits: Tensor,
    element: str,
    targets: Tensor,
    settings: dict[str, Any],
    likelihoods: Tensor,
    upstream: Tensor,
    out: Tensor,
    *,
    label_smoothing: float,
    z_loss: float,
    weight: Tensor | None,
) -> None:
    """Writes upstream times the derivative of each row's loss; 0 in ignored rows."""
    vocab, _ = check_settings(settings, logits.shape[-1])
    checked = check_targets(targets, vocab, settings["ignore_index"])
    kept, temperature = Likelihoods.of(likelihoods, checked.counted), settings["temperature"]
    terms = LossTerms(checked, kept, vocab, temperature, label_smoothing, z_loss, weight)
    _write(logits, settings, checked.counted, upstream, out, terms)


def logsumexp_gradient(
    logits: Tensor,
    element: str,
    settings: dict[str, Any],
    likelihoods: Tensor,
    upstream: Tensor,
    out: Tensor,
) -> None:
    """Writes upstream times p."""
    kept = Likelihoods.of(likelihoods, None)

    def derivative(block: Tensor, rows: Span, columns: Span) -> Tensor:
        share = torch.exp(kept.max_log_prob[rows.start : rows.stop]).to(block.dtype)
        return kept.log_ratios(block, rows, settings["temperature"]).exp_().mul_(share[:, None])

    _write(logits, settings, None, upstream, out, derivative)


def entropy_gradient(
    logits: Tensor,
    element: str,
    settings: dict[str, Any],
    likelihoods: Tensor,
    entropy: Tensor,
    upstream: Tensor,
    out: Tensor,
) -> None:
    """Writes upstream times -p (ln p + entropy)."""
    kept = Likelihoods.of(likelihoods, None)

    def derivative(block: Tensor, rows: Span, columns: Span) -> Tensor:
        part = slice(rows.start, rows.stop)
        ratio = kept.log_ratios(block, rows, settings["temperature"])
        share = torch.exp(kept.max_log_prob[part]).to(block.dtype)
        p = torch.exp(ratio).mul_(share[:, None])
        surprise = ratio.add_((kept.max_log_prob + entropy)[part].to(block.dtype)[:, None])
        return surprise.mul_(p).masked_fill_(p == 0, 0.0).neg_()

    _write(logits, settings, None, upstream, out, derivative)


def slope_(derivative: Tensor, logits: Tensor, softcap: float | None) -> Tensor:
    """Times the derivative of the soft cap, in place."""
    return derivative if softcap is None else derivative.mul_(1.0 - (logits / softcap).square_())


def _write(
    logits: Tensor,
    settings: dict[str, Any],
    index: Tensor | None,
    upstream: Tensor,
    out: Tensor,
    derivative: Derivative,
) -> None:
    """Writes factor times derivative, block by block; 0 in rows that do not count and in padding columns."""
    vocab, scale = check_settings(settings, logits.shape[-1])
    softcap = settings["softcap"]
    source = Logits(logits, vocab, softcap, index, compute_type(logits.dtype))
    flat = out.view(logits.shape[:-1].numel(), logits.shape[-1])
    factor = (upstream if index is None else upstream[index]) * scale
    if index is not None:
        flat.zero_()
    else:
        flat[:, vocab:].zero_()
    if not source.rows or not vocab:
        return
    for rows in source.row_spans():
        for columns in source.column_spans():
            block = source.logits(rows, columns)
            found = slope_(derivative(block, rows, columns), block, softcap)
            found.mul_(factor[rows.start : rows.stop].to(found.dtype)[:, None])
            put(flat, index, rows, columns, found)


def put(flat: Tensor, index: Tensor | None, rows: Span, columns: Span, block: Tensor) -> None:
    """Writes a block to its place, rounded to the type that is stored."""
    part = flat[:, columns.start : columns.stop]
    if index is None:
        part[rows.start : rows.stop] = block
    else:
        part[index[rows.start : rows.stop]] = block.to(flat.dtype)


def kl_gradients(
    p_logits: Tensor,
    q_logits: Tensor,
    element: str,
    values: Tensor,
    scales: Tensor,
    upstream: Tensor,
    p_out: Tensor | None,
    q_out: Tensor | None,
    *,
    temperature: float,
    num_threads: int | None,
) -> None:
    """Writes the derivatives of KL(p||q) by the logits of p, p (ln p - ln q - KL), and of q, q - p; not into None."""
    pair = pair_of(p_logits, q_logits, element, temperature, num_threads)

    def derivatives(parts: tuple[Tensor, Tensor, Tensor], rows: Span) -> tuple[Tensor, Tensor]:
        return kl_derivatives(*parts, values[rows.start : rows.stop])

    _write_pair(pair, scales, upstream, (p_out, q_out), derivatives)


def kl_derivatives(p: Tensor, q: Tensor, a: Tensor, divergence: Tensor) -> tuple[Tensor, Tensor]:
    """By z of p and by z of q, of one block."""
    of_p = (a - divergence[:, None]).mul_(p).masked_fill_(p == 0, 0.0)
    return of_p, torch.where((a.abs() < 1.0) & (p > 0), p * torch.expm1(-a), q - p)


def js_gradients(
    p_logits: Tensor,
    q_logits: Tensor,
    element: str,
    scales: Tensor,
    upstream: Tensor,
    p_out: Tensor | None,
    q_out: Tensor | None,
    *,
    temperature: float,
    num_threads: int | None,
) -> None:
    """Writes the derivatives p / 2 (ln(p / m) - KL(p||m)) by the logits of p, and likewise of q."""
    pair = pair_of(p_logits, q_logits, element, temperature, num_threads)
    found = Scales(*scales.reshape(-1, 4).unbind(-1))
    means = torch.zeros(2, pair.p.rows, dtype=torch.float64, device=scales.device)
    for rows in pair.row_spans():
        part = slice(rows.start, rows.stop)
        for columns in pair.column_spans():
            p, q, a = pair.ratios(pair.logits(rows, columns), Scales(*(each[part] for each in found)))
            means[0, part] += _to_middle(p, a).mul_(p).sum(-1)
            means[1, part] += _to_middle(q, -a).mul_(q).sum(-1)

    def derivatives(parts: tuple[Tensor, Tensor, Tensor], rows: Span) -> tuple[Tensor, Tensor]:
        p, q, a = parts
        of_p, of_q = means[:, rows.start : rows.stop, None]
        return (
            _to_middle(p, a).sub_(of_p).mul_(p * 0.5).masked_fill_(p == 0, 0.0),
            _to_middle(q, -a).sub_(of_q).mul_(q * 0.5).masked_fill_(q == 0, 0.0),
        )

    _write_pair(pair, scales, upstream, (p_out, q_out), derivatives)


def _to_middle(p: Tensor, a: Tensor) -> Tensor:
    """ln(p / m) = -ln((1 + e^-a) / 2), with its relative accuracy also where p and q are close; 0 where p is 0."""
    near = torch.log1p(torch.expm1(-a).mul_(0.5)).neg_()
    far = torch.logaddexp(torch.zeros_like(a), -a).neg_().add_(torch.log(torch.full_like(a[:, :1], 2.0)))
    return torch.where(a.abs() < 1.0, near, far).masked_fill_(p == 0, 0.0)


def _write_pair(
    pair: Pair, scales: Tensor, upstream: Tensor, outs: tuple[Tensor | None, Tensor | None], derivatives: Any
) -> None:
    found = Scales(*scales.reshape(-1, 4).unbind(-1))
    factor = upstream * pair.scale
    for rows in pair.row_spans():
        part = slice(rows.start, rows.stop)
        for columns in pair.column_spans() if pair.p.rows else ():
            parts = pair.ratios(pair.logits(rows, columns), Scales(*(each[part] for each in found)))
            for out, block in zip(outs, derivatives(parts, rows), strict=True):
                if out is not None:
                    put(out.view(pair.p.rows, pair.p.vocab), None, rows, columns, block.mul_(factor[part, None]))

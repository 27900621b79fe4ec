"""Training losses on top of the likelihood: label smoothing, z-loss, class weights, soft targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xentrs.errors import ParamError
from xentrs.torch_ops.blocks import Logits, Source, Span, block_numbers, compute_type, joined, spans, spread, total
from xentrs.torch_ops.checks import (
    Targets,
    check_between,
    check_rows,
    check_settings,
    check_targets,
    check_weights,
    first_row,
    not_normalized,
    written,
)
from xentrs.torch_ops.leaf import IGNORED, TARGET_NEGINF, Sums, leaf_sums, merged, reference_of, row_sums
from xentrs.torch_ops.rows import likelihood, pick, scan

_FIELDS = ("lse", "nll", "max_logit", "max_log_prob")


def loss(
    logits: Tensor,
    element: str,
    targets: Tensor,
    settings: dict[str, Any],
    *,
    label_smoothing: float,
    z_loss: float,
    weight: Tensor | None,
) -> dict[str, Any]:
    """w_t (1 - e) nll + e / vocab sum_v w_v (lse - z_v) + z_loss lse^2 of each row, their sum and their mean."""
    vocab, scale = check_settings(settings, logits.shape[-1])
    checked = check_targets(targets, vocab, settings["ignore_index"])
    check_rows(len(targets), logits.shape[:-1].numel())
    source = Logits(logits, vocab, settings["softcap"], checked.counted, compute_type(logits.dtype))
    return loss_rows(source, checked, len(targets), scale, label_smoothing, z_loss, weight)


def loss_rows(
    source: Source,
    targets: Targets,
    rows: int,
    scale: float,
    label_smoothing: float,
    z_loss: float,
    weight: Tensor | None,
) -> dict[str, Any]:
    """Losses of the rows of a source, of which there are `rows` with the ignored ones."""
    check_between("label_smoothing", label_smoothing, 1)
    check_between("z_loss", z_loss, 1e30)
    if weight is not None:
        check_weights(weight, source.vocab)
    if label_smoothing > 0:
        found = _smoothed(source, targets, scale, label_smoothing, weight)
        plain = found["plain"]
    else:
        found = scan(source, targets, scale)
        plain = found["nll"]
    weights = None if weight is None else weight[targets.columns]
    if weights is not None:
        # A weight of 0 leaves nothing of an infinite likelihood; NaN stays.
        plain = torch.where((weights == 0) & (plain == torch.inf), 0.0, weights * plain)
    part = plain + found["smooth"] if label_smoothing > 0 else plain
    z_part = z_loss * found["lse"].square() if z_loss > 0 else torch.zeros_like(part)
    whole = part + z_part
    weight_sum = float(targets.token_count) if weights is None else weights.sum()
    # With no weight this is 0 / 0 or, where a smoothed loss remains, no mean either.
    mean = part.sum() / weight_sum if targets.token_count else part.new_tensor(torch.nan)
    if weights is not None:
        mean = torch.where(weights.sum() == 0, torch.nan, mean)
    if z_loss > 0 and targets.token_count:
        mean = mean + z_part.sum() / targets.token_count
    likelihoods = torch.stack([found[name] for name in _FIELDS], -1)
    return {
        "loss": spread(whole, targets.counted, rows, 0.0),
        "flags": spread(found["flags"], targets.counted, rows, IGNORED),
        "token_count": targets.token_count,
        "sum": whole.sum(),
        "mean": mean,
        "likelihoods": spread(likelihoods, targets.counted, rows, torch.nan).reshape(-1),
    }


def _smoothed(
    source: Source, targets: Targets, scale: float, label_smoothing: float, weight: Tensor | None
) -> dict[str, Tensor]:
    """The likelihood's share as `plain`, and the smoothing's as `smooth`, ordered so that a share of 0 never meets an
    infinity.
    """
    blocks = []
    lanes = None if weight is None else weight.to(source.compute)
    weight_sum = float(source.vocab) if weight is None else weight.sum()
    for rows in source.row_spans():
        ids, target = targets.columns[rows.start : rows.stop], None
        known: Sums | None = None
        away, size = torch.zeros(2, rows.size, dtype=torch.float64, device=source.device)
        for columns in source.column_spans():
            logits = source.logits(rows, columns)
            leaf = leaf_sums(logits, scale, moments=False)
            merger = merged(known, leaf, scale)
            target = pick(target, logits, columns, ids)
            part = None if lanes is None else lanes[columns.start : columns.stop]
            # Distances so far, and those of these columns, from the largest logit of all of them.
            part_size = columns.size if part is None else total(part)
            away += _moved(merger.max, known.max if known else merger.max, size)
            away += _distance(logits, part) + _moved(merger.max, leaf.max, part_size)
            size += part_size
            known = merger
        sums = row_sums(known)
        found = likelihood(sums, None if target is None else target.double(), scale)
        log_mass = -found["max_log_prob"]
        smooth = (weight_sum * log_mass + scale * away) / max(source.vocab, 1)
        found["plain"] = (1.0 - label_smoothing) * found["nll"] if label_smoothing < 1 else torch.zeros_like(smooth)
        found["smooth"] = torch.where(log_mass.isnan(), torch.nan, label_smoothing * smooth)
        is_infinite = (found["nll"] == torch.inf) | (smooth == torch.inf)
        found["flags"] = torch.where(is_infinite & (found["flags"] == 0), TARGET_NEGINF, found["flags"])
        blocks.append(found)
    return joined(blocks)


def _moved(largest: Tensor, part: Tensor, size: Any) -> Tensor:
    """What distances from a part's largest logit, of weight `size`, lack to the largest of all."""
    return torch.where((part == largest) | (torch.as_tensor(size) == 0), 0.0, (largest - reference_of(part)) * size)


def _distance(logits: Tensor, weight: Tensor | None) -> Tensor:
    """Sum of weight times distance below the block's largest logit; 0 where the weight is, whatever the distance."""
    away = reference_of(logits.amax(-1, keepdim=True)) - logits
    if weight is not None:
        away = (away * weight).masked_fill_(weight == 0, 0.0)
    return total(away)


def soft_cross_entropy(
    logits: Tensor,
    element: str,
    target_ids: Tensor,
    target_probs: Tensor,
    settings: dict[str, Any],
    *,
    normalize: bool,
) -> dict[str, Any]:
    """sum t (lse - z) of each row; a share of 0 counts as 0 also where the logit is minus infinity."""
    vocab, scale = check_settings(settings, logits.shape[-1])
    rows = logits.shape[:-1].numel()
    k = len(target_probs) // rows if rows else 0
    ids, shares = check_shares(target_ids, target_probs, (rows, k), vocab, settings["ignore_index"], normalize)
    is_known = (ids >= 0).any(-1)
    index = is_known.nonzero()[:, 0]
    # The first column that counts stands for the row, so that rows without one are not read.
    first = ids[index].gather(-1, (ids[index] >= 0).long().argmax(-1, keepdim=True))[:, 0] if k else index
    targets = Targets(index, first, len(index))
    source = Logits(logits, vocab, settings["softcap"], index, compute_type(logits.dtype))
    found = scan(source, targets, scale)
    blocks = [
        _soft(
            source,
            Span(*rows),
            ids[index],
            shares[index],
            {name: found[name][rows.start : rows.stop] for name in found},
            scale,
        )
        for rows in spans(source.rows, max(block_numbers(torch.float64) // max(k, 1), 1))
    ]
    columns = joined(blocks)
    whole = columns["loss"].sum()
    return {
        "loss": spread(columns["loss"], index, rows, 0.0),
        "flags": spread(columns["flags"], index, rows, IGNORED),
        "token_count": len(index),
        "sum": whole,
        "mean": whole / len(index) if len(index) else whole.new_tensor(torch.nan),
        "likelihoods": whole.new_zeros(0),
    }


def _soft(
    source: Logits, rows: Span, ids: Tensor, shares: Tensor, found: dict[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Losses of some rows from their likelihoods."""
    ids, shares = ids[rows.start : rows.stop], shares[rows.start : rows.stop]
    logits = source.targets(rows, ids.clamp(min=0)).double()
    surprisal = (found["max_logit"][:, None] - logits * scale) - found["max_log_prob"][:, None]
    is_shared = (ids >= 0) & (shares > 0)
    flags = found["flags"] & (0xFF ^ TARGET_NEGINF)
    is_impossible = (is_shared & (logits == -torch.inf)).any(-1)
    return {
        "loss": torch.where(is_shared, shares * surprisal, 0.0).sum(-1),
        "flags": torch.where(is_impossible & (flags == 0), TARGET_NEGINF, flags),
    }


def check_shares(
    ids: Tensor, shares: Tensor, shape: tuple[int, int], vocab: int, ignore_index: int, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Ids `(rows, k)`, -1 where they are left out, and their shares, normalised if that is asked for."""
    checked = check_targets(ids, vocab, ignore_index)
    ids = spread(checked.columns, checked.counted, len(ids), -1).reshape(shape)
    shares = shares.reshape(shape)
    is_known = ids >= 0
    is_bad = is_known & ~((shares >= 0) & (shares < torch.inf))
    if bool(is_bad.any()):
        value = written(float(shares[is_bad][0]))
        raise ParamError(f"target_probs = {value}, expected finite probabilities, at least 0")
    sums = torch.where(is_known, shares, 0.0).sum(-1)
    if normalize:
        shares = torch.where(sums[:, None] > 0, shares / sums[:, None], shares)
    is_wrong = is_known.any(-1) & ~((sums - 1.0).abs() <= 1e-3)
    row = first_row(is_wrong & (sums <= 0) if normalize else is_wrong)
    if row is not None:
        raise not_normalized("target_probs", row, float(sums[row]))
    return ids, shares

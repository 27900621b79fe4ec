"""The Jensen-Shannon divergence, and KL where only the k largest probabilities of p are known."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from xentrs.errors import ParamError
from xentrs.torch_ops.blocks import Logits, Span, block_numbers, compute_type, joined, spread
from xentrs.torch_ops.checks import check_rows, check_settings, check_targets, first_row, not_normalized
from xentrs.torch_ops.leaf import ALL_NEGINF, CLAMPED, NAN, POSINF, SUPPORT, leaf_sums, merged, row_sums
from xentrs.torch_ops.pairs import pair_of
from xentrs.torch_ops.rows import likelihood


def js_divergence(
    p_logits: Tensor, q_logits: Tensor, element: str, *, temperature: float, num_threads: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of (p + q) / 2 times `jensen` of ln p - ln q, flags, and four scales for each row, flat."""
    pair = pair_of(p_logits, q_logits, element, temperature, num_threads)
    blocks = []
    for rows in pair.row_spans():
        scales, flags = pair.scales(rows)
        divergence = torch.zeros_like(scales.p_max)
        for columns in pair.column_spans():
            p, q, a = pair.ratios(pair.logits(rows, columns), scales)
            mass = p.add_(q).mul_(0.5)
            divergence += jensen(a).mul_(mass).masked_fill_(mass == 0, 0.0).sum(-1)
        # Every term is at least 0; the sum may pass ln 2 by rounding.
        values = torch.where(flags == 0, divergence.clamp(max=math.log(2)), torch.nan)
        blocks.append({"values": values, "flags": flags, "scales": torch.stack(scales, -1)})
    found = joined(blocks)
    return found["values"], found["flags"], found["scales"].reshape(-1)


def jensen(a: Tensor) -> Tensor:
    """ln 2 less the entropy of a choice with log-odds a, that is with t = tanh(a / 2)
    ((1 + t) ln(1 + t) + (1 - t) ln(1 - t)) / 2.
    """
    t = torch.tanh(a * 0.5)
    square = t * t
    series = torch.zeros_like(t)
    for k in range(9, 0, -1):  # sum over k >= 1 of t^2k / (2k (2k - 1))
        series = series.mul_(square).add_(1.0 / (2 * k * (2 * k - 1)))
    near = series.mul_(square)
    rest = 1.0 - t.abs()
    far = (t.abs() + 1.0).mul_(torch.log1p(t.abs())).add_(torch.xlogy(rest, rest)).mul_(0.5)
    return torch.where(square < 2.0**-6, near, far)


def top_k_kl_divergence(
    p_ids: Tensor, p_log_probs: Tensor, k: int, q_logits: Tensor, element: str, settings: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """KL over the k columns and the rest of the vocabulary as one more, and flags."""
    vocab, scale = check_settings(settings, q_logits.shape[-1])
    source = Logits(q_logits, vocab, settings["softcap"], None, compute_type(q_logits.dtype))
    ids, log_probs = _check_known(p_ids, p_log_probs, k, source.rows, vocab, settings["ignore_index"])
    blocks = []
    step = max(block_numbers(torch.float64) // max(k, 1), 1)
    for block in source.row_spans():
        for start in range(block.start, max(block.stop, block.start + 1), step):
            rows = Span(start, min(start + step, block.stop))
            known = ids[rows.start : rows.stop]
            rest = _rest(source, rows, known, scale)
            logits = source.targets(rows, known.clamp(min=0)).double() * scale
            logits = torch.where(known >= 0, logits, -torch.inf)
            values, flags = _divergence(known, log_probs[rows.start : rows.stop], logits, rest, vocab)
            blocks.append({"values": values, "flags": flags})
    columns = joined(blocks)
    return columns["values"], columns["flags"]


def _rest(source: Logits, rows: Span, known: Tensor, scale: float) -> Tensor:
    """lse over the columns that are not known; NaN and infinity as of any row."""
    sums = None
    for columns in source.column_spans():
        logits = source.logits(rows, columns)
        is_here = (known >= columns.start) & (known < columns.stop)
        # Ids elsewhere write to a column that is cut off again.
        places = torch.where(is_here, known - columns.start, logits.shape[-1])
        without = torch.nn.functional.pad(logits, (0, 1)).scatter(-1, places, -torch.inf)[:, :-1]
        sums = merged(sums, leaf_sums(without, scale, moments=False), scale)
    return likelihood(row_sums(sums), None, scale)["lse"]


def _divergence(known: Tensor, log_p: Tensor, logits: Tensor, rest: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    is_known = known >= 0
    p = torch.where(is_known, torch.exp(log_p), 0.0)
    largest = torch.cat([logits, rest[:, None]], -1).amax(-1)
    flags = torch.where(largest == -torch.inf, ALL_NEGINF, 0)
    flags = torch.where(largest == torch.inf, POSINF, flags)
    flags = torch.where(largest.isnan(), NAN, flags)
    mass = torch.exp(logits - largest[:, None]).sum(-1) + torch.exp(rest - largest)
    lse = largest + torch.log(mass)
    # With no column left there is no rest, whatever the rounding of the probabilities leaves.
    has_rest = is_known.sum(-1) < vocab
    p_rest = torch.where(has_rest, (1.0 - p.sum(-1)).clamp(min=0.0), 0.0)
    terms = torch.where(p > 0, p * (log_p - (logits - lse[:, None])), 0.0)
    of_rest = torch.where(p_rest > 0, p_rest * (torch.log(p_rest) - (rest - lse)), 0.0)
    value = terms.sum(-1) + of_rest
    is_defined = flags == 0
    flags = torch.where(is_defined & (value == torch.inf), SUPPORT, flags)
    flags = torch.where(is_defined & (value < 0), CLAMPED, flags)
    return torch.where(is_defined, torch.where(value < 0, 0.0, value), torch.nan), flags.to(torch.uint8)


def _check_known(
    ids: Tensor, log_probs: Tensor, k: int, rows: int, vocab: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Ids `(rows, k)`, -1 where they are left out, each once in a row, and their log-probabilities."""
    checked = check_targets(ids, vocab, ignore_index)
    check_rows(len(ids), rows * k, "p_ids", "the rows of q_logits")
    ids = spread(checked.columns, checked.counted, len(ids), -1).reshape(rows, k)
    log_probs = log_probs.reshape(rows, k)
    rising = ids.sort(dim=-1).values
    is_twice = (rising[:, 1:] == rising[:, :-1]) & (rising[:, 1:] >= 0)
    is_nan = (ids >= 0) & log_probs.isnan()
    sums = torch.where(ids >= 0, torch.exp(log_probs), 0.0).sum(-1)
    row = first_row(is_twice.any(-1) | is_nan.any(-1) | ~(sums <= 1.001))
    if row is None:
        return ids, log_probs
    if bool(is_twice[row].any()):
        value = int(rising[row, 1:][is_twice[row]][0])
        raise ParamError(f"p_ids = {value} twice in row {row}, expected each id once")
    if bool(is_nan[row].any()):
        raise ParamError(f"p_log_probs = NaN in row {row}, expected log-probabilities")
    raise not_normalized("p_log_probs", row, float(sums[row]))

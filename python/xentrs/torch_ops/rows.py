"""All statistics of rows of logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from xentrs.errors import NonFiniteError, ParamError
from xentrs.torch_ops.blocks import Logits, Source, Span, compute_type, joined, spread
from xentrs.torch_ops.checks import Targets, check_positive, check_rows, check_targets, check_threads, check_vocab
from xentrs.torch_ops.leaf import (
    ALL_NEGINF,
    IGNORED,
    NAN,
    OVERFLOW,
    POSINF,
    TARGET_NEGINF,
    Sums,
    leaf_sums,
    merged,
    row_sums,
    undefined_flags,
)
from xentrs.torch_ops.tempered import Measures

_BLAMED = NAN | POSINF | ALL_NEGINF | TARGET_NEGINF
_DEFAULTS = {"nll": 0.0, "log_prob": 0.0, "argmax": -1, "rank": 0, "ties": 0, "flags": IGNORED, "top_ids": -1}
_DEFAULTS |= {"grid_nll": 0.0, "grid_flags": IGNORED}
"""What an ignored row has in each column; NaN in the others."""


def row_stats(
    logits: Tensor,
    element: str,
    targets: Tensor | None,
    *,
    all: bool,
    ignore_index: int,
    temperature: float,
    softcap: float | None,
    top_k: int,
    vocab_size: int | None,
    strict: bool,
    num_threads: int | None,
    tempered: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All statistics, or with `all=False` lse, nll and flags; with `tempered` all, and what it asks for."""
    check_threads(num_threads)
    vocab, rows = check_vocab(vocab_size, logits.shape[-1]), logits.shape[:-1].numel()
    checked = None if targets is None else check_targets(targets, vocab, ignore_index)
    check_positive("temperature", temperature)
    if softcap is not None:
        check_positive("softcap", softcap)
    if targets is not None:
        check_rows(len(targets), rows)
    source = Logits(logits, vocab, softcap, checked and checked.counted, compute_type(logits.dtype))
    columns = scan(source, checked, 1.0 / temperature, top_k=top_k, all=all, tempered=tempered)
    return finish_columns(columns, source, checked, rows, strict)


def counted_nll(
    logits: Tensor, element: str, targets: Tensor, *, ignore_index: int, num_threads: int | None
) -> tuple[Any, int]:
    """Each row's nll as a numpy array, 0 where ignored, and the number of tokens."""
    found = row_stats(
        logits,
        element,
        targets,
        all=False,
        ignore_index=ignore_index,
        temperature=1.0,
        softcap=None,
        top_k=0,
        vocab_size=None,
        strict=False,
        num_threads=num_threads,
    )
    return found["nll"].cpu().numpy(), found["token_count"]


def finish_columns(
    columns: dict[str, Tensor], source: Source, targets: Targets | None, rows: int, strict: bool
) -> dict[str, Any]:
    """Columns of counted rows as the columns of all `rows` rows."""
    index = None if targets is None else targets.counted
    if strict:
        _check_finite(source, targets, columns["flags"])
    found: dict[str, Any] = {
        name: spread(values, index, rows, _DEFAULTS.get(name, torch.nan)) for name, values in columns.items()
    }
    return found | {"token_count": targets.token_count if targets else 0, "isa": source.device.type}


class Peak(NamedTuple):
    """What the largest logits of some columns are."""

    max: Tensor
    column: Tensor
    """First column that holds the largest."""
    second: Tensor
    """Largest of the logits below it."""
    top: Tensor
    """The k largest logits, the lower column first on equal ones."""
    top_ids: Tensor
    """Their columns."""


def scan(
    source: Source,
    targets: Targets | None,
    scale: float,
    *,
    top_k: int = 0,
    all: bool = False,
    tempered: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """The columns of every row of the source; `scale` is the inverse temperature."""
    if top_k > source.vocab:
        raise ParamError(f"top_k = {top_k}, expected at most the vocabulary")
    measures = None if tempered is None else Measures(tempered, source.vocab, scale, source.compute)
    return joined([_scan_rows(source, targets, rows, scale, top_k, all, measures) for rows in source.row_spans()])


def _scan_rows(
    source: Source, targets: Targets | None, rows: Span, scale: float, top_k: int, all: bool, measures: Measures | None
) -> dict[str, Tensor]:
    ids = None if targets is None else targets.columns[rows.start : rows.stop]
    target: Tensor | None = None
    sums, peak, counts = None, None, torch.zeros(2, rows.size, dtype=torch.int64, device=source.device)
    tempered: dict[float, Sums] = {}
    column_spans = list(source.column_spans())
    for columns in column_spans:
        logits = source.logits(rows, columns)
        if measures is not None:
            measures.add(tempered, logits)
        sums = merged(sums, leaf_sums(logits, scale, moments=all), scale)
        if all:
            peak = _merged_peak(peak, _peak(logits, columns, top_k), top_k)
        if ids is not None:
            target = pick(target, logits, columns, ids)
            if all and len(column_spans) == 1:
                counts += _count(logits, target)
        del logits
    if target is not None and all and len(column_spans) > 1:
        # Only now is the target known; its logit has the bits of its column.
        for columns in column_spans:
            counts += _count(source.logits(rows, columns), target)
    row, wide_target = row_sums(sums), None if target is None else target.double()
    found = likelihood(row, wide_target, scale)
    if peak is None:
        return found
    fields = _describe(row, peak, scale) | _top_fields(found, row, peak, scale)
    is_ranked = (undefined_flags(row.max) == 0) & (target is not None)
    ranks = {"rank": torch.where(is_ranked, 1 + counts[0], 0), "ties": torch.where(is_ranked, counts[1] - 1, 0)}
    beside = {} if measures is None else measures.finish(tempered, wide_target)
    return found | fields | ranks | beside


def pick(known: Tensor | None, logits: Tensor, columns: Span, ids: Tensor) -> Tensor:
    """The targets' logits as far as they are known, with those of these columns."""
    if columns.size <= 0:
        return logits.new_zeros(len(ids))
    places = (ids - columns.start).clamp(0, columns.size - 1)
    here = logits.gather(-1, places[:, None])[:, 0]
    return here if known is None else torch.where((ids >= columns.start) & (ids < columns.stop), here, known)


def _count(logits: Tensor, target: Tensor) -> Tensor:
    """Columns whose logit is above the target's, and equal to it."""
    return torch.stack([(logits > target[:, None]).sum(-1), (logits == target[:, None]).sum(-1)])


def likelihood(sums: Sums, target: Tensor | None, scale: float) -> dict[str, Tensor]:
    """lse, nll and what belongs to them; `target` is the target's logit."""
    flags = undefined_flags(sums.max)
    is_defined = flags == 0
    log_mass = torch.log1p(sums.rest)
    max_logit = sums.max * scale
    # Alone it is the sum itself, down to the sign of a zero.
    lse = torch.where(sums.rest == 0, max_logit, max_logit + log_mass)
    found = {
        "lse": torch.where(is_defined, lse, sums.max),
        "max_logit": torch.where(is_defined, max_logit, sums.max),
        "max_log_prob": torch.where(is_defined, -log_mass, torch.nan),
    }
    nll = torch.full_like(log_mass, torch.nan)
    flags |= (is_defined & lse.isinf()).to(torch.uint8) * OVERFLOW
    if target is not None:
        # Both terms are at least 0, so nothing cancels.
        nll = torch.where(is_defined, (sums.max - target) * scale + log_mass, torch.nan)
        is_impossible = is_defined & (target == -torch.inf)
        flags |= is_impossible.to(torch.uint8) * TARGET_NEGINF
        flags |= (is_defined & ~is_impossible & nll.isinf()).to(torch.uint8) * OVERFLOW
    return found | {"nll": nll, "log_prob": -nll, "flags": flags}


def _describe(sums: Sums, peak: Peak, scale: float) -> dict[str, Tensor]:
    """The rest of the statistics of a row."""
    is_defined, mass = undefined_flags(sums.max) == 0, sums.mass
    second = torch.where(sums.peak_count > 1, sums.max, peak.second)
    fields = {
        "entropy": torch.log1p(sums.rest) - sums.drop / mass,
        "varentropy": sums.spread / mass,
        "sum_sq_prob": (sums.peak_count + sums.squares) / mass.square(),
        # Zeros of two signs differ by 0, whichever comes first.
        "margin": (sums.max - second) * scale + 0.0,
    }
    fields = {name: torch.where(is_defined, values, torch.nan) for name, values in fields.items()}
    return fields | {"argmax": torch.where(is_defined, peak.column, -1)}


def _top_fields(found: dict[str, Tensor], sums: Sums, peak: Peak, scale: float) -> dict[str, Tensor]:
    """The k largest logits' log-probabilities and columns."""
    is_defined = (undefined_flags(sums.max) == 0)[:, None]
    log_probs = found["max_log_prob"][:, None] - (sums.max[:, None] - peak.top) * scale
    return {
        "top_log_probs": torch.where(is_defined, log_probs, torch.nan),
        "top_ids": torch.where(is_defined, peak.top_ids, -1),
    }


def _peak(logits: Tensor, columns: Span, top_k: int) -> Peak:
    """Of one block of columns; torch promises that argmax is the first."""
    largest, column = logits.max(-1, keepdim=True)
    second = logits.masked_fill(logits == largest, -torch.inf).amax(-1).double()
    top, top_ids = top_columns(logits, min(top_k, logits.shape[-1]))
    return Peak(largest[:, 0].double(), column[:, 0] + columns.start, second, top.double(), top_ids + columns.start)


def top_columns(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits and their columns, the lower first on equal logits, which `torch.topk` leaves open."""
    if k == 0:
        return logits[:, :0], torch.zeros_like(logits[:, :0], dtype=torch.int64)
    least = logits.topk(k).values[:, -1:]
    is_equal = logits == least
    room = k - (logits > least).sum(-1, keepdim=True)
    is_chosen = (logits > least) | (is_equal & (is_equal.cumsum(-1, dtype=torch.int32) <= room))
    # The chosen columns in rising order: their numbers are all different, so that topk has one answer.
    rising = torch.arange(logits.shape[-1], 0, -1, device=logits.device, dtype=torch.int32)
    columns = logits.shape[-1] - (is_chosen * rising).topk(k).values.long()
    columns = columns.clamp(max=logits.shape[-1] - 1)  # a row with NaN has not chosen k
    values, order = logits.gather(-1, columns).sort(dim=-1, descending=True, stable=True)
    return values, columns.gather(-1, order)


def _merged_peak(known: Peak | None, peak: Peak, k: int) -> Peak:
    """Of both, of which the columns of `peak` come after: on equal logits those of `known` come first."""
    if known is None:
        return peak
    leads = known.max >= peak.max
    second = torch.where(leads, torch.maximum(known.second, peak.max), torch.maximum(peak.second, known.max))
    second = torch.where(known.max == peak.max, torch.maximum(known.second, peak.second), second)
    top, order = torch.cat([known.top, peak.top], -1).sort(dim=-1, descending=True, stable=True)
    top_ids = torch.cat([known.top_ids, peak.top_ids], -1).gather(-1, order)
    column = torch.where(leads, known.column, peak.column)
    return Peak(torch.maximum(known.max, peak.max), column, second, top[:, :k], top_ids[:, :k])


def _check_finite(source: Source, targets: Targets | None, flags: Tensor) -> None:
    """Raises for the first row without a finite result, and the column that is to blame."""
    blamed = (flags & _BLAMED) != 0
    if not bool(blamed.any()):
        return
    place = int(blamed.nonzero()[0, 0])
    row = place if targets is None or targets.counted is None else int(targets.counted[place])
    rows, column = Span(place, place + 1), 0 if targets is None else int(targets.columns[place])
    for columns in source.column_spans():
        is_bad = ~(source.logits(rows, columns)[0] < torch.inf)
        if bool(is_bad.any()):
            column = columns.start + int(is_bad.nonzero()[0, 0])
            break
    value = float(source.logits(rows, Span(column, column + 1))[0, 0])
    shown = {"nan": "NaN"}.get(str(value), str(value))
    raise NonFiniteError(f"logits[{row}, {column}] = {shown}, expected a finite value (strict=True)")

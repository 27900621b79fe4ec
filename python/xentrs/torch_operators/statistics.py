"""Functions without a backward as operators, for graphs: outside of one they are called directly.

An operator runs the public function and gives the tensors of its result in the order of the fields. The functions here
make the result of these again; they take what the public ones do, and the schemas have the same defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from xentrs import functional as _rows
from xentrs import linear as _heads
from xentrs import linear_pairs as _pairs
from xentrs import tempered as _tempered
from xentrs.arguments import check_reduction, check_shift
from xentrs.divergences import divergences as _divergences
from xentrs.divergences import top_k_kl_divergence as _top_k_kl_divergence
from xentrs.results import Divergences, LogProbMoments, RowStats, TemperatureGrid
from xentrs.torch_operators.define import cannot_hold, outside_of_graphs, without_backward
from xentrs.torch_operators.pairs import finish
from xentrs.torch_operators.tensors import floats_like, ids_like

F64, I64, U8 = torch.float64, torch.int64, torch.uint8
_ROW_STATS = {
    **dict.fromkeys(
        ("lse", "nll", "log_prob", "entropy", "varentropy", "max_logit", "max_log_prob", "margin", "sum_sq_prob"), F64
    ),
    **dict.fromkeys(("argmax", "rank", "ties"), I64),
    "flags": U8,
}
_TOP = {"top_log_probs": F64, "top_ids": I64}
_DIVERGENCES = {
    **dict.fromkeys(("kl_divergence", "reverse_kl_divergence", "symmetric_kl_divergence"), F64),
    **dict.fromkeys(("cross_entropy", "cross_varentropy"), F64),
    "flags": U8,
}
_GRID = dict.fromkeys(("lse", "mean", "variance", "entropy", "nll"), F64)
_MOMENTS = dict.fromkeys(("mean", "variance"), F64)
_SETTINGS = (
    "int ignore_index=-100, float temperature=1.0, float? softcap=None, SymInt? vocab_size=None, int? num_threads=None"
)
_HEAD = "float logit_scale=1.0, float? softcap=None"


def _fields(result: Any, *names: str) -> list[torch.Tensor]:
    return [getattr(result, name) for name in names]


def _new(like: torch.Tensor, shape: Sequence[int], kinds: dict[str, torch.dtype]) -> list[torch.Tensor]:
    return [like.new_empty(tuple(shape), dtype=dtype) for dtype in kinds.values()]


def _rows_of(like: torch.Tensor, shift: int) -> tuple[int, ...]:
    rows = tuple(like.shape[:-1])
    return (*rows[:-1], max(rows[-1] - shift, 0)) if shift else rows


_TEMPERED = "bool moments=False, float[] renyi_orders=[], float[] inverse_temperatures=[]"


def _row_stats_fields(stats: RowStats) -> list[torch.Tensor]:
    """The tensors of a result; what was not asked for is left out."""
    found = [*_fields(stats, *_ROW_STATS, *_TOP), stats.log_prob_mean, stats.log_prob_variance, stats.renyi_entropy]
    if stats.temperature_grid is not None:
        found += _fields(stats.temperature_grid, *_GRID, "flags")
    return [tensor for tensor in found if tensor is not None]


def _row_stats_fake(
    like: torch.Tensor,
    *_: Any,
    shift: int = 0,
    top_k: int = 0,
    moments: bool = False,
    renyi_orders: Sequence[float] = (),
    inverse_temperatures: Sequence[float] = (),
    **known: Any,
) -> list[torch.Tensor]:
    rows = _rows_of(like, shift)
    found = [*_new(like, rows, _ROW_STATS), *_new(like, (*rows, top_k), _TOP)]
    found += _new(like, rows, _MOMENTS) if moments else []
    found += [like.new_empty((*rows, len(renyi_orders)), dtype=F64)] if renyi_orders else []
    if inverse_temperatures:
        found += _new(like, (*rows, len(inverse_temperatures)), _GRID)
        found.append(like.new_empty(rows, dtype=U8))
    return found


def _row_stats(found: list[torch.Tensor], targets: torch.Tensor | None, known: dict[str, Any]) -> RowStats:
    """The result; `isa` is empty, as nothing has run yet, and the count a number once the graph has run."""
    names = [*_ROW_STATS, *_TOP]
    names += ["log_prob_mean", "log_prob_variance"] if known["moments"] else []
    names += ["renyi_entropy"] if known["renyi_orders"] else []
    columns: dict[str, Any] = dict(zip(names, found, strict=False))
    if known["inverse_temperatures"]:
        fields = dict(zip((*_GRID, "flags"), found[len(names) :], strict=True))
        columns["temperature_grid"] = TemperatureGrid(known["inverse_temperatures"], **fields)
    count: Any = 0
    if targets is not None:
        count = (targets[..., known.get("shift", 0) :] != known.get("ignore_index", -100)).sum()
    return RowStats(**columns, isa="", _token_count=count)


def _as_numbers(known: dict[str, Any]) -> dict[str, Any]:
    """Settings of a call with its lists as the schema has them."""
    lists = {name: [float(value) for value in known.get(name, ())] for name in ("renyi_orders", "inverse_temperatures")}
    return {**known, "moments": bool(known.get("moments", False)), **lists}


_row_stats_operator = without_backward(
    "row_stats(Tensor logits, Tensor? targets=None, *, int shift=0, float temperature=1.0, float? softcap=None, "
    f"int top_k=0, {_TEMPERED}, int ignore_index=-100, SymInt? vocab_size=None, bool strict=False, "
    "int? num_threads=None) -> Tensor[]",
    lambda *given, **known: _row_stats_fields(_rows.row_stats(*given, **known)),
    _row_stats_fake,
)


def row_stats(logits: torch.Tensor, targets: Any = None, **known: Any) -> RowStats:
    """`xentrs.row_stats` in a graph, where the lists are lists of numbers."""
    check_shift(known.get("shift", 0), logits.shape, "logits")
    ids, known = None if targets is None else ids_like(targets, logits), _as_numbers(known)
    return _row_stats(_row_stats_operator(logits, ids, **known), ids, known)


_linear_row_stats_operator = without_backward(
    f"linear_row_stats(Tensor hidden, Tensor weight, Tensor? targets=None, Tensor? bias=None, *, {_HEAD}, int shift=0, "
    f"float temperature=1.0, int top_k=0, {_TEMPERED}, int ignore_index=-100, SymInt? vocab_size=None, "
    "bool strict=False, int? num_threads=None) -> Tensor[]",
    lambda hidden, weight, targets=None, bias=None, **known: _row_stats_fields(
        _heads.linear_row_stats(hidden, weight, targets, bias=bias, **known)
    ),
    _row_stats_fake,
)


def linear_row_stats(
    hidden: torch.Tensor, weight: torch.Tensor, targets: Any = None, *, bias: Any = None, **known: Any
) -> RowStats:
    """`xentrs.linear_row_stats` in a graph, where the lists are lists of numbers."""
    if cannot_hold(weight):
        found: RowStats = outside_of_graphs(_heads.linear_row_stats, hidden, weight, targets, bias=bias, **known)
        return found
    check_shift(known.get("shift", 0), hidden.shape, "hidden")
    ids, known = None if targets is None else ids_like(targets, hidden), _as_numbers(known)
    biases = floats_like(bias, hidden, "bias")
    return _row_stats(_linear_row_stats_operator(hidden, weight, ids, biases, **known), ids, known)


_soft_cross_entropy = without_backward(
    "soft_cross_entropy(Tensor logits, Tensor target_ids, Tensor target_probs, *, str reduction='mean', "
    f"bool normalize=False, {_SETTINGS}) -> Tensor",
    _rows.soft_cross_entropy,
    lambda logits, *_, reduction="mean", **known: logits.new_empty(
        logits.shape[:-1] if reduction == "none" else (), dtype=F64
    ),
)


def soft_cross_entropy(logits: torch.Tensor, target_ids: Any, target_probs: Any, **known: Any) -> torch.Tensor:
    """`xentrs.soft_cross_entropy` in a graph."""
    ids, shares = ids_like(target_ids, logits, "target_ids"), floats_like(target_probs, logits, "target_probs")
    found: torch.Tensor = _soft_cross_entropy(logits, ids, shares, **known)
    return found


_divergences_operator = without_backward(
    "divergences(Tensor p_logits, Tensor q_logits, *, float temperature=1.0, int? num_threads=None) -> Tensor[]",
    lambda *pair, **known: _fields(_divergences(*pair, **known), *_DIVERGENCES),
    lambda p, q, **_: _new(p, p.shape[:-1], _DIVERGENCES),
)


def divergences(p_logits: torch.Tensor, q_logits: torch.Tensor, **known: Any) -> Divergences:
    """`xentrs.divergences` in a graph."""
    found = _divergences_operator(p_logits, q_logits, **known)
    return Divergences(**dict(zip(_DIVERGENCES, found, strict=True)))


_linear_divergences_operator = without_backward(
    "linear_divergences(Tensor p_hidden, Tensor p_weight, Tensor q_hidden, Tensor q_weight, Tensor? p_bias=None, "
    "Tensor? q_bias=None, *, float p_logit_scale=1.0, float q_logit_scale=1.0, float? p_softcap=None, "
    "float? q_softcap=None, float temperature=1.0, SymInt? vocab_size=None, int? num_threads=None) -> Tensor[]",
    lambda p_hidden, p_weight, q_hidden, q_weight, p_bias=None, q_bias=None, **known: _fields(
        _pairs.linear_divergences(p_hidden, p_weight, q_hidden, q_weight, p_bias=p_bias, q_bias=q_bias, **known),
        *_DIVERGENCES,
    ),
    lambda hidden, *_, **known: _new(hidden, hidden.shape[:-1], _DIVERGENCES),
)


def linear_divergences(
    p_hidden: torch.Tensor,
    p_weight: torch.Tensor,
    q_hidden: torch.Tensor,
    q_weight: torch.Tensor,
    *,
    p_bias: Any = None,
    q_bias: Any = None,
    **known: Any,
) -> Divergences:
    """`xentrs.linear_divergences` in a graph."""
    heads = (p_hidden, p_weight, q_hidden, q_weight)
    if cannot_hold(p_weight, q_weight):
        result: Divergences = outside_of_graphs(
            _pairs.linear_divergences, *heads, p_bias=p_bias, q_bias=q_bias, **known
        )
        return result
    biases = (floats_like(p_bias, p_hidden, "p_bias"), floats_like(q_bias, q_hidden, "q_bias"))
    found = _linear_divergences_operator(*heads, *biases, **known)
    return Divergences(**dict(zip(_DIVERGENCES, found, strict=True)))


_top_k_operator = without_backward(
    f"top_k_kl_divergence(Tensor p_ids, Tensor p_log_probs, Tensor q_logits, *, {_SETTINGS}) -> (Tensor, Tensor)",
    lambda *given, **known: _top_k_kl_divergence(*given, **known, return_flags=True),
    lambda ids, log_probs, q, **_: (q.new_empty(q.shape[:-1], dtype=F64), q.new_empty(q.shape[:-1], dtype=U8)),
)


def top_k_kl_divergence(
    p_ids: Any,
    p_log_probs: Any,
    q_logits: torch.Tensor,
    *,
    reduction: Any = "none",
    return_flags: bool = False,
    **known: Any,
) -> Any:
    """`xentrs.top_k_kl_divergence` in a graph."""
    check_reduction(reduction)
    ids, log_probs = ids_like(p_ids, q_logits, "p_ids"), floats_like(p_log_probs, q_logits, "p_log_probs")
    values, flags = _top_k_operator(ids, log_probs, q_logits, **known)
    return finish(values, flags, reduction, return_flags)


_grid_operator = without_backward(
    "temperature_grid(Tensor logits, float[] inverse_temperatures, Tensor? targets=None, *, int shift=0, "
    "int ignore_index=-100, float? softcap=None, SymInt? vocab_size=None, int? num_threads=None) -> Tensor[]",
    lambda *given, **known: _fields(_tempered.temperature_grid(*given, **known), *_GRID, "flags"),
    lambda logits, grid, *_, shift=0, **known: [
        *_new(logits, (*_rows_of(logits, shift), len(grid)), _GRID),
        logits.new_empty(_rows_of(logits, shift), dtype=U8),
    ],
)


def temperature_grid(
    logits: torch.Tensor, inverse_temperatures: Any, targets: Any = None, **known: Any
) -> TemperatureGrid:
    """`xentrs.temperature_grid` in a graph, where `inverse_temperatures` is a list."""
    ids = None if targets is None else ids_like(targets, logits)
    numbers = [float(value) for value in inverse_temperatures]
    found = _grid_operator(logits, numbers, ids, **known)
    return TemperatureGrid(numbers, **dict(zip((*_GRID, "flags"), found, strict=True)))


_renyi_operator = without_backward(
    "renyi_entropy(Tensor logits, float[] orders, *, float temperature=1.0, float? softcap=None, "
    "SymInt? vocab_size=None, int? num_threads=None) -> Tensor",
    _tempered.renyi_entropy,
    lambda logits, orders, **_: logits.new_empty((*logits.shape[:-1], len(orders)), dtype=F64),
)


def renyi_entropy(logits: torch.Tensor, orders: Any = (0.5, 2.0, float("inf")), **known: Any) -> torch.Tensor:
    """`xentrs.renyi_entropy` in a graph."""
    found: torch.Tensor = _renyi_operator(logits, [float(order) for order in orders], **known)
    return found


_moments_operator = without_backward(
    "log_prob_moments(Tensor logits, *, float temperature=1.0, float? softcap=None, SymInt? vocab_size=None, "
    "int? num_threads=None) -> Tensor[]",
    lambda logits, **known: _fields(_tempered.log_prob_moments(logits, **known), *_MOMENTS),
    lambda logits, **_: _new(logits, logits.shape[:-1], _MOMENTS),
)


def log_prob_moments(logits: torch.Tensor, **known: Any) -> LogProbMoments:
    """`xentrs.log_prob_moments` in a graph."""
    return LogProbMoments(**dict(zip(_MOMENTS, _moments_operator(logits, **known), strict=True)))


_embedding_operator = without_backward(
    f"linear_expected_embedding(Tensor hidden, Tensor weight, Tensor? bias=None, *, {_HEAD}, float temperature=1.0, "
    "SymInt? vocab_size=None, int? num_threads=None) -> Tensor",
    lambda hidden, weight, bias=None, **known: _heads.linear_expected_embedding(hidden, weight, bias=bias, **known),
    lambda hidden, *_, **known: hidden.new_empty(hidden.shape, dtype=F64),
)


def linear_expected_embedding(hidden: torch.Tensor, weight: torch.Tensor, *, bias: Any = None, **known: Any) -> Any:
    """`xentrs.linear_expected_embedding` in a graph."""
    if cannot_hold(weight):
        return outside_of_graphs(_heads.linear_expected_embedding, hidden, weight, bias=bias, **known)
    return _embedding_operator(hidden, weight, floats_like(bias, hidden, "bias"), **known)


_target_logits_operator = without_backward(
    "linear_target_logits(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias=None, *, int start_column=0, "
    f"{_HEAD}, int? num_threads=None) -> Tensor",
    lambda hidden, weight, targets, bias=None, **known: _heads.linear_target_logits(
        hidden, weight, targets, bias=bias, **known
    ),
    lambda hidden, weight, targets, *_, **known: hidden.new_empty(targets.shape, dtype=F64),
)


def linear_target_logits(
    hidden: torch.Tensor, weight: torch.Tensor, targets: Any, *, bias: Any = None, **known: Any
) -> Any:
    """`xentrs.linear_target_logits` in a graph."""
    if cannot_hold(weight):
        return outside_of_graphs(_heads.linear_target_logits, hidden, weight, targets, bias=bias, **known)
    biases = floats_like(bias, hidden, "bias")
    return _target_logits_operator(hidden, weight, ids_like(targets, hidden), biases, **known)

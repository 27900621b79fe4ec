"""Quantities of one array of logits as operators: cross-entropy, log-sum-exp, entropy.

A backward reads the logits once more and writes their gradient once; there is no other array of that size.
"""

from __future__ import annotations

from typing import Any

import torch

from xentrs.arguments import (
    check_class_weights,
    check_index,
    check_shift,
    lend_floats,
    lend_with_targets,
    reduced,
    refuse_gradient,
    settings,
)
from xentrs.dispatch import adapter_of
from xentrs.errors import ShapeError
from xentrs.torch_operators.define import differentiable, keep, operator
from xentrs.torch_operators.tensors import (
    fake_place_like,
    floats_like,
    ids_like,
    lend,
    place_like,
    result_dtype,
    upstream_of,
)

_KNOWN = "int ignore_index, float temperature, float? softcap, SymInt? vocab_size, int? num_threads"
_TERMS = "float label_smoothing, float z_loss"


def cross_entropy(
    logits: torch.Tensor, targets: Any, weight: Any, shift: int, reduction: str, terms: tuple[float, float], *known: Any
) -> torch.Tensor:
    """`xentrs.cross_entropy`; `terms` are label smoothing and z-loss, `known` what `arguments.settings` takes."""
    refuse_gradient(weight, "weight")
    ids, rows = ids_like(targets, logits), logits.shape[:-1]
    moves = check_shift(shift, logits.shape, "logits") > 0 and ids.shape == rows
    if moves:
        # The last rows have no target: they are ignored, and the gradient is written in one piece.
        shift = min(shift, rows[-1])
        ids = torch.nn.functional.pad(ids[..., shift:], (0, shift), value=check_index(known[0]))
    weights = floats_like(weight, logits, "weight")
    loss: torch.Tensor = _cross_entropy(logits, ids, weights, reduction, *terms, *known)[0]
    return loss[..., : rows[-1] - shift] if moves and reduction == "none" else loss


def _loss(
    logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor | None, reduction: Any, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    label_smoothing, z_loss, *known = rest
    adapter, lent, ids = lend_with_targets(logits, targets, 0)
    weights = None if weight is None else lend_floats(weight, "weight", lent)
    if weights is not None:
        check_class_weights(weights, logits.shape[-1])
    columns = lent.engine.loss(
        lent.array,
        lent.element,
        ids,
        settings(*known),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        weight=weights,
    )
    loss = reduced(columns, reduction, targets.shape)
    return adapter.wrap_differentiable(loss, lent.element), adapter.wrap(columns["likelihoods"])


def _loss_fake(
    logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor | None, reduction: str, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    loss = logits.new_empty(targets.shape if reduction == "none" else (), dtype=result_dtype(logits))
    return loss, logits.new_empty((targets.numel() * 4,), dtype=torch.float64)


def _loss_backward(
    gradient: torch.Tensor,
    logits: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor | None,
    likelihoods: torch.Tensor,
    reduction: str,
    *rest: Any,
) -> torch.Tensor:
    label_smoothing, z_loss, *known = rest
    _, lent, ids = lend_with_targets(logits, targets, 0)
    counted = (targets != known[0]).reshape(-1)
    count = divisor = counted.sum().clamp_min(1).double()
    if weight is not None and reduction == "mean":
        of_targets = weight.double()[targets.reshape(-1).long().where(counted, 0)]
        divisor = of_targets.where(counted, 0.0).sum()
        z_loss = float(z_loss * divisor / count)  # "mean" divides the z-loss by the number of rows
    out = place_like(logits)
    lent.engine.loss_gradient(
        lent.array,
        lent.element,
        ids,
        settings(*known),
        lend(likelihoods, "likelihoods"),
        lend(upstream_of(gradient, reduction, targets.numel(), divisor), "upstream"),
        lend(out, "out"),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        weight=None if weight is None else lend_floats(weight, "weight", lent),
    )
    return out


def _keep_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logits, targets, weight, *ctx.settings = inputs
    keep(ctx, logits, targets, weight, output[1])


def _differentiate_loss(ctx: Any, saved: list[Any], gradient: torch.Tensor) -> tuple[Any, ...]:
    found = _backward_of_loss(gradient, *saved, *ctx.settings)
    return (found, *(None,) * (2 + len(ctx.settings)))


_backward_of_loss = operator(
    "cross_entropy_backward(Tensor gradient, Tensor logits, Tensor targets, Tensor? weight, Tensor likelihoods, "
    f"str reduction, {_TERMS}, {_KNOWN}) -> Tensor",
    _loss_backward,
    lambda gradient, logits, *_: fake_place_like(logits),
)
_cross_entropy = differentiable(
    f"cross_entropy(Tensor logits, Tensor targets, Tensor? weight, str reduction, {_TERMS}, {_KNOWN})"
    " -> (Tensor, Tensor)",
    _loss,
    _loss_fake,
    _keep_loss,
    _differentiate_loss,
)


def logsumexp(logits: torch.Tensor, *known: Any) -> torch.Tensor:
    """`xentrs.logsumexp`; `known` is what `arguments.settings` takes."""
    found: torch.Tensor = _logsumexp(logits, *known)[0]
    return found


def entropy(logits: torch.Tensor, *known: Any) -> torch.Tensor:
    """`xentrs.entropy`; `known` is what `arguments.settings` takes."""
    found: torch.Tensor = _entropy(logits, *known)[0]
    return found


def _statistics(logits: torch.Tensor, wants_entropy: bool, *known: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp or entropy, and what the gradient is made from."""
    adapter = adapter_of(logits)
    lent = adapter.lend(logits, "logits")
    if wants_entropy and logits.shape[-1] == 0:
        raise ShapeError("logits have vocab 0, expected at least 1 column for an entropy")
    columns = lent.engine.row_stats(
        lent.array, lent.element, None, all=wants_entropy, top_k=0, strict=False, **settings(*known)
    )
    lse, max_logit, max_log_prob = (adapter.wrap(columns[name]) for name in ("lse", "max_logit", "max_log_prob"))
    value = adapter.wrap(columns["entropy"]) if wants_entropy else lse
    # The place of the nll, which a row without a target has not.
    saved = torch.stack([lse, torch.zeros_like(lse), max_logit, max_log_prob], dim=-1).reshape(-1)
    if wants_entropy:
        saved = torch.cat([saved, value])
    return adapter.wrap_differentiable(value.reshape(logits.shape[:-1]), lent.element), saved


def _statistics_fake(logits: torch.Tensor, wants_entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    value = logits.new_empty(logits.shape[:-1], dtype=result_dtype(logits))
    return value, logits.new_empty((value.numel() * (5 if wants_entropy else 4),), dtype=torch.float64)


def _statistics_backward(
    gradient: torch.Tensor, logits: torch.Tensor, saved: torch.Tensor, wants_entropy: bool, *known: Any
) -> torch.Tensor:
    lent = adapter_of(logits).lend(logits, "logits")
    out, rows = place_like(logits), gradient.numel()
    likelihoods, upstream = (
        lend(saved[: rows * 4], "likelihoods"),
        lend(upstream_of(gradient, "none", rows), "upstream"),
    )
    arguments = [lent.array, lent.element, settings(*known), likelihoods]
    if wants_entropy:
        lent.engine.entropy_gradient(*arguments, lend(saved[rows * 4 :], "entropy"), upstream, lend(out, "out"))
    else:
        lent.engine.logsumexp_gradient(*arguments, upstream, lend(out, "out"))
    return out


def _keep_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logits, *ctx.settings = inputs
    keep(ctx, logits, output[1])


def _differentiate_statistics(
    ctx: Any, saved: list[Any], gradient: torch.Tensor, wants_entropy: bool
) -> tuple[Any, ...]:
    return (
        _backward_of_statistics(gradient, *saved, wants_entropy, *ctx.settings),
        *(None,) * len(ctx.settings),
    )


_backward_of_statistics = operator(
    f"statistics_backward(Tensor gradient, Tensor logits, Tensor saved, bool wants_entropy, {_KNOWN}) -> Tensor",
    _statistics_backward,
    lambda gradient, logits, *_: fake_place_like(logits),
)
_logsumexp = differentiable(
    f"logsumexp(Tensor logits, {_KNOWN}) -> (Tensor, Tensor)",
    lambda logits, *known: _statistics(logits, False, *known),
    lambda logits, *_: _statistics_fake(logits, False),
    _keep_statistics,
    lambda ctx, saved, gradient: _differentiate_statistics(ctx, saved, gradient, False),
)
_entropy = differentiable(
    f"entropy(Tensor logits, {_KNOWN}) -> (Tensor, Tensor)",
    lambda logits, *known: _statistics(logits, True, *known),
    lambda logits, *_: _statistics_fake(logits, True),
    _keep_statistics,
    lambda ctx, saved, gradient: _differentiate_statistics(ctx, saved, gradient, True),
)

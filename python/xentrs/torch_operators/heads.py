"""Heads as operators: the cross-entropy of one, KL of two.

A backward makes the logits again, 512 columns of the vocabulary at a time, and holds no more than their derivatives:
"Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009).
"""

from __future__ import annotations

from typing import Any

import torch

from xentrs.arguments import check_shift, reduced, settings
from xentrs.heads import LentHead, LossCall, lend_side, lend_sides
from xentrs.torch_operators.define import (
    are_tensors,
    cannot_hold,
    differentiable,
    keep,
    operator,
    outside_of_graphs,
)
from xentrs.torch_operators.tensors import (
    fake_place_like,
    floats_like,
    ids_like,
    lend,
    result_dtype,
    upstream_of,
)

_HEAD = "Tensor hidden, Tensor weight, Tensor? bias"
_LOSS = (
    "str reduction, float logit_scale, float? softcap, SymInt? vocab_size, float label_smoothing, float z_loss, "
    "int ignore_index, float temperature, int? num_threads, float? filter_eps, bool order_vocabulary"
)


def cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, bias: Any, targets: Any, shift: int, *rest: Any) -> Any:
    """`xentrs.linear_cross_entropy`; `rest` as the operator names it, from `reduction` on."""
    if cannot_hold(weight):
        return outside_of_graphs(cross_entropy, hidden, weight, bias, targets, shift, *rest)
    ids = ids_like(targets, hidden)
    if check_shift(shift, hidden.shape, "hidden") and ids.shape == hidden.shape[:-1]:
        length = max(ids.shape[-1] - shift, 0)
        hidden, ids = hidden[..., :length, :], ids[..., ids.shape[-1] - length :]
    return _cross_entropy(hidden, weight, floats_like(bias, hidden, "bias"), ids, *rest)[0]


def _call(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    logit_scale: float,
    softcap: float | None,
    vocab_size: int | None,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int,
    temperature: float,
    num_threads: int | None,
) -> tuple[LentHead, LossCall]:
    plain = None if bias is None else bias.detach()
    head = lend_side(hidden, weight, targets, 0, plain, logit_scale, softcap, vocab_size)
    call = LossCall(
        engine=head.engine,
        side=head.side,
        ids=head.ids,
        settings=settings(ignore_index, temperature, None, None, num_threads),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    return head, call


def _loss(
    hidden: torch.Tensor, weight: Any, bias: torch.Tensor | None, targets: torch.Tensor, reduction: Any, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    head, call = _call(hidden, weight, bias, targets, *rest[:-2])
    columns = call.forward()
    loss = head.adapter.wrap_differentiable(reduced(columns, reduction, head.shape), head.element)
    return loss, head.adapter.wrap(columns["likelihoods"])


def _loss_fake(
    hidden: torch.Tensor, weight: torch.Tensor, bias: Any, targets: torch.Tensor, reduction: str, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    loss = hidden.new_empty(targets.shape if reduction == "none" else (), dtype=result_dtype(hidden, weight))
    return loss, hidden.new_empty((targets.numel() * 4,), dtype=torch.float64)


def _loss_backward(
    gradient: torch.Tensor,
    likelihoods: torch.Tensor,
    wanted: list[bool],
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    reduction: str,
    *rest: Any,
) -> list[torch.Tensor]:
    _, call = _call(hidden, weight, bias, targets, *rest[:-2])
    count = (targets != call.settings["ignore_index"]).sum().clamp_min(1)
    upstream = upstream_of(gradient, reduction, targets.numel(), count)
    found = call.backward(lend(likelihoods, "likelihoods"), lend(upstream, "upstream"), tuple(wanted), *rest[-2:])
    return [_gradient(values, like) for values, like in zip(found, (hidden, weight, bias), strict=True)]


def _gradient(values: Any, like: torch.Tensor | None) -> torch.Tensor:
    """An engine's flat numbers in the dtype and shape of a tensor; those of padding rows are 0. Empty for nothing."""
    if values is None or like is None:
        return torch.empty(0)
    flat = torch.as_tensor(values)
    if flat.dtype == torch.uint16:
        flat = flat.view(torch.bfloat16)
    if flat.numel() < like.numel():
        flat = torch.cat([flat, flat.new_zeros(like.numel() - flat.numel())])
    return flat.to(like.dtype).reshape(like.shape)


def _fakes(wanted: list[bool], tensors: list[torch.Tensor | None]) -> list[torch.Tensor]:
    return [
        torch.empty(0) if like is None or not wants else fake_place_like(like)
        for like, wants in zip(tensors, wanted, strict=True)
    ]


def _keep_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, bias, targets, *ctx.settings = inputs
    keep(ctx, hidden, weight, bias, targets, output[1])


def _differentiate_loss(ctx: Any, saved: list[Any], gradient: torch.Tensor) -> tuple[Any, ...]:
    *given, likelihoods = saved
    wanted = list(ctx.needs_input_grad[:3])
    backward = _backward_of_loss if are_tensors(given) else _loss_backward
    found = backward(gradient, likelihoods, wanted, *given, *ctx.settings)
    return (*_wanted(found, wanted), *(None,) * (1 + len(ctx.settings)))


def _wanted(found: list[torch.Tensor], wanted: list[bool]) -> list[torch.Tensor | None]:
    return [value if wants else None for value, wants in zip(found, wanted, strict=True)]


_backward_of_loss = operator(
    f"linear_cross_entropy_backward(Tensor gradient, Tensor likelihoods, bool[] wanted, {_HEAD}, Tensor targets, "
    f"{_LOSS}) -> Tensor[]",
    _loss_backward,
    lambda gradient, likelihoods, wanted, *rest: _fakes(wanted, list(rest[:3])),
)
_cross_entropy = differentiable(
    f"linear_cross_entropy({_HEAD}, Tensor targets, {_LOSS}) -> (Tensor, Tensor)",
    _loss,
    _loss_fake,
    _keep_loss,
    _differentiate_loss,
)

_PAIR = (
    "Tensor p_hidden, Tensor p_weight, Tensor? p_bias, Tensor q_hidden, Tensor q_weight, Tensor? q_bias, "
    "float p_logit_scale, float? p_softcap, float q_logit_scale, float? q_softcap, SymInt? vocab_size, "
    "float temperature, int? num_threads"
)


def kl_divergence(p: tuple[Any, ...], q: tuple[Any, ...], *known: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's `xentrs.linear_kl_divergence`, and flags. p and q are hidden states, weights, bias, scale and softcap;
    `known` is vocab_size, temperature and threads.
    """
    if cannot_hold(p[1], q[1]):
        found: tuple[torch.Tensor, torch.Tensor] = outside_of_graphs(kl_divergence, p, q, *known)
        return found
    sides = [(*side[:2], floats_like(side[2], side[0], "bias")) for side in (p, q)]
    values, flags, _ = _kl_divergence(*sides[0], *sides[1], *p[3:], *q[3:], *known)
    return values, flags


def _sides(tensors: tuple[Any, ...], known: tuple[Any, ...]) -> tuple[LentHead, LentHead]:
    p_hidden, p_weight, p_bias, q_hidden, q_weight, q_bias = (
        tensor.detach() if isinstance(tensor, torch.Tensor) else tensor for tensor in tensors
    )
    p_scale, p_softcap, q_scale, q_softcap, vocab_size = known[:5]
    p = (p_hidden, p_weight, p_bias, p_scale, p_softcap)
    return lend_sides(p, (q_hidden, q_weight, q_bias, q_scale, q_softcap), vocab_size)


def _kl(*arguments: Any) -> tuple[torch.Tensor, ...]:
    tensors, known = arguments[:6], arguments[6:]
    p, q = _sides(tensors, known)
    found = p.engine.linear_kl_divergence(p.side, q.side, temperature=known[5], num_threads=known[6])
    values, flags, scales = (p.adapter.wrap(column) for column in found)
    element = "float64" if "float64" in (p.element, q.element) else "float32"
    return (
        p.adapter.wrap_differentiable(values.reshape(p.shape), element),
        flags.reshape(p.shape),
        torch.cat([scales, values]),
    )


def _kl_fake(*arguments: Any) -> tuple[torch.Tensor, ...]:
    hidden = arguments[0]
    floats = (arguments[0], arguments[1], arguments[3], arguments[4])
    values = hidden.new_empty(hidden.shape[:-1], dtype=result_dtype(*floats))
    saved = hidden.new_empty((values.numel() * 5,), dtype=torch.float64)
    return values, torch.empty_like(values, dtype=torch.uint8), saved


def _kl_backward(
    gradient: torch.Tensor, saved: torch.Tensor, wanted: list[bool], *arguments: Any
) -> list[torch.Tensor]:
    tensors, known = arguments[:6], arguments[6:]
    p, q = _sides(tensors, known)
    rows = gradient.numel()
    found = p.engine.linear_kl_gradients(
        p.side,
        q.side,
        lend(saved[rows * 4 :], "values"),
        lend(saved[: rows * 4], "scales"),
        lend(upstream_of(gradient, "none", rows), "upstream"),
        temperature=known[5],
        num_threads=known[6],
        wanted=list(wanted),
    )
    return [_gradient(values, like) for values, like in zip(found, tensors, strict=True)]


def _keep_kl(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.settings = inputs[6:]
    keep(ctx, *inputs[:6], output[2])


def _differentiate_kl(ctx: Any, saved: list[Any], gradient: torch.Tensor) -> tuple[Any, ...]:
    *given, scales = saved
    wanted = list(ctx.needs_input_grad[:6])
    backward = _backward_of_kl if are_tensors(given) else _kl_backward
    found = backward(gradient, scales, wanted, *given, *ctx.settings)
    return (*_wanted(found, wanted), *(None,) * len(ctx.settings))


_backward_of_kl = operator(
    f"linear_kl_divergence_backward(Tensor gradient, Tensor saved, bool[] wanted, {_PAIR}) -> Tensor[]",
    _kl_backward,
    lambda gradient, saved, wanted, *rest: _fakes(wanted, list(rest[:6])),
)
_kl_divergence = differentiable(
    f"linear_kl_divergence({_PAIR}) -> (Tensor, Tensor, Tensor)", _kl, _kl_fake, _keep_kl, _differentiate_kl
)

"""The cross-entropy of a head for torch tensors on the CPU, with gradients.

The backward makes the logits again, 512 columns of the vocabulary at a time, and holds no more than their derivatives:
"Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009). Gradients have the same bits every time.
This module is imported only after the caller has imported torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from xentrs.heads import LossCall


def cross_entropy(hidden: Any, weight: Any, bias: Any, call: LossCall, shape: tuple[int, ...]) -> torch.Tensor:
    """The loss of `call`, whose arrays are those of the tensors, with their gradients. `shape` is that of the rows."""
    if tuple(hidden.shape[:-1]) != shape:
        hidden = hidden[..., : shape[-1], :]  # the shift
    weight, bias = (value if isinstance(value, torch.Tensor) else None for value in (weight, bias))
    result: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, call)
    return result.reshape(shape) if call.reduction == "none" else result


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward and backward of `cross_entropy`, rows flat."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, call: LossCall) -> torch.Tensor:
        columns = call.forward()
        ctx.save_for_backward(hidden, weight, bias)
        ctx.call, ctx.likelihoods, ctx.token_count = call, columns["likelihoods"], columns["token_count"]
        is_wide = "float64" in (call.side["hidden_element"], call.side["weight_element"])
        loss = columns["loss"] if call.reduction == "none" else np.array(columns[call.reduction])
        return torch.from_numpy(loss).to(torch.float64 if is_wide else torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors  # raises where one was changed in place since
        upstream = gradient.detach().double().reshape(-1)
        if ctx.call.reduction == "mean":
            upstream = upstream / max(ctx.token_count, 1)
        if ctx.call.reduction != "none":
            upstream = upstream.expand(len(ctx.call.ids))
        wanted = ctx.needs_input_grad[:3]
        found = ctx.call.backward(ctx.likelihoods, np.ascontiguousarray(upstream.numpy()), wanted)
        gradients = [
            None if values is None else _tensor(values, like) for values, like in zip(found, tensors, strict=True)
        ]
        if torch.is_grad_enabled():  # create_graph=True
            gradients = [None if value is None else _FirstOnly.apply(value, gradient, *tensors) for value in gradients]
        return (*gradients, None)


class _FirstOnly(torch.autograd.Function):
    """A gradient that depends on `origins` in a way that has no derivative here."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, *origins: Any) -> torch.Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError(
            "xentrs.linear_cross_entropy has no second derivative: use the gradient of create_graph=True without "
            "differentiating it, or torch.nn.functional.cross_entropy"
        )


def _tensor(values: Any, like: torch.Tensor) -> torch.Tensor:
    """The extension's flat numbers in the dtype and shape of a tensor; those of padding rows are 0."""
    if values.dtype == np.uint16:
        flat = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    else:
        flat = torch.from_numpy(values)
    if flat.numel() < like.numel():
        flat = torch.cat([flat, flat.new_zeros(like.numel() - flat.numel())])
    return flat.to(like.dtype).reshape(like.shape)

"""How a function of tensors becomes an operator of torch: seen by `torch.compile` and `torch.export` as one node, with
shapes known without its values, and differentiable where it has a backward.

Called directly an operator's `torch.autograd.Function` is applied, which costs a few microseconds; while torch traces,
the registered operator of the same kernel stands in the graph instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library: Any = torch.library  # without types of its own
_LIBRARY = _library.Library("xentrs", "DEF")

Kernel = Callable[..., Any]


def operator(schema: str, kernel: Kernel, fake: Kernel) -> Kernel:
    """Registers `xentrs::name` and returns it.

    Args:
        schema: `name(Tensor logits, ...) -> Tensor`, as torch writes schemas.
        kernel: what runs, on any device.
        fake: the same arguments, results without values.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"xentrs::{name}", fake, lib=_LIBRARY)
    registered: Kernel = getattr(torch.ops.xentrs, name).default

    def call(first: torch.Tensor, *arguments: Any, **settings: Any) -> Any:
        # A subclass stands for values that are not there, or elsewhere; the dispatcher knows it.
        is_plain = type(first) is torch.Tensor and not torch.compiler.is_compiling()
        return (kernel if is_plain else registered)(first, *arguments, **settings)

    return call


def differentiable(schema: str, kernel: Kernel, fake: Kernel, setup: Kernel, backward: Kernel) -> Kernel:
    """The same with a backward. `kernel` gives the result first, then what only the backward needs.

    Args:
        setup: `setup(ctx, inputs, output)` keeps what the backward takes.
        backward: `backward(ctx, gradient)`, a gradient for each argument.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        setup(ctx, inputs, output)

    def first_backward(ctx: Any, gradient: torch.Tensor | None, *_: Any) -> Any:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        with torch.no_grad():
            gradients = backward(ctx, gradient)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return gradients
        origins = (gradient, *ctx.saved_tensors)  # create_graph=True
        return tuple(None if value is None else _FirstOnly.apply(value, name, *origins) for value in gradients)

    def forward(ctx: Any, *arguments: Any) -> tuple[torch.Tensor, ...]:
        # A `setup_context` of its own would have torch look at the signature of the kernel in every call.
        output: tuple[torch.Tensor, ...] = kernel(*arguments)
        setup_context(ctx, arguments, output)
        return output

    name = schema.partition("(")[0]
    registered = operator(schema, kernel, fake)
    torch.library.register_autograd(f"xentrs::{name}", first_backward, setup_context=setup_context, lib=_LIBRARY)
    methods = {"forward": staticmethod(forward), "backward": staticmethod(first_backward)}
    function: Any = type(name, (torch.autograd.Function,), methods)

    def call(*arguments: Any) -> Any:
        return registered(*arguments) if torch.compiler.is_compiling() else function.apply(*arguments)

    return call


class _FirstOnly(torch.autograd.Function):
    """A gradient that depends on `origins` in a way that has no derivative here."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, name: str, *origins: Any) -> torch.Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError(
            f"xentrs.{ctx.name} has no second derivative: use the gradient of create_graph=True without "
            "differentiating it, or the functions of torch"
        )

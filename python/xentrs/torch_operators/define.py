"""How a function of tensors becomes an operator of torch: seen by `torch.compile` and `torch.export` as one node, with
shapes known without its values, and differentiable where it has a backward.

Called directly an operator's `torch.autograd.Function` is applied, which costs a few microseconds; while torch traces,
the registered operator of the same kernel stands in the graph instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from xentrs.dispatch import is_in_graph
from xentrs.errors import DTypeError

_library: Any = torch.library  # without types of its own
_compiler: Any = torch.compiler
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
        is_plain = type(first) is torch.Tensor and not is_in_graph(first)
        return (kernel if is_plain else registered)(first, *arguments, **settings)

    return call


def without_backward(schema: str, kernel: Kernel, fake: Kernel) -> Kernel:
    """The same of a function without a backward: in a graph it takes what requires grad; differentiated it raises."""
    name = schema.partition("(")[0]

    def undifferentiated(*arguments: Any, **settings: Any) -> Any:
        with torch.no_grad():
            return kernel(*arguments, **settings)

    def refuse(ctx: Any, *gradients: Any) -> Any:
        raise DTypeError(f"xentrs.{name} has no backward: pass tensors that require grad with .detach()")

    call = operator(schema, undifferentiated, fake)
    torch.library.register_autograd(f"xentrs::{name}", refuse, lib=_LIBRARY)
    return call


def differentiable(schema: str, kernel: Kernel, fake: Kernel, setup: Kernel, backward: Kernel) -> Kernel:
    """The same with a backward. `kernel` gives the result first, then what only the backward needs.

    Args:
        setup: `setup(ctx, inputs, output)` keeps what the backward takes, by `keep`.
        backward: `backward(ctx, saved, gradient)`, a gradient for each argument.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        setup(ctx, inputs, output)

    def first_backward(ctx: Any, gradient: torch.Tensor | None, *_: Any) -> Any:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        saved = _kept(ctx)
        with torch.no_grad():
            gradients = backward(ctx, saved, gradient)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return gradients
        origins = (gradient, *saved)  # create_graph=True
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
        return registered(*arguments) if is_in_graph(arguments[0]) else function.apply(*arguments)

    return call


def _call(function: Kernel, *arguments: Any, **settings: Any) -> Any:
    return function(*arguments, **settings)


outside_of_graphs: Kernel = _compiler.disable(_call)
"""Calls a function with what a graph cannot hold, such as a packed head: `torch.compile` breaks its graph there."""


def cannot_hold(*weights: Any) -> bool:
    """Whether there is a graph that cannot hold one of these."""
    return torch.compiler.is_compiling() and not are_tensors(weights)


def keep(ctx: Any, *values: Any) -> None:
    """Saves tensors for the backward, and with them what is none, such as a packed head."""
    ctx.save_for_backward(*(value if isinstance(value, torch.Tensor) else None for value in values))
    ctx.others = [None if isinstance(value, torch.Tensor) else value for value in values]


def _kept(ctx: Any) -> list[Any]:
    """What `keep` saved, which may be asked for once; raises where a tensor was changed in place since."""
    pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
    return [other if tensor is None else tensor for tensor, other in pairs]


def are_tensors(values: Sequence[Any]) -> bool:
    """Whether an operator takes them: not a packed head, nor numbers in a numpy array."""
    return all(value is None or isinstance(value, torch.Tensor) for value in values)


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

"""What kind of array is this? Asked once for each argument; everything else is the adapter's."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import numpy as np

from xentrs.adapters.numpy import Lent
from xentrs.errors import ParamError

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_TRACERS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.proxy_tensor")
_BACKEND: ContextVar[str] = ContextVar("xentrs_backend", default="auto")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Chooses what computes for torch tensors on the CPU, for as long as the context lasts and in this thread or task.

    Args:
        name: "auto" takes xentrs's own kernels, whose results have the same bits everywhere; "torch" takes torch
            operations, as for tensors on any other device, whose last bits depend on machine and version of torch.

    numpy arrays always go to the kernels, tensors on other devices always to torch operations.

    Raises:
        ParamError: another name.

    Example:
        >>> import torch, xentrs
        >>> with xentrs.backend("torch"):
        ...     xentrs.row_stats(torch.zeros(2, 7)).isa
        'cpu'
    """
    if name not in ("auto", "torch"):
        raise ParamError(f"backend = {name!r}, expected 'auto' or 'torch'")
    token = _BACKEND.set(name)
    try:
        yield
    finally:
        _BACKEND.reset(token)


def current_backend() -> str:
    """The name given to the innermost `backend`."""
    return _BACKEND.get()


class Adapter(Protocol):
    """What an adapter module offers."""

    __name__: str

    def lend(self, values: Any, name: str) -> Lent:
        """Returns the array's own memory."""

    def copy_targets(self, values: Any, name: str = "targets") -> Any:
        """Copies class ids."""

    def wrap(self, array: Any) -> Any:
        """Makes a result of the caller's kind."""

    def wrap_differentiable(self, array: Any, element: str) -> Any:
        """The same for a function with a backward, from logits of these elements."""


def adapter_of(values: Any) -> Adapter:
    """Returns the adapter for an array. torch is looked for only where the caller has imported it."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        return adapter_named("torch")
    if values is None or isinstance(values, (np.ndarray, np.generic, list, tuple, int, float)):
        return adapter_named("numpy")
    return cast(Adapter, importlib.import_module("xentrs.adapters.dlpack").adapter_for(values))


def traceable(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Makes a call of a function without a backward one node of a graph, where torch is making one."""

    @functools.wraps(function)
    def call(*arguments: _Parameters.args, **settings: _Parameters.kwargs) -> _Result:
        if any(hasattr(value, "detach") and is_in_graph(value) for value in (*arguments, *settings.values())):
            from xentrs.torch_operators import statistics

            node: Callable[_Parameters, _Result] = getattr(statistics, function.__name__)
            return node(*arguments, **settings)
        return function(*arguments, **settings)

    return call


def is_in_graph(first: Any) -> bool:
    """Whether torch is making a graph: compiling, exporting, tracing, or with tensors that have no values."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if torch.compiler.is_compiling():
        return True
    if type(first) is torch.Tensor and torch._C._len_torch_dispatch_stack() == 0:
        return False  # soon told, in every call
    fake, proxy = (sys.modules.get(name) for name in _TRACERS)
    return bool(fake and isinstance(first, fake.FakeTensor)) or bool(proxy and proxy.get_proxy_mode() is not None)


def wants_operator(first: Any, *others: Any) -> bool:
    """Whether a call of a function with a backward has to be an operator of torch: it is differentiated, or a node of a
    graph, and its first argument is a tensor.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(first, torch.Tensor):
        return False
    if is_in_graph(first):
        return True
    return torch.is_grad_enabled() and (first.requires_grad or any(_requires_grad(value) for value in others))


def _requires_grad(value: Any) -> bool:
    return bool(getattr(value, "requires_grad", False))


@functools.cache
def adapter_named(name: str) -> Adapter:
    """Returns the adapter of that name; a state that is unpickled remembers its own."""
    return cast(Adapter, importlib.import_module(f"xentrs.adapters.{name}"))


def plain_of(values: Any, name: str) -> Any:
    """An array of another library as a numpy array or tensor on the same memory; whatever else it is, as it came."""
    adapter = adapter_of(values)
    return adapter.plain(values, name) if hasattr(adapter, "plain") else values


def namespace_of(array: Any) -> Any:
    """The module, numpy or torch, whose functions take this array; where both name a function alike."""
    return importlib.import_module(adapter_of(array).__name__.rpartition(".")[2])

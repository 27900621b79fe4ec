"""What operators do with tensors around an engine: ids, results, upstream derivatives, places of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from xentrs.arguments import lend_floats
from xentrs.dispatch import adapter_of
from xentrs.errors import DTypeError


def result_dtype(*values: torch.Tensor) -> torch.dtype:
    """What differentiable functions return: float64 where an argument is, else float32."""
    return torch.float64 if any(value.dtype == torch.float64 for value in values) else torch.float32


def ids_like(ids: Any, tensor: torch.Tensor, name: str = "targets") -> torch.Tensor:
    """Class ids as an int64 tensor of their own, which the backward reads again; lists and arrays go to where `tensor`
    is, and in a graph no copy is made.

    Raises:
        DTypeError: anything but integers.
    """
    if not isinstance(ids, torch.Tensor):
        ids = torch.as_tensor(adapter_of(ids).copy_targets(ids, name)).to(tensor.device)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DTypeError(f"{name} has dtype {ids.dtype}, expected integers")
    # In a graph nobody can change them in between.
    wide: torch.Tensor = ids.to(torch.int64, copy=not torch.compiler.is_compiling())
    # An id of 2^63 or more is outside of every vocabulary, and no number to ignore.
    return wide.where(wide >= 0, 2**63 - 1) if ids.dtype == torch.uint64 else wide


def floats_like(values: Any, tensor: torch.Tensor, name: str) -> torch.Tensor | None:
    """Numbers as a tensor, `None` as it is; lists and arrays are copied to where `tensor` is."""
    if values is None or isinstance(values, torch.Tensor):
        return values
    return torch.as_tensor(lend_floats(values, name)).to(tensor.device)


def lend(tensor: torch.Tensor, name: str) -> Any:
    """The memory of one of our own tensors, as the engine takes it."""
    return adapter_of(tensor).lend(tensor.detach(), name).array


def place_like(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialised, contiguous tensor of the same shape, for a gradient.

    On the CPU its memory is numpy's, which asks the system for large pages: the first touch of 256 MiB of small ones
    takes five times as long as writing the gradient.
    """
    dtype = dtype or tensor.dtype
    if tensor.device.type != "cpu":
        return torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
    bits = {2: np.int16, 4: np.float32, 8: np.float64}[dtype.itemsize]
    return torch.from_numpy(np.empty(tuple(tensor.shape), bits)).view(dtype)


def fake_place_like(tensor: torch.Tensor) -> torch.Tensor:
    """A gradient of the same shape and type, without numbers."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def upstream_of(gradient: torch.Tensor, reduction: str, rows: int, divisor: torch.Tensor | float = 1.0) -> torch.Tensor:
    """The derivative of the caller's result by each row's value, float64; a mean divides by `divisor`."""
    upstream = gradient.detach().double().reshape(-1)
    if reduction == "mean":
        upstream = upstream / divisor
    return upstream.contiguous() if reduction == "none" else upstream.expand(rows).contiguous()

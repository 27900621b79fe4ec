"""torch tensors on the CPU. This module is imported only after the caller has imported torch."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from xentrs.adapters import numpy as numpy_adapter
from xentrs.errors import DTypeError

_ELEMENTS = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}


def lend(values: torch.Tensor, name: str) -> numpy_adapter.Lent:
    """Returns the tensor's own memory and the name of its elements.

    Raises:
        DTypeError: elements that no kernel takes, a tensor elsewhere than on the CPU, one that is sparse, quantised or
            meta, one that requires grad (the function has no backward).
        ShapeError: a single number.
    """
    _check_plain(values, name)
    element = _ELEMENTS.get(values.dtype)
    if element is None:
        raise DTypeError(f"{name} has dtype {values.dtype}, expected one of {', '.join(numpy_adapter.ELEMENTS)}")
    if values.requires_grad and torch.is_grad_enabled():
        raise DTypeError(f"{name} requires grad, but this function has no backward: pass {name}.detach()")
    numpy_adapter.check_axes(tuple(values.shape), name)
    plain = values.detach().resolve_neg()
    if element == "bfloat16":
        plain = plain.view(torch.int16)
    return numpy_adapter.Lent(plain.numpy(), element)


def copy_targets(values: torch.Tensor, name: str = "targets") -> NDArray[Any]:
    """Copies class ids to a new int64 array; uint64 stays itself.

    Raises:
        DTypeError: anything but integers, or a tensor elsewhere than on the CPU.
    """
    _check_plain(values, name)
    return numpy_adapter.copy_targets(values.detach().numpy(), name)


def wrap(array: NDArray[Any]) -> torch.Tensor:
    """Results for a caller who gave tensors, without a copy."""
    return torch.from_numpy(array)


def _check_plain(values: torch.Tensor, name: str) -> None:
    if values.layout != torch.strided or values.is_quantized:
        raise DTypeError(f"{name} is a sparse or quantised tensor, expected a dense one")
    if values.device.type != "cpu":
        raise DTypeError(f"{name} is on device {values.device}, expected cpu: pass {name}.cpu()")

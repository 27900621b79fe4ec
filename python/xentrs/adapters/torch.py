"""torch tensors: on the CPU lent to the kernels like numpy arrays, elsewhere as they are to torch operations.

This module is imported only after the caller has imported torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from xentrs import torch_ops
from xentrs.adapters import numpy as numpy_adapter
from xentrs.dispatch import current_backend
from xentrs.errors import DTypeError

_forward_ad: Any = forward_ad  # without types of its own
_ELEMENTS = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}


def lend(values: torch.Tensor, name: str) -> numpy_adapter.Lent:
    """Returns the tensor's own memory, the name of its elements, and what computes with it.

    Raises:
        DTypeError: elements that no kernel takes, a tensor that is sparse, quantised or meta, one on a device without
            float64, one that requires grad (the function has no backward).
        ShapeError: a single number.
    """
    _check_plain(values, name)
    element = _ELEMENTS.get(values.dtype)
    if element is None:
        raise DTypeError(f"{name} has dtype {values.dtype}, expected one of {', '.join(numpy_adapter.ELEMENTS)}")
    if values.requires_grad and torch.is_grad_enabled():
        raise DTypeError(f"{name} requires grad, but this function has no backward: pass {name}.detach()")
    if getattr(_forward_ad, "_current_level", -1) >= 0 and _forward_ad.unpack_dual(values).tangent is not None:
        raise DTypeError(f"{name} carries a tangent, but there are no derivatives in forward mode")
    if values.ndim == 0:
        numpy_adapter.check_axes((), name)
    plain = values.detach()
    if plain.device.type != "cpu" or current_backend() == "torch":
        return numpy_adapter.Lent(plain, element, torch_ops)
    if plain.is_neg():
        plain = plain.resolve_neg()
    if element == "bfloat16":
        plain = plain.view(torch.int16)
    return numpy_adapter.Lent(plain.numpy(), element)


def copy_targets(values: torch.Tensor, name: str = "targets") -> Any:
    """Copies class ids to a new int64 array, a numpy array where they lie on the CPU; uint64 stays itself.

    Raises:
        DTypeError: anything but integers.
    """
    _check_plain(values, name)
    if values.device.type == "cpu":
        return numpy_adapter.copy_targets(values.detach().numpy(), name)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise DTypeError(f"{name} has dtype {values.dtype}, expected integers")
    return values.clone() if values.dtype == torch.uint64 else values.to(torch.int64, copy=True)


def wrap(array: Any) -> torch.Tensor:
    """Results for a caller who gave tensors, without a copy."""
    if isinstance(array, torch.Tensor):
        return array
    plain = np.asarray(array)
    # Empty arrays share an address, which torch takes for shared memory.
    return torch.from_numpy(plain) if plain.size else torch.from_numpy(plain).clone()


def wrap_differentiable(array: Any, element: str) -> torch.Tensor:
    """The same for a function with a backward: float32, or float64 for float64."""
    return wrap(array).to(torch.float64 if element == "float64" else torch.float32)


def has_float64(device: torch.device) -> bool:
    """Whether sums can be made in float64 there."""
    return device.type != "mps"


def _check_plain(values: torch.Tensor, name: str) -> None:
    if values.is_cpu and values.layout is torch.strided and not values.is_quantized:
        return
    if values.layout != torch.strided or values.is_quantized:
        raise DTypeError(f"{name} is a sparse or quantised tensor, expected a dense one")
    if values.device.type == "meta":
        raise DTypeError(f"{name} is on device meta, expected cpu or another device that holds numbers")
    if not has_float64(values.device):
        raise DTypeError(
            f"{name} is on device {values.device}, which has no float64 to sum in, expected cpu: pass {name}.cpu()"
        )

"""Arrays of other libraries: JAX, CuPy, whatever has `__dlpack__` or `__array__`.

On the CPU their own memory is lent, and results are numpy arrays. On any other device torch computes with their own
memory, and results go back to the array's library: by the `from_dlpack` of its `__array_namespace__()` (JAX), else of
the package its type comes from (CuPy), else they stay torch tensors. torch is imported only for those, and for bfloat16
of an array that offers nothing but `__dlpack__`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xentrs.adapters import numpy as numpy_adapter
from xentrs.errors import DTypeError

# kDLCPU, kDLCUDAHost and kDLROCMHost of the DLPack standard: memory that the processor reads like any other.
HOST_DEVICES = (1, 3, 11)


def adapter_for(values: Any) -> Any:
    """Returns this module, or for an array elsewhere than on the CPU an `OnDevice`.

    Raises:
        DTypeError: an array that is spread over several devices.
    """
    if not hasattr(values, "__dlpack_device__"):
        return sys.modules[__name__]
    try:
        device, _ = values.__dlpack_device__()
    except BufferError as error:
        kind = type(values).__name__
        raise DTypeError(f"an argument is a {kind} on several devices, expected one device: gather it first") from error
    return sys.modules[__name__] if int(device) in HOST_DEVICES else OnDevice(values)


def lend(values: Any, name: str) -> numpy_adapter.Lent:
    """Returns the array's own memory and the name of its elements.

    Raises:
        DTypeError: an object that is no array, elements that no kernel takes.
        ShapeError: a single number.
    """
    array = plain(values, name)
    if isinstance(array, np.ndarray):
        return numpy_adapter.lend(array, name)
    numpy_adapter.check_axes(tuple(array.shape), name)
    return numpy_adapter.Lent(array.view(importlib.import_module("torch").int16).numpy(), "bfloat16")


def copy_targets(values: Any, name: str = "targets") -> NDArray[Any]:
    """Copies class ids to a new int64 array; uint64 stays itself.

    Raises:
        DTypeError: an object that is no array, anything but integers.
    """
    array = plain(values, name)
    if isinstance(array, np.ndarray):
        return numpy_adapter.copy_targets(array, name)
    raise DTypeError(f"{name} has dtype bfloat16, expected integers")


def wrap(array: Any) -> Any:
    """Results of what lay on the CPU are numpy arrays."""
    return numpy_adapter.wrap(array)


def wrap_differentiable(array: Any, element: str) -> Any:
    """The same: float64 here too."""
    return wrap(array)


def plain(values: Any, name: str) -> Any:
    """The array's own memory as a numpy array; bfloat16 behind nothing but `__dlpack__`, which numpy cannot read, as a
    tensor.

    Raises:
        DTypeError: an object that is no array, elements that neither can read.
    """
    if hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
        try:
            return np.from_dlpack(values)
        except (BufferError, RuntimeError):
            tensor = _tensor(values, name)
        if str(tensor.dtype) == "torch.bfloat16":
            return tensor
        raise DTypeError(f"{name} has dtype {tensor.dtype}, expected one of {', '.join(numpy_adapter.ELEMENTS)}")
    array = np.asarray(values)
    if array.dtype == object:
        raise DTypeError(f"{name} is a {type(values).__name__}, expected an array, or an object with __dlpack__")
    return array


class OnDevice:
    """The adapter of an array elsewhere than on the CPU: torch's, with results for the library of the array."""

    __name__ = "torch"

    def __init__(self, values: Any) -> None:
        self._library = _library_of(values)

    def lend(self, values: Any, name: str) -> numpy_adapter.Lent:
        """Returns the array's own memory as a tensor, with the engine that computes on its device.

        Raises:
            DTypeError: torch is not installed, or cannot read the array.
        """
        lent: numpy_adapter.Lent = _torch_adapter(name).lend(_tensor(values, name), name)
        return lent

    def copy_targets(self, values: Any, name: str = "targets") -> Any:
        """Copies class ids, as the adapter of torch does."""
        return _torch_adapter(name).copy_targets(_tensor(values, name), name)

    def plain(self, values: Any, name: str) -> Any:
        """The array's own memory as a tensor."""
        return _tensor(values, name)

    def wrap(self, array: Any) -> Any:
        """Hands a result to the array's library without a copy; a tensor where there is no such library."""
        tensor = _torch_adapter("a result").wrap(array)
        return tensor if self._library is None else self._library.from_dlpack(tensor)

    def wrap_differentiable(self, array: Any, element: str) -> Any:
        """The same: float64 for a library, and what torch's adapter gives for tensors."""
        if self._library is None:
            return _torch_adapter("a result").wrap_differentiable(array, element)
        return self.wrap(array)


def _tensor(values: Any, name: str) -> Any:
    """A tensor on the array's own memory."""
    _torch_adapter(name)
    try:
        return importlib.import_module("torch").from_dlpack(values)
    except (BufferError, RuntimeError) as error:
        kind = type(values).__name__
        raise DTypeError(f"{name} is a {kind} that torch cannot read: {error}") from error


def _torch_adapter(name: str) -> ModuleType:
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise DTypeError(
            f"{name} needs torch, which is not installed: it lies on another device than the CPU or holds bfloat16"
        ) from error
    return importlib.import_module("xentrs.adapters.torch")


def _library_of(values: Any) -> Any:
    """What has a `from_dlpack` for results: the array's namespace, or the package of its type."""
    if hasattr(values, "__array_namespace__"):
        library = values.__array_namespace__()
    else:
        library = sys.modules.get(type(values).__module__.partition(".")[0])
    return library if hasattr(library, "from_dlpack") else None

"""numpy arrays, and whatever numpy makes an array of. Nothing is copied but targets and promoted elements."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xentrs import _xentrs
from xentrs.errors import DTypeError, ShapeError

ELEMENTS = ("float32", "float16", "bfloat16", "float64")


class Lent(NamedTuple):
    """Logits as an engine takes them. For the extension they are a numpy array, where bfloat16 stands as the int16 of
    the same bits; for `xentrs.torch_ops` they are a tensor.
    """

    array: Any
    element: str
    engine: Any = _xentrs

    @property
    def device(self) -> str:
        """Where the array lies."""
        return str(self.array.device) if self.engine is not _xentrs else "cpu"

    def place(self, array: Any) -> Any:
        """Brings another argument's copy to where the array lies."""
        return array if self.engine is _xentrs else self.engine.place(array, self.array)


def lend(values: Any, name: str) -> Lent:
    """Returns the array's own memory and the name of its elements.

    Raises:
        DTypeError: elements that no kernel takes, a masked array, another byte order.
        ShapeError: a single number.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise DTypeError(f"{name} is a masked array, expected a plain one: fill masked logits with -inf")
    array = np.asarray(values)
    dtype = array.dtype
    element = dtype.name
    if element not in ELEMENTS or dtype.itemsize not in (2, 4, 8):
        raise DTypeError(
            f"{name} has dtype {dtype}, expected one of {', '.join(ELEMENTS)}"
            + (" (raw bits: view them as ml_dtypes.bfloat16)" if dtype == np.uint16 else "")
        )
    if not dtype.isnative:
        raise DTypeError(f"{name} has dtype {dtype.str}, expected native byte order: {name}.astype('{element}')")
    check_axes(array.shape, name)
    return Lent(array.view(np.int16) if element == "bfloat16" else array, element)


def check_axes(shape: tuple[int, ...], name: str) -> None:
    """Raises ShapeError for a single number: the last axis is the vocabulary, or the width of a head."""
    if not shape:
        last = "width" if name.endswith(("hidden", "weight")) else "vocab"
        raise ShapeError(f"{name} is 0-dimensional, expected shape (..., {last})")


def promote(lent: Lent, element: str) -> Lent:
    """Copies to a wider element, float32 or float64; the same memory where it is that element already. Tensors stay:
    torch operations widen the numbers of a block at a time.
    """
    if lent.element == element:
        return lent
    array = lent.array
    if lent.engine is not _xentrs:
        return lent._replace(element=element)
    if lent.element == "bfloat16":
        # A bfloat16 is the upper half of the float32 of the same value.
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return Lent(array.astype(element, copy=False), element)


def copy_targets(values: Any, name: str = "targets") -> NDArray[Any]:
    """Copies class ids to a new int64 array; uint64 stays itself. The copy is what is checked and read.

    Raises:
        DTypeError: anything but integers.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise DTypeError(f"{name} is a masked array, expected a plain one: fill it with ignore_index")
    array = np.asarray(values)
    if array.size == 0 and array.dtype == np.float64 and not hasattr(values, "dtype"):
        array = array.astype(np.int64)  # an empty list says nothing of its elements
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{name} has dtype {array.dtype}, expected integers")
    wide = np.uint64 if array.dtype == np.uint64 else np.int64
    return np.array(array, dtype=wide, order="C", copy=True)


def wrap_differentiable(array: NDArray[Any], element: str) -> Any:
    """The same for a function with a backward: float64."""
    return wrap(array)


def wrap(array: Any) -> Any:
    """Results for a caller who gave numpy arrays."""
    return np.asarray(array)

"""What the functions do with their arguments: lend arrays, copy and align targets, check numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from xentrs import _xentrs
from xentrs.adapters.numpy import Lent
from xentrs.dispatch import Adapter, adapter_of, backend, current_backend, plain_of
from xentrs.errors import DTypeError, ParamError, ShapeError

Reduction = Literal["none", "sum", "mean"]


def lend_with_targets(logits: Any, targets: Any, shift: int) -> tuple[Adapter, Lent, Any]:
    """Lends logits, and copies targets if there are any, flat: the caller's adapter, what was lent, and ids."""
    adapter = adapter_of(logits)
    lent = adapter.lend(logits, "logits")
    ids = None if targets is None else lend_ids(targets, "targets", lent, "logits")
    array, ids = align(lent.array, ids, shift)
    return adapter, lent._replace(array=array), ids


def lend_beside(values: Any, name: str, lent: Lent, near: str) -> Lent:
    """Lends an array to the engine of `lent`, which is the array named `near`.

    Raises:
        DTypeError: another device, or a numpy array beside a tensor that torch operations take.
    """
    check_device(values, name, lent, near)
    if lent.engine is _xentrs and current_backend() != "auto":
        with backend("auto"):
            other = adapter_of(values).lend(values, name)
    else:
        other = adapter_of(values).lend(values, name)
    if other.engine is not lent.engine:
        raise DTypeError(f"{name} is no tensor, expected one on device {lent.device} as {near}")
    return other


def lend_ids(values: Any, name: str, lent: Lent, near: str) -> Any:
    """Copies class ids to the device of `lent`, which is the array named `near`; a tensor has to lie there already."""
    check_device(values, name, lent, near)
    return lent.place(adapter_of(values).copy_targets(values, name))


def check_device(values: Any, name: str, lent: Lent, near: str) -> None:
    """Raises DTypeError for a tensor on another device than that of `lent`, which is the array named `near`."""
    if hasattr(values, "detach") and not (values.is_cpu and lent.device == "cpu") and str(values.device) != lent.device:
        raise DTypeError(
            f"{name} is on device {values.device}, expected {lent.device} as {near}: pass {name}.to({lent.device!r})"
        )


def settings(
    ignore_index: int, temperature: float, softcap: float | None, vocab_size: int | None, num_threads: int | None
) -> dict[str, Any]:
    """Names the settings of a call for an engine."""
    return {
        "ignore_index": check_index(ignore_index),
        "temperature": temperature,
        "softcap": softcap,
        "vocab_size": None if vocab_size is None else check_count(vocab_size, "vocab_size"),
        "num_threads": num_threads,
    }


def tempered_settings(moments: bool, renyi_orders: Any, inverse_temperatures: Any) -> dict[str, Any] | None:
    """Names for an engine what a call computes beside a row's statistics; None where that is nothing."""
    lists = {"renyi_orders": renyi_orders, "inverse_temperatures": inverse_temperatures}
    is_plain = all(isinstance(values, tuple) and not values for values in lists.values())
    if is_plain and not moments:
        return None
    found = {name: lend_list(values, name) for name, values in lists.items()}
    if not moments and not any(found.values()):
        return None
    return {"moments": bool(moments), **found}


def lend_list(values: Any, name: str) -> list[float]:
    """Copies one dimension of real numbers.

    Raises:
        ShapeError: any other number of dimensions.
        DTypeError: as `lend_floats`.
    """
    array = lend_floats(values, name)
    if array.ndim != 1:
        raise ShapeError(f"{name} have shape {array.shape}, expected one dimension")
    return list(array)


def lend_floats(values: Any, name: str, lent: Lent | None = None, near: str = "logits") -> Any:
    """Copies real numbers of any kind of array or list into a contiguous float64 array, on the device of `lent`, which
    is the array named `near`; a numpy array where nothing was lent.

    Raises:
        DTypeError: anything else, a masked array, a tensor on another device or one that requires grad.
    """
    values = plain_of(values, name)
    if isinstance(values, np.ma.MaskedArray):
        raise DTypeError(f"{name} is a masked array, expected a plain one")
    refuse_gradient(values, name)
    if lent is not None:
        check_device(values, name, lent, near)
    elif str(getattr(values, "device", "cpu")) != "cpu":
        raise DTypeError(f"{name} is on device {values.device}, expected cpu: pass {name}.cpu()")
    is_tensor = hasattr(values, "detach")
    if is_tensor and (values.is_complex() or values.is_sparse or values.is_quantized):
        raise DTypeError(f"{name} is {values.dtype} of layout {values.layout}, expected real numbers, dense")
    if is_tensor and values.device.type != "cpu":
        return values.detach().double().contiguous().clone()
    # bfloat16 tensors have no numpy of their own.
    plain = values.detach().double().numpy() if is_tensor and values.is_floating_point() else values
    try:
        array = np.asarray(plain)
    except ValueError as error:
        raise DTypeError(f"{name} is a ragged list, expected real numbers") from error
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise DTypeError(f"{name} has dtype {array.dtype}, expected real numbers")
    copied = np.array(array, dtype=np.float64, order="C")
    return copied if lent is None else lent.place(copied)


def refuse_gradient(values: Any, name: str) -> None:
    """Raises DTypeError for a tensor that requires grad, where gradients are recorded: it would get none."""
    if getattr(values, "requires_grad", False) and sys.modules["torch"].is_grad_enabled():
        raise DTypeError(f"{name} requires grad, expected a tensor without: pass {name}.detach()")


def check_class_weights(weights: Any, vocab: int) -> None:
    """Raises ShapeError for anything but a list."""
    if weights.ndim != 1:
        raise ShapeError(f"weight has shape {tuple(weights.shape)}, expected ({vocab},): one for each class")


def check_lists(ids: Any, values: Any, logits: Any, names: tuple[str, str, str]) -> None:
    """Checks ids and values of k columns for each row of the logits; `names` are those of the three arguments."""
    if ids.ndim > 0 and ids.shape[:-1] == logits.shape[:-1] and values.shape == ids.shape:
        return
    shapes = [tuple(array.shape) for array in (ids, values, logits)]
    raise ShapeError(
        f"{names[0]} and {names[1]} have shapes {shapes[0]} and {shapes[1]}, expected both (..., k) with one row for"
        f" each row of {names[2]} {shapes[2]}"
    )


def check_reduction(reduction: str) -> None:
    """Raises ParamError for a reduction that is not one of the three."""
    if reduction not in ("none", "sum", "mean"):
        raise ParamError(f"reduction = {reduction!r}, expected 'none', 'sum' or 'mean'")


def reduced(columns: dict[str, Any], reduction: Reduction, shape: tuple[int, ...]) -> Any:
    """Takes from a loss of an engine what the caller asked for."""
    return columns["loss"].reshape(shape) if reduction == "none" else columns[reduction]


def align(array: Any, ids: Any, shift: int, name: str = "logits") -> tuple[Any, Any]:
    """Checks that there is one target for each row, applies the shift as a view, and flattens the targets."""
    rows, shape = tuple(array.shape[:-1]), tuple(array.shape)
    if ids is not None and ids.shape != rows:
        message = f"targets have shape {tuple(ids.shape)}, expected {rows}: one for each row of {name} {shape}"
        if name == "logits" and array.ndim > 2 and ids.shape == (array.shape[0], *array.shape[2:]):
            message += "; classes on axis 1, as torch has them, go last by logits.movedim(1, -1) or np.moveaxis"
        raise ShapeError(message)
    shift = check_shift(shift, shape, name)
    if shift:
        length = max(rows[-1] - shift, 0)
        array = array[..., :length, :]
        if ids is not None:
            ids = ids[..., rows[-1] - length :]
            ids = np.ascontiguousarray(ids) if isinstance(ids, np.ndarray) else ids
    return array, None if ids is None else ids.reshape(-1)


def check_shift(shift: int, shape: Sequence[int], name: str) -> int:
    """Checks the shift of an array of that shape, which has to have an axis for it."""
    shift = check_count(shift, "shift")
    if shift and len(shape) < 2:
        last = "vocab" if name == "logits" else "width"
        raise ShapeError(f"shift = {shift} needs {name} of shape (..., length, {last}), not {tuple(shape)}")
    return shift


def check_count(value: int, name: str) -> int:
    """Checks a whole number, at least 0."""
    if check_whole(value, name) < 0:
        raise ParamError(f"{name} = {value}, expected a whole number, at least 0")
    return int(value)


def check_index(value: int) -> int:
    """Checks `ignore_index`, which is any 64-bit integer."""
    if not -(2**63) <= check_whole(value, "ignore_index") < 2**63:
        raise ParamError(f"ignore_index = {value}, expected a 64-bit integer")
    return int(value)


def check_whole(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DTypeError(f"{name} = {value!r}, expected a whole number")
    return int(value)

"""What the functions do with their arguments: lend arrays, copy and align targets, check numbers."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from xentrs.dispatch import Adapter, adapter_of
from xentrs.errors import DTypeError, ParamError, ShapeError

Reduction = Literal["none", "sum", "mean"]


def lend_with_targets(logits: Any, targets: Any, shift: int) -> tuple[Adapter, Any, str, Any]:
    """Lends logits, and copies targets if there are any, flat: the caller's adapter, array, element and ids."""
    adapter = adapter_of(logits)
    array, element = adapter.lend(logits, "logits")
    ids = None if targets is None else adapter_of(targets).copy_targets(targets)
    array, ids = align(array, ids, shift)
    return adapter, array, element, ids


def settings(
    ignore_index: int, temperature: float, softcap: float | None, vocab_size: int | None, num_threads: int | None
) -> dict[str, Any]:
    """Names the settings of a call for the extension."""
    return {
        "ignore_index": check_index(ignore_index),
        "temperature": temperature,
        "softcap": softcap,
        "vocab_size": None if vocab_size is None else check_count(vocab_size, "vocab_size"),
        "num_threads": num_threads,
    }


def lend_floats(values: Any, name: str) -> Any:
    """Copies real numbers of any kind of array or list into a contiguous float64 array.

    Raises:
        DTypeError: anything else, a masked array, a tensor elsewhere than on the CPU or one that requires grad.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise DTypeError(f"{name} is a masked array, expected a plain one")
    if getattr(values, "requires_grad", False):
        raise DTypeError(f"{name} requires grad, expected a tensor without: pass {name}.detach()")
    if str(getattr(values, "device", "cpu")) != "cpu":
        raise DTypeError(f"{name} is on device {values.device}, expected cpu: pass {name}.cpu()")
    # bfloat16 tensors have no numpy of their own.
    is_tensor = hasattr(values, "is_floating_point") and values.is_floating_point()
    plain = values.double().numpy() if is_tensor else values
    try:
        array = np.asarray(plain)
    except ValueError as error:
        raise DTypeError(f"{name} is a ragged list, expected real numbers") from error
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise DTypeError(f"{name} has dtype {array.dtype}, expected real numbers")
    return np.array(array, dtype=np.float64, order="C")


def check_lists(ids: Any, values: Any, logits: Any, names: tuple[str, str, str]) -> None:
    """Checks ids and values of k columns for each row of the logits; `names` are those of the three arguments."""
    if ids.ndim > 0 and ids.shape[:-1] == logits.shape[:-1] and values.shape == ids.shape:
        return
    raise ShapeError(
        f"{names[0]} and {names[1]} have shapes {ids.shape} and {values.shape}, expected both (..., k) with one row for"
        f" each row of {names[2]} {logits.shape}"
    )


def check_reduction(reduction: str) -> None:
    """Raises ParamError for a reduction that is not one of the three."""
    if reduction not in ("none", "sum", "mean"):
        raise ParamError(f"reduction = {reduction!r}, expected 'none', 'sum' or 'mean'")


def reduce(columns: dict[str, Any], reduction: Reduction, shape: tuple[int, ...], adapter: Adapter) -> Any:
    """Takes from a loss of the extension what the caller asked for."""
    if reduction == "none":
        return adapter.wrap(columns["loss"].reshape(shape))
    return adapter.wrap(np.array(columns[reduction]))


def align(array: Any, ids: Any, shift: int, name: str = "logits") -> tuple[Any, Any]:
    """Checks that there is one target for each row, applies the shift as a view, and flattens the targets."""
    rows = array.shape[:-1]
    if ids is not None and ids.shape != rows:
        message = f"targets have shape {ids.shape}, expected {rows}: one for each row of {name} {array.shape}"
        if name == "logits" and array.ndim > 2 and ids.shape == (array.shape[0], *array.shape[2:]):
            message += "; classes on axis 1, as torch has them, go last by logits.movedim(1, -1) or np.moveaxis"
        raise ShapeError(message)
    shift = check_count(shift, "shift")
    if shift:
        if not rows:
            last = "vocab" if name == "logits" else "width"
            raise ShapeError(f"shift = {shift} needs {name} of shape (..., length, {last}), not {array.shape}")
        length = max(rows[-1] - shift, 0)
        array = array[..., :length, :]
        ids = None if ids is None else np.ascontiguousarray(ids[..., rows[-1] - length :])
    return array, None if ids is None else ids.reshape(-1)


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

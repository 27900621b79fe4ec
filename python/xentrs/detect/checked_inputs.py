"""What the functions of `xentrs.detect` are given, checked once: columns of numbers, labels, rates, seeds; and packages
of the extra `detect`.

In: lists, numpy arrays or torch tensors of the caller. Out: flat float64 and bool arrays, plain numbers; or an error
that names the argument, the place and what was expected.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from xentrs.errors import DTypeError, ParamError, ShapeError

FloatColumn = npt.NDArray[np.float64]
BoolColumn = npt.NDArray[np.bool_]
IntColumn = npt.NDArray[np.int64]

FEWEST_DOCUMENTS = 5
"""With fewer documents an evaluation says nothing."""
_PACKAGES = {"sklearn": "scikit-learn"}


def column_of(values: Any, name: str, count: int | None = None, beside: str = "labels") -> FloatColumn:
    """Numbers as a float64 array of one axis, copied; NaN and infinities stay.

    Raises:
        DTypeError: they are no numbers.
        ShapeError: there is more than one axis, or their number is not `count`, that of `beside`.
    """
    array = _plain(values, name)
    if array.ndim != 1:
        raise ShapeError(f"{name} has shape {array.shape}, expected one value for each document")
    if count is not None and len(array) != count:
        raise ShapeError(f"{name} has {len(array)} values and {beside} {count}: expected one for each document in both")
    return array


def table_of(values: Any, name: str) -> FloatColumn:
    """Numbers as a float64 array of two axes, copied; NaN and infinities stay.

    Raises:
        DTypeError: they are no numbers.
        ShapeError: there are not two axes.
    """
    array = _plain(values, name)
    if array.ndim != 2:
        raise ShapeError(f"{name} has shape {array.shape}, expected two axes")
    return array


def labels_of(labels: Any) -> BoolColumn:
    """Labels as a bool array: True for member or machine.

    Raises:
        ParamError: a label is neither 0 nor 1; there are fewer than 5 documents, or only one class.
    """
    values = column_of(labels, "labels")
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise ParamError(f"labels[{wrong[0]}] = {values[wrong[0]]:g}, expected 0 or 1")
    checked: BoolColumn = values == 1
    reason = too_few(checked)
    if reason is not None:
        raise ParamError(f"labels has {reason}")
    return checked


def too_few(labels: BoolColumn) -> str | None:
    """Why documents with these labels cannot be evaluated; None where they can."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if len(labels) < FEWEST_DOCUMENTS:
        return f"{len(labels)} documents, expected at least {FEWEST_DOCUMENTS}"
    if positives == 0 or negatives == 0:
        return f"{positives} documents of label 1 and {negatives} of label 0, expected both"
    return None


def fraction_of(value: float, name: str, *, may_be_one: bool = False) -> float:
    """A number between 0 and 1, neither of them (or 1 where `may_be_one`).

    Raises:
        ParamError: it is outside.
    """
    if not (0.0 < value < 1.0 or (may_be_one and value == 1.0)):
        raise ParamError(f"{name} = {value!r} is outside (0, 1{']' if may_be_one else ')'}")
    return float(value)


def count_of(value: int, name: str, smallest: int = 1) -> int:
    """An integer of at least `smallest`.

    Raises:
        DTypeError: no integer.
        ParamError: smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise DTypeError(f"{name} is a {type(value).__name__}, expected an integer")
    if value < smallest:
        raise ParamError(f"{name} = {value}, expected at least {smallest}")
    return int(value)


def choice_of(value: str, name: str, choices: tuple[str, ...]) -> str:
    """One of `choices`.

    Raises:
        ParamError: another value.
    """
    if value not in choices:
        raise ParamError(f"{name} = {value!r}, expected one of {', '.join(choices)}")
    return value


def optional_module(name: str) -> Any:
    """A module of a package of the extra `detect`.

    Raises:
        ImportError: the package is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name != package:
            raise
        raise ImportError(f"this needs {_PACKAGES.get(package, package)}: pip install 'xentrs[detect]'") from error


def _plain(values: Any, name: str) -> FloatColumn:
    plain = values.detach().double().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if plain.dtype.kind not in "biuf" and plain.size:
        raise DTypeError(f"{name} holds {plain.dtype}, expected numbers")
    return np.array(plain, dtype=np.float64)

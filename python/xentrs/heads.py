"""What the functions on heads take: weights as they lie or packed, and a call of the loss that can be run both ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xentrs import _xentrs
from xentrs.arguments import Reduction, align, check_count, lend_floats
from xentrs.dispatch import Adapter, adapter_of
from xentrs.errors import DTypeError, ParamError, ShapeError


class PackedHead:
    """A head's weights in tile order, packed once and used with many batches; calls that take it skip the
    packing, which for a few rows is most of the time.

    Holds a copy of its own: as many bytes as the weights with rows padded to 16, float16 as float32 (twice the bytes),
    bfloat16 with the width padded to 32; a width of 0 counts as 1. `byte_count` tells.

    Args:
        weight: `(vocab, width)`, float32, float16, bfloat16 or float64; any strides.

    Raises:
        ShapeError, DTypeError: also for a tensor that requires grad; MemoryError.

    Example:
        >>> import numpy as np, xentrs
        >>> head = xentrs.PackedHead(np.eye(3, 2, dtype=np.float32))
        >>> head.shape, head.dtype, head.byte_count
        ((3, 2), 'float32', 128)
    """

    def __init__(self, weight: Any) -> None:
        array, element = _lend_weight(weight, "weight")
        self._packed = _xentrs.PackedHead(array, element)

    @property
    def shape(self) -> tuple[int, int]:
        """`(vocab, width)`."""
        return self._packed.shape

    @property
    def dtype(self) -> str:
        """What the weights are kept as: float32, bfloat16 or float64."""
        return self._packed.element

    @property
    def byte_count(self) -> int:
        """Bytes that it holds."""
        return self._packed.byte_count

    def __repr__(self) -> str:
        return f"PackedHead(shape={self.shape}, dtype={self.dtype}, byte_count={self.byte_count})"


@dataclass(frozen=True)
class LossCall:
    """A checked call of `linear_cross_entropy`, as the extension takes it."""

    side: dict[str, Any]
    ids: Any
    settings: dict[str, Any]
    label_smoothing: float
    z_loss: float
    reduction: Reduction
    filter_eps: float | None
    orders_vocabulary: bool

    def forward(self) -> dict[str, Any]:
        """Each row's loss, their sum and mean, and what the backward is made from."""
        return _xentrs.linear_loss(
            self.side,
            self.ids,
            self.settings,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            class_weights=None,
        )

    def backward(self, likelihoods: Any, upstream: Any, wanted: tuple[bool, bool, bool]) -> list[Any]:
        """The gradients of hidden states, weights and bias that are wanted, flat; bfloat16 as uint16."""
        return _xentrs.linear_gradients(
            self.side,
            self.ids,
            self.settings,
            likelihoods,
            upstream,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            wanted=wanted,
            filter_eps=self.filter_eps,
            orders_vocabulary=self.orders_vocabulary,
        )


# The distance from 1 to the next number.
_EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


def check_filter(filter_eps: float | str, element: str) -> float:
    """The threshold of the backward's filter, from 0 to 1."""
    if filter_eps == "auto":
        return _EPS[element] / 32
    if isinstance(filter_eps, bool) or not isinstance(filter_eps, int | float) or not 0 <= filter_eps <= 1:
        raise ParamError(f"filter_eps = {filter_eps!r}, expected None, 'auto' or a number from 0 to 1")
    return float(filter_eps)


def lend_side(
    hidden: Any,
    weight: Any,
    targets: Any,
    shift: int,
    bias: Any,
    logit_scale: float,
    softcap: float | None,
    vocab_size: int | None,
    prefix: str = "",
) -> tuple[Adapter, dict[str, Any], Any, tuple[int, ...]]:
    """Lends one model's arrays: the adapter, what the extension takes, flat targets and the shape of the rows."""
    adapter = adapter_of(hidden)
    array, element = adapter.lend(hidden, f"{prefix}hidden")
    ids = None if targets is None else adapter_of(targets).copy_targets(targets)
    array, ids = align(array, ids, shift, "hidden")
    if isinstance(weight, PackedHead):
        lent_weight, weight_element, shape = weight._packed, weight.dtype, weight.shape
    else:
        lent_weight, weight_element = _lend_weight(weight, f"{prefix}weight")
        shape = lent_weight.shape
    if array.shape[-1] != shape[1]:
        raise ShapeError(
            f"{prefix}hidden has shape {array.shape}, expected (..., {shape[1]}) as {prefix}weight has shape {shape}"
        )
    biases = None if bias is None else lend_floats(bias, f"{prefix}bias")
    if biases is not None and biases.shape != (shape[0],):
        raise ShapeError(
            f"{prefix}bias has shape {biases.shape}, expected ({shape[0]},): one for each row of the weights"
        )
    side = {
        "hidden": array,
        "hidden_element": element,
        "weight": lent_weight,
        "weight_element": weight_element,
        "bias": biases,
        "logit_scale": logit_scale,
        "softcap": softcap,
        "vocab_size": None if vocab_size is None else check_count(vocab_size, "vocab_size"),
    }
    return adapter, side, ids, array.shape[:-1]


def _lend_weight(weight: Any, name: str) -> Any:
    """Lends weights of two axes."""
    if isinstance(weight, PackedHead):
        raise DTypeError(f"{name} is a PackedHead, expected an array of weights")
    lent = adapter_of(weight).lend(weight, name)
    if lent.array.ndim != 2:
        raise ShapeError(f"{name} has shape {lent.array.shape}, expected (vocab, width)")
    return lent

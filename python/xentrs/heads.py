"""What the functions on heads take: weights as they lie or packed, and a call of the loss that can be run both ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from xentrs import _xentrs
from xentrs.adapters.numpy import Lent
from xentrs.arguments import align, check_count, lend_beside, lend_floats, lend_ids
from xentrs.dispatch import Adapter, adapter_of, backend
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
        _check_rows(weight, "weight")
        array, element = _check_axes(lend_to_kernels(weight, "weight"), "weight")[:2]
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

    def __deepcopy__(self, memo: Any) -> PackedHead:
        """Itself: nothing can change it."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuses: a saved file is the place for the weights themselves."""
        raise DTypeError("a PackedHead cannot be pickled or saved: save its weights, and pack them again")

    def __repr__(self) -> str:
        return f"PackedHead(shape={self.shape}, dtype={self.dtype}, byte_count={self.byte_count})"


@dataclass(frozen=True)
class LossCall:
    """A checked call of `linear_cross_entropy`, as an engine takes it."""

    engine: Any
    side: dict[str, Any]
    ids: Any
    settings: dict[str, Any]
    label_smoothing: float
    z_loss: float

    def forward(self) -> dict[str, Any]:
        """Each row's loss, their sum and mean, and what the backward is made from."""
        return self._run(self.engine.linear_loss)

    def forward_only(self) -> dict[str, Any]:
        """The same where no backward follows, and an engine may have a way that keeps less."""
        return self._run(getattr(self.engine, "linear_loss_only", self.engine.linear_loss))

    def _run(self, linear_loss: Any) -> dict[str, Any]:
        columns: dict[str, Any] = linear_loss(
            self.side,
            self.ids,
            self.settings,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            class_weights=None,
        )
        return columns

    def backward(
        self,
        likelihoods: Any,
        upstream: Any,
        wanted: tuple[bool, ...],
        filter_eps: float | None,
        orders_vocabulary: bool,
    ) -> list[Any]:
        """The wanted gradients of hidden states, weights and bias, flat; the extension's bfloat16 as uint16."""
        gradients: list[Any] = self.engine.linear_gradients(
            self.side,
            self.ids,
            self.settings,
            likelihoods,
            upstream,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            wanted=wanted,
            filter_eps=filter_eps,
            orders_vocabulary=orders_vocabulary,
        )
        return gradients


# The distance from 1 to the next number.
_EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


def check_filter(filter_eps: float | str, element: str) -> float:
    """The threshold of the backward's filter, from 0 to 1."""
    if filter_eps == "auto":
        return _EPS.get(element, 0.0) / 32
    if isinstance(filter_eps, bool) or not isinstance(filter_eps, int | float) or not 0 <= filter_eps <= 1:
        raise ParamError(f"filter_eps = {filter_eps!r}, expected None, 'auto' or a number from 0 to 1")
    return float(filter_eps)


class LentHead(NamedTuple):
    """One model's hidden states and head, lent."""

    adapter: Adapter
    engine: Any
    side: dict[str, Any]
    """What the engine takes."""
    ids: Any
    """Targets, flat."""
    shape: tuple[int, ...]
    """Of the rows."""

    @property
    def element(self) -> str:
        """float64 where hidden states or weights are, else float32."""
        elements = (self.side["hidden_element"], self.side["weight_element"])
        return "float64" if "float64" in elements else "float32"


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
    other: LentHead | None = None,
) -> LentHead:
    """Lends one model's arrays; those of the head have to lie where the hidden states do, and these where those of the
    other model, p, do.
    """
    adapter, near = adapter_of(hidden), f"{prefix}hidden"
    if other is None:
        lent = adapter.lend(hidden, near)
    else:
        of_other = Lent(other.side["hidden"], other.side["hidden_element"], other.engine)
        lent = lend_beside(hidden, near, of_other, "p_hidden")
    ids = None if targets is None else lend_ids(targets, "targets", lent, near)
    array, ids = align(lent.array, ids, shift, "hidden")
    if isinstance(weight, PackedHead):
        if lent.engine is not _xentrs:
            raise DTypeError(f"{prefix}weight is a PackedHead, which torch operations do not take: pass a tensor")
        lent_weight, weight_element, shape = weight._packed, weight.dtype, weight.shape
    else:
        head = _check_axes(lend_beside(weight, f"{prefix}weight", lent, near), f"{prefix}weight")
        lent_weight, weight_element, shape = head.array, head.element, tuple(head.array.shape)
    if array.shape[-1] != shape[1]:
        raise ShapeError(
            f"{near} has shape {tuple(array.shape)}, expected (..., {shape[1]}) as {prefix}weight has shape {shape}"
        )
    biases = None if bias is None else lend_floats(bias, f"{prefix}bias", lent, near)
    if biases is not None and tuple(biases.shape) != (shape[0],):
        raise ShapeError(
            f"{prefix}bias has shape {tuple(biases.shape)}, expected ({shape[0]},): one for each row of the weights"
        )
    side = {
        "hidden": array,
        "hidden_element": lent.element,
        "weight": lent_weight,
        "weight_element": weight_element,
        "bias": biases,
        "logit_scale": logit_scale,
        "softcap": softcap,
        "vocab_size": None if vocab_size is None else check_count(vocab_size, "vocab_size"),
    }
    return LentHead(adapter, lent.engine, side, ids, tuple(array.shape[:-1]))


GivenSide = tuple[Any, Any, Any, float, float | None]
"""One model of a pair: hidden states, weights, bias, factor and soft cap."""


def lend_sides(p: GivenSide, q: GivenSide, vocab_size: int | None, targets: Any = None) -> tuple[LentHead, LentHead]:
    """Lends both models of a pair; `targets` are both models'."""
    lent_p = lend_side(p[0], p[1], targets, 0, *p[2:], vocab_size, "p_")
    lent_q = lend_side(q[0], q[1], None, 0, *q[2:], vocab_size, "q_", lent_p)
    if lent_p.shape != lent_q.shape:
        raise ShapeError(f"q_hidden has rows {lent_q.shape}, expected {lent_p.shape} as p_hidden has")
    return lent_p, lent_q


def lend_to_kernels(values: Any, name: str) -> Lent:
    """Lends to the extension, whatever the backend; raises DTypeError for a tensor elsewhere than on the CPU."""
    with backend("auto"):
        lent = adapter_of(values).lend(values, name)
    if lent.engine is not _xentrs:
        raise DTypeError(f"{name} is on device {lent.device}, expected cpu: pass {name}.cpu()")
    return lent


def _check_rows(weight: Any, name: str) -> None:
    if isinstance(weight, PackedHead):
        raise DTypeError(f"{name} is a PackedHead, expected an array of weights")


def _check_axes(lent: Lent, name: str) -> Lent:
    """Weights of two axes."""
    if lent.array.ndim != 2:
        raise ShapeError(f"{name} has shape {tuple(lent.array.shape)}, expected (vocab, width)")
    return lent

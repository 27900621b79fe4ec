"""The head of a causal model: what it is, checked against the model's own logits.

In: a transformers model and hidden states. Out: a `Head`, whose weights are the model's own, never a copy of them: on
the CPU `xentrs.linear_row_stats` takes hidden rows and weights as they are, and no logits exist. Elsewhere, and for
callers that want them, `Head.logits` makes rows of float32 logits, never rounded to 16 bits. Scale and softcap are read
from the configuration and then checked: a head that does not reproduce the model's logits is not used.

A float32 product of a few hundred terms is off by up to 5e-5 where logits reach 30: of the 18,447 tokens of examples/
one has an nll off by more than 2e-5 (SmolLM2-135M). So hidden states that meet float32 weights on the CPU are widened
to float64, the weights only as they pass through the cache: nll within 1e-13 for the same hidden states. It costs the
head between a sixth more and twice the time, a run up to about an eighth. 16-bit hidden states and weights stay as they
are: their products are exact in float32, their sums are rounded as float32 sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

import xentrs
from xentrs.models.runner import LinearHead

_SOFTCAP_NAMES = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "logit_softcap")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, eq=False)
class Head(LinearHead):
    """A `LinearHead` over the model's own tensors.

    The weights are not a `xentrs.PackedHead`: over examples/ with SmolLM2-135M in bfloat16 packing took the head from
    3.7 to 3.1 s beside 21.0 s in the body, 2 % of a run, for a second copy of the weights.
    """

    @property
    def on_cpu(self) -> bool:
        """Whether `xentrs.linear_row_stats` can read it."""
        return bool(self.weight.device.type == "cpu")

    def operand(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states in the type to multiply them in; float64 where the weights are float32, see the module."""
        return hidden.double() if self._dtype == torch.float64 else hidden

    def logits(self, hidden_rows: torch.Tensor) -> torch.Tensor:
        """`(rows, width)` in any float dtype to `(rows, vocab)` float32. The first call may copy weights and bias to
        the dtype of the product and keeps them.
        """
        logits = torch.nn.functional.linear(hidden_rows.to(self._dtype), *self._wide)
        return _finish(logits, self.logit_scale, self.softcap).float()

    @property
    def _dtype(self) -> torch.dtype:
        """What `logits` multiplies in: not float64 on other devices, where it is many times slower."""
        wide = self.on_cpu and self.weight.dtype in (torch.float32, torch.float64)
        return torch.float64 if wide else torch.float32

    @cached_property
    def _wide(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias in `_dtype`."""
        return self.weight.to(self._dtype), None if self.bias is None else self.bias.to(self._dtype)


def find_head(model: Any, hidden: torch.Tensor, expected_logits: torch.Tensor) -> Head | None:
    """The head that turns `hidden` into the model's own `expected_logits`; None when no known form does."""
    layer = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, torch.nn.Linear) or weight is None or weight.shape[1] != hidden.shape[-1]:
        return None
    if weight.dtype not in _FLOATS or hidden.dtype not in _FLOATS:
        return None
    weight, bias = weight.detach(), None if layer.bias is None else layer.bias.detach()
    # In the model's own dtype: the check then needs no copy of the weights. A wrong scale or a missing softcap is far
    # outside what rounding to 16 bits does.
    tolerance = 1e-4 if expected_logits.dtype == torch.float32 else 2e-2
    expected = expected_logits.float()
    product = torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias).float()
    if product.shape != expected.shape:
        return None
    scale = expected.abs().max().clamp_min(1e-30)
    for logit_scale, softcap in _candidates(model):
        logits = _finish(product.clone(), logit_scale, softcap)
        if bool(((logits - expected).abs().max() / scale) <= tolerance):
            head = Head(weight, bias, logit_scale, softcap)
            return replace(head, isa=_isa(head, hidden))
    return None


def _finish(logits: torch.Tensor, logit_scale: float, softcap: float | None) -> torch.Tensor:
    """Scale and softcap, in place."""
    if logit_scale != 1.0:
        logits.mul_(logit_scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def _isa(head: Head, hidden: torch.Tensor) -> str:
    """What makes the statistics of this head."""
    if not head.on_cpu:
        return xentrs.isa()
    row = head.operand(hidden.reshape(-1, hidden.shape[-1])[:1])
    # Sixteen rows of the weights are enough to ask.
    return xentrs.linear_row_stats(row, head.weight[:16]).isa


def _candidates(model: Any) -> Iterator[tuple[float, float | None]]:
    """Scales and softcaps to try, the likeliest first.

    Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`.
    """
    config = model.config.get_text_config()
    scales = [1.0]
    if (value := _number(config, "lm_head_multiplier")) is not None:
        scales.insert(0, value)
    if value := _number(config, "logits_scaling"):
        scales[:0] = [1.0 / value, value]
    if (value := _number(config, "logit_scale")) is not None:
        scales.insert(0, value)
    # Others than these `linear_row_stats` refuses.
    scales = [scale for scale in scales if math.isfinite(scale) and scale != 0]
    found = [_number(config, name) for name in _SOFTCAP_NAMES]
    softcaps: list[float | None] = [value for value in found if value and 0 < value < math.inf]
    for softcap in [*softcaps, None]:
        for scale in scales:
            yield scale, softcap


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else None

"""The head of a causal model: hidden rows to float32 logits.

In: a transformers model and hidden states. Out: `(rows, vocab)` float32 logits, never rounded to 16 bits. One
copy of weight and bias is kept in the dtype of the product: float32 for 16-bit models, float64 for float32
models on the CPU. A float32 product of a few hundred terms is off by up to 5e-5 where logits reach 30, which
shows in a token's nll (2.4e-5 was seen); float64 products, rounded once, stay below 2e-6 and cost about the
same time. Scale and softcap are read from the configuration and then checked against the model's own logits:
a head that does not reproduce them is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

_SOFTCAP_NAMES = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "logit_softcap")


@dataclass(frozen=True)
class Head:
    """z = softcap(logit_scale * (hidden . weight + bias)), in the dtype of `weight`, `(vocab, width)`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    logit_scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_rows: torch.Tensor) -> torch.Tensor:
        """`(rows, width)` in any float dtype to `(rows, vocab)` float32."""
        logits = torch.nn.functional.linear(hidden_rows.to(self.weight.dtype), self.weight, self.bias)
        if self.logit_scale != 1.0:
            logits.mul_(self.logit_scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits.float()


def find_head(model: Any, hidden: torch.Tensor, expected_logits: torch.Tensor) -> Head | None:
    """The head that turns `hidden` into the model's own `expected_logits`; None when no known form does."""
    layer = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, torch.nn.Linear) or weight is None or weight.shape[1] != hidden.shape[-1]:
        return None
    # Not on other devices, where float64 is many times slower.
    exact = weight.dtype == torch.float32 and weight.device.type == "cpu"
    dtype = torch.float64 if exact else torch.float32
    bias = layer.bias.detach().to(dtype) if layer.bias is not None else None
    weight_kept = weight.detach().to(dtype)
    # The model's logits may be rounded to 16 bits; a wrong scale or a missing softcap is far outside that.
    tolerance = 1e-4 if expected_logits.dtype == torch.float32 else 2e-2
    expected = expected_logits.float()
    for logit_scale, softcap in _candidates(model):
        head = Head(weight_kept, bias, logit_scale, softcap)
        logits = head.logits(hidden)
        if logits.shape == expected.shape:
            scale = expected.abs().max().clamp_min(1e-30)
            if bool(((logits - expected).abs().max() / scale) <= tolerance):
                return head
    return None


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
    found = [_number(config, name) for name in _SOFTCAP_NAMES]
    softcaps: list[float | None] = [value for value in found if value]
    for softcap in [*softcaps, None]:
        for scale in scales:
            yield scale, softcap


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else None

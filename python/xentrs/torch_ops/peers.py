"""Kernels of other packages for CUDA, used only where they are installed and where what they promise is enough."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from xentrs.torch_ops.blocks import Rows, Span, spread
from xentrs.torch_ops.checks import Targets


def cut_loss(source: Any, targets: Targets, rows: int) -> dict[str, Any] | None:
    """The plain loss of bfloat16 hidden states by `cut_cross_entropy` (arXiv 2411.09009), whose logits are float32 and
    never stored; None where it cannot be had.

    nll is lse less the target's logit there: a float32 difference, set to 0 where rounding leaves it below.
    """
    hidden = source.hidden.take(Span(0, min(source.rows, 1)), Span(0, source.width))
    is_bfloat16 = hidden.dtype == source.weight.dtype == torch.bfloat16
    if not is_bfloat16 or hidden.device.type != "cuda" or not (source.rows and source.width and source.vocab):
        return None
    if importlib.util.find_spec("cut_cross_entropy") is None:
        return None
    nll = _cut_nll(source.hidden, source, targets.columns).double().clamp(min=0.0)
    loss = spread(nll, targets.counted, rows, 0.0)
    return {"loss": loss, "token_count": targets.token_count, "sum": nll.sum(), "mean": nll.mean()}


def _cut_nll(hidden: Rows, source: Any, columns: Tensor) -> Tensor:
    """Its only option without a reduction of its own; it wants contiguous hidden states."""
    call = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    states = hidden.take(Span(0, source.rows), Span(0, source.width)).contiguous()
    result: Tensor = call(states, source.weight, columns, softcap=source.softcap, reduction="none", filter_eps=None)
    return result

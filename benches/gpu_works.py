"""The works of gpu.py: for each the calls of xentrs and of its peers, and the float64 truth of the first rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import xentrs as xe
from measure import Tool
from works import CHECKED_ROWS, FLOAT32_TOLERANCE, compiled, float32_safe_nll, min_k_plus_plus, score_of, torch_kl

FEW = slice(CHECKED_ROWS)
# What a row's nll may be off where torch rounds logits or log-probabilities below 32 to the dtype, twice.
ROUNDED = {"bfloat16": 0.25, "float32": 1e-3}
# What a derivative may be off, which is below 1, where only it is rounded; and a head's gradient, of the largest.
DERIVATIVE, GRADIENT = {"bfloat16": 2.0**-8, "float32": 1e-5}, {"bfloat16": 0.05, "float32": 1e-3}


@dataclass(frozen=True)
class Inputs:
    """Logits, or hidden states and a head; targets."""

    dtype: str
    shape: tuple[int, ...]
    x: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor

    def leaves(self) -> list[torch.Tensor]:
        """What gradients are taken by."""
        return [self.x] if len(self.shape) == 2 else [self.x, self.weight]

    def tool(self, name: str, call: Callable[..., Any], expected: torch.Tensor, tolerance: float, **more: Any) -> Tool:
        """A tool whose first rows are held to `expected`."""
        return Tool(name, call, self.shape[0], 0, expected=expected, tolerance=tolerance, **more)

    def gradient_tool(self, name: str, loss: Callable[..., Any], expected: torch.Tensor, tolerance: float) -> Tool:
        """Forward and backward of a mean loss of the leaves."""

        def call() -> torch.Tensor:
            for leaf in self.leaves():
                leaf.grad = None
            loss(*self.leaves()).backward()
            assert self.x.grad is not None
            return self.x.grad

        rows = self.shape[0]
        return self.tool(name, call, expected, tolerance, answer=lambda x: x[FEW].double() * rows, may_fail=True)


def make_inputs(shape: tuple[int, ...], dtype: str, device: str, seed: int = 0, gradient: bool = False) -> Inputs:
    """Draws inputs by blocks of rows, so that no float32 copy of the whole is made."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(rows: int, columns: int, deviation: float) -> torch.Tensor:
        values = torch.empty(rows, columns, dtype=getattr(torch, dtype), device=device)
        for block in torch.split(values, 256):
            block.copy_(torch.randn(block.shape, generator=generator, device=device).mul_(deviation))
        return values.requires_grad_(gradient)

    rows, vocab = shape[0], shape[-1]
    targets = torch.randint(vocab, (rows,), generator=generator, device=device)
    is_head = len(shape) == 3
    x = draw(rows, shape[1], shape[1] ** -0.5 if is_head else 3.0)
    return Inputs(dtype, shape, x, draw(vocab, shape[1], 3.0) if is_head else x, targets)


def exact_logits(inputs: Inputs) -> torch.Tensor:
    """The first rows of the logits in float64, of the stored numbers."""
    x = inputs.x[FEW].detach().double()
    if len(inputs.shape) == 2:
        return x
    return torch.cat([x @ block.detach().double().T for block in torch.split(inputs.weight, 8192)], -1)


def exact_gradient(inputs: Inputs) -> torch.Tensor:
    """The gradient of the first rows' summed nll by their logits, or by their hidden states."""
    slopes = exact_logits(inputs).softmax(-1)
    slopes[torch.arange(len(slopes)), inputs.targets[FEW]] -= 1
    if len(inputs.shape) == 2:
        return slopes
    pairs = zip(torch.split(slopes, 8192, -1), torch.split(inputs.weight, 8192), strict=True)
    return torch.stack([slope @ block.detach().double() for slope, block in pairs]).sum(0)


def forward(inputs: Inputs) -> list[Tool]:
    """The nll of each row of logits."""
    x, t, loose = inputs.x, inputs.targets, ROUNDED[inputs.dtype]
    nll = F.cross_entropy(exact_logits(inputs), t[FEW], reduction="none")
    plain = lambda x: F.cross_entropy(x, t, reduction="none")  # noqa: E731
    in_graph, safe = compiled(plain), compiled(float32_safe_nll)
    tools = [
        ("xe.cross_entropy", lambda: xe.cross_entropy(x, t, reduction="none"), FLOAT32_TOLERANCE),
        ("torch cross_entropy", lambda: plain(x), loose),
        ("torch.compile cross_entropy", lambda: in_graph(x), loose),
        ("torch.compile log_softmax(x.float())", lambda: safe(x, t), FLOAT32_TOLERANCE),
    ]
    return [
        inputs.tool(name, call, nll, limit, answer=torch.Tensor.double, may_fail=True) for name, call, limit in tools
    ]


def backward(inputs: Inputs) -> list[Tool]:
    """The mean loss of logits and its gradient."""
    t, tight = inputs.targets, DERIVATIVE[inputs.dtype]
    expected = exact_gradient(inputs)
    plain = lambda x: F.cross_entropy(x, t)  # noqa: E731
    safe = lambda x: F.cross_entropy(x.float(), t)  # noqa: E731
    tools = [
        ("xe.cross_entropy", lambda x: xe.cross_entropy(x, t), tight),
        ("torch cross_entropy", plain, ROUNDED[inputs.dtype]),
        ("torch.compile cross_entropy", compiled(plain), ROUNDED[inputs.dtype]),
        ("torch.compile cross_entropy(x.float())", compiled(safe), 2 * tight),
    ]
    return [inputs.gradient_tool(name, loss, expected, limit) for name, loss, limit in tools]


def row_statistics(inputs: Inputs) -> list[Tool]:
    """All statistics, against the Min-K%++ formula in float32."""
    x, t = inputs.x, inputs.targets
    score, formula = min_k_plus_plus(exact_logits(inputs), t[FEW]), compiled(min_k_plus_plus)
    tools: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
        ("xe.row_stats", lambda: xe.row_stats(x, t), score_of),
        ("torch Min-K%++ formula", lambda: min_k_plus_plus(x, t), torch.Tensor.double),
        ("torch.compile Min-K%++ formula", lambda: formula(x, t), torch.Tensor.double),
    ]
    limit = 10 * FLOAT32_TOLERANCE
    return [inputs.tool(name, call, score, limit, answer=answer, may_fail=True) for name, call, answer in tools]


def kl(inputs: Inputs) -> list[Tool]:
    """KL of two inputs of this shape."""
    p, q = inputs.x, make_inputs(inputs.shape, inputs.dtype, str(inputs.x.device), seed=1).x
    expected, in_graph = torch_kl(p[FEW].double(), q[FEW].double()), compiled(torch_kl)
    calls: dict[str, Callable[[], Any]] = {
        "xe.kl_divergence": lambda: xe.kl_divergence(p, q),
        "torch kl_div": lambda: torch_kl(p, q),
        "torch.compile kl_div": lambda: in_graph(p, q),
    }
    more: dict[str, Any] = {"answer": torch.Tensor.double, "may_fail": True}
    return [inputs.tool(name, call, expected, 10 * FLOAT32_TOLERANCE, **more) for name, call in calls.items()]


def head_losses(reduction: str, targets: torch.Tensor) -> dict[str, Callable[..., Any]]:
    """The loss of hidden states and a head, in all ways that are installed."""

    def linear(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(h, w).float(), targets, reduction=reduction)

    losses: dict[str, Callable[..., Any]] = {
        "xe.linear_cross_entropy": lambda h, w: xe.linear_cross_entropy(h, w, targets, reduction=reduction),
        "torch F.linear + cross_entropy": linear,
        "torch.compile of the same": compiled(linear),
    }
    if hasattr(F, "linear_cross_entropy"):
        losses["torch F.linear_cross_entropy"] = lambda h, w: F.linear_cross_entropy(h, w, targets, reduction=reduction)
    with suppress(ImportError):
        cut = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        losses["cut-cross-entropy"] = lambda h, w: cut(h, w, targets, reduction=reduction)
    return losses


def head(inputs: Inputs) -> list[Tool]:
    """The nll of each row of a head."""
    nll = F.cross_entropy(exact_logits(inputs), inputs.targets[FEW], reduction="none")
    more: dict[str, Any] = {"answer": torch.Tensor.double, "may_fail": True}

    def limit_of(name: str) -> float:
        return ROUNDED["float32" if name.startswith("xe") else inputs.dtype]  # products of ours stay float32

    return [
        inputs.tool(name, lambda loss=loss: loss(inputs.x, inputs.weight), nll, limit_of(name), **more)
        for name, loss in head_losses("none", inputs.targets).items()
    ]


def head_backward(inputs: Inputs) -> list[Tool]:
    """The mean loss of a head and its gradients; that of the hidden states is checked."""
    expected = exact_gradient(inputs)
    limit = GRADIENT[inputs.dtype] * float(expected.abs().max())
    losses = head_losses("mean", inputs.targets)
    return [inputs.gradient_tool(name, loss, expected, limit) for name, loss in losses.items()]


WORKS: dict[str, Callable[[Inputs], list[Tool]]] = {
    "forward": forward,
    "backward": backward,
    "statistics": row_statistics,
    "kl": kl,
    "head": head,
    "head-backward": head_backward,
}

"""Divergences of two arrays of logits as operators: KL and Jensen-Shannon.

A backward reads both arrays once more (Jensen-Shannon twice) and writes the gradients that are wanted.
"""

from __future__ import annotations

from typing import Any

import torch

from xentrs.arguments import Reduction
from xentrs.divergences import lend_pair
from xentrs.torch_operators.define import are_tensors, differentiable, keep, operator
from xentrs.torch_operators.tensors import fake_place_like, lend, place_like, result_dtype, upstream_of

_SETTINGS = "bool is_js, bool log_probs, float temperature, int? num_threads"


def divergence(p: torch.Tensor, q: torch.Tensor, is_js: bool, log_probs: bool, *known: Any) -> tuple[Any, Any]:
    """Each row's `xentrs.js_divergence` or `xentrs.kl_divergence`, and flags; `known` are temperature and threads."""
    values, flags, _ = _divergence(p, q, is_js, log_probs, *known)
    return values, flags


def finish(
    values: torch.Tensor, flags: torch.Tensor, reduction: Reduction, return_flags: bool
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Takes from the rows' values what the caller asked for."""
    if reduction != "none":
        total = values.sum(dtype=torch.float64)
        values = (total if reduction == "sum" else total / values.numel()).to(values.dtype)
    return (values, flags) if return_flags else values


def _forward(
    p_logits: torch.Tensor, q_logits: torch.Tensor, is_js: bool, log_probs: bool, temperature: float, num_threads: Any
) -> tuple[torch.Tensor, ...]:
    adapter, p, q = lend_pair(p_logits, q_logits)
    engine, arrays = p.engine, (p.array, q.array, p.element)
    if is_js:
        found = engine.js_divergence(*arrays, temperature=temperature, num_threads=num_threads)
    else:
        found = engine.kl_divergence(*arrays, temperature=temperature, log_probs=log_probs, num_threads=num_threads)
    values, flags, scales = (adapter.wrap(column) for column in found)
    # The gradient needs the divergence unrounded.
    saved = torch.cat([scales, values])
    rows = p_logits.shape[:-1]
    return adapter.wrap_differentiable(values.reshape(rows), p.element), flags.reshape(rows), saved


def _fake(p_logits: torch.Tensor, q_logits: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
    values = p_logits.new_empty(p_logits.shape[:-1], dtype=result_dtype(p_logits, q_logits))
    saved = values.new_empty((values.numel() * 5,), dtype=torch.float64)
    return values, torch.empty_like(values, dtype=torch.uint8), saved


def _backward(
    gradient: torch.Tensor,
    p_logits: torch.Tensor,
    q_logits: torch.Tensor,
    saved: torch.Tensor,
    wants_p: bool,
    wants_q: bool,
    is_js: bool,
    temperature: float,
    num_threads: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    _, p, q = lend_pair(p_logits, q_logits)
    # Arrays of two dtypes were both copied to the wider one; so are their gradients, until they are returned.
    dtype = getattr(torch, p.element)
    places = [place_like(p_logits, dtype) if wanted else None for wanted in (wants_p, wants_q)]
    rows = gradient.numel()
    arguments = [lend(saved[: rows * 4], "scales"), lend(upstream_of(gradient, "none", rows), "upstream")]
    arguments += [None if place is None else lend(place, "out") for place in places]
    arrays, known = (p.array, q.array, p.element), {"temperature": temperature, "num_threads": num_threads}
    if is_js:
        p.engine.js_gradients(*arrays, *arguments, **known)
    else:
        p.engine.kl_gradients(*arrays, lend(saved[rows * 4 :], "values"), *arguments, **known)
    found = [
        gradient.new_empty(0) if place is None else place.to(logits.dtype)
        for place, logits in zip(places, (p_logits, q_logits), strict=True)
    ]
    return found[0], found[1]


def _backward_fake(
    gradient: torch.Tensor, p: torch.Tensor, q: torch.Tensor, saved: torch.Tensor, wants_p: bool, wants_q: bool, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    sides = ((p, wants_p), (q, wants_q))
    found = [fake_place_like(side) if wanted else gradient.new_empty(0) for side, wanted in sides]
    return found[0], found[1]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    p_logits, q_logits, ctx.is_js, _, *ctx.settings = inputs
    keep(ctx, p_logits, q_logits, output[2])


def _differentiate(ctx: Any, saved: list[Any], gradient: torch.Tensor) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[:2]
    backward: Any = _backward_operator if are_tensors(saved) else _backward
    found = backward(gradient, *saved, *wanted, ctx.is_js, *ctx.settings)
    return (*(value if wants else None for value, wants in zip(found, wanted, strict=True)), *(None,) * 4)


_backward_operator = operator(
    "divergence_backward(Tensor gradient, Tensor p_logits, Tensor q_logits, Tensor saved, bool wants_p, bool wants_q, "
    "bool is_js, float temperature, int? num_threads) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)
_divergence = differentiable(
    f"divergence(Tensor p_logits, Tensor q_logits, {_SETTINGS}) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    _keep,
    _differentiate,
)

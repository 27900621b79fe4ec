"""Functions of tensors in graphs: `torch.compile` without a break, `torch.export`, and what both know beforehand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import xentrs as xe
import xentrs.torch_operators  # registers every operator
from test_operators import CASES, ROWS, SEED, TARGETS, VOCAB, draw, head, heads, logits, pair
from torch import Tensor
from torch.nn import functional


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("packed")])
def test_a_graph_without_a_break_equals_the_direct_call(case: str) -> None:
    function, given = CASES[case]

    def model(*values: Tensor) -> Tensor:
        return (function(*(value * 1.5 for value in values)) * 2).sum()

    direct, compiled = ([value.requires_grad_() for value in given()] for _ in range(2))
    expected = model(*direct)
    expected.backward()
    got = torch.compile(model, fullgraph=True)(*compiled)
    got.backward()
    torch.testing.assert_close(got, expected)
    for left, right in zip(compiled, direct, strict=True):
        torch.testing.assert_close(left.grad, right.grad)


BESIDE: dict[str, Any] = {"moments": True, "renyi_orders": (0.5, 2.0), "inverse_temperatures": [0.5, 1.0]}


def beside(stats: xe.RowStats) -> Tensor:
    grid: Any = stats.temperature_grid
    moments = torch.stack([stats.log_prob_mean, stats.log_prob_variance, grid.flags], -1)
    return torch.cat([moments, stats.renyi_entropy, grid.lse, grid.nll, grid.variance], -1)


PLAIN: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "row_stats": lambda x, y, w: (s := xe.row_stats(x, TARGETS, top_k=2)).nll + s.top_log_probs.sum(-1) + s.rank,
    "shift": lambda x, y, w: xe.row_stats(targets=TARGETS.reshape(2, 2), logits=x.reshape(2, 2, VOCAB), shift=1).nll,
    "soft_cross_entropy": lambda x, y, w: xe.soft_cross_entropy(
        x, torch.zeros(ROWS, 1, dtype=torch.int64), torch.ones(ROWS, 1)
    ),
    "divergences": lambda x, y, w: (d := xe.divergences(x, y)).kl_divergence + d.cross_varentropy,
    "top_k_kl_divergence": lambda x, y, w: xe.top_k_kl_divergence(
        torch.zeros(ROWS, 1, dtype=torch.int64), torch.full((ROWS, 1), -1.0), y, reduction="mean"
    ),
    "temperature_grid": lambda x, y, w: xe.temperature_grid(x, [0.5, 1.0], TARGETS).nll,
    "renyi_entropy": lambda x, y, w: xe.renyi_entropy(x, [2.0]),
    "log_prob_moments": lambda x, y, w: xe.log_prob_moments(x).variance,
    "linear_row_stats": lambda x, y, w: xe.linear_row_stats(x, w, TARGETS).entropy,
    "beside-row_stats": lambda x, y, w: beside(xe.row_stats(x, TARGETS, **BESIDE)),
    "beside-linear_row_stats": lambda x, y, w: beside(xe.linear_row_stats(x, w, TARGETS, **BESIDE)),
    "beside-shift": lambda x, y, w: beside(xe.row_stats(x.reshape(2, 2, VOCAB), shift=1, **BESIDE)),
    "linear_divergences": lambda x, y, w: (
        (d := xe.linear_divergences(x, w, y, w, q_bias=w[:, 0])).cross_entropy + d.flags
    ),
    "linear_expected_embedding": lambda x, y, w: xe.linear_expected_embedding(x, w),
    "linear_target_logits": lambda x, y, w: xe.linear_target_logits(x, w, TARGETS),
}


class Model(torch.nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor, w: Tensor) -> Any:
        return self.function(x * 1.5, y, w)


@pytest.mark.parametrize("name", PLAIN)
def test_functions_without_a_backward_compile_and_export(name: str) -> None:
    model, given = Model(PLAIN[name]), (*pair(), draw(5, 11, VOCAB))
    expected = model(*given)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(*given), expected, equal_nan=True)
    for strict in (False, True):
        exported = torch.export.export(model, given, strict=strict)
        assert any("xentrs" in str(node.target) for node in exported.graph.nodes)
        torch.testing.assert_close(exported.module()(*given), expected, equal_nan=True)


def test_a_loss_exports_with_any_number_of_rows() -> None:
    class Loss(torch.nn.Module):
        def forward(self, x: Tensor, targets: Tensor) -> Tensor:
            return xe.cross_entropy(x * 2, targets)

    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(Loss(), (*logits(), TARGETS), dynamic_shapes=({0: rows}, {0: rows}))
    more, ids = draw(1, 9, VOCAB), torch.arange(9) % VOCAB
    torch.testing.assert_close(exported.module()(more, ids), xe.cross_entropy(more * 2, ids))


def test_a_compiled_loss_takes_other_shapes_and_raises_for_targets_outside() -> None:
    compiled = torch.compile(lambda x, targets: xe.cross_entropy(x, targets), fullgraph=True)
    for rows in (2, 3, 5):
        x, targets = draw(1, rows, VOCAB).requires_grad_(), torch.zeros(rows, dtype=torch.int64)
        torch.testing.assert_close(compiled(x, targets), functional.cross_entropy(x, targets))
    with pytest.raises(xe.TargetError, match=r"targets\[1\] = 7 is outside \[0, 7\)"):
        compiled(draw(1, 2, VOCAB), torch.tensor([0, VOCAB]))


class LanguageModel(torch.nn.Module):
    """Embedding, a layer and a tied head; the tokens themselves are the targets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.words, self.layer = torch.nn.Embedding(300, 16), torch.nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.layer(self.words(tokens)))
        return xe.linear_cross_entropy(hidden, self.words.weight, tokens, shift=1)


def test_a_language_model_trains_alike_compiled_and_not() -> None:
    """Batches of several lengths; sums of the layer may take another order in a graph."""
    models = [LanguageModel() for _ in range(2)]
    steps = [models[0], torch.compile(models[1], fullgraph=True, dynamic=True)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5) for model in models]
    for length in (5, 9, 7, 9):
        tokens = torch.from_numpy(np.random.default_rng([SEED, length]).integers(0, 300, (3, length)))
        losses = []
        for step, optimizer in zip(steps, optimizers, strict=True):
            optimizer.zero_grad()
            loss = step(tokens)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses)
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, two)


IDS = torch.arange(ROWS)
KNOWN = (-100, 1.0, None, None, None)
OPERATORS: dict[str, tuple[Any, ...]] = {
    "cross_entropy": (*logits(), IDS, None, "mean", 0.1, 0.1, *KNOWN),
    "logsumexp": (*logits(), *KNOWN),
    "entropy": (*logits(), *KNOWN),
    "divergence": (*pair(), False, False, 1.0, None),
    "linear_cross_entropy": (*head(), IDS, "none", 1.0, None, None, 0.0, 0.0, -100, 1.0, None, None, False),
    "linear_kl_divergence": (*heads(), 1.0, None, 1.0, None, None, 1.0, None),
    "row_stats": (*logits(), IDS),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("requires", [True, False])
def test_operators_are_what_torch_expects(name: str, requires: bool) -> None:
    """Its own checks: schema, registrations, fakes, and a graph with dynamic shapes."""
    given = [
        value.clone().requires_grad_(requires and name != "row_stats")
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for value in OPERATORS[name]
    ]
    torch.library.opcheck(getattr(torch.ops.xentrs, name).default, tuple(given))


def test_counts_and_totals_are_known_after_a_graph_has_run() -> None:
    stats = torch.compile(lambda x: xe.row_stats(x, TARGETS), fullgraph=True)(*logits())
    direct = xe.row_stats(*logits(), TARGETS)
    assert (stats.token_count, stats.perplexity, stats.isa) == (3, direct.perplexity, "")


def test_schemas_have_the_defaults_of_the_functions() -> None:
    for name in PLAIN:
        if "shift" in name or "beside" in name:
            continue
        schema = getattr(torch.ops.xentrs, name).default._schema
        defaults = {
            argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()
        }
        public = inspect.signature(getattr(xe, name)).parameters
        for argument, value in defaults.items():
            default = public[argument].default
            # A function's list is a tuple, which nobody can change.
            assert (list(default) if isinstance(default, tuple) else default) == value, f"{name}({argument})"

"""What functions of tensors that are differentiated or compiled make of unusual arguments and surroundings."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xentrs as xe
import xentrs.torch_operators  # registers every operator
from test_operators import BACKENDS, ROWS, TARGETS, VOCAB, draw, head, logits, pair
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

F32 = torch.float32


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint64])
def test_ids_of_any_integers(dtype: torch.dtype) -> None:
    """156 is -100 in a byte, and counts all the same."""
    x, ids = draw(1, 4, 300).requires_grad_(), torch.tensor([100, 3, 5, 7])
    if dtype not in (torch.int8,):
        ids[0] = 156
    if dtype == torch.uint8:
        counted = torch.compile(lambda z: xe.row_stats(z, ids.to(dtype)), fullgraph=True)(x.detach())
        assert counted.token_count == 4
    for call in (xe.cross_entropy, lambda z, t: xe.linear_cross_entropy(z, torch.eye(300, dtype=z.dtype), t)):
        (got,) = torch.autograd.grad(call(x, ids.to(dtype)), x)
        (expected,) = torch.autograd.grad(functional.cross_entropy(x, ids), x)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("ids", [torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool), [[0.5] * 4]], ids=str)
@pytest.mark.parametrize("shift", [0, 1])
def test_ids_that_are_no_integers(ids: Any, shift: int) -> None:
    for requires in (True, False):
        with pytest.raises(xe.DTypeError, match=r"targets has dtype .*, expected integers"):
            xe.cross_entropy(draw(1, 1, 4, VOCAB).requires_grad_(requires), ids, shift=shift)


def test_ids_beyond_int64_are_outside() -> None:
    ids = torch.full((1, 4), 2**64 - 100, dtype=torch.uint64)
    for shift in (0, 1):
        with pytest.raises(xe.TargetError):
            xe.cross_entropy(draw(1, 1, 4, VOCAB).requires_grad_(), ids, shift=shift)


@pytest.mark.parametrize("requires", [True, False])
def test_a_shift_is_checked(requires: bool) -> None:
    x, h, w = draw(1, VOCAB).requires_grad_(requires), draw(2, 3).requires_grad_(requires), draw(3, VOCAB, 3)
    calls: list[Callable[[Any], Any]] = [
        lambda shift: xe.cross_entropy(x, torch.tensor(3), shift=shift),
        lambda shift: xe.linear_cross_entropy(h, w, torch.tensor(3), shift=shift),
    ]
    for call in calls:
        with pytest.raises(xe.ShapeError, match=r"shift = 1 needs \w+ of shape \(..., length, \w+\)"):
            call(1)
        for shift, error in ((-1, xe.ParamError), (True, xe.DTypeError), (None, xe.DTypeError), (1.5, xe.DTypeError)):
            with pytest.raises(error, match="shift"):
                call(shift)
    with pytest.raises(xe.ParamError, match="ignore_index"):
        xe.cross_entropy(x[None], torch.tensor([3]), shift=1, ignore_index=2**63)


@pytest.mark.parametrize("shape", [(VOCAB, 1), (1, VOCAB), ()])
def test_class_weights_are_a_list(shape: tuple[int, ...]) -> None:
    for requires in (True, False):
        with pytest.raises(xe.ShapeError, match="weight has shape"):
            xe.cross_entropy(logits()[0].requires_grad_(requires), TARGETS, weight=torch.ones(shape))


def test_parameters_where_no_gradient_is_recorded() -> None:
    """An evaluation loop hands a layer's own weight and bias over."""
    layer, hidden = torch.nn.Linear(3, VOCAB), draw(1, ROWS, 3, dtype=F32)
    weights = torch.nn.Parameter(torch.ones(VOCAB))
    expected = functional.cross_entropy(layer(hidden), TARGETS).detach()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            loss = xe.linear_cross_entropy(hidden, layer.weight, TARGETS, bias=layer.bias)
            torch.testing.assert_close(loss, expected)
            stats = xe.linear_row_stats(hidden, layer.weight, TARGETS, bias=layer.bias)
            assert stats.mean_nll == pytest.approx(expected.item(), rel=1e-5)
            xe.cross_entropy(layer(hidden), TARGETS, weight=weights)
    with pytest.raises(xe.DTypeError, match=r"bias requires grad.*bias\.detach\(\)"):
        xe.linear_row_stats(hidden, layer.weight.detach(), TARGETS, bias=layer.bias)


@BACKENDS
def test_autocast_rounds_nothing(backend: str) -> None:
    hidden, weight, bias = (value.float().requires_grad_() for value in head(1, 64))
    expected = functional.cross_entropy(functional.linear(hidden, weight, bias), TARGETS)
    wanted = torch.autograd.grad(expected, (hidden, weight, bias))
    with xe.backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        loss = xe.linear_cross_entropy(hidden, weight, TARGETS, bias=bias)
        got = torch.autograd.grad(loss, (hidden, weight, bias))
        embedding = xe.linear_expected_embedding(hidden.detach(), weight.detach())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(got, wanted)
    exact = (hidden.double() @ weight.double().T).softmax(-1) @ weight.double()
    torch.testing.assert_close(embedding, exact.detach(), rtol=1e-5, atol=1e-5)


@BACKENDS
def test_far_from_0_at_a_low_temperature(backend: str) -> None:
    """Gradients are those of the logits' distances, wherever these lie; scaled logits would round by 1e-4."""
    x = (draw(1, 16, 500) + 100.0).float()
    ids = torch.arange(16)
    for function in (
        lambda z: xe.cross_entropy(z, ids, temperature=0.1),
        lambda z: xe.entropy(z, temperature=0.1).sum(),
    ):
        with xe.backend(backend):
            leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
            (got,) = torch.autograd.grad(function(leaf), leaf)
            (expected,) = torch.autograd.grad(function(wide), wide)
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@BACKENDS
def test_a_row_with_plus_infinity_has_no_gradient(backend: str) -> None:
    for function in (xe.entropy, xe.logsumexp):
        x = torch.tensor([[torch.inf, 0.0, 1.0], [0.0, 1.0, 2.0]], requires_grad=True)
        with xe.backend(backend):
            function(x).sum().backward()
        assert x.grad is not None
        assert x.grad.isnan().tolist() == [[True] * 3, [False] * 3]


def test_q_of_another_library() -> None:
    p, q = pair()
    leaf = p.clone().requires_grad_()
    got = torch.autograd.grad(xe.kl_divergence(leaf, q.numpy()).sum(), leaf)
    expected = torch.autograd.grad(xe.kl_divergence(leaf, q).sum(), leaf)
    assert torch.equal(got[0], expected[0])


def test_checkpoints_with_a_graph_of_the_gradient() -> None:
    x = logits()[0].requires_grad_()
    loss = checkpoint(lambda z: xe.cross_entropy(z * 2, TARGETS), x, use_reentrant=False)
    (got,) = torch.autograd.grad(loss, x, create_graph=True)
    (expected,) = torch.autograd.grad(functional.cross_entropy(x * 2, TARGETS), x)
    torch.testing.assert_close(got.detach(), expected)


def test_a_gradient_through_a_function_without_one_raises_also_in_a_graph() -> None:
    """`torch.compile` makes the backward with the forward, and so raises before."""
    x = logits()[0].requires_grad_()
    with pytest.raises(Exception, match=r"row_stats has no backward.*\.detach\(\)"):
        torch.compile(lambda z: xe.row_stats(z, TARGETS).nll.sum(), fullgraph=True)(x)
    with pytest.raises(xe.DTypeError, match=r"row_stats has no backward.*\.detach\(\)"):
        torch.ops.xentrs.row_stats(x)[0].sum().backward()
    with torch.no_grad():
        torch.compile(lambda z: xe.row_stats(z, TARGETS).nll.sum(), fullgraph=True)(x)

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, VOCAB)

        def forward(self, hidden: Tensor) -> Tensor:
            return xe.row_stats(self.layer(hidden).detach(), TARGETS).nll

    model, hidden = Scores(), draw(1, ROWS, 3, dtype=F32)
    program = torch.export.export(model, (hidden,)).run_decompositions()
    torch.testing.assert_close(program.module()(hidden), model(hidden))


def test_forward_mode_raises() -> None:
    x = logits()[0]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        for call in (xe.logsumexp, xe.row_stats, lambda z: xe.cross_entropy(z, TARGETS)):
            with pytest.raises(xe.DTypeError, match="carries a tangent"):
                call(dual)
        xe.logsumexp(x)


def test_graphs_that_are_traced() -> None:
    """No constant takes the place of a result, and tensors without values have the shapes of results."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    x = logits()[0]
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda z: xe.logsumexp(z),
        lambda z: xe.cross_entropy(z, TARGETS),
        lambda z: xe.row_stats(z, TARGETS).nll,
    ]
    for function in calls:
        traced = make_fx(function)(x)
        torch.testing.assert_close(traced(x + 1), function(x + 1), equal_nan=True)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert xe.logsumexp(fake).shape == (ROWS,)
        assert xe.row_stats(fake).entropy.shape == (ROWS,)


def test_packed_heads_in_graphs_and_copies() -> None:
    """The graph breaks there, and goes on behind it."""
    packed, weight = xe.PackedHead(head()[1]), head()[1]
    calls: list[Callable[[Tensor, Any], Tensor]] = [
        lambda h, w: xe.linear_cross_entropy(h, w, TARGETS),
        lambda h, w: xe.linear_kl_divergence(h, w, h * 2, w, reduction="mean"),
        lambda h, w: xe.linear_row_stats(h.detach(), w, TARGETS).nll.sum() + h.sum(),
        lambda h, w: xe.linear_expected_embedding(h.detach(), w).sum() + h.sum(),
        lambda h, w: xe.linear_divergences(h.detach(), w, -h.detach(), w).cross_entropy.sum() + h.sum(),
    ]
    for call in calls:
        results = []
        for function in (call, torch.compile(lambda h, w, call=call: call(h * 2, w) * 3, backend="aot_eager")):
            hidden = head()[0].requires_grad_()
            loss = function(hidden, packed) if function is not call else call(hidden * 2, weight) * 3
            results.append([loss.detach(), *torch.autograd.grad(loss, hidden)])
        torch.testing.assert_close(results[1], results[0])
    assert copy.deepcopy({"head": packed})["head"] is packed
    with pytest.raises(xe.DTypeError, match="cannot be pickled or saved"):
        pickle.dumps(packed)


def test_an_unknown_reduction_is_refused_in_a_graph_too() -> None:
    def call(q: Tensor) -> Any:
        ids, log_probs = torch.zeros(ROWS, 1, dtype=torch.int64), torch.full((ROWS, 1), -1.0)
        return xe.top_k_kl_divergence(ids, log_probs, q, reduction="foo")  # type: ignore[arg-type]

    for function in (call, torch.compile(call)):
        with pytest.raises(Exception, match="reduction = 'foo'"):
            function(logits()[0])


def test_results_are_saved_by_torch(tmp_path: Path) -> None:
    stats = xe.row_stats(logits()[0], TARGETS)
    torch.save({"nll": stats.nll, "ids": stats.top_ids, "log_probs": stats.top_log_probs}, tmp_path / "stats.pt")
    assert torch.equal(torch.load(tmp_path / "stats.pt")["nll"], stats.nll)
    again = pickle.loads(pickle.dumps(stats))
    assert (again.token_count, again.perplexity) == (stats.token_count, stats.perplexity)


@pytest.mark.parametrize("bias", [torch.ones(VOCAB).to_sparse(), torch.ones(VOCAB, dtype=torch.complex64)], ids=str)
def test_numbers_that_are_sparse_or_complex(bias: Tensor) -> None:
    with pytest.raises(xe.DTypeError, match="bias is"):
        xe.linear_row_stats(*head()[:2], bias=bias)


LOAD = """
import sys, torch, xentrs.torch_operators
module = torch.export.load(sys.argv[1]).module()
print(module(torch.zeros(2, 5), torch.tensor([0, 1])).item())
"""


def test_an_exported_program_loads_in_another_process(tmp_path: Path) -> None:
    class Loss(torch.nn.Module):
        def forward(self, x: Tensor, targets: Tensor) -> Tensor:
            return xe.cross_entropy(x, targets)

    program = torch.export.export(Loss(), (torch.zeros(2, 5), torch.tensor([0, 1])))
    torch.export.save(program, tmp_path / "loss.pt2")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "loss.pt2")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(ran.stdout) == pytest.approx(np.log(5), rel=1e-6)

"""Functions of tensors that are differentiated: gradients against central differences and against torch, what may not
be differentiated, and what a backward holds.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
import torch
import xentrs as xe
from torch import Tensor
from torch.nn import functional

SEED: Final = 20_251_128
ROWS, VOCAB, WIDTH = 4, 7, 3
Function = Callable[..., Tensor]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng([SEED, seed]).normal(0.0, 1.0, shape)).to(dtype)


TARGETS = torch.tensor([0, 3, -100, 6])
WEIGHT = draw(9, VOCAB).abs()
SETTINGS: Final[dict[str, Any]] = {"temperature": 0.7, "softcap": 3.0}
EVERY: Final[dict[str, Any]] = {**SETTINGS, "weight": WEIGHT, "label_smoothing": 0.2, "z_loss": 0.1}


def logits() -> list[Tensor]:
    return [draw(1, ROWS, VOCAB)]


def pair() -> list[Tensor]:
    return [draw(1, ROWS, VOCAB), draw(2, ROWS, VOCAB)]


def head(seed: int = 3, width: int = WIDTH) -> list[Tensor]:
    return [draw(seed, ROWS, width), draw(seed + 1, VOCAB, width), draw(seed + 2, VOCAB)]


def heads() -> list[Tensor]:
    return [*head(), *head(6, 2)]


def linear_kl(*given: Tensor, **known: Any) -> Any:
    p, q = given[:3], given[3:]
    return xe.linear_kl_divergence(*p[:2], *q[:2], p_bias=p[2], q_bias=q[2], **known)


FROZEN, HEADS = pair(), heads()
CASES: dict[str, tuple[Function, Callable[[], list[Tensor]]]] = {
    "logsumexp": (lambda x: xe.logsumexp(x, **SETTINGS), logits),
    "entropy": (lambda x: xe.entropy(x, **SETTINGS), logits),
    "padded": (lambda x: xe.cross_entropy(x, torch.tensor([0, 3, -100, 4]), vocab_size=5), logits),
    "negative": (lambda x: xe.logsumexp(x.T.flip(0).T), logits),
    "kl-of-q": (lambda q: xe.kl_divergence(FROZEN[0], q), logits),
    "js-of-p": (lambda p: xe.js_divergence(p, FROZEN[1]), logits),
    "frozen-hidden": (lambda w: xe.linear_cross_entropy(HEADS[0], w, TARGETS), lambda: [head()[1]]),
    "frozen-head": (lambda h: xe.linear_cross_entropy(h, HEADS[1], TARGETS), lambda: [head()[0]]),
    "bias-alone": (lambda b: xe.linear_cross_entropy(*HEADS[:2], TARGETS, bias=b), lambda: [head()[2]]),
    "packed-head": (
        lambda h: xe.linear_cross_entropy(h, xe.PackedHead(HEADS[1]), TARGETS),
        lambda: [head()[0]],
    ),
    "packed-teacher": (
        lambda h: xe.linear_kl_divergence(HEADS[0], xe.PackedHead(HEADS[1]), h, HEADS[4]),
        lambda: [head(6, 2)[0]],
    ),
    "student": (
        lambda h: xe.linear_kl_divergence(*HEADS[:2], h, HEADS[4]),
        lambda: [head(6, 2)[0]],
    ),
}
for reduction in ("none", "sum", "mean"):
    known: dict[str, Any] = {"reduction": reduction}
    CASES |= {
        f"cross-entropy-{reduction}": (lambda x, k=known: xe.cross_entropy(x, TARGETS, **k), logits),
        f"every-setting-{reduction}": (lambda x, k=known: xe.cross_entropy(x, TARGETS, **EVERY, **k), logits),
        f"shifted-{reduction}": (
            lambda x, k=known: xe.cross_entropy(x.reshape(2, 2, VOCAB), torch.tensor([[5, 1], [2, 3]]), shift=1, **k),
            logits,
        ),
        f"kl-{reduction}": (lambda p, q, k=known: xe.kl_divergence(p, q, temperature=0.7, **k), pair),
        f"js-{reduction}": (lambda p, q, k=known: xe.js_divergence(p, q, temperature=0.7, **k), pair),
        f"linear-kl-{reduction}": (
            lambda *g, k=known: linear_kl(*g, temperature=1.3, p_softcap=3.0, q_logit_scale=0.7, **k),
            heads,
        ),
        f"linear-{reduction}": (
            lambda h, w, b, k=known: xe.linear_cross_entropy(h, w, TARGETS, bias=b, softcap=3.0, **k),
            head,
        ),
    }
BACKENDS = pytest.mark.parametrize("backend", ["auto", "torch"])


@BACKENDS
@pytest.mark.parametrize("case", CASES)
def test_gradcheck_in_float64(case: str, backend: str) -> None:
    if case.startswith("packed") and backend == "torch":
        with xe.backend(backend), pytest.raises(xe.DTypeError, match="PackedHead"):
            CASES[case][0](*(value.requires_grad_() for value in CASES[case][1]()))
        return
    function, given = CASES[case]
    with xe.backend(backend):
        assert torch.autograd.gradcheck(function, [value.requires_grad_() for value in given()])


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_gradients_have_the_type_of_the_logits_and_losses_that_of_the_contract(
    dtype: torch.dtype, backend: str
) -> None:
    x = draw(1, ROWS, VOCAB, dtype=dtype).requires_grad_()
    with xe.backend(backend):
        losses = [xe.cross_entropy(x, TARGETS), xe.logsumexp(x).sum(), xe.entropy(x).sum()]
        losses += [xe.kl_divergence(x, x.detach().flip(0)).sum(), xe.js_divergence(x.detach().flip(0), x).sum()]
        for loss in losses:
            assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            (gradient,) = torch.autograd.grad(loss, x)
            assert (gradient.dtype, gradient.shape) == (dtype, x.shape)
        with torch.no_grad():
            assert [loss.item() for loss in losses[:2]] == [
                xe.cross_entropy(x, TARGETS).item(),
                xe.logsumexp(x).sum().item(),
            ]


def test_mixed_types_get_a_gradient_each_in_its_own() -> None:
    p, q = draw(1, ROWS, VOCAB, dtype=torch.bfloat16), draw(2, ROWS, VOCAB, dtype=torch.float32)
    got = torch.autograd.grad(xe.kl_divergence(p.requires_grad_(), q.requires_grad_()).sum(), (p, q))
    wide = [value.detach().double().requires_grad_() for value in (p, q)]
    expected = torch.autograd.grad(xe.kl_divergence(*wide).sum(), wide)
    assert [value.dtype for value in got] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(got[0].double(), expected[0], rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(got[1].double(), expected[1], rtol=1e-5, atol=1e-7)


def kl_of_heads(p_hidden: Tensor, p_weight: Tensor, q_hidden: Tensor, q_weight: Tensor) -> Tensor:
    """The definition."""
    p, q = ((hidden @ weight.T).log_softmax(-1) for hidden, weight in ((p_hidden, p_weight), (q_hidden, q_weight)))
    return (p.exp() * (p - q)).sum(-1).mean()


@pytest.mark.parametrize(
    "types",
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
        (torch.float64, torch.bfloat16),
    ],
    ids=str,
)
def test_gradients_of_two_heads_against_float64(types: tuple[torch.dtype, torch.dtype]) -> None:
    """Several blocks of rows and of columns. Derivatives are rounded to the products' operands, in tiles of bfloat16 by
    2^-9 of each, the result once more; over sums of terms with signs of their own that stays near 2^-8 of the norm.
    """
    rows, vocab = 300, 1100
    given = [
        draw(seed, *shape, dtype=dtype)
        for seed, shape, dtype in (
            (1, (rows, 40), types[0]),
            (2, (vocab, 40), types[0]),
            (3, (rows, 17), types[1]),
            (4, (vocab, 17), types[1]),
        )
    ]
    given[1].mul_(0.3)
    given[3].mul_(0.3)
    wide = [value.double().requires_grad_() for value in given]
    expected = torch.autograd.grad(kl_of_heads(*wide), wide)
    found = []
    for threads in (1, 3):
        leaves = [value.detach().clone().requires_grad_() for value in given]
        loss = xe.linear_kl_divergence(*leaves, reduction="mean", num_threads=threads)
        torch.testing.assert_close(loss.double(), kl_of_heads(*wide), rtol=1e-5, atol=1e-5)
        found.append(torch.autograd.grad(loss, leaves))
    for one, three, value, wanted in zip(*found, given, expected, strict=True):
        assert torch.equal(one, three), "the same bits for any number of threads"
        assert one.dtype == value.dtype
        distance = (one.double() - wanted).norm() / wanted.norm()
        assert distance <= (1e-5 if value.dtype == torch.float32 and torch.bfloat16 not in types else 2**-7)


def test_a_view_of_a_tensor_that_is_trained() -> None:
    base = draw(1, 2 * ROWS, VOCAB).requires_grad_()
    xe.cross_entropy(base[::2], TARGETS, reduction="sum").backward()
    expected = base.detach().clone().requires_grad_()
    functional.cross_entropy(expected[::2], TARGETS, reduction="sum").backward()
    torch.testing.assert_close(base.grad, expected.grad)


@pytest.mark.parametrize("name", ["row_stats", "log_prob_moments", "renyi_entropy", "divergences"])
def test_a_function_without_a_backward_names_detach(name: str) -> None:
    given = [value.requires_grad_() for value in (pair() if name == "divergences" else logits())]
    with pytest.raises(TypeError, match=r"requires grad, but this function has no backward: pass \w+\.detach\(\)"):
        getattr(xe, name)(*given)
    with torch.no_grad():
        getattr(xe, name)(*given)


def test_class_weights_have_no_gradient() -> None:
    with pytest.raises(TypeError, match=r"weight requires grad.*weight\.detach\(\)"):
        xe.cross_entropy(logits()[0].requires_grad_(), TARGETS, weight=WEIGHT.clone().requires_grad_())


@pytest.mark.parametrize("case", ["cross-entropy-mean", "entropy", "kl-sum", "linear-mean", "linear-kl-sum"])
def test_a_second_derivative_raises(case: str) -> None:
    function, given = CASES[case]
    values = [value.requires_grad_() for value in given()]
    (first, *_) = torch.autograd.grad(function(*values).sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.square().sum().backward()


def test_logits_that_change_before_the_backward_are_noticed() -> None:
    x = logits()[0].requires_grad_() * 1.0
    loss = xe.cross_entropy(x, TARGETS)
    with torch.no_grad():
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_rows_without_a_finite_loss_do_not_touch_the_others() -> None:
    x = draw(1, 3, VOCAB)
    x[0, 2], x[2] = torch.nan, -torch.inf
    x.requires_grad_()
    xe.cross_entropy(x, torch.tensor([0, 1, 2]), reduction="none").sum().backward()
    expected = x.detach()[1:2].clone().requires_grad_()
    functional.cross_entropy(expected, torch.tensor([1])).backward()
    assert x.grad is not None
    assert x.grad[0].isnan().all()
    torch.testing.assert_close(x.grad[1:2], expected.grad)


MEMORY = """
import resource, torch, xentrs as xe
x = torch.zeros(64, 262_144).normal_().requires_grad_()  # 64 MiB
targets = torch.zeros(64, dtype=torch.int64)
xe.cross_entropy(x[:1, :64].detach().requires_grad_(), targets[:1]).backward()
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) / 1024
before = peak()
xe.cross_entropy(x, targets).backward()
print(peak() - before)
"""


def test_a_backward_holds_the_gradient_and_no_other_array_of_that_size() -> None:
    ran = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    # 64 MiB of gradient; pages, threads and buffers of 4,096 columns are a few MiB.
    assert 60 < float(ran.stdout) < 64 + 16

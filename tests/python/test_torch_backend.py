"""Torch operations as an engine: blocks, memory, strides, devices. conftest.py runs the functional tests with them."""

from __future__ import annotations

import dataclasses
import math
import sys
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np
import pytest
import torch
import xentrs as xe
from test_edge_arrays import misaligned
from test_edge_lse import noise
from test_inputs import TORCH_LAYOUTS, special
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from xentrs import torch_ops
from xentrs.adapters import torch as of_torch
from xentrs.torch_ops import blocks

ELEMENTS: Final = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}
DTYPE = pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
ROWS, VOCAB = 7, 61


@pytest.fixture(autouse=True)
def torch_backend(request: pytest.FixtureRequest) -> Any:
    with xe.backend("torch"):
        yield


@pytest.mark.gpu
def test_cuda_is_there() -> None:
    """One line in place of thousands: the functional tests run with CUDA only where it is."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device: torch operations ran on the CPU alone")


def settings(**given: Any) -> dict[str, Any]:
    plain = {"ignore_index": -100, "temperature": 1.0, "softcap": None, "vocab_size": None, "num_threads": None}
    return plain | given


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3).to(dtype)


def head(rows: int, width: int, vocab: int, dtype: torch.dtype, seed: int, **options: Any) -> dict[str, Any]:
    tensors = {
        "hidden": draw(rows, width, dtype=dtype, seed=seed),
        "weight": draw(vocab, width, dtype=dtype, seed=seed + 1),
    }
    names = {"hidden_element": ELEMENTS[dtype], "weight_element": ELEMENTS[dtype]}
    plain = {"bias": None, "logit_scale": 0.3, "softcap": None, "vocab_size": None}
    return tensors | names | plain | options


def every_call(rows: int, vocab: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Each function of the engine on the same problem, with ignored rows and impossible columns among them."""
    element, known = ELEMENTS[dtype], settings(softcap=9.0, temperature=0.8)
    logits, others = (draw(rows, vocab, dtype=dtype, seed=seed) for seed in (1, 2))
    logits[1, vocab // 2 :], logits[2] = -math.inf, torch.nan
    targets = torch.arange(rows) * 37 % (vocab // 3)
    targets[2] = -100
    k_ids = torch.stack([targets.clamp(min=0), targets.clamp(min=0) + 1], -1).reshape(-1)
    shares = torch.tensor([0.25, 0.75], dtype=torch.float64).repeat(rows)
    upstream = draw(rows, dtype=torch.float64, seed=3)
    weight = torch.rand(vocab, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    losses: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.01}
    p, q = (head(rows, 6, vocab, dtype, seed, bias=weight, softcap=30.0) for seed in (5, 7))
    pair: dict[str, Any] = {"temperature": 0.8, "num_threads": None}
    finite = draw(rows, vocab, dtype=dtype, seed=1)

    def row_stats(**options: Any) -> Any:
        common: dict[str, Any] = {"vocab_size": None, "strict": False, "num_threads": None, "ignore_index": -100}
        scaled: dict[str, Any] = {"softcap": 9.0, "temperature": 0.8}
        return torch_ops.row_stats(logits, element, targets, **(common | scaled | options))

    def gradient(kind: str) -> Any:
        out = torch.full_like(finite, 7.0)
        found = torch_ops.loss(finite, element, targets, known, **losses, weight=weight)
        if kind == "loss":
            torch_ops.loss_gradient(
                finite, element, targets, known, found["likelihoods"], upstream, out, **losses, weight=weight
            )
            return out
        zeros = torch.zeros_like(targets)
        kept = torch_ops.loss(finite, element, zeros, known, label_smoothing=0.0, z_loss=0.0, weight=None)[
            "likelihoods"
        ]
        if kind == "logsumexp":
            torch_ops.logsumexp_gradient(finite, element, known, kept, upstream, out)
        else:
            torch_ops.entropy_gradient(finite, element, known, kept, torch.full_like(upstream, 2.0), upstream, out)
        return out

    def pair_gradient(kind: str) -> Any:
        outs = [torch.full_like(finite, 7.0) for _ in range(2)]
        if kind == "kl":
            values, _, scales = torch_ops.kl_divergence(finite, others, element, log_probs=False, **pair)
            torch_ops.kl_gradients(finite, others, element, values, scales, upstream, *outs, **pair)
        else:
            _, _, scales = torch_ops.js_divergence(finite, others, element, **pair)
            torch_ops.js_gradients(finite, others, element, scales, upstream, *outs, **pair)
        return outs

    def head_gradient() -> Any:
        found = torch_ops.linear_loss(p, targets, settings(), **losses, class_weights=None)
        wanted: dict[str, Any] = {"wanted": (True, True, True), "filter_eps": None, "orders_vocabulary": False}
        return torch_ops.linear_gradients(p, targets, settings(), found["likelihoods"], upstream, **losses, **wanted)

    def head_kl_gradient() -> Any:
        values, _, scales = torch_ops.linear_kl_divergence(p, q, **pair)
        wanted = (True,) * 6
        return torch_ops.linear_kl_gradients(p, q, values, scales, upstream, wanted=wanted, **pair)

    return {
        "row_stats": lambda: row_stats(all=True, top_k=7),
        "likelihoods": lambda: row_stats(all=False, top_k=0),
        "loss": lambda: torch_ops.loss(logits, element, targets, known, label_smoothing=0.0, z_loss=0.1, weight=weight),
        "smoothed": lambda: torch_ops.loss(finite, element, targets, known, **losses, weight=weight),
        "soft": lambda: torch_ops.soft_cross_entropy(logits, element, k_ids, shares, known, normalize=False),
        "grid": lambda: torch_ops.temperature_grid(logits, element, targets, [0.0, 0.5, 2.0], known),
        "renyi": lambda: torch_ops.renyi_entropy(logits, element, [0.0, 0.5, 1.0, 3.0, math.inf], known),
        "kl": lambda: torch_ops.kl_divergence(logits, others, element, log_probs=False, **pair),
        "js": lambda: torch_ops.js_divergence(logits, others, element, **pair),
        "divergences": lambda: torch_ops.divergences(others, finite, element, **pair),
        "top_k": lambda: torch_ops.top_k_kl_divergence(k_ids, torch.log(shares / 2), 2, others, element, known),
        "linear_row_stats": lambda: torch_ops.linear_row_stats(p, targets, settings(), all=True, top_k=5, strict=False),
        "linear_loss": lambda: torch_ops.linear_loss(p, targets, settings(), **losses, class_weights=None),
        "linear_kl": lambda: torch_ops.linear_kl_divergence(p, q, **pair),
        "linear_divergences": lambda: torch_ops.linear_divergences(p, q, **pair),
        "linear_joint": lambda: torch_ops.linear_joint_row_stats(p, q, targets, settings(), top_k=5, tempered=None),
        "embedding": lambda: torch_ops.linear_expected_embedding(p, **pair),
        "target_logits": lambda: torch_ops.linear_target_logits(p, targets, num_threads=None),
        "loss_gradient": lambda: gradient("loss"),
        "logsumexp_gradient": lambda: gradient("logsumexp"),
        "entropy_gradient": lambda: gradient("entropy"),
        "kl_gradients": lambda: pair_gradient("kl"),
        "js_gradients": lambda: pair_gradient("js"),
        "linear_gradients": head_gradient,
        "linear_kl_gradients": head_kl_gradient,
    }


CALLS: Final = list(every_call(ROWS, VOCAB, torch.float32))


def tensors_of(result: Any) -> list[Tensor]:
    """Every tensor of a result, in order."""
    if isinstance(result, Tensor):
        return [result]
    parts = result.values() if isinstance(result, dict) else result if isinstance(result, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


@DTYPE
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("numbers", [17, 150], ids=lambda count: f"{count}-numbers")
def test_blocks_change_little(name: str, numbers: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of a few numbers or of some rows: as in one block, but for the order of additions."""
    call = every_call(ROWS, VOCAB, dtype)[name]
    wanted = tensors_of(call())
    monkeypatch.setattr(blocks, "BLOCK_BYTES", numbers * blocks.LIVE_NUMBERS * 8)
    got = tensors_of(call())
    unit = {torch.float64: 1e-13, torch.float32: 1e-6}.get(dtype, 1e-6)
    for one, other in zip(got, wanted, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        near = max(unit, 2 * torch.finfo(one.dtype).eps) if one.is_floating_point() else 0.0
        size = float(other.double()[other.isfinite()].abs().max()) if other.isfinite().any() else 0.0
        torch.testing.assert_close(one, other, rtol=20 * near, atol=20 * near * size, equal_nan=True)


class Peak(TorchDispatchMode):
    """Bytes of tensors that operations made and that are still alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self._known = 0, 0, set[int]()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        before = {tensor.untyped_storage()._cdata for tensor in tensors_of([*arguments, *(options or {}).values()])}
        result = function(*arguments, **(options or {}))
        for tensor in tensors_of(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in before and storage._cdata not in self._known:
                self._add(storage)
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_holds_no_more_than_a_block(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond results, and a few numbers for each row; inputs are larger than the block."""
    rows, vocab, block = 48, 3000, 2**18
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
    call = every_call(rows, vocab, dtype)[name]
    with Peak() as peak:
        result = call()
    results = sum(tensor.nbytes for tensor in tensors_of(result))
    # 40 float64 of each row: likelihoods, scales; 6 of each class: weights; sums of hidden states and of the head.
    small = 8 * 40 * rows + 8 * 6 * vocab + 8 * 2 * 6 * (rows + vocab) * name.startswith("linear")
    assert peak.most <= block + 2 * results + small, (peak.most, results)


def as_before(logits: Tensor) -> Any:
    targets = torch.arange(logits.shape[:-1].numel()).reshape(logits.shape[:-1]) % logits.shape[-1]
    return xe.row_stats(logits, targets, top_k=min(3, logits.shape[-1]))


def assert_near(got: Any, wanted: Any, near: float) -> None:
    for field in dataclasses.fields(wanted):
        one, other = getattr(got, field.name), getattr(wanted, field.name)
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other, rtol=near, atol=near, equal_nan=True, msg=field.name)


@DTYPE
@pytest.mark.parametrize("layout", TORCH_LAYOUTS.values(), ids=list(TORCH_LAYOUTS))
def test_strides(layout: Callable[[Tensor], Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a contiguous copy, and as the kernels have it; nothing is copied as a whole."""
    logits = torch.from_numpy(special(noise(4096 + 261, np.dtype(np.float64), 6))).to(dtype)
    laid = layout(logits)
    near = 1e-13 if dtype == torch.float64 else 4e-6
    assert_near(as_before(laid), as_before(laid.clone(memory_format=torch.contiguous_format)), near)
    with xe.backend("auto"):
        wanted = as_before(laid)
    assert_near(as_before(laid), wanted, near)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", laid.nbytes // 8)
    with Peak() as peak:
        as_before(laid)
    assert peak.most <= max(laid.nbytes // 2, 2**15), (peak.most, laid.nbytes)


def test_equal_logits_come_in_column_order() -> None:
    """Ranks, ties, argmax and top k of whole numbers are those of the kernels, whatever the blocks."""
    logits = (draw(50, 700) / 2).round()
    targets = torch.arange(50) * 7
    for dtype in ELEMENTS:
        with xe.backend("auto"):
            wanted = xe.row_stats(logits.to(dtype), targets, top_k=40)
        for step in (2**28, 2**15):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(blocks, "BLOCK_BYTES", step)
                got = xe.row_stats(logits.to(dtype), targets, top_k=40)
            for name in ("rank", "ties", "argmax", "top_ids", "max_logit", "margin"):
                assert torch.equal(getattr(got, name), getattr(wanted, name)), (dtype, step, name)


def test_backend_is_of_the_context() -> None:
    logits, array = torch.zeros(2, 7), np.zeros((2, 7), np.float32)
    assert (xe.row_stats(logits).isa, xe.row_stats(array).isa) == ("cpu", xe.isa())
    with xe.backend("auto"):
        assert xe.row_stats(logits).isa == xe.isa()
        with pytest.raises(ZeroDivisionError), xe.backend("torch"):
            raise ZeroDivisionError
        assert xe.row_stats(logits).isa == xe.isa()
    assert xe.row_stats(logits).isa == "cpu"
    seen: list[str] = []
    other = threading.Thread(target=lambda: seen.append(xe.row_stats(logits).isa))
    other.start()
    other.join()
    assert seen == [xe.isa()]
    for name in ("cuda", "", None):
        with pytest.raises(xe.ParamError, match="expected 'auto' or 'torch'"), xe.backend(name):  # type: ignore[arg-type]
            pass


def test_results_are_tensors_and_nothing_else_is_imported() -> None:
    stats = xe.row_stats(torch.zeros(2, 7, dtype=torch.float16), [0, -100], top_k=2)
    assert (stats.lse.dtype, stats.flags.dtype, stats.top_ids.dtype) == (torch.float64, torch.uint8, torch.int64)
    assert "_totals" not in vars(stats)
    assert (stats.token_count, round(stats.perplexity, 6)) == (1, 7.0)
    assert xe.perplexity(torch.zeros(2, 7), torch.tensor([1, 2])) == pytest.approx(7.0)
    metric = xe.Perplexity()
    metric.update(torch.zeros(2, 7), torch.tensor([3, -100]))
    metric.update_nll(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    assert metric.compute().nll_sum == pytest.approx(3 + math.log(7))
    assert not {"cut_cross_entropy", "liger_kernel"} & set(sys.modules)


def test_states_and_packed_heads_stay_with_the_kernels() -> None:
    logits = draw(3, 50)
    state = xe.RowStatsState(50, rows=3)
    state.update(logits, 0)
    assert state.compute().isa == ""
    packed = xe.PackedHead(draw(5, 4))
    with pytest.raises(xe.DTypeError, match="weight is a PackedHead, which torch operations do not take"):
        xe.linear_row_stats(draw(2, 4), packed)


def refused() -> dict[str, tuple[Callable[[], Any], str]]:
    logits, meta = torch.zeros(2, 7), torch.zeros(2, 7, device="meta")
    ids, far_ids = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64, device="meta")
    states = torch.zeros(2, 3)
    return {
        "meta": (lambda: xe.row_stats(meta), "logits is on device meta"),
        "sparse": (lambda: xe.logsumexp(logits.to_sparse()), "sparse or quantised"),
        "quantised": (
            lambda: xe.logsumexp(torch.quantize_per_tensor(logits, 0.1, 0, torch.qint8)),
            "sparse or quantised",
        ),
        "complex": (lambda: xe.logsumexp(logits.to(torch.complex64)), "complex64"),
        "integers": (lambda: xe.logsumexp(logits.long()), "int64"),
        "targets": (lambda: xe.row_stats(logits, far_ids), "targets is on device meta, expected cpu as logits"),
        "float targets": (lambda: xe.row_stats(logits, ids.double()), "targets has dtype"),
        "weight of classes": (
            lambda: xe.cross_entropy(logits, ids, weight=meta[0]),
            "weight is on device meta, exp.* cpu",
        ),
        "pair": (lambda: xe.kl_divergence(logits, meta), "q_logits is on device meta, expected cpu as p_logits"),
        "numpy in a pair": (lambda: xe.kl_divergence(logits, logits.numpy()), "q_logits is no tensor, expected one on"),
        "weight": (lambda: xe.linear_row_stats(states, meta), "weight is on device meta, expected cpu as hidden"),
        "bias": (
            lambda: xe.linear_row_stats(states, states, bias=meta[0]),
            "bias is on device meta, expected cpu as hid",
        ),
        "other head": (
            lambda: xe.linear_kl_divergence(states, states, meta, states),
            "q_hidden is on device meta, expected cpu as p_hidden",
        ),
    }


@pytest.mark.parametrize("name", list(refused()))
def test_tensors_elsewhere(name: str) -> None:
    call, message = refused()[name]
    with pytest.raises(xe.DTypeError, match=message):
        call()


def test_a_device_without_float64() -> None:
    """A stand-in for a tensor there, as torch makes none where the device is missing."""
    assert of_torch.has_float64(torch.device("cuda", 1))
    there = SimpleNamespace(is_cpu=False, layout=torch.strided, is_quantized=False, device=torch.device("mps"))
    with pytest.raises(xe.DTypeError, match=r"logits is on device mps, which has no float64 .* pass logits\.cpu\(\)"):
        of_torch._check_plain(cast(Tensor, there), "logits")


def test_unsigned_ids() -> None:
    """An id of 2^63 or more is named as it came, and never ignored."""
    logits = torch.zeros(2, 7)
    for ids in (np.array([1, 2**64 - 100], np.uint64), torch.from_numpy(np.array([1, 2**64 - 100], np.uint64))):
        with pytest.raises(xe.TargetError, match=rf"targets\[1\] = {2**64 - 100} is outside \[0, 7\)"):
            xe.row_stats(logits, ids)
    assert xe.row_stats(logits, np.array([1, 2], np.uint64)).token_count == 2


@DTYPE
def test_gradients_by_autograd(dtype: torch.dtype) -> None:
    """Against torch's derivatives of float64 formulas; 16 bits are rounded once."""
    finite, others, rows = (
        draw(ROWS, VOCAB, dtype=dtype, seed=1),
        draw(ROWS, VOCAB, dtype=dtype, seed=2),
        torch.arange(ROWS),
    )
    p_leaf, q_leaf = (each.double().requires_grad_() for each in (finite, others))
    upstream = draw(ROWS, dtype=torch.float64, seed=3)
    z = 9.0 * torch.tanh(p_leaf / 9.0) / 0.8
    weight = torch.rand(VOCAB, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    targets = rows * 37 % (VOCAB // 3)
    targets[2] = -100
    losses = torch.nn.functional.cross_entropy(z, targets, weight=weight, label_smoothing=0.1, reduction="none")
    losses = losses + 0.01 * z.logsumexp(-1).square() * (targets != -100)
    log_p, log_q = ((leaf / 0.8).log_softmax(-1) for leaf in (p_leaf, q_leaf))
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    halves = [(side.exp() * (side - middle)).sum(-1) / 2 for side in (log_p, log_q)]
    log_z = z.log_softmax(-1)
    wanted = {
        "loss_gradient": (losses, [p_leaf]),
        "logsumexp_gradient": (z.logsumexp(-1), [p_leaf]),
        # The entropy is given as 2, so the derivative is that of -sum p (ln p + 2), its p held where it multiplies.
        "entropy_gradient": (-(log_z.exp() * (log_z.detach() + 2.0)).sum(-1), None),
        "kl_gradients": (divergence, [p_leaf, q_leaf]),
        "js_gradients": (sum(halves), [p_leaf, q_leaf]),
    }
    near = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2.0**-10}.get(dtype, 2.0**-7)
    calls = every_call(ROWS, VOCAB, dtype)
    for name, (value, leaves) in wanted.items():
        if leaves is None:
            slope = (1 - torch.tanh(p_leaf / 9.0).square()) / 0.8
            right = [(upstream[:, None] * -log_z.exp() * (log_z + 2.0) * slope).detach()]
        else:
            right = list(torch.autograd.grad((value * upstream).sum(), leaves, retain_graph=True))  # type: ignore[arg-type]
        for got, gradient in zip(tensors_of(calls[name]()), right, strict=True):
            size = gradient.abs().amax(-1, keepdim=True)
            assert ((got.double() - gradient).abs() <= near * (size + gradient.abs())).all(), name
            assert name != "loss_gradient" or not got[2].any()


def test_misaligned_and_read_only_arrays_are_no_tensors_but_work() -> None:
    """The kernels take them, whatever the backend."""
    logits = noise(33, np.dtype(np.float32), 2)
    assert xe.row_stats(misaligned(logits)).isa == xe.isa()

"""Torch tensors in and out: row B18 of the edge-case table, and the rules of dispatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
import reference as ref
import torch
import xentrs as xe
from reference import Array
from test_edge_isa import FIELDS, FLOAT_FIELDS, same_bytes
from test_edge_lse import CASES, noise, positions

TORCH: Final = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
DTYPE = pytest.mark.parametrize("name", TORCH)


def as_torch(logits: Array) -> torch.Tensor:
    """The same bits: by way of integers, for numpy and torch share no bfloat16."""
    integers = torch.from_numpy(logits.view(f"i{logits.dtype.itemsize}").copy())
    return integers.view(TORCH[logits.dtype.name])


def assert_same_as_numpy(got: Any, wanted: Any, message: str = "") -> None:
    for field in FIELDS:
        tensor = getattr(got, field)
        assert isinstance(tensor, torch.Tensor), field
        assert not tensor.requires_grad, field
        assert same_bytes(tensor.numpy()) == same_bytes(getattr(wanted, field)), f"{message} {field}"
    assert got.token_count == wanted.token_count


@DTYPE
def test_b18_every_table_row_has_the_bits_of_numpy(name: str) -> None:
    dtype = ref.DTYPES[name]
    for row, case in CASES.items():
        for vocab in (vocab for vocab in case.vocabs if vocab <= 4097):
            with np.errstate(all="ignore"):
                logits = case.build(vocab, dtype)
            targets = np.resize(positions(vocab), len(logits))
            top_k = min(3, vocab)
            got = xe.row_stats(as_torch(logits), torch.from_numpy(targets), top_k=top_k)
            assert_same_as_numpy(got, xe.row_stats(logits, targets, top_k=top_k), f"{row} {vocab}")


@DTYPE
def test_result_types(name: str) -> None:
    logits, targets = (
        as_torch(noise(33, ref.DTYPES[name], 6)).reshape(2, 3, 33),
        torch.arange(6).reshape(2, 3),
    )
    stats = xe.row_stats(logits, targets, top_k=2)
    for field in FLOAT_FIELDS:
        assert (getattr(stats, field).dtype, getattr(stats, field).shape) == (torch.float64, (2, 3)), field
    assert stats.argmax.dtype == stats.rank.dtype == stats.ties.dtype == stats.top_ids.dtype == torch.int64
    assert stats.flags.dtype == torch.uint8
    assert stats.top_log_probs.shape == (2, 3, 2)
    differentiable = torch.float64 if name == "float64" else torch.float32
    for result in (xe.logsumexp(logits), xe.entropy(logits), xe.kl_divergence(logits, logits)):
        assert isinstance(result, torch.Tensor)
        assert result.shape == (2, 3)
        assert result.dtype == differentiable
    mean = xe.cross_entropy(logits, targets)
    assert isinstance(mean, torch.Tensor)
    assert mean.shape == ()
    assert mean.dtype == differentiable
    assert isinstance(xe.perplexity(logits, targets), float)
    assert isinstance(stats.mean_nll, float)
    assert mean == torch.tensor(stats.mean_nll, dtype=torch.float64).to(differentiable)
    assert torch.equal(xe.logsumexp(logits), stats.lse.to(differentiable))


@DTYPE
def test_agrees_with_torch(name: str) -> None:
    logits, targets = as_torch(noise(1000, ref.DTYPES[name], 16)), torch.arange(16)
    targets[3] = -100
    wanted = torch.nn.functional.cross_entropy(logits.double(), targets)
    assert float(xe.cross_entropy(logits, targets)) == pytest.approx(float(wanted), abs=2e-6)
    assert torch.allclose(xe.logsumexp(logits).double(), logits.double().logsumexp(-1), atol=2e-6, rtol=0)


LAYOUTS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "transposed": lambda logits: logits.T.contiguous().T,
    "every-other-column": lambda logits: logits.repeat_interleave(2, dim=1)[:, ::2],
    "every-other-row": lambda logits: logits.repeat_interleave(2, dim=0)[::2],
    "offset": lambda logits: torch.cat([logits[:1], logits])[1:],
    "odd-offset": lambda logits: torch.cat([logits.flatten()[:1], logits.flatten()])[1:].view(logits.shape),
    "detached": lambda logits: logits.clone().requires_grad_().detach(),
    "inference": torch.inference_mode()(lambda logits: logits.clone()),
}


@DTYPE
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=[f"B18-{name}" for name in LAYOUTS])
def test_layout(layout: Callable[[torch.Tensor], torch.Tensor], name: str) -> None:
    logits, targets = noise(4099, ref.DTYPES[name], 5), np.arange(5) * 1000
    got = xe.row_stats(layout(as_torch(logits)), torch.from_numpy(targets), top_k=2)
    assert_same_as_numpy(got, xe.row_stats(logits, targets, top_k=2))


def test_b18_expanded_rows() -> None:
    row = as_torch(noise(4099, ref.DTYPES["bfloat16"], 1))
    stats = xe.row_stats(row.expand(6, 4099), torch.arange(6))
    assert (stats.lse.float() == xe.logsumexp(row)).all()


@DTYPE
def test_b18_requires_grad_names_detach(name: str) -> None:
    """No silent loss of a gradient: row_stats has no backward."""
    logits = as_torch(noise(33, ref.DTYPES[name], 2)).requires_grad_()
    calls: list[Callable[[], Any]] = [
        lambda: xe.row_stats(logits),
        lambda: xe.row_stats(logits * 2),
        lambda: xe.divergences(logits.detach(), logits),
        lambda: xe.perplexity(logits, torch.tensor([1, 2])),
        lambda: xe.temperature_grid(logits, [1.0]),
        lambda: xe.RowStatsState(33).update(logits, 0),
        lambda: xe.Perplexity().update(logits, torch.tensor([1, 2])),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"\.detach\(\)"):
            call()
    assert xe.row_stats(logits.detach()).lse.shape == (2,)


@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
def test_dtype_refused(dtype: torch.dtype) -> None:
    with pytest.raises(xe.DTypeError, match=str(dtype).removeprefix("torch.")):
        xe.row_stats(torch.zeros(2, 7).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
def test_c14_dtype_of_targets_refused(dtype: torch.dtype) -> None:
    with pytest.raises(xe.DTypeError, match="targets"):
        xe.row_stats(torch.zeros(2, 7), torch.zeros(2).to(dtype))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8], ids=str)
def test_c12_dtype_of_targets(dtype: torch.dtype) -> None:
    logits = noise(33, ref.DTYPES["float32"], 3)
    got = xe.row_stats(as_torch(logits), torch.tensor([0, 32, 5]).to(dtype))
    assert_same_as_numpy(got, xe.row_stats(logits, np.array([0, 32, 5])))


def test_targets_and_logits_are_not_changed() -> None:
    logits, targets = as_torch(noise(33, ref.DTYPES["bfloat16"], 3)), torch.tensor([0, -100, 5])
    before = logits.clone(), targets.clone()
    xe.row_stats(logits, targets)
    assert torch.equal(before[0], logits)
    assert torch.equal(before[1], targets)


def test_c15_class_axis_second_names_movedim() -> None:
    with pytest.raises(xe.ShapeError, match="movedim"):
        xe.cross_entropy(torch.zeros(2, 7, 5), torch.zeros(2, 5, dtype=torch.int64))


def test_state_takes_tensors() -> None:
    logits, targets = noise(9000, ref.DTYPES["float32"], 3), np.array([5, 8999, 4096])
    tensor = as_torch(logits)
    picked = tensor[torch.arange(3), torch.from_numpy(targets)]
    state = xe.RowStatsState(9000, torch.from_numpy(targets), picked, top_k=2)
    for start in (4000, 0, 8000):
        state.update(tensor[:, start : min(start + 4000, 9000)], start)
    got, wanted = state.compute(), xe.row_stats(logits, targets, top_k=2)
    for field in FIELDS:
        assert same_bytes(np.asarray(getattr(got, field))) == same_bytes(getattr(wanted, field)), field

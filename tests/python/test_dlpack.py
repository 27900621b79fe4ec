"""Arrays of other libraries: JAX, whatever has `__dlpack__` or `__array__`, and the way of what lies on a GPU."""

from __future__ import annotations

import array
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest
import reference as ref
import xentrs as xe
from test_edge_isa import FIELDS
from test_edge_lse import noise
from xentrs.adapters import dlpack
from xentrs.dispatch import adapter_of

DTYPES: Final = ["float32", "float16", "bfloat16"]
ROWS, VOCAB = 5, 4099
TARGETS: Final = np.array([0, 17, -100, 4098, 2000])


class OnlyDlpack:
    """What has `__dlpack__` and `__dlpack_device__` and nothing else, as the standard asks."""

    def __init__(self, values: Any, device: tuple[int, int] = (1, 0)) -> None:
        self._values, self._device = values, device

    def __dlpack__(self, **options: Any) -> Any:
        options.pop("stream", None)
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


class OnlyArray:
    """What has `__array__` and nothing else."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        assert copy is not True
        return self._values if dtype is None else self._values.astype(dtype)


def logits_of(dtype: str) -> Any:
    return noise(VOCAB, ref.DTYPES[dtype], ROWS)


def jax_of(values: Any) -> Any:
    jax = pytest.importorskip("jax")
    assert jax.default_backend() == "cpu"
    return jax.block_until_ready(jax.numpy.asarray(values))


def torch_of(values: Any) -> Any:
    torch = pytest.importorskip("torch")
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def address(lent: Any) -> int:
    return int(lent.array.__array_interface__["data"][0])


def assert_same_stats(got: Any, wanted: Any) -> None:
    for field in FIELDS:
        values = getattr(got, field)
        assert isinstance(values, (np.ndarray, np.generic)), field
        np.testing.assert_array_equal(values, getattr(wanted, field), field)


@pytest.mark.parametrize("dtype", DTYPES)
def test_jax_is_lent_without_a_copy(dtype: str) -> None:
    logits = jax_of(logits_of(dtype))
    lent = adapter_of(logits).lend(logits, "logits")
    assert lent.element == dtype
    assert lent.array.shape == (ROWS, VOCAB)
    assert address(lent) == logits.unsafe_buffer_pointer()
    assert not lent.array.flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
def test_jax_gives_the_bits_of_numpy(dtype: str) -> None:
    logits, targets = logits_of(dtype), TARGETS
    theirs, ids = jax_of(logits), jax_of(targets.astype(np.int32))
    assert str(ids.dtype) == "int32"
    assert_same_stats(xe.row_stats(theirs, ids, top_k=3), xe.row_stats(logits, targets, top_k=3))
    assert_same_stats(
        xe.row_stats(theirs[None], ids[None], shift=1), xe.row_stats(logits[None], targets[None], shift=1)
    )
    for reduction in ("none", "mean"):
        got = xe.cross_entropy(theirs, ids, reduction=reduction)
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, xe.cross_entropy(logits, targets, reduction=reduction))
    np.testing.assert_array_equal(xe.kl_divergence(theirs, theirs[::-1]), xe.kl_divergence(logits, logits[::-1]))
    np.testing.assert_array_equal(xe.kl_divergence(theirs, logits[::-1]), xe.kl_divergence(logits, logits[::-1]))


def test_jax_heads_weights_and_states() -> None:
    dice = np.random.default_rng(3)
    hidden, head = (dice.normal(size=(count, 24)).astype(np.float32) for count in (ROWS, 300))
    targets = TARGETS % 300
    got = xe.linear_cross_entropy(jax_of(hidden), jax_of(head), jax_of(targets.astype(np.int32)), reduction="none")
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, xe.linear_cross_entropy(hidden, head, targets, reduction="none"))
    logits, weight = logits_of("float32"), dice.uniform(0.5, 2.0, VOCAB).astype(np.float32)
    got = xe.cross_entropy(jax_of(logits), TARGETS, weight=jax_of(weight))
    assert float(got) == float(xe.cross_entropy(logits, TARGETS, weight=weight))
    foreign = OnlyDlpack(torch_of(weight.astype(ml_dtypes.bfloat16)))
    got = xe.cross_entropy(OnlyDlpack(torch_of(logits)), TARGETS, weight=foreign)
    assert float(got) == float(xe.cross_entropy(logits, TARGETS, weight=weight.astype(ml_dtypes.bfloat16)))
    np.testing.assert_array_equal(
        xe.renyi_entropy(logits, jax_of(np.float32([0, 2]))), xe.renyi_entropy(logits, [0, 2])
    )
    state = xe.RowStatsState(VOCAB, jax_of(TARGETS.astype(np.int32)))
    state.update(jax_of(logits), 0)
    np.testing.assert_array_equal(state.compute().nll, xe.row_stats(logits, TARGETS).nll)


def test_a_tracer_keeps_the_error_of_jax() -> None:
    jax = pytest.importorskip("jax")
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda logits: xe.logsumexp(logits))(np.zeros((2, 3), np.float32))


def test_an_array_on_several_devices_is_not_gathered() -> None:
    script = """
import jax, numpy as np, xentrs as xe
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.array(jax.devices()), ("rows",))
logits = jax.device_put(np.zeros((4, 8), np.float32), NamedSharding(mesh, PartitionSpec("rows")))
try:
    xe.logsumexp(logits)
except xe.DTypeError as error:
    print(error)
"""
    pytest.importorskip("jax")
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "on several devices, expected one device" in done.stdout


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_only_dlpack(dtype: str) -> None:
    """numpy knows no bfloat16 here; torch does."""
    logits = logits_of(dtype)
    lender = torch_of(logits)
    foreign = OnlyDlpack(lender)
    lent = adapter_of(foreign).lend(foreign, "logits")
    assert lent.element == dtype
    assert address(lent) == lender.data_ptr()
    assert_same_stats(xe.row_stats(foreign, OnlyDlpack(TARGETS)), xe.row_stats(logits, TARGETS))
    columns = OnlyDlpack(lender[:, 3:-5:2])
    np.testing.assert_array_equal(xe.logsumexp(columns), xe.logsumexp(logits[:, 3:-5:2]))


def test_only_dlpack_read_only() -> None:
    logits = logits_of("float32")
    logits.flags.writeable = False
    foreign = OnlyDlpack(logits)
    assert address(dlpack.lend(foreign, "logits")) == logits.ctypes.data
    np.testing.assert_array_equal(xe.logsumexp(foreign), xe.logsumexp(logits))


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_only_array(dtype: str) -> None:
    logits = logits_of(dtype)
    logits.flags.writeable = False
    foreign = OnlyArray(logits)
    lent = adapter_of(foreign).lend(foreign, "logits")
    assert (lent.element, address(lent)) == (dtype, logits.ctypes.data)
    assert_same_stats(xe.row_stats(foreign, OnlyArray(TARGETS)), xe.row_stats(logits, TARGETS))


def test_ml_dtypes_and_buffers() -> None:
    logits = logits_of("bfloat16")
    lent = adapter_of(logits).lend(logits, "logits")
    assert (lent.element, address(lent)) == ("bfloat16", logits.ctypes.data)
    numbers = array.array("f", [0.0, 1.0, 2.0])
    assert address(adapter_of(numbers).lend(numbers, "logits")) == numbers.buffer_info()[0]
    assert float(xe.logsumexp(memoryview(numbers))) == float(xe.logsumexp(np.array([0, 1, 2], np.float32)))


class Nothing:
    """No array at all."""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: xe.logsumexp(Nothing()), "logits is a Nothing, expected an array"),
        (lambda: xe.logsumexp({1: 2}), "logits is a dict, expected an array"),
        (lambda: xe.cross_entropy(np.zeros((1, 2)), Nothing()), "targets is a Nothing, expected an array"),
        (lambda: xe.logsumexp(OnlyDlpack(np.zeros((2, 3), np.int64))), "logits has dtype int64, expected one of"),
        (lambda: xe.cross_entropy(np.zeros((1, 2)), OnlyDlpack(np.zeros(1))), "targets has dtype float64, expected"),
        (lambda: xe.logsumexp(jax_of(np.zeros((2, 3), np.int32))), "logits has dtype int32, expected one of"),
    ],
)
def test_what_is_no_array_of_numbers(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(xe.DTypeError) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_bfloat16_targets_of_only_dlpack() -> None:
    foreign = OnlyDlpack(torch_of(logits_of("bfloat16")[:, 0].copy()))
    with pytest.raises(xe.DTypeError, match="targets has dtype bfloat16, expected integers"):
        xe.cross_entropy(np.zeros((ROWS, 2)), foreign)


class Namespace:
    """Takes results back."""

    @staticmethod
    def from_dlpack(tensor: Any) -> tuple[str, Any]:
        return ("taken back", tensor)


class OnDevice(OnlyDlpack):
    """Says that it lies on the first CUDA device, and lies on the CPU."""

    def __init__(self, values: Any) -> None:
        super().__init__(values, (2, 0))


class OfALibrary(OnDevice):
    """The same with a library to go back to."""

    def __array_namespace__(self) -> type[Namespace]:
        return Namespace


@pytest.fixture
def no_stream(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch asks for the CUDA stream of what says it lies on CUDA."""
    torch = pytest.importorskip("torch")

    class Stream:
        cuda_stream = 0

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream())
    return torch


def test_another_device_goes_to_torch(no_stream: Any) -> None:
    logits = torch_of(logits_of("bfloat16"))
    foreign, targets = OnDevice(logits), OnDevice(torch_of(TARGETS))
    assert isinstance(adapter_of(foreign), dlpack.OnDevice)
    with xe.backend("torch"):
        lent = adapter_of(foreign).lend(foreign, "logits")
        assert lent.array.data_ptr() == logits.data_ptr()
        got = xe.cross_entropy(foreign, targets, reduction="none")
        wanted = xe.cross_entropy(logits, torch_of(TARGETS), reduction="none")
    assert isinstance(got, no_stream.Tensor)
    no_stream.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_results_go_back_to_the_library(no_stream: Any) -> None:
    logits = torch_of(logits_of("float32"))
    with xe.backend("torch"):
        word, got = xe.logsumexp(OfALibrary(logits))
        wanted = xe.logsumexp(logits)
        stats = xe.row_stats(OfALibrary(logits), OfALibrary(torch_of(TARGETS)))
    assert word == "taken back"
    assert got.dtype == no_stream.float64
    no_stream.testing.assert_close(got.to(wanted.dtype), wanted, rtol=0, atol=0)
    assert stats.nll[0] == "taken back"


def test_jax_takes_results_back(no_stream: Any) -> None:
    """What an array of JAX on a GPU would give: JAX imports a tensor, in float32 unless it was told otherwise."""
    jax = pytest.importorskip("jax")

    class JaxOnDevice(OnDevice):
        def __array_namespace__(self) -> Any:
            return jax.numpy

    logits = logits_of("float32")
    with xe.backend("torch"):
        got = xe.logsumexp(JaxOnDevice(torch_of(logits)))
    assert isinstance(got, jax.Array)
    np.testing.assert_allclose(np.asarray(got), xe.logsumexp(logits), rtol=1e-6)


def test_a_device_that_torch_cannot_read() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(xe.DTypeError, match="logits is a OnDevice that torch cannot read"):
        xe.logsumexp(OnDevice(torch_of(logits_of("float32"))))


def test_torch_and_jax_are_not_imported() -> None:
    """Not by the adapter either, while nothing needs them."""
    script = """
import sys, numpy as np, xentrs as xe
class Only:
    def __dlpack__(self, **options): return np.zeros((2, 3), np.float32).__dlpack__(**options)
    def __dlpack_device__(self): return (1, 0)
xe.logsumexp(Only())
assert "xentrs.adapters.dlpack" in sys.modules
assert not {"torch", "jax", "cupy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cupy(dtype: str) -> None:
    cupy = pytest.importorskip("cupy")
    logits = logits_of(dtype)
    got = xe.row_stats(cupy.asarray(logits), cupy.asarray(TARGETS))
    wanted = xe.row_stats(logits, TARGETS)
    assert isinstance(got.nll, cupy.ndarray)
    np.testing.assert_allclose(got.nll.get(), wanted.nll, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(got.rank.get(), wanted.rank)


@pytest.mark.gpu
def test_jax_on_a_gpu() -> None:
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no GPU here")
    logits = logits_of("bfloat16")
    got = xe.cross_entropy(jax.numpy.asarray(logits), jax.numpy.asarray(TARGETS), reduction="none")
    assert isinstance(got, jax.Array)
    np.testing.assert_allclose(np.asarray(got), xe.cross_entropy(logits, TARGETS, reduction="none"), rtol=1e-6)

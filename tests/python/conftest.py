"""Tiny models and tokenizers made on the spot, and the command line run inside the test process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Before any import of huggingface_hub: no test may reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"

TRAINING_LINES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "In 1984 there were 12 towns; by 2024 there were 31 of them along the river.",
    "naïve café Zürich — 東京 and a snowman ☃ walk into a bar 🙂.",
]


FUNCTIONAL_MODULES = {
    *("test_edge_arrays", "test_edge_cross_entropy", "test_edge_divergence", "test_edge_entropy", "test_edge_lse"),
    *("test_edge_scaled", "test_edge_totals", "test_golden", "test_inputs", "test_losses", "test_divergences"),
    *("test_tempered", "test_linear", "test_linear_accuracy", "test_linear_inputs", "test_linear_gradients"),
    "test_linear_pairs",
}
"""Their tests run once with the kernels, once with torch operations on the CPU and, where there is one, on a GPU."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: many seconds; left out by `make check`")
    config.addinivalue_line("markers", "rust_only(reason): of the kernels alone; not run with torch operations")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Adds the engine to the tests of functions; without CUDA one skipped test in test_torch_backend.py says so."""
    if metafunc.module.__name__ not in FUNCTIONAL_MODULES:
        return
    engines = [pytest.param("kernels", id=pytest.HIDDEN_PARAM)]
    if metafunc.definition.get_closest_marker("rust_only") is None:
        import torch

        engines.append(pytest.param("torch", id="torch"))
        if torch.cuda.is_available():
            engines.append(pytest.param("cuda", id="cuda", marks=pytest.mark.gpu))
    metafunc.parametrize("engine", engines, indirect=True)


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What computes. For "torch" and "cuda" numpy arrays are lent as tensors, on the CPU without a copy where torch has
    such strides, and results become numpy arrays again: tests need not know.
    """
    name: str = getattr(request, "param", "kernels")
    if name == "kernels":
        yield name
        return
    import xentrs

    _lend_tensors(monkeypatch, "cuda" if name == "cuda" else "cpu")
    with xentrs.backend("torch"):
        yield name


def _lend_tensors(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    import numpy as np
    import torch
    import xentrs
    from xentrs import arguments, torch_ops
    from xentrs.adapters import numpy as of_numpy
    from xentrs.adapters import torch as of_torch
    from xentrs.dispatch import current_backend

    lend, lend_tensor, wrap, wrap_tensor = of_numpy.lend, of_torch.lend, of_numpy.wrap, of_torch.wrap

    def lend_as_tensor(values: Any, name: str) -> Any:
        lent = lend(values, name)
        if current_backend() != "torch":
            return lent
        tensor = _as_tensor(lent.array).to(device)
        return of_numpy.Lent(
            tensor.view(torch.bfloat16) if lent.element == "bfloat16" else tensor, lent.element, torch_ops
        )

    def lend_there(values: Any, name: str) -> Any:
        return lend_tensor(
            values if current_backend() != "torch" or values.device.type != "cpu" else values.to(device), name
        )

    monkeypatch.setattr(np.testing, "assert_array_equal", _assert_nearly_equal)
    packed = xentrs.PackedHead
    monkeypatch.setattr(xentrs, "PackedHead", lambda weight: weight if packed(weight) else None)
    monkeypatch.setattr(of_numpy, "lend", lend_as_tensor)
    monkeypatch.setattr(of_numpy, "wrap", lambda array: wrap(array.cpu() if hasattr(array, "cpu") else array))
    if device != "cpu":
        monkeypatch.setattr(of_torch, "lend", lend_there)
        monkeypatch.setattr(of_torch, "wrap", lambda array: wrap_tensor(array).cpu())
        monkeypatch.setattr(arguments, "check_device", lambda *_: None)


def _assert_nearly_equal(actual: Any, desired: Any, err_msg: str = "", verbose: bool = True) -> None:
    """Torch operations promise no bits: two ways to a float64 may differ in its last; zeros and infinities may not."""
    import numpy as np

    np.testing.assert_allclose(actual, desired, rtol=1e-13, atol=0, err_msg=err_msg)
    assert np.broadcast_shapes(np.shape(actual), np.shape(desired)) == np.shape(actual)


def _as_tensor(array: Any) -> Any:
    """The same memory, or a copy where torch has no such strides or alignment."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # read-only memory is not written
        aligned = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides) and array.flags.aligned
        return torch.from_numpy(array if aligned else array.copy())


@dataclass(frozen=True)
class CommandResult:
    """What one call of the command line gave back."""

    code: int
    out: str
    err: str


def write_tokenizer(folder: Path, *, adds_bos: bool = False, vocab_size: int = 320) -> None:
    """A byte-level BPE tokenizer trained on a few lines; ids 0 and 1 are <s> and </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_LINES, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def write_model(folder: Path, kind: str = "llama", *, adds_bos: bool = False, **overrides: Any) -> Path:
    """A random causal model of a few thousand weights with its tokenizer; the same weights every time."""
    import torch
    import transformers

    names = {"llama": "Llama", "gemma2": "Gemma2", "cohere": "Cohere", "granite": "Granite", "phi": "Phi"}
    settings: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    config = getattr(transformers, f"{names[kind]}Config")(**{**settings, **overrides})
    torch.manual_seed(20250101)
    model = getattr(transformers, f"{names[kind]}ForCausalLM")(config)
    with torch.no_grad():  # the default initialisation gives almost uniform predictions
        for parameter in model.parameters():
            parameter.mul_(3.0)
        if getattr(model.get_output_embeddings(), "bias", None) is not None:
            model.get_output_embeddings().bias.normal_()
    model.save_pretrained(folder)
    write_tokenizer(folder, adds_bos=adds_bos)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers whose tokenizer adds no BOS."""
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_bos_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a tokenizer that adds BOS."""
    return write_model(tmp_path_factory.mktemp("tiny-bos"), adds_bos=True)


@pytest.fixture(scope="session")
def tiny_runner(tiny_model: Path) -> Any:
    """The loaded Llama in float32."""
    from xentrs.models import load_model

    return load_model(str(tiny_model), dtype="float32")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch without its threads: for tiny models they cost more than they bring, on a busy machine many times more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def xentrs_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """`xentrs ARGUMENTS` in this process."""
    from xentrs.cli import main

    def run(*arguments: object) -> CommandResult:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run

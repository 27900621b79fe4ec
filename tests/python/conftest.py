"""Tiny models and tokenizers made on the spot, and the command line run inside the test process."""

from __future__ import annotations

import os
from collections.abc import Callable
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


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: many seconds; left out by `make check`")


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
def xentrs_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """`xentrs ARGUMENTS` in this process."""
    from xentrs.cli import main

    def run(*arguments: object) -> CommandResult:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run

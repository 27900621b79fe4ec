"""The imported SmolLM2-135M: made from the installed wheel, an ordinary folder afterwards.

The wheel is part of the test environment: where it is missing these tests fail and say how to install it.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CommandResult
from xentrs.models import hf, load_model, smollm2
from xentrs.models.catalog import DEFAULT_MODEL, INSTALL_COMMAND
from xentrs.models.hf_files import ModelFiles, load_config
from xentrs.models.runner import ModelError

pytestmark = pytest.mark.slow  # the import alone takes half a minute
Command = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache with the model, imported once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XENTRS_CACHE", str(folder))
        assert smollm2.import_smollm2() == (folder / "models" / DEFAULT_MODEL, True)
        yield folder


@pytest.fixture(scope="module")
def runner(cache: Path) -> Any:
    return load_model(DEFAULT_MODEL, dtype="float32")


def test_second_import_says_so(cache: Path, xentrs_command: Command) -> None:
    result = xentrs_command("model", "import", DEFAULT_MODEL)
    assert result.code == 0
    assert f"{DEFAULT_MODEL} is already there" in result.err
    assert result.out.strip() == str(cache / "models" / DEFAULT_MODEL)
    assert DEFAULT_MODEL in xentrs_command("model", "list").out
    assert [path.name for path in (cache / "models").iterdir()] == [DEFAULT_MODEL]  # no scratch folder left


def test_folder_is_ordinary(cache: Path) -> None:
    from safetensors import safe_open

    folder = cache / "models" / DEFAULT_MODEL
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["vocab_size"], config["tie_word_embeddings"]) == ("bfloat16", 49152, True)
    assert "quantization_config" not in config
    with safe_open(folder / "model.safetensors", framework="np") as file:
        names = set(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert "lm_head.weight" not in names  # tied: the embedding is stored once
    assert (folder / "tokenizer.json").is_file()


def test_digits_are_split_before_bytes(runner: Any) -> None:
    tokenizer = runner.encoder.tokenizer
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]
    assert tokenizer.tokenize("x =  42\n    7") == ["x", "Ġ=", "ĠĠ", "4", "2", "ĊĠĠĠĠ", "7"]
    assert (runner.encoder.bos_id, runner.encoder.eos_id, runner.encoder.adds_bos) == (1, 2, False)
    text = "In 2024: naïve 東京 🙂\r\n\tend"
    encoded = runner.encoder.encode([text])[0]
    assert tokenizer.decode(encoded.token_ids) == text
    assert encoded.byte_start[0] == 0
    assert encoded.byte_end[-1] == len(text.encode())


def test_model_makes_sense(runner: Any) -> None:
    ids = runner.encoder.encode(["The capital of France is"])[0].token_ids
    logits = runner.logits(runner.hidden_states(ids[None])[0, -1:])
    assert runner.encoder.tokenizer.decode([int(np.argmax(logits))]) == " Paris"
    weight = runner.model.get_output_embeddings().weight
    assert weight.data_ptr() == runner.model.get_input_embeddings().weight.data_ptr()
    assert runner.info.max_length == 8192


def test_nll_of_every_example_is_within_the_promise(runner: Any) -> None:
    """The first tokens of each document, and more of the one whose logits reach 35, where a float32 product of the head
    alone would break the promise.
    """
    import torch
    from xentrs.corpus.score import runner_row_stats

    folder = Path(__file__).parents[2] / "examples"
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = {record["id"]: record["text"] for record in map(json.loads, lines)}
    texts |= {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}
    assert len(texts) >= 60
    weight = runner.model.lm_head.weight.detach().double()
    for name, text in texts.items():
        ids = runner.encoder.encode([text])[0].token_ids[: 129 if name == "jargon-dragon" else 65]
        hidden = runner.hidden_states(ids[None, :-1])[0]
        ((_, stats),) = runner_row_stats(runner, hidden, ids[1:], None)
        exact = torch.nn.functional.cross_entropy(
            hidden.double() @ weight.T, torch.from_numpy(ids[1:]), reduction="none"
        )
        assert np.abs(np.asarray(stats.nll) - exact.numpy()).max() <= 2e-5, name


def test_later_loads_cost_little_more_than_reading_the_weights(cache: Path) -> None:
    import torch

    folder = cache / "models" / DEFAULT_MODEL
    files = ModelFiles(DEFAULT_MODEL, folder, None, is_local=True)

    def load() -> None:
        hf._load_weights(files, load_config(files), torch.bfloat16)

    def read() -> None:
        Path(folder, "model.safetensors").read_bytes()

    def best_seconds(action: Callable[[], None]) -> float:
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    load()
    assert best_seconds(load) <= 1.5 * best_seconds(read)


def test_score_says_which_model_it_took(cache: Path, xentrs_command: Command, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("When in the course of human events, it becomes necessary for one people")
    result = xentrs_command("score", path, "--json")
    assert result.code == 0
    assert result.err.splitlines()[0] == (
        "smollm2-135m (default; instruct-tuned, dequantised from 4 bits): not comparable with published SmolLM2 figures"
    )
    page = json.loads(result.out)
    assert page["protocol"]["model_note"].startswith("instruct-tuned, dequantised from 4 bits")
    assert 0.2 < page["totals"]["bits_per_byte"] < 1.5


def test_missing_or_other_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENTRS_CACHE", str(tmp_path))

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModelError, match="is not installed") as caught:
        smollm2.import_smollm2()
    assert INSTALL_COMMAND in str(caught.value)
    other = type("Distribution", (), {"version": "0.1.1"})
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: other)
    with pytest.raises(ModelError, match=r"0\.1\.1 is installed, 0\.1\.2 is needed"):
        smollm2.import_smollm2()
    assert not (tmp_path / "models").exists()


def test_broken_gguf_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENTRS_CACHE", str(tmp_path))
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)
    monkeypatch.setattr(smollm2, "find_gguf", lambda: gguf)
    with pytest.raises(ModelError, match=r"converting broken\.gguf failed \(exit 1\)"):
        smollm2.import_smollm2()
    assert list((tmp_path / "models").iterdir()) == []

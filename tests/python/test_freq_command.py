"""`xentrs freq`: counts held to a plain count, tables that add up, refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAINING_LINES, CommandResult, write_model
from xentrs.detect import TokenFrequencies

Command = Callable[..., CommandResult]
TEXTS = [*TRAINING_LINES, "", "the the the"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def build(command: Command, corpus: Path, model: Path, table: Path, *options: str) -> CommandResult:
    return command("freq", "build", corpus, "--model", model, "-o", table, *options)


def test_counts_are_those_of_the_tokenizer(
    xentrs_command: Command, corpus: Path, tiny_model: Path, tiny_runner: Any, tmp_path: Path
) -> None:
    result = build(xentrs_command, corpus, tiny_model, tmp_path / "all.npz")
    assert result.code == 0, result.err
    expected = Counter(i for text in tiny_runner.encoder.encode(TEXTS) for i in text.token_ids.tolist())
    table = TokenFrequencies.load(tmp_path / "all.npz")
    assert {i: int(count) for i, count in enumerate(table.counts) if count} == dict(expected)
    assert (table.document_count, table.vocab_size) == (len(TEXTS), 320)
    assert table.tokenizer_sha256 == tiny_runner.encoder.sha256
    assert f"{sum(expected.values()):,} tokens of 5 documents" in result.err


def test_shards_add_up_to_the_whole(xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert build(xentrs_command, corpus, tiny_model, tmp_path / "all.npz").code == 0
    for number in (1, 2):
        shard = tmp_path / f"{number}.npz"
        assert build(xentrs_command, corpus, tiny_model, shard, "--shard", f"{number}/2").code == 0
    merged = xentrs_command("freq", "merge", tmp_path / "2.npz", tmp_path / "1.npz", "-o", tmp_path / "both.npz")
    assert merged.code == 0, merged.err
    assert (tmp_path / "both.npz").read_bytes() == (tmp_path / "all.npz").read_bytes()


def test_bad_records_are_named_and_the_rest_counted(
    xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    corpus.write_text(corpus.read_text() + '{"wrong": 1}\n')
    result = build(xentrs_command, corpus, tiny_model, tmp_path / "all.npz")
    assert result.code == 3
    assert f"left out {corpus}:{len(TEXTS) + 1}: key 'text' is missing" in result.err
    assert TokenFrequencies.load(tmp_path / "all.npz").document_count == len(TEXTS)


def test_tables_that_do_not_go_together(xentrs_command: Command, tmp_path: Path) -> None:
    for name, tokenizer in (("one", "aa"), ("two", "bb")):
        TokenFrequencies.build([[0, 1]], vocab_size=4, tokenizer_sha256=tokenizer).save(tmp_path / f"{name}.npz")
    merged = tmp_path / "merged.npz"
    result = xentrs_command("freq", "merge", tmp_path / "one.npz", tmp_path / "two.npz", "-o", merged)
    assert result.code == 2
    assert "tokenizer aa, the tokens are of bb" in result.err
    (tmp_path / "text.npz").write_text("no table")
    result = xentrs_command("freq", "merge", tmp_path / "text.npz", "-o", merged)
    assert (result.code, merged.exists()) == (2, False)
    assert "is no table of token frequencies" in result.err
    assert xentrs_command("freq", "merge", tmp_path / "gone.npz", "-o", merged).code == 2
    assert xentrs_command("freq", "merge", tmp_path / "one.npz", "-o", tmp_path / "no" / "x.npz").code == 2


def test_dc_pdd_refuses_the_table_of_another_tokenizer(
    xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    table = TokenFrequencies(320, "ff" * 32)
    table.counts += np.arange(320)
    table.save(tmp_path / "other.npz")
    options = ("--scores", "dc-pdd", "--frequencies", tmp_path / "other.npz", "-o", tmp_path / "run")
    result = xentrs_command("detect", corpus, "--model", tiny_model, *options)
    assert result.code == 2
    assert "token frequencies of tokenizer ffff" in result.err
    assert not (tmp_path / "run").exists()


def test_the_vocabulary_is_the_models(xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    wider = write_model(tmp_path / "wider", vocab_size=384)
    wide, plain = tmp_path / "wide.npz", tmp_path / "plain.npz"
    assert build(xentrs_command, corpus, wider, wide).code == 0
    assert build(xentrs_command, corpus, tiny_model, plain).code == 0
    result = xentrs_command("freq", "merge", wide, plain, "-o", tmp_path / "both.npz")
    assert result.code == 2
    assert "vocabularies of 384 and 320 tokens" in result.err


def test_neither_weights_nor_torch_are_needed(
    xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert build(xentrs_command, corpus, tiny_model, tmp_path / "with.npz").code == 0
    bare = shutil.copytree(tiny_model, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    arguments = ["freq", "build", str(corpus), "--model", str(bare), "-o", str(tmp_path / "without.npz"), "--quiet"]
    code = f"import sys; sys.modules['torch'] = None; from xentrs.cli import main; sys.exit(main({arguments!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "without.npz").read_bytes() == (tmp_path / "with.npz").read_bytes()
    (bare / "tokenizer.json").write_text("{")
    broken = build(xentrs_command, corpus, bare, tmp_path / "broken.npz")
    assert (broken.code, "its tokenizer cannot be loaded" in broken.err) == (2, True)


def test_a_back_end_of_its_own_is_loaded(
    xentrs_command: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llama_cpp_stand_in

    llama_cpp_stand_in.reset()
    monkeypatch.setitem(sys.modules, "llama_cpp", llama_cpp_stand_in)
    model = tmp_path / "tiny.gguf"
    model.write_bytes(b"GGUF")
    assert build(xentrs_command, corpus, model, tmp_path / "all.npz").code == 0
    table = TokenFrequencies.load(tmp_path / "all.npz")
    assert (table.vocab_size, table.token_count) == (260, sum(len(text.encode()) for text in TEXTS))

"""The RUN folder: what stands in it, what a resume does, and what is refused."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAINING_LINES
from xentrs.corpus import open_sources, resolve_settings, run, score_corpus
from xentrs.corpus.reading import Reading
from xentrs.corpus.run import CorpusResult, Silent
from xentrs.corpus.settings import Settings
from xentrs.corpus.windows import Windowing
from xentrs.errors import ManifestMismatch

Scorer = Callable[..., CorpusResult]
LINES = [
    *({"text": f"{line} {number}", "id": f"d{number}"} for number, line in enumerate(TRAINING_LINES * 4)),
    {"text": ""},
    {"text": "a"},
    {"wrong": 1},
    {"text": TRAINING_LINES[1] * 4},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in LINES) + "\nbroken\n")
    return path


@pytest.fixture
def score(tiny_runner: Any, corpus: Path) -> Scorer:
    """Score the corpus into a folder in several parts."""

    def run_once(output: Path, **changes: Any) -> CorpusResult:
        settings: Settings = resolve_settings(tiny_runner, window=32, part_tokens=150)
        sources, _ = open_sources([str(corpus)])
        return score_corpus(tiny_runner, sources, replace(settings, **changes), output, Silent())

    return run_once


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the timings."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "timings.json"}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Let scoring fail behind so many parts."""
    real = run.score_part
    left = [parts]

    def failing(*arguments: Any) -> Any:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*arguments)

    monkeypatch.setattr(run, "score_part", failing)


def test_files_of_a_run(tmp_path: Path, score: Scorer) -> None:
    import pyarrow.parquet as pq

    result = score(tmp_path / "run")
    folder = tmp_path / "run"
    parts = result.summary["parts"]
    assert parts >= 3
    names = {f"{table}-{number:05d}.parquet" for table in ("documents", "tokens") for number in range(parts)}
    others = {"manifest.jsonl", "summary.json", "timings.json", "quarantine.jsonl", ".lock"}
    assert {path.name for path in folder.iterdir()} == names | others
    documents = pq.read_table([folder / f"documents-{number:05d}.parquet" for number in range(parts)])
    tokens = pq.read_table([folder / f"tokens-{number:05d}.parquet" for number in range(parts)])
    assert documents.column_names == [
        "document", "id", "source", "token_count", "scored_count", "context_count", "dropped_context_count",
        "byte_count", "char_count", "word_count", "scored_byte_count", "scored_char_count", "scored_word_count",
        "nll_sum", "mean_nll", "perplexity", "bits_per_byte", "top1_count", "greedy_match", "status", "reason",
    ]  # fmt: skip
    assert tokens.column_names == [
        "document", "position", "token_id", "byte_start", "byte_end", "nll", "entropy", "varentropy", "rank",
        "ties",
        "top1_id", "top1_log_prob", "flags",
    ]  # fmt: skip
    assert documents["document"].to_pylist() == [place for place in range(len(LINES)) if place != 14]
    assert documents.num_rows == result.summary["totals"]["documents"]
    assert tokens.num_rows == result.summary["totals"]["tokens"]
    unscored = np.array(tokens["flags"].to_pylist()) == 16
    assert tokens["nll"].null_count == tokens["rank"].null_count == unscored.sum() == 14
    assert documents["perplexity"].null_count == 2
    quarantine = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["kind"]) for entry in quarantine] == [
        (15, "missing_key"),
        (17, "invalid_json"),
    ]
    assert set(quarantine[0]) == {"source", "line", "byte_offset", "kind", "reason"}


def test_manifest_holds_fingerprint_and_hashes(tmp_path: Path, score: Scorer, corpus: Path) -> None:
    result = score(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "manifest.jsonl").read_text().splitlines()]
    protocol = lines[0]["protocol"]
    for name in (
        "xentrs_version",
        "numerics_version",
        "isa",
        "model",
        "model_sha256",
        "tokenizer_sha256",
        "window",
    ):
        assert protocol[name] is not None, name
    digest = hashlib.sha256(corpus.read_bytes()).hexdigest()
    assert lines[0]["inputs"] == [
        {"name": str(corpus), "format": "jsonl", "bytes": corpus.stat().st_size, "sha256": digest}
    ]
    assert [line["part"] for line in lines[1:]] == list(range(result.summary["parts"]))
    for line in lines[1:]:
        for name, entry in line["files"].items():
            data = (tmp_path / "run" / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert sum(line["tokens"] for line in lines[1:]) == result.summary["totals"]["tokens"]


def test_two_runs_have_the_same_bytes(tmp_path: Path, score: Scorer) -> None:
    score(tmp_path / "one")
    score(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_interrupted_and_resumed_run_has_the_same_bytes(
    tmp_path: Path, score: Scorer, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    expected = score(tmp_path / "whole")
    interrupt_after(monkeypatch, parts)
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path / "cut")
    assert not (tmp_path / "cut" / "summary.json").exists()
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = score(tmp_path / "cut")
    assert result.resumed_parts == parts
    assert result.summary == expected.summary
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_finished_run_is_left_alone(tmp_path: Path, score: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = score(tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir() if path.name != ".lock"}
    interrupt_after(monkeypatch, 0)
    again = score(tmp_path / "run")
    assert again.already_finished
    assert again.summary == json.loads(json.dumps(first.summary))
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir() if path.name != ".lock"}
    assert after == before


@pytest.mark.parametrize("damage", ["flip", "delete", "empty", "swap"])
def test_damaged_part_is_made_again_and_no_other(tmp_path: Path, score: Scorer, damage: str) -> None:
    expected = score(tmp_path / "run")
    folder = tmp_path / "run"
    before = contents(folder)
    path, other = folder / "tokens-00001.parquet", folder / "tokens-00000.parquet"
    if damage == "flip":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "delete":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        held = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(held)
    result = score(folder)
    assert not result.already_finished
    assert result.resumed_parts == expected.summary["parts"] - (2 if damage == "swap" else 1)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["summary.json", "quarantine.jsonl"])
def test_damaged_summary_is_written_again(tmp_path: Path, score: Scorer, name: str) -> None:
    score(tmp_path / "run")
    before = contents(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text('{"parts": ')
    (tmp_path / "run" / name).write_bytes(b"")
    score(tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_torn_last_line_of_the_manifest_is_ignored(tmp_path: Path, score: Scorer) -> None:
    score(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    (tmp_path / "torn" / "summary.json").unlink()
    manifest = tmp_path / "torn" / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    (tmp_path / "torn" / "tokens-00001.parquet.tmp-99").write_bytes(b"half")
    result = score(tmp_path / "torn")
    assert result.resumed_parts == result.summary["parts"] - 1
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


@pytest.mark.parametrize("number", [1, 2])
def test_damaged_manifest_line_is_refused(tmp_path: Path, score: Scorer, number: int) -> None:
    score(tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    lines[number - 1] = b"garbage\n"
    manifest.write_bytes(b"".join(lines))
    with pytest.raises(ManifestMismatch, match=rf"manifest\.jsonl:{number}: damaged line"):
        score(tmp_path / "run")


def test_other_settings_are_refused_and_named(tmp_path: Path, score: Scorer, corpus: Path) -> None:
    score(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(ManifestMismatch, match=r"protocol\.window: 32 in the RUN, 16 now"):
        score(tmp_path / "run", windowing=Windowing(16, 16))
    with pytest.raises(ManifestMismatch, match=r"reading\.limit: None in the RUN, 3 now"):
        score(tmp_path / "run", reading=Reading(limit=3))
    corpus.write_text(corpus.read_text() + '{"text": "more"}\n')
    with pytest.raises(ManifestMismatch, match=r"inputs\.0\.sha256"):
        score(tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_other_folders_are_refused(tmp_path: Path, score: Scorer) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(ManifestMismatch, match=r"not a RUN folder .* thesis\.tex"):
        score(foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    with pytest.raises(ManifestMismatch, match="is a file"):
        score(foreign / "thesis.tex")


def test_second_process_is_refused(tmp_path: Path, score: Scorer) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ManifestMismatch, match="another process is writing"):
            score(folder)
    score(folder)


def test_full_disk_leaves_no_finished_run(tmp_path: Path, score: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        score(tmp_path / "run")
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob("*.tmp-*"))
    assert not (tmp_path / "run" / "summary.json").exists()
    assert score(tmp_path / "run").summary["parts"] >= 3


def test_corpus_without_a_document(tmp_path: Path, score: Scorer, corpus: Path) -> None:
    corpus.write_text("broken\n\n")
    result = score(tmp_path / "run")
    assert result.summary["totals"]["reason"] == "no_tokens"
    assert (result.summary["totals"]["quarantined"], result.summary["parts"]) == (1, 1)
    corpus.write_text("")
    assert score(tmp_path / "empty").summary["parts"] == 0
    assert score(tmp_path / "empty").already_finished

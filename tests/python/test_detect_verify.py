"""`xentrs verify` of what `xentrs detect` leaves: passes, scores, evaluation, decisions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import CommandResult, write_model
from xentrs.detect.verification import verify_detection

Command = Callable[..., CommandResult]
PASSES = ("cross", "lowercase", "member_shots", "nonmember_shots")
RECORDS: list[dict[str, Any]] = [
    {"text": f"the Fox {n}", "id": f"d{n}", **({"label": n % 2} if n < 12 else {})} for n in range(15)
]


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A RUN with every pass of one reference model."""
    from xentrs.cli import main

    folder = tmp_path_factory.mktemp("verified-detection")
    corpus = write_records(folder / "corpus.jsonl", [*RECORDS, {"wrong": 1}, {"text": ""}])
    reference = write_model(folder / "reference", hidden_size=48)
    shots = [write_records(folder / f"{name}.jsonl", [{"text": name}]) for name in ("river", "towns")]
    options = ["--dtype", "float32", "--label-key", "label", "--reference", reference, "--quiet"]
    options += ["--shots", shots[0], "--member-shots", shots[1], "-o", folder / "run"]
    assert main([str(entry) for entry in ("detect", corpus, "--model", tiny_model, *options)]) == 3
    return folder / "run"


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(whole, tmp_path / "run")


def findings(run: Path) -> list[tuple[str, str]]:
    return [(found.file, found.message) for found in verify_detection(run)[0]]


def test_a_whole_run_passes_with_its_passes(xentrs_command: Command, whole: Path) -> None:
    result = xentrs_command("verify", whole)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{whole}: 1 parts verified{''.join(f', 1 of {name}' for name in PASSES)}\n"
    page = json.loads(xentrs_command("verify", whole, "--json").out)
    assert page["passes"] == dict.fromkeys(PASSES, 1)
    # A pass is a RUN like any other.
    for name in PASSES:
        assert xentrs_command("verify", whole / "companions" / name).code == 0
        assert xentrs_command("summary", whole / "companions" / name).code == 0


def test_a_pass_of_another_tokenizer_passes(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    corpus = write_records(tmp_path / "corpus.jsonl", RECORDS)
    wide, run = write_model(tmp_path / "wide", vocab_size=384), tmp_path / "run"
    options = ("--model", tiny_model, "--reference", wide, "--scores", "ref-ratio", "-o", run, "--quiet")
    assert xentrs_command("detect", corpus, *options).code == 0
    assert xentrs_command("verify", run).out == f"{run}: 1 parts verified, 1 of reference\n"


def test_passes_of_two_reference_models(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    corpus = write_records(tmp_path / "corpus.jsonl", RECORDS)
    wide, other, run = write_model(tmp_path / "wide", vocab_size=384), tmp_path / "other", tmp_path / "run"
    write_model(other, hidden_size=48)
    options = ("--model", tiny_model, "--dtype", "float32", "--scores", "ref-ratio", "-o", run, "--quiet")
    for reference, name in ((wide, "reference"), (other, "cross")):
        assert xentrs_command("detect", corpus, *options, "--reference", reference, "--label-key", "label").code == 0
        ((model, held),) = json.loads((run / "evaluation.json").read_text())["runs"][0]["passes"].items()
        assert (model, held["model"]) == (name, str(reference))
        assert set(held) == {"model", "sha256"}
    before = (run / "scores.parquet").read_bytes()
    for scores in ("all", "ref-ratio", "binoculars"):
        result = xentrs_command("detect", run, "--scores", scores)
        assert result.code == 2
        for part in (run / "companions" / "reference", wide, run / "companions" / "cross", other):
            assert str(part) in result.err
        assert "remove one of these folders" in result.err
    assert (run / "scores.parquet").read_bytes() == before
    assert xentrs_command("detect", run, "--scores", "loss").code == 0
    shutil.rmtree(run / "companions" / "reference")
    assert xentrs_command("detect", run, "--scores", "ref-ratio").code == 0
    assert xentrs_command("verify", run).code == 0


@pytest.mark.parametrize("name", PASSES)
def test_a_damaged_pass_is_named(xentrs_command: Command, run: Path, name: str) -> None:
    tokens = run / "companions" / name / "tokens-00000.parquet"
    data = bytearray(tokens.read_bytes())
    data[len(data) // 2] ^= 1
    tokens.write_bytes(data)
    ((file, message),) = findings(run)
    assert file == f"companions/{name}/tokens-00000.parquet"
    assert message.startswith("SHA-256 ")
    result = xentrs_command("verify", run)
    assert (result.code, result.out) == (1, f"{file}: {message}\n{run}: not verified\n")


def test_passes_that_are_unfinished_foreign_or_empty(run: Path) -> None:
    companions = run / "companions"
    (companions / "cross" / "summary.json").unlink()
    (companions / "lowercase" / "manifest.jsonl").unlink()
    shutil.copytree(companions / "member_shots", companions / "other")
    assert findings(run) == [
        ("companions/cross/summary.json", "missing: the RUN is unfinished"),
        ("companions/lowercase/manifest.jsonl", "missing: the pass was not begun"),
        ("companions/other/", "is no pass of xentrs detect"),
        ("scores.parquet", "was made of another pass lowercase than the one beside it: detect again"),
    ]


def test_passes_over_something_else(
    xentrs_command: Command, run: Path, whole: Path, tiny_model: Path, tmp_path: Path
) -> None:
    corpus = write_records(tmp_path / "other.jsonl", RECORDS)
    options = ("--scores", "lowercase", "--window", 32, "--quiet", "-o", tmp_path / "other")
    assert xentrs_command("detect", corpus, "--model", tiny_model, *options).code == 0
    shutil.rmtree(run / "companions" / "lowercase")
    shutil.move(tmp_path / "other" / "companions" / "lowercase", run / "companions" / "lowercase")
    found = [message for file, message in findings(run) if file == "companions/lowercase/manifest.jsonl"]
    assert [message.partition(":")[2].split()[0] for message in found] == ["inputs", "protocol"]
    # Shots of no members and of members are both shots: which is which the scores know.
    companions = run / "companions"
    (companions / "member_shots").rename(companions / "x")
    (companions / "nonmember_shots").rename(companions / "member_shots")
    (companions / "x").rename(companions / "nonmember_shots")
    assert [file for file, _ in findings(run)].count("scores.parquet") == 3


def test_scores_of_other_tokens(xentrs_command: Command, run: Path, tiny_model: Path, tmp_path: Path) -> None:
    corpus = write_records(tmp_path / "other.jsonl", RECORDS)
    other = tmp_path / "other"
    assert xentrs_command("score", corpus, "--model", tiny_model, "--quiet", "-o", other).code == 0
    for name in ("scores.parquet", "evaluation.json", "decisions.parquet"):
        shutil.copy(run / name, other / name)
    assert findings(other) == [("scores.parquet", "was made of other tokens than those beside it: detect again")]
    assert xentrs_command("detect", other).code == 0
    assert findings(other) == []


def test_an_evaluation_of_other_scores(run: Path) -> None:
    pq.write_table(pq.read_table(run / "scores.parquet"), run / "scores.parquet")
    assert findings(run) == [("evaluation.json", "is not of the scores.parquet beside it: detect again")]
    (run / "decisions.parquet").unlink()
    (run / "scores.parquet").unlink()
    assert findings(run) == [
        ("evaluation.json", "is not of the scores.parquet beside it: detect again"),
        ("evaluation.json", "is not of the decisions.parquet beside it: detect again"),
    ]


def test_files_that_say_nothing(run: Path, whole: Path) -> None:
    table = pq.read_table(run / "scores.parquet")
    for metadata in (None, {"xentrs_schema": "2"}, {"xentrs_schema": "1", "xentrs_runs": "[]"}):
        pq.write_table(table.replace_schema_metadata(metadata), run / "scores.parquet")
        assert findings(run)[0][1] == "does not say which tokens it was made of: detect again"
    pq.write_table(table.slice(1), run / "scores.parquet")
    assert findings(run)[0] == ("scores.parquet", "15 rows, 16 documents in the manifest")
    (run / "scores.parquet").write_bytes(b"PAR1 nothing PAR1")
    assert findings(run)[0][1].startswith("cannot be read: ")
    shutil.copy(whole / "scores.parquet", run / "scores.parquet")
    for text, message in (
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "does not say which scores it is of: detect again"),
    ):
        (run / "evaluation.json").write_text(text)
        assert findings(run) == [("evaluation.json", message)]
    (run / "evaluation.json").unlink()
    assert findings(run) == [("decisions.parquet", "stands there without evaluation.json: detect again")]

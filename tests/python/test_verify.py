"""Verification: what is whole passes, every kind of damage is found and named, and documents score the same again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CommandResult
from finished_runs import score_into, write_corpus
from xentrs.corpus.settings import Columns
from xentrs.runs.open_run import OpenRun
from xentrs.runs.verification import verify_run

Command = Callable[..., CommandResult]
Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_runner: Any) -> Path:
    folder = tmp_path_factory.mktemp("verified")
    return score_into(folder / "whole", tiny_runner, write_corpus(folder / "corpus.jsonl"))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def findings(run: Path) -> list[tuple[str, str]]:
    return [(found.file, found.message) for found in verify_run(run)[0]]


def change_lines(run: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    path = run / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_table(run: Path, name: str, change: Change) -> None:
    """Rewrite a table, and its hash in the manifest, so that only its content is wrong."""
    import pyarrow.parquet as pq

    pq.write_table(change(pq.read_table(run / name)), run / name)
    data = (run / name).read_bytes()

    def rehash(lines: list[dict[str, Any]]) -> None:
        for line in lines[1:]:
            if name in line["files"]:
                line["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    change_lines(run, rehash)


def with_values(column: str, change: Callable[[list[Any]], list[Any]]) -> Change:
    """A table with other values in one column."""

    def apply(table: Any) -> Any:
        import pyarrow as pa

        field = table.schema.field(column)
        values = pa.array(change(table[column].to_pylist()), type=field.type)
        return table.set_column(table.column_names.index(column), field, values)

    return apply


def test_a_whole_run_passes(xentrs_command: Command, whole: Path) -> None:
    result = xentrs_command("verify", whole)
    parts = len(OpenRun(whole).parts)
    assert (result.code, result.out, result.err) == (0, f"{whole}: {parts} parts verified\n", "")
    page = json.loads(xentrs_command("verify", whole, "--json").out)
    assert page == {"passed": True, "parts": parts, "passes": {}, "findings": [], "rescore": None}


def test_other_levels_pass(tmp_path: Path, whole: Path, tiny_runner: Any) -> None:
    corpus = whole.parent / "corpus.jsonl"
    none = score_into(tmp_path / "none", tiny_runner, corpus, columns=Columns("none"))
    kept = score_into(tmp_path / "kept", tiny_runner, corpus, keep_text=True)
    assert findings(none) == findings(kept) == []


def test_a_changed_byte_and_another_length(xentrs_command: Command, run: Path) -> None:
    tokens, documents = run / "tokens-00001.parquet", run / "documents-00000.parquet"
    data = bytearray(tokens.read_bytes())
    data[len(data) // 2] ^= 1
    tokens.write_bytes(data)
    size = documents.stat().st_size
    documents.write_bytes(documents.read_bytes() + b"x")
    found = findings(run)
    assert found[0] == ("documents-00000.parquet", f"{size + 1} bytes, {size} in the manifest")
    assert found[1][0] == "tokens-00001.parquet"
    assert found[1][1].startswith(f"SHA-256 {hashlib.sha256(data).hexdigest()}, ")
    assert len(found) == 2
    result = xentrs_command("verify", run)
    assert result.code == 1
    lines = [f"{file}: {message}" for file, message in found]
    assert result.out.splitlines() == [*lines, f"{run}: not verified"]
    page = json.loads(xentrs_command("verify", run, "--json", "--rescore", 1).out)
    assert (page["passed"], page["rescore"]) == (False, None)
    assert page["findings"][0] == {"file": found[0][0], "message": found[0][1]}


def test_missing_temporary_and_foreign_files(run: Path) -> None:
    (run / "tokens-00000.parquet").unlink()
    (run / "documents-00009.parquet").write_bytes(b"")
    (run / "summary.json.tmp-17").write_bytes(b"")
    assert findings(run) == [
        ("summary.json.tmp-17", "temporary file of a killed process"),
        ("tokens-00000.parquet", "missing"),
        ("documents-00009.parquet", "is not in the manifest"),
    ]


def test_gaps_and_torn_manifests(run: Path) -> None:
    manifest = run / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes() + b'{"part":')
    assert findings(run) == [("manifest.jsonl", "the last line is torn")]
    change_lines_torn = manifest.read_bytes().rpartition(b"\n")[0] + b"\n"
    manifest.write_bytes(change_lines_torn)
    change_lines(run, lambda lines: lines.pop(2))
    parts = len(OpenRun(run).parts)
    assert findings(run) == [
        ("manifest.jsonl", "part 1 is missing"),
        ("documents-00001.parquet", "is not in the manifest"),
        ("tokens-00001.parquet", "is not in the manifest"),
        ("summary.json", f"{run}/summary.json counts {parts + 1} parts, the manifest {parts}"),
    ]


def test_lines_that_do_not_follow_each_other(run: Path) -> None:
    def change(lines: list[dict[str, Any]]) -> None:
        lines[2]["start"]["line"] += 1
        lines.append(lines[1])

    change_lines(run, change)
    assert findings(run) == [
        ("manifest.jsonl", "a part has several lines"),
        ("manifest.jsonl", "part 1 does not start where part 0 ended"),
    ]


def test_an_unfinished_run(run: Path) -> None:
    (run / "summary.json").unlink()
    assert findings(run) == [("summary.json", "missing: the RUN is unfinished")]


@pytest.mark.parametrize("name", ["documents-00000.parquet", "tokens-00000.parquet"])
def test_other_schemas(run: Path, name: str) -> None:
    change_table(run, name, lambda table: table.replace_schema_metadata({"xentrs_schema": "1"}))
    assert findings(run)[0] == (name, "schema version 1, expected 2")
    change_table(run, name, lambda table: table.replace_schema_metadata())
    assert findings(run)[0] == (name, "schema version none, expected 2")


def test_parts_with_other_columns(run: Path) -> None:
    import pyarrow as pa

    change_table(
        run,
        "documents-00001.parquet",
        lambda table: table.append_column("by_x", pa.array(["u"] * table.num_rows)),
    )
    assert ("documents-00001.parquet", "has other columns than the part before") in findings(run)


def test_a_file_that_is_no_table(run: Path) -> None:
    name = "tokens-00000.parquet"
    change_table(run, name, lambda table: table)
    data = b"PAR1 nothing PAR1"
    (run / name).write_bytes(data)

    def rehash(lines: list[dict[str, Any]]) -> None:
        lines[1]["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    change_lines(run, rehash)
    assert findings(run)[0][1].startswith("cannot be read: ")


def test_a_sum_that_is_off_in_its_last_bit(run: Path) -> None:
    name = "documents-00000.parquet"
    old = OpenRun(run).documents(["nll_sum"]).__next__()["nll_sum"].to_pylist()[1]
    new = float(np.nextafter(old, np.inf))
    change_table(run, name, with_values("nll_sum", lambda values: [values[0], new, *values[2:]]))
    assert findings(run)[0] == (name, f"d1: nll_sum {new!r}, the tokens add up to {old!r}")


def test_a_token_that_is_off_in_its_last_bit(run: Path) -> None:
    name = "tokens-00000.parquet"
    change_table(run, name, with_values("nll", lambda values: [values[0], values[1] + 1e-3, *values[2:]]))
    found = findings(run)
    assert found[0][0] == "documents-00000.parquet"
    assert found[0][1].startswith("d0: nll_sum ")
    assert found[1] == ("manifest.jsonl", f"part 0: nll_state is not that of {name}")
    change_table(run, name, with_values("nll", lambda values: [None, None, *values[2:]]))
    assert findings(run)[0][1].startswith("d0: scored_count ")


def test_rows_that_are_missing_or_astray(run: Path) -> None:
    name = "tokens-00000.parquet"
    change_table(run, name, lambda table: table.take([1, 0, *range(2, table.num_rows)]))
    assert findings(run) == []  # of one document: the sum does not mind
    change_table(run, name, lambda table: table.take([table.num_rows - 1, *range(1, table.num_rows)]))
    assert (name, "rows are not in the order of the documents") in findings(run)
    change_table(run, name, lambda table: table.slice(1))
    rows = OpenRun(run).parts[0]["tokens"]
    assert findings(run)[0] == (name, f"{rows - 1} rows, token_count adds up to {rows}")


def test_documents_that_are_missing(run: Path) -> None:
    name = "documents-00000.parquet"
    line = OpenRun(run).parts[0]
    change_table(run, name, lambda table: table.slice(1))
    found = findings(run)
    assert found[0] == (name, f"{line['documents'] - 1} documents, {line['documents']} in the manifest")
    assert found[1][1].endswith(f"{line['tokens']} in the manifest")


def test_a_summary_that_does_not_follow(run: Path) -> None:
    path = run / "summary.json"
    summary = json.loads(path.read_text())
    bits = summary["totals"]["bits_per_byte"]
    summary["totals"]["bits_per_byte"] = 0.5
    summary["best_documents"][0]["id"] = "other"
    summary["protocol"]["window"] = 16
    summary["inputs"][0]["sha256"] = "0"
    path.write_text(json.dumps(summary))
    digest = OpenRun(run).inputs[0]["sha256"]
    best = OpenRun(run).totals().best()[0]["id"]
    assert findings(run) == [
        ("summary.json", "protocol differs: window: 32 in manifest.jsonl, 16 in summary.json"),
        ("summary.json", f"inputs differs: 0.sha256: {digest} in manifest.jsonl, 0 in summary.json"),
        (
            "summary.json",
            f"does not follow from the parts: totals.bits_per_byte: 0.5 in summary.json, {bits} in the parts; "
            f"best_documents.0.id: other in summary.json, {best} in the parts",
        ),
    ]


def test_a_quarantine_that_lost_a_record(run: Path) -> None:
    (run / "quarantine.jsonl").unlink()
    assert findings(run) == [("quarantine.jsonl", "does not hold the rejected records of the manifest")]


def test_what_is_no_run_is_a_wrong_call(xentrs_command: Command, tmp_path: Path) -> None:
    result = xentrs_command("verify", tmp_path)
    assert (result.code, result.err) == (2, f"Error: {tmp_path}: is not a RUN folder (no manifest.jsonl)\n")


def test_a_run_that_is_being_written_is_left_alone(xentrs_command: Command, run: Path) -> None:
    with (run / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = xentrs_command("verify", run)
    assert (result.code, result.err) == (2, f"Error: {run}: another process is writing this RUN\n")
    assert xentrs_command("verify", run).code == 0

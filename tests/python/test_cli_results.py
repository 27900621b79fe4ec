"""What `xentrs score` gives back besides figures: exit codes by how much was scored, warnings, lines of JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAINING_LINES, CommandResult

Command = Callable[..., CommandResult]


def test_strict_and_a_warning_where_many_tokens_are_not_scored(
    xentrs_command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    """More than a thousandth: without a prefix that is documents of less than a thousand tokens."""
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text(TRAINING_LINES[0])
    long.write_text(" ".join(TRAINING_LINES * 14))
    command = ("score", "--model", tiny_model, "--threads", 1)
    result = xentrs_command(*command, short)
    assert result.code == 0
    assert re.search(r"warning: 1 of \d+ tokens \(\d+\.\d+%\) have no score: ", result.err)
    assert "--prefix bos or eos scores it" in result.err
    assert xentrs_command(*command, short, "--strict").code == 3
    for options in ((short, "--prefix", "bos"), (long,)):
        result = xentrs_command(*command, *options, "--strict", "--json")
        assert result.code == 0, result.err
        assert "have no score" not in result.err
    totals = json.loads(result.out)["totals"]
    assert (totals["unscored_tokens"], totals["tokens"] > 1000) == (1, True)
    for options, why in (
        (("--protocol", "llama.cpp", "--window", 16), "llama.cpp scores the second half of each window"),
        (("--protocol", "hf-strided"), "the transformers recipe has no prefix"),
    ):
        assert why in xentrs_command(*command, short, *options).err


@pytest.mark.parametrize(
    ("bad", "good", "options", "code"),
    [
        (1, 0, (), 3),
        (100, 0, (), 3),  # so few may be bad whatever their share
        (101, 400, (), 1),
        (101, 400, ("--max-bad-fraction", 0.21), 3),
        (101, 400, ("--max-bad-fraction", 0.2), 1),
        (101, 0, ("--max-bad-fraction", 1), 3),
        (0, 1, ("--max-bad-fraction", 0), 0),
    ],
)
def test_too_many_bad_records(
    xentrs_command: Command, tiny_model: Path, tmp_path: Path, bad: int, good: int, options: Any, code: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{\n" * bad + '{"text": "a"}\n' * good)
    result = xentrs_command("score", path, "--model", tiny_model, "--json", *options)
    assert result.code == code
    assert len(json.loads(result.out)["quarantine"]) == bad  # what could be scored is shown whatever the code
    assert (f"{bad} of {bad + good} records are bad" in result.err) == (code == 1)


def test_jsonl_is_a_line_for_each_document(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    mixed_file = tmp_path / "mixed.jsonl"
    lines = [{"text": TRAINING_LINES[0], "id": "fox"}, {"text": ""}, {"txt": "x"}, {"text": "naïve 🙂\u2028"}]
    mixed_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = xentrs_command("score", mixed_file, "--model", tiny_model, "--jsonl")
    assert result.code == 3
    rows = [json.loads(line) for line in result.out.split("\n")[:-1]]
    assert [row["status"] for row in rows] == ["scored", "unscorable", "scored"]
    page = json.loads(xentrs_command("score", mixed_file, "--model", tiny_model, "--json").out)
    assert rows == page["documents"]
    run = xentrs_command("score", mixed_file, "--model", tiny_model, "--jsonl", "-o", tmp_path / "run")
    assert [json.loads(line) for line in run.out.split("\n")[:-1]] == rows

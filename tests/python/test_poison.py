"""A corpus of every kind of bad record: what is counted how, and that the others are scored as if alone."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CommandResult
from test_sources import PACK
from xentrs.corpus import documents as documents_module

pytestmark = pytest.mark.usefixtures("one_thread")
Command = Callable[..., CommandResult]
SEED = 28
GOOD = [
    (b'{"text": "The dog"}', "scored"),
    (b'{"text": "The dog"}\r', "scored"),
    (b'{"text": "nul \\u0000 inside"}', "scored"),
    (b'  {"text": "spaces around"}  ', "scored"),
    (b'{"text": "\\ud835\\udd38 a pair"}', "scored"),
    ('{"text": "naïve 🙂 東京"}'.encode(), "scored"),
    (b'{"text": "twice", "id": "same"}', "scored"),
    (b'{"text": "twice", "id": "same"}', "scored"),
    (b'{"text": "long ' + b"12 towns " * 60 + b'"}', "scored"),
    (b'{"text": ""}', "no_tokens"),
    (b'{"text": "a"}', "one_token"),
]
BAD = [
    (b"{broken", "invalid_json"),
    (b'{"text": "cut', "invalid_json"),
    (b'{"text": "a"} trailing', "invalid_json"),
    (b'{"text": "a\x00b"}', "invalid_json"),
    (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "invalid_json"),
    (b'\xef\xbb\xbf{"text": "a mark inside the file"}', "invalid_json"),
    (b'{"text": "caf\xe9"}', "invalid_utf8"),
    (b'{"text": "\xc0\xaf"}', "invalid_utf8"),  # overlong
    (b'{"text": "\xed\xa0\xb5"}', "invalid_utf8"),  # a surrogate in UTF-8
    (b'{"text": "\xf4\x90\x80\x80"}', "invalid_utf8"),  # beyond the last code point
    (b'{"text": "a \\ud835 b"}', "lone_surrogate"),
    (b'{"text": "a", "id": "\\udfff"}', "lone_surrogate"),
    (b'{"txt": "a"}', "missing_key"),
    (b'{"text": null}', "not_text"),
    (b'{"text": 3}', "not_text"),
    (b'{"text": ["a"]}', "not_text"),
    (b'["text"]', "not_an_object"),
    (b'"text"', "not_an_object"),
    (b'{"text": "a", "text": "b"}', "duplicate_key"),
    (b'{"text": "a", "x": {"y": 1, "y": 2}}', "duplicate_key"),
    (b'{"text": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}", "too_deep"),
    (b'{"text": "a", "x": ' + b"[" * 100_000, "too_deep"),
    (b'{"text": "a", "x": NaN}', "not_finite"),
    (b'{"text": "a", "x": 1e999}', "not_finite"),
    (b'{"text": "a", "id": [1]}', "bad_id"),
    (b'{"text": "' + b"x" * 300_000 + b'"}', "too_long"),
]
EMPTY = [b"", b"\r", b"   ", b" \t "]


@pytest.fixture(autouse=True)
def short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "MAX_RECORD_BYTES", 200_000)


def score(command: Command, model: Path, *arguments: Any) -> dict[str, Any]:
    options = ("--model", model, "--json", "--max-bad-fraction", 1, "--batch-tokens", 1, "--threads", 1)
    result = command("score", *arguments, *options)
    assert result.code == 3, result.err
    assert "Traceback" not in result.err
    page: dict[str, Any] = json.loads(result.out)
    return page


def test_counts_are_exact(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    generator = random.Random(SEED)
    chosen = [(line, kind, "good") for line, kind in GOOD * 3]
    chosen += [(line, kind, "bad") for line, kind in BAD * 4]
    chosen += [(line, "", "empty") for line in EMPTY * 2]
    generator.shuffle(chosen)
    path = tmp_path / "poison.jsonl"
    path.write_bytes(b"\n".join(line for line, _, _ in chosen))  # the last line without its end
    page = score(xentrs_command, tiny_model, path)
    of = {what: [(place, kind) for place, (_, kind, sort) in enumerate(chosen, 1) if sort == what] for what in
          ("good", "bad", "empty")}  # fmt: skip
    assert [(entry["line"], entry["kind"]) for entry in page["quarantine"]] == of["bad"], f"seed {SEED}"
    assert Counter(entry["kind"] for entry in page["quarantine"]) == Counter(kind for _, kind in BAD * 4)
    found = [entry["reason"] or entry["status"] for entry in page["documents"]]
    assert found == [kind for _, kind in of["good"]], f"seed {SEED}"
    totals = page["totals"]
    assert (totals["documents"], totals["quarantined"], totals["skipped_lines"]) == (33, len(BAD) * 4, 8)
    offsets = [entry["byte_offset"] for entry in page["quarantine"]]
    starts = [sum(len(line) + 1 for line, _, _ in chosen[: line - 1]) for line, _ in of["bad"]]
    for offset, start, (line, kind) in zip(offsets, starts, of["bad"], strict=True):
        assert start <= offset <= start + len(chosen[line - 1][0]), (line, kind, f"seed {SEED}")
    # Whatever stands around a record, its figures are those that it has alone.
    alone = tmp_path / "alone.jsonl"
    alone.write_bytes(b"\n".join(line for line, _, sort in chosen if sort == "good") + b"\n{\n")
    expected = score(xentrs_command, tiny_model, alone)["documents"]
    for name in ("token_count", "nll_sum", "byte_count", "bits_per_byte", "status"):
        assert [entry[name] for entry in page["documents"]] == [entry[name] for entry in expected], name


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_file_of_another_encoding(xentrs_command: Command, tiny_model: Path, tmp_path: Path, encoding: str) -> None:
    """No line of it is taken for a text."""
    path = tmp_path / "wide.jsonl"
    path.write_bytes('{"text": "The dog"}\n{"text": "a fox"}\n'.encode(encoding))
    page = score(xentrs_command, tiny_model, path)
    assert page["documents"] == []
    assert {entry["kind"] for entry in page["quarantine"]} <= {"invalid_utf8", "invalid_json"}
    assert page["totals"]["quarantined"] >= 2


def test_a_byte_order_mark_is_no_record(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "mark.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "The dog"}\n{\n')
    assert len(score(xentrs_command, tiny_model, path)["documents"]) == 1
    path.write_bytes(b'\xef\xbb\xbf\n{"text": "The dog"}\n{\n')
    page = score(xentrs_command, tiny_model, path)
    assert (len(page["documents"]), page["totals"]["skipped_lines"]) == (1, 1)


def test_the_same_file_by_three_names(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "The dog"}\n{\n')
    (tmp_path / "soft.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    page = score(xentrs_command, tiny_model, tmp_path)
    assert (len(page["documents"]), page["totals"]["quarantined"]) == (1, 1)


def test_a_bomb_is_one_record_too_long(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    """A thousand times as long as it lies: passed over in pieces; the record behind it is scored."""
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"x" * 30_000_000 + b'"}\n{"text": "The dog"}\n'))
    assert path.stat().st_size < 40_000
    page = score(xentrs_command, tiny_model, path)
    assert [entry["kind"] for entry in page["quarantine"]] == ["too_long"]
    assert [(entry["document"], entry["id"]) for entry in page["documents"]] == [(1, f"{path}#2")]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_that_breaks_off_is_partial_input(
    xentrs_command: Command, tiny_model: Path, tmp_path: Path, ending: str
) -> None:
    lines = [json.dumps({"text": random.Random(place).randbytes(2000).hex()}).encode() for place in range(100)]
    packed = PACK[ending](b"\n".join(lines) + b"\n")
    path, behind = tmp_path / f"a.jsonl{ending}", tmp_path / "b.jsonl"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    behind.write_bytes(b'{"text": "The dog"}\n')
    # All but some of the records that can be read are passed over.
    page = score(xentrs_command, tiny_model, path, behind, "--shard", "3/10", "--protocol", "llama.cpp")
    assert [entry["kind"] for entry in page["quarantine"]] == ["damaged_file"]
    line = page["quarantine"][0]["line"]
    assert 25 < line < 70
    ids = [f"{path}#{number + 1}" for number in range(2, line - 1, 10)]
    assert [entry["id"] for entry in page["documents"]][: len(ids)] == ids
    assert len(page["documents"]) == len(ids) + ((line - 1) % 10 == 2)  # whose turn the record behind is

"""Which records are read, and what of them: --skip, --limit, --shard, --by, keys."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xentrs
from conftest import TRAINING_LINES, CommandResult
from xentrs.corpus import open_sources, resolve_settings, score_corpus
from xentrs.corpus.aggregates import document_rows
from xentrs.corpus.documents import Cursor, Document, Item, Rejected, Skipped, read_items
from xentrs.corpus.reading import Reading, parse_shard
from xentrs.corpus.records import RecordError, parse_record
from xentrs.corpus.run import Silent
from xentrs.errors import ParamError

pytestmark = pytest.mark.usefixtures("one_thread")
Command = Callable[..., CommandResult]
SHARD_COUNTS = (1, 2, 3, 7)


@pytest.fixture
def sources(tmp_path: Path) -> list[Any]:
    """Files of several kinds with good, bad and empty lines; one breaks off."""
    words = TRAINING_LINES[0].split()
    lines = [json.dumps({"text": " ".join(words[: 1 + place % 9]), "id": f"a{place}"}) for place in range(23)]
    lines[4:4], lines[9:9] = ["", "{broken"], [" ", "", '{"wrong": 1}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "b.txt").write_text(TRAINING_LINES[1])
    texts = [json.dumps({"text": f"c{place} {TRAINING_LINES[2]}"}) for place in range(11)]
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(("\n".join(texts) + "\n").encode())[:-6])
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": f"the dog {place}"}) + "\n\n" for place in range(8)))
    return open_sources([str(tmp_path / name) for name in ("a.jsonl", "b.txt", "c.jsonl.gz", "d.jsonl")])[0]


def items(sources: list[Any], **reading: Any) -> list[Item]:
    return [item for item, _ in read_items(sources, Cursor(), Reading(**reading))]


def numbers(found: list[Item]) -> list[int]:
    return [item.number for item in found if isinstance(item, Document)]


def records(found: list[Item]) -> list[Item]:
    """Without empty lines, and without the entry of a damaged file, which is no record."""
    return [
        item
        for item in found
        if not (isinstance(item, Skipped) or (isinstance(item, Rejected) and item.kind == "damaged_file"))
    ]


def test_numbers_count_records_over_all_inputs(sources: list[Any]) -> None:
    found = records(items(sources))
    assert len(found) == 25 + 1 + 11 + 8
    assert [item.number for item in found if isinstance(item, Document)] == [
        place for place, item in enumerate(found) if isinstance(item, Document)
    ]


@pytest.mark.parametrize("count", SHARD_COUNTS)
@pytest.mark.parametrize("chosen", [{}, {"skip": 5}, {"limit": 33}, {"skip": 24, "limit": 5}, {"skip": 27}])
def test_shards_share_out_the_records(sources: list[Any], count: int, chosen: dict[str, int]) -> None:
    """Whatever a file holds: the number of its first record follows from the files before it, not from the shard."""
    whole = items(sources, **chosen)
    shards = [items(sources, shard=shard, shard_count=count, **chosen) for shard in range(count)]
    for shard, found in enumerate(shards):
        assert records(found) == records(whole)[shard::count]
    empty = [sum(isinstance(item, Skipped) for item in found) for found in (whole, *shards)]
    assert empty[0] == sum(empty[1:])


def test_skip_and_limit_count_records_of_all_files(sources: list[Any]) -> None:
    whole = records(items(sources))
    for skip in (0, 1, 5, 6, 25, 26, 37, 44, 45, 1000):
        for limit in (1, 2, 8, 21, 1000, None):
            assert records(items(sources, skip=skip, limit=limit)) == whole[skip:][:limit], (skip, limit)


def test_a_file_behind_the_limit_is_not_opened(sources: list[Any]) -> None:
    Path(sources[1].name).unlink()
    assert len(items(sources, limit=25)) > 25
    with pytest.raises(xentrs.InputChangedError, match=r"b\.txt vanished"):
        items(sources, limit=26)


@pytest.mark.parametrize("reading", [{"shard": 1, "shard_count": 3}, {"skip": 3, "limit": 30}, {"skip": 26}])
def test_reading_goes_on_from_any_cursor(sources: list[Any], reading: dict[str, int]) -> None:
    chosen = Reading(**reading)
    whole = list(read_items(sources, Cursor(), chosen))
    for place, (_, cursor) in enumerate(whole):
        assert list(read_items(sources, cursor, chosen)) == whole[place + 1 :], place


def test_shards_scored_apart_add_up_to_the_same_bits(tiny_runner: Any, sources: list[Any]) -> None:
    # One window a batch: what stands beside a document in a batch changes the rounding of the model's body.
    settings = replace(resolve_settings(tiny_runner, prefix="bos"), batch_tokens=1, part_tokens=100, num_threads=1)

    def score(shard: int, count: int) -> tuple[xentrs.Perplexity, list[dict[str, Any]], dict[str, Any]]:
        total = xentrs.Perplexity()
        rows: list[dict[str, Any]] = []

        def take(part: Any, columns: Any) -> None:
            total.merge_state(columns.nll)
            rows.extend(document_rows(columns.documents))

        reading = Reading(shard=shard, shard_count=count)
        result = score_corpus(tiny_runner, sources, replace(settings, reading=reading), None, Silent(), take)
        return total, rows, result.summary["totals"]

    whole, documents, totals = score(0, 1)
    for count in (3,):
        shards = [score(shard, count) for shard in range(count)]
        union = sorted((row for _, rows, _ in shards for row in rows), key=lambda row: row["document"])
        assert union == documents
        merged = xentrs.Perplexity()
        for total, _, _ in shards[::-1]:
            merged.merge_state(total)
        assert merged.compute() == whole.compute()
        assert np.float64(merged.compute().nll_sum).tobytes() == np.float64(whole.compute().nll_sum).tobytes()
        for name in ("documents", "tokens", "scored_tokens", "bytes", "skipped_lines"):
            assert sum(block[name] for _, _, block in shards) == totals[name], name
        # Each shard meets the damaged file and says so.
        assert sum(block["quarantined"] - 1 for _, _, block in shards) == totals["quarantined"] - 1


@pytest.mark.parametrize(("text", "expected"), [("1/1", (0, 1)), ("2/8", (1, 8)), ("8/8", (7, 8)), ("01/02", (0, 2))])
def test_shard(text: str, expected: tuple[int, int]) -> None:
    assert parse_shard(text) == expected


@pytest.mark.parametrize(
    "text", ["", "1", "1/", "/2", "0/2", "3/2", "1/0", "-1/2", "a/b", "1.0/2", "1/2/3", "٣/٤", "²/³"]
)
def test_bad_shard(text: str) -> None:
    with pytest.raises(ParamError, match=r"--shard .*: expected "):
        parse_shard(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context_key": "a"}, "--context-key and --continuation-key go together"),
        ({"continuation_key": "a"}, "--context-key and --continuation-key go together"),
        ({"messages_key": "m", "context_key": "a", "continuation_key": "b"}, "exclude each other"),
        ({"shard": 2, "shard_count": 2}, "shard 3 of 2"),
        ({"by": ("lang", "source", "lang")}, "--by lang is given twice"),
    ],
)
def test_choices_that_do_not_go_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamError, match=message):
        Reading(**values)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ('"de"', "de"),
        ('""', ""),
        ("7", "7"),
        ("1.5", "1.5"),
        ("true", "true"),
        ("false", "false"),
        ("null", None),
        ("1e2", "100.0"),
    ],
)
def test_labels_are_text(value: str, label: str | None) -> None:
    fields = parse_record(b'{"text": "a", "lang": %s}' % value.encode(), Reading(by=("lang", "year")))
    assert fields.by == {"lang": label, "year": None}


@pytest.mark.parametrize(
    ("value", "kind"), [('["de"]', "bad_label"), ('{"a": 1}', "bad_label"), ('"\\ud800"', "lone_surrogate")]
)
def test_values_that_are_no_label(value: str, kind: str) -> None:
    line = b'{"text": "a", "lang": %s}' % value.encode()
    with pytest.raises(RecordError) as caught:
        parse_record(line, Reading(by=("lang",)))
    assert caught.value.kind == kind
    assert parse_record(line, Reading()).text == "a"  # nobody asked


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (b'{"question": "a"}', "missing_key", "key 'answer' is missing"),
        (b'{"answer": "a"}', "missing_key", "key 'question' is missing"),
        (b'{"question": null, "answer": "a"}', "not_text", "holds null"),
        (b'{"question": "a", "answer": 3}', "not_text", "holds a number"),
        (b'{"question": "\\ud800", "answer": "a"}', "lone_surrogate", "key 'question'"),
    ],
)
def test_pairs_lacking_something(line: bytes, kind: str, reason: str) -> None:
    with pytest.raises(RecordError, match=reason) as caught:
        parse_record(line, Reading(context_key="question", continuation_key="answer"))
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("messages", "kind", "reason"),
    [
        ('"hello"', "not_messages", "holds a string"),
        ("null", "not_messages", "holds null"),
        ("[]", "not_messages", "holds an empty list"),
        ('["hello"]', "not_messages", r"m\[0\] is no object with a role"),
        ('[{"content": "a"}]', "not_messages", r"m\[0\] is no object with a role"),
        ('[{"role": 1, "content": "a"}]', "not_messages", r"m\[0\] is no object with a role"),
        ('[{"role": "user", "content": "a"}, {"role": "user"}]', "not_messages", r"m\[1\] has null as content"),
        ('[{"role": "user", "content": [{"type": "text"}]}]', "not_messages", "has a list as content"),
        ('[{"role": "user", "content": "\\udfff"}]', "lone_surrogate", "key 'm'"),
    ],
)
def test_chats_lacking_something(messages: str, kind: str, reason: str) -> None:
    with pytest.raises(RecordError, match=reason) as caught:
        parse_record(b'{"m": %s}' % messages.encode(), Reading(messages_key="m"))
    assert caught.value.kind == kind


def test_options_of_the_command(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": "The dog", "id": str(n), "lang": "en" if n % 3 else None}) + "\n" for n in range(9))
    )

    def run(*options: Any) -> list[dict[str, Any]]:
        result = xentrs_command("score", path, "--model", tiny_model, "--json", *options)
        assert result.code == 0, result.err
        page = json.loads(result.out)
        assert page["reading"]["skip"] == (2 if "--skip" in options else 0)
        documents: list[dict[str, Any]] = page["documents"]
        return documents

    assert [entry["id"] for entry in run("--skip", 2, "--limit", 5, "--shard", "2/3")] == ["3", "6"]
    assert [entry["document"] for entry in run("--shard", "3/3")] == [2, 5, 8]
    assert [entry["by_lang"] for entry in run("--by", "lang", "--limit", 3)] == [None, "en", "en"]
    for options, message in (
        (("--shard", "4/3"), "--shard 4/3: expected 1/3 to 3/3"),
        (("--shard", "x"), "--shard x: expected NUMBER/COUNT"),
        (("--skip", -1), "--skip"),
        (("--limit", 0), "--limit"),
        (("--by", "a", "--by", "a"), "--by a is given twice"),
        (("--context-key", "a"), "--context-key and --continuation-key go together"),
    ):
        result = xentrs_command("score", path, "--model", tiny_model, *options)
        assert (result.code, result.out) == (2, ""), options
        assert message in result.err


def test_another_shard_is_another_run(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "The dog"}\n' * 4)
    command = ("score", path, "--model", tiny_model, "-o", tmp_path / "run")
    assert xentrs_command(*command, "--shard", "1/2").code == 0
    result = xentrs_command(*command, "--shard", "2/2")
    assert result.code == 2
    assert "reading.shard: 0 in the RUN, 1 now" in result.err

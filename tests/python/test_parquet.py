"""Parquet files as inputs: which rows become documents, and what is wrong with a table."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from parquet_files import TEXTS, items, read, texts, watch, write, write_rows
from xentrs.corpus.columnar import takes_any
from xentrs.corpus.documents import Cursor, Document, Item, Rejected, read_items
from xentrs.corpus.reading import Reading
from xentrs.corpus.sources import open_sources


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path)


def of_json(tmp_path: Path, records: list[Any], **reading: Any) -> list[Any]:
    """What the same records give as lines of JSON."""
    path = tmp_path / "same.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return content(items(path, **reading))


def content(found: list[Item]) -> list[Any]:
    return [
        (item.number, item.line, item.fields) if isinstance(item, Document) else (item.kind, getattr(item, "line", 0))
        for item in found
        if isinstance(item, Document | Rejected)
    ]


def test_a_row_is_a_document(table_file: Path) -> None:
    found = items(table_file)
    assert texts(found) == TEXTS
    first = found[3]
    assert isinstance(first, Document)
    assert (first.number, first.id, first.line, first.source) == (3, "3", 4, str(table_file))
    without = items(table_file, id_key="text", text_key="text")
    assert isinstance(without[1], Document)
    assert without[1].id == TEXTS[1]


def test_without_an_id_a_row_is_called_by_its_number(tmp_path: Path) -> None:
    found = items(write(tmp_path / "a.pq", pa.table({"text": ["x", "y"]})))
    assert [item.id for item in found if isinstance(item, Document)] == [f"{tmp_path}/a.pq#1", f"{tmp_path}/a.pq#2"]


@pytest.mark.parametrize("reading", [{}, {"shard": 1, "shard_count": 7}, {"skip": 9, "limit": 20}])
def test_reading_goes_on_from_any_cursor(table_file: Path, reading: dict[str, Any]) -> None:
    whole = read(table_file, Reading(**reading))
    offsets = [cursor.byte_offset for _, cursor in whole]
    assert offsets == sorted(offsets)
    assert offsets[-1] <= table_file.stat().st_size
    assert reading or offsets[-1] == table_file.stat().st_size
    for place, (_, cursor) in enumerate(whole):
        assert read(table_file, Reading(**reading), cursor) == whole[place + 1 :]


@pytest.mark.parametrize("skip", [0, 3, 8, 60])
@pytest.mark.parametrize("limit", [None, 1, 17])
@pytest.mark.parametrize("shard", [(0, 1), (0, 3), (2, 3), (10, 11)])
def test_the_records_are_those_that_lines_would_give(
    table_file: Path, tmp_path: Path, skip: int, limit: int | None, shard: tuple[int, int]
) -> None:
    """Numbers run on over sources, whatever was left out before."""
    choice = Reading(skip=skip, limit=limit, shard=shard[0], shard_count=shard[1])
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps({"text": text, "id": place}) for place, text in enumerate(TEXTS)))
    (tmp_path / "b.txt").write_text("behind")
    found = []
    for path in (table_file, lines):
        sources, _ = open_sources([str(path), f"{tmp_path}/b.txt"], reading=choice)
        found.append(content([item for item, _ in read_items(sources, Cursor(), choice)]))
    assert found[0] == found[1]


def test_takes_any_agrees_with_takes() -> None:
    for skip, limit, shard_count in [(0, None, 1), (5, None, 4), (3, 6, 2), (0, 1, 5)]:
        for shard in range(shard_count):
            reading = Reading(skip=skip, limit=limit, shard=shard, shard_count=shard_count)
            for first in range(14):
                for count in range(1, 9):
                    expected = any(reading.takes(record) for record in range(first, first + count))
                    assert takes_any(reading, first, count) == expected, (reading, first, count)


def test_groups_and_columns_that_are_not_needed_are_not_read(table_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, _ = open_sources([str(table_file)])
    asked = watch(monkeypatch)
    reading = Reading(skip=17, limit=3)
    assert texts([item for item, _ in read_items(sources, Cursor(), reading)]) == TEXTS[17:20]
    assert [call[1:] for call in asked] == [([2], ["text", "id"])]
    asked.clear()
    list(read_items(sources, Cursor(0, 0, 40, 40), Reading()))
    assert [groups for _, groups, _ in asked] == [[5], [6]]


TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_every_type_of_text_column(tmp_path: Path, kind: Any, use_dictionary: bool) -> None:
    values = ["naïve 🙂", "", None, "naïve 🙂", "x" * 1000]
    column = pa.array(values).dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else pa.array(values, kind)
    path = write(tmp_path / "a.parquet", pa.table({"text": column, "id": column}), use_dictionary=use_dictionary)
    found = items(path)
    expected = of_json(tmp_path, [{"text": value, "id": value} for value in values])
    assert content(found) == expected
    assert expected[2][0] == "not_text"


def test_values_of_the_wrong_type_are_rejected_as_in_lines(tmp_path: Path) -> None:
    def kind(column: Any, **reading: Any) -> tuple[str, str]:
        table = pa.table({"text": pa.array(["a"]), "x": column})
        (item,) = items(write(tmp_path / "a.parquet", table), **reading)
        assert isinstance(item, Rejected), item
        assert (item.line, item.byte_offset) == (1, 0)
        return item.kind, item.reason

    assert kind(pa.array([3]), text_key="x") == ("not_text", "key 'x' holds a number, expected a string")
    assert kind(pa.array([["a"]]), text_key="x") == ("not_text", "key 'x' holds a list, expected a string")
    assert kind(pa.array([{"b": 1}]), text_key="x") == ("not_text", "key 'x' holds an object, expected a string")
    assert kind(pa.array([b"a"]), text_key="x") == ("not_text", "key 'x' holds bytes, expected a string")
    assert kind(pa.nulls(1), text_key="x") == ("not_text", "key 'x' holds null, expected a string")
    assert kind(pa.array([1.5]), id_key="x")[0] == "bad_id"
    assert kind(pa.array([["a"]]), by=("x",))[0] == "bad_label"
    moment = pa.array([1], pa.timestamp("ns"))
    assert kind(moment, by=("x",))[0] == "bad_value"


def test_labels(tmp_path: Path) -> None:
    day = datetime.date(2024, 5, 1)
    table = pa.table({"text": ["a", "b"], "n": [1, None], "day": [day, day], "flag": [True, False], "f": [0.5, 2.0]})
    found = items(write(tmp_path / "a.parquet", table), by=("n", "day", "flag", "f"))
    labels = [item.fields.by for item in found if isinstance(item, Document)]
    assert labels[0] == {"n": "1", "day": "2024-05-01", "flag": "true", "f": "0.5"}
    assert labels[1] == {"n": None, "day": "2024-05-01", "flag": "false", "f": "2.0"}


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    column = pa.array([b"good", b"a\xffb", b"\xed\xa0\xb5", b"fine"]).view(pa.string())
    for use_dictionary in (True, False):
        found = items(write(tmp_path / "a.parquet", pa.table({"text": column}), use_dictionary=use_dictionary))
        assert [type(item) for item in found] == [Document, Rejected, Rejected, Document]
        bad = found[1]
        assert isinstance(bad, Rejected)
        assert (bad.kind, bad.line, bad.reason) == ("invalid_utf8", 2, "byte 0xff is not UTF-8 (invalid start byte)")


def test_pairs(tmp_path: Path) -> None:
    records = [{"q": "What?", "a": " That."}, {"q": None, "a": "x"}]
    path = write(tmp_path / "a.parquet", pa.Table.from_pylist(records))
    keys = {"context_key": "q", "continuation_key": "a"}
    assert content(items(path, **keys)) == of_json(tmp_path, records, **keys)


def test_chats(tmp_path: Path) -> None:
    """A struct has every field in every row; a message without one comes without it."""
    call = {"role": "assistant", "content": "", "calls": [{"name": "f", "args": None}]}
    records = [
        {"m": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"m": [{"role": "user", "content": "Call"}, call]},
        {"m": []},
        {"m": None},
        {"m": [{"role": None, "content": "x"}]},
        {"m": [{"role": "user", "content": None}]},
    ]
    path = write(tmp_path / "a.parquet", pa.Table.from_pylist(records))
    found = items(path, messages_key="m")
    assert [type(item) for item in found] == [Document, Document, Rejected, Rejected, Rejected, Rejected]
    chats = [item.fields.messages for item in found if isinstance(item, Document)]
    assert chats[0] == tuple(records[0]["m"])
    assert chats[1] == ({"role": "user", "content": "Call"}, {**call, "calls": [{"name": "f"}]})
    assert {item.kind for item in found if isinstance(item, Rejected)} == {"not_messages"}
    (bad,) = items(write(tmp_path / "b.parquet", pa.table({"m": ["text"]})), messages_key="m")
    assert isinstance(bad, Rejected)
    assert bad.reason == "key 'm' holds a string, expected a list of messages"


NESTED = [
    {"meta": {"lang": "de", "doc": {"id": "x1", "text": "eins"}}, "text": "a"},
    {"meta": None, "text": "b"},
    {"meta": {"lang": None, "doc": None}, "text": "c"},
]


def test_fields_inside_a_struct(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.Table.from_pylist(NESTED))
    found = items(path, by=("meta.lang",), id_key="meta.doc.id")
    assert texts(found) == ["a", "b", "c"]
    assert [(item.id, item.fields.by["meta.lang"]) for item in found if isinstance(item, Document)] == [
        ("x1", "de"),
        (f"{path}#2", None),
        (f"{path}#3", None),
    ]
    assert of_json(tmp_path, NESTED, by=("meta.lang",), id_key="meta.doc.id") == content(found)
    inner = items(path, text_key="meta.doc.text")
    assert [type(item) for item in inner] == [Document, Rejected, Rejected]
    plain = pa.table({"meta.lang": ["plain"], "meta": [{"lang": "nested"}], "text": ["a"]})
    (item,) = items(write(tmp_path / "b.parquet", plain), by=("meta.lang",))
    assert isinstance(item, Document)
    assert item.fields.by == {"meta.lang": "plain"}, "a column of that very name comes first"
    assert of_json(tmp_path, [{"meta.lang": "p", "meta": {"lang": "n"}, "text": ""}], by=("meta.lang",))[0][2].by == {
        "meta.lang": "p"
    }


def test_scores_are_those_of_the_same_lines(
    table_file: Path, tmp_path: Path, xentrs_command: Any, tiny_model: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": text, "id": place}) for place, text in enumerate(TEXTS))
    )
    results = []
    for path in (table_file, tmp_path / "a.jsonl"):
        run = tmp_path / f"RUN-{path.suffix}"
        assert xentrs_command("score", path, "--model", tiny_model, "-o", run).code == 0
        results.append((run / "tokens-00000.parquet").read_bytes())
    assert results[0] == results[1]
    result = xentrs_command("score", table_file, "--model", tiny_model, "--text-key", "body")
    assert result.code == 2
    assert "no column 'body'; there are 'text', 'id', 'other'" in result.err


def test_help_and_import_load_no_pyarrow() -> None:
    import subprocess
    import sys

    program = "import sys, xentrs.corpus, xentrs.corpus.objects, xentrs.cli\n"
    program += "try: xentrs.cli.main(['score', '--help'])\nexcept SystemExit: pass\n"
    program += "assert not {'pyarrow', 'safetensors', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)

"""Records, lines, sources and parts: what is scored, what is quarantined and where it stood."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xentrs.corpus import documents as documents_module
from xentrs.corpus import parts as parts_module
from xentrs.corpus.documents import Cursor, Document, Item, Rejected, Skipped, read_items
from xentrs.corpus.parts import Part, PartReader
from xentrs.corpus.reading import Reading
from xentrs.corpus.records import RecordError, parse_record
from xentrs.corpus.sources import InputError, open_sources
from xentrs.errors import InputChangedError
from xentrs.models import EncodedText
from xentrs.models.tokenizer import byte_positions

DEEP = "[" * 100_000 + "]" * 100_000
BAD_RECORDS = [
    ("invalid_json", b"nope"),
    ("invalid_json", b'{"text": "cut'),
    ("invalid_json", b'{"text": "a"} {"text": "b"}'),
    ("invalid_json", b"{'text': 'a'}"),
    ("invalid_json", b'{"text": "a", "n": ' + b"9" * 5000 + b"}"),
    ("invalid_utf8", b'{"text": "caf\xe9"}'),
    ("invalid_utf8", b'{"text": "\xc0\xaf"}'),
    ("invalid_utf8", '{"text": "a"}'.encode("utf-16")),
    ("lone_surrogate", b'{"text": "a \\ud835 b"}'),
    ("lone_surrogate", b'{"text": "a", "id": "\\udc00"}'),
    ("missing_key", b'{"txt": "a"}'),
    ("missing_key", b"{}"),
    ("not_text", b'{"text": null}'),
    ("not_text", b'{"text": 3}'),
    ("not_text", b'{"text": true}'),
    ("not_text", b'{"text": ["a"]}'),
    ("not_text", b'{"text": {"a": "b"}}'),
    ("not_an_object", b'["text"]'),
    ("not_an_object", b'"text"'),
    ("not_an_object", b"3"),
    ("duplicate_key", b'{"text": "a", "text": "b"}'),
    ("too_deep", b'{"text": "a", "x": ' + DEEP.encode() + b"}"),
    ("not_finite", b'{"text": "a", "x": NaN}'),
    ("not_finite", b'{"text": "a", "x": -Infinity}'),
    ("not_finite", b'{"text": "a", "x": 1e999}'),
    ("bad_id", b'{"text": "a", "id": [1]}'),
    ("bad_id", b'{"text": "a", "id": 1.5}'),
]


@pytest.mark.parametrize(("kind", "line"), BAD_RECORDS)
def test_bad_record_names_its_kind(kind: str, line: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record(line, Reading())
    assert caught.value.kind == kind
    assert caught.value.reason
    assert 0 <= caught.value.byte_offset <= len(line)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": ""}', ("", None)),
        (b'{"text": "a\\u0000b"}', ("a\0b", None)),
        (b'{"text": "\\ud835\\udd38"}', ("\U0001d538", None)),
        (b'{"text": "a", "id": 7}\r\n', ("a", "7")),
        (b'{"text": "a", "id": null}', ("a", None)),
        (b'{"text": "' + b"[{" * 500 + b'"}', ("[{" * 500, None)),
        (b'{"text": "\\"' + b"[" * 500 + b'"}', ('"' + "[" * 500, None)),
        (b'{"text": "a", "x": ' + b"[" * 127 + b"]" * 127 + b"}", ("a", None)),
    ],
)
def test_unusual_but_good_record(line: bytes, expected: tuple[str, str | None]) -> None:
    fields = parse_record(line, Reading())
    assert (fields.text, fields.id) == expected


def read_file(tmp_path: Path, name: str, data: bytes) -> list[tuple[Item, Cursor]]:
    path = tmp_path / name
    path.write_bytes(data)
    sources, _ = open_sources([str(path)])
    return list(read_items(sources, Cursor(), Reading()))


LINES = (
    b'\xef\xbb\xbf{"text": "one", "id": "a"}\r\n\n   \n{"text": "two"}\nbroken\n{"text": "thr\xffee"}\n{"text": "four"}'
)


def test_lines_of_a_jsonl_file(tmp_path: Path) -> None:
    items = [item for item, _ in read_file(tmp_path, "a.jsonl", LINES)]
    name = str(tmp_path / "a.jsonl")
    kinds = [type(item) for item in items]
    assert kinds == [Document, Skipped, Skipped, Document, Rejected, Rejected, Document]
    texts = [(item.id, item.fields.text) for item in items if isinstance(item, Document)]
    assert texts == [("a", "one"), (f"{name}#4", "two"), (f"{name}#7", "four")]
    broken, invalid = (item for item in items if isinstance(item, Rejected))
    assert (broken.line, broken.byte_offset, broken.kind) == (5, LINES.index(b"broken"), "invalid_json")
    assert (invalid.line, invalid.byte_offset, invalid.kind) == (6, LINES.index(b"\xff"), "invalid_utf8")


def test_reading_goes_on_from_any_cursor(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.txt").write_bytes(b"text")
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "five"}\n')
    sources, _ = open_sources([str(tmp_path / name) for name in ("a.jsonl", "b.txt", "c.jsonl")])
    whole = list(read_items(sources, Cursor(), Reading()))
    assert len(whole) == 9
    for place, (_, cursor) in enumerate(whole):
        assert list(read_items(sources, cursor, Reading())) == whole[place + 1 :]


def test_overlong_line_costs_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "MAX_RECORD_BYTES", 64)
    monkeypatch.setattr(documents_module, "_SKIP_BYTES", 16)
    long_line = json.dumps({"text": "x" * 1000}).encode()
    exact = json.dumps({"text": "y" * 52}).encode()
    assert len(exact) == 64
    data = long_line + b"\n" + exact + b"\n" + long_line
    items = [item for item, _ in read_file(tmp_path, "a.jsonl", data)]
    assert [type(item) for item in items] == [Rejected, Document, Rejected]
    last = items[2]
    assert isinstance(last, Rejected)
    assert (last.kind, last.line, last.byte_offset) == ("too_long", 3, len(long_line) + 66)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", "plain"),
        (b"", ""),
        (b"\xef\xbb\xbfwith mark", "with mark"),
        (b"dos\r\nlines\r\n", "dos\r\nlines\r\n"),
        ("naïve 🙂\0".encode(), "naïve 🙂\0"),
    ],
)
def test_text_file_is_one_document_and_unchanged(tmp_path: Path, data: bytes, text: str) -> None:
    ((item, _),) = read_file(tmp_path, "a.txt", data)
    assert isinstance(item, Document)
    assert (item.fields.text, item.id, item.line) == (text, str(tmp_path / "a.txt"), 1)


@pytest.mark.parametrize(
    ("data", "line", "byte_offset"),
    [
        (b"one\ntwo \xff", 2, 8),
        ("text".encode("utf-16"), 1, 0),
        (b"\xef\xbb\xbf\xfe", 1, 3),
        (b"\xc0\xaf", 1, 0),
    ],
)
def test_text_file_that_is_not_utf8(tmp_path: Path, data: bytes, line: int, byte_offset: int) -> None:
    ((item, _),) = read_file(tmp_path, "a.txt", data)
    assert isinstance(item, Rejected)
    assert (item.kind, item.line, item.byte_offset) == ("invalid_utf8", line, byte_offset)


def test_unusable_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"x")
    for name, what in (
        (tmp_path, "a folder without a file of a known kind: .txt"),
        (tmp_path / "none.txt", "no such file"),
        (tmp_path / "*.txt", "matches no file"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(InputError, match=what):
            open_sources([str(name)])
    with pytest.raises(InputError, match=r"a\.pdf: unknown kind of file; expected one of \.txt"):
        open_sources([str(tmp_path / "a.pdf")])


def test_the_same_file_under_three_names_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x")
    (tmp_path / "soft.txt").symlink_to(path)
    (tmp_path / "hard.txt").hardlink_to(path)
    sources, warnings = open_sources([str(tmp_path / name) for name in ("a.txt", "soft.txt", "hard.txt")])
    assert len(sources) == 1
    assert len(warnings) == 2
    assert "soft.txt is the same input as" in warnings[0]


def test_name_that_is_not_utf8_stays_printable(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.txt"
    Path(os.fsdecode(path)).write_bytes(b"x")
    sources, _ = open_sources([os.fsdecode(path)])
    assert sources[0].name.endswith("\\xff.txt")
    sources[0].name.encode("utf-8")


@pytest.mark.parametrize("change", ["append", "touch", "remove"])
def test_input_that_changes_after_hashing_is_noticed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n')
    sources, _ = open_sources([str(path)])
    if change == "append":
        path.write_bytes(b'{"text": "a"}\n{"text": "b"}\n')
    elif change == "touch":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    with pytest.raises(InputChangedError, match=r"a\.jsonl"):
        list(read_items(sources, Cursor(), Reading()))


@pytest.mark.parametrize("stdin_format", ["txt", "jsonl"])
def test_stdin_is_spooled_and_can_be_read_twice(stdin_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b'{"text": "one"}\n{"text": "two"}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    sources, _ = open_sources(["-"], stdin_format)
    first, second = (list(read_items(sources, Cursor(), Reading())) for _ in range(2))
    assert first == second
    ids = [item.id for item, _ in first if isinstance(item, Document)]
    assert ids == (["-"] if stdin_format == "txt" else ["-#1", "-#2"])


class ByteEncoder:
    """One token per byte."""

    sha256, bos_id, eos_id, adds_bos = "bytes", None, None, False
    special_ids: frozenset[int] = frozenset()
    chat_template_sha256 = None

    def apply_chat_template(self, messages: Any, asks: bool) -> str:
        raise AssertionError("no chats here")

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        return [self._encode(text.encode()) for text in texts]

    def _encode(self, data: bytes) -> EncodedText:
        places = np.arange(len(data) + 1, dtype=np.int64)
        ids = np.frombuffer(data, dtype=np.uint8).astype(np.int64)
        return EncodedText(ids, places[:-1], places[1:], len(data))


def part_reader(sources: list[Any], vocab_size: int = 256, part_tokens: int = 50, **reading: Any) -> PartReader:
    def read(cursor: Cursor) -> Iterator[tuple[Item, Cursor]]:
        return read_items(sources, cursor, Reading(**reading))

    return PartReader(read, ByteEncoder(), vocab_size, part_tokens)


def all_parts(reader: PartReader) -> list[Part]:
    parts = []
    while (part := reader.next_part()) is not None:
        parts.append(part)
    return parts


def shape(part: Part) -> Any:
    names = [(entry.number, entry.id, entry.encoded.token_ids.tolist()) for entry in part.documents]
    return part.number, part.start, part.end, names, part.rejected, part.skipped_lines, part.token_count


@pytest.fixture
def many_lines(tmp_path: Path) -> list[Any]:
    lines = [json.dumps({"text": "x" * (place * 7 % 40)}) if place % 6 else "bad" for place in range(60)]
    lines[20:20] = ["", " "]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.txt").write_text("y" * 120)
    return open_sources([str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt")])[0]


def test_parts_end_at_documents_and_resume_anywhere(many_lines: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = part_reader(many_lines)
    parts = all_parts(reader)
    assert len(parts) > 10
    assert all(part.token_count >= 50 for part in parts[:-1])
    assert all(part.token_count - len(part.documents[-1].encoded.token_ids) < 50 for part in parts)
    assert sum(len(part.rejected) for part in parts) == 10
    assert sum(part.skipped_lines for part in parts) == 2
    numbers = [entry.number for part in parts for entry in part.documents]
    # Documents are numbered among all records, the rejected ones counted, empty lines not.
    assert numbers == [place for place in range(61) if place % 6 or place == 60]
    for place, part in enumerate(parts):
        reader.seek(part.number, part.start)
        assert [shape(entry) for entry in all_parts(reader)] == [shape(entry) for entry in parts[place:]]
    monkeypatch.setattr(parts_module, "_GROUP_RECORDS", 3)
    again = all_parts(part_reader(many_lines))
    assert [shape(part) for part in again] == [shape(part) for part in parts]


def test_limit_counts_records(many_lines: list[Any]) -> None:
    parts = all_parts(part_reader(many_lines, limit=7))
    assert sum(len(part.documents) for part in parts) == 5
    assert sum(len(part.rejected) for part in parts) == 2


def test_records_without_tokens_end_a_part_too(many_lines: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "MAX_PART_RECORDS", 4)
    parts = all_parts(part_reader(many_lines, part_tokens=10**9))
    records = [len(part.documents) + len(part.rejected) + part.skipped_lines for part in parts]
    assert records[:-1] == [4] * (len(parts) - 1)


def test_token_outside_the_vocabulary_is_quarantined(many_lines: list[Any]) -> None:
    parts = all_parts(part_reader(many_lines, vocab_size=ord("y")))
    rejected = parts[-1].rejected[-1]
    assert (rejected.kind, rejected.line) == ("outside_vocabulary", 1)
    assert "token 121 is outside the model's vocabulary [0, 121)" in rejected.reason


@pytest.mark.parametrize("text", ["", "plain", "naïve", "東京 🙂 é\r\n\0"])
def test_byte_positions(text: str) -> None:
    expected = [len(text[:place].encode()) for place in range(len(text) + 1)]
    assert byte_positions(text).tolist() == expected

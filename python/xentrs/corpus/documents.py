"""Records of the sources, in order, from any position: documents, rejected records, skipped lines.

In: sources and a `Cursor`. Out: one item per record with the cursor behind it. A bad record never stops the
rest: it is `Rejected` with file, line, byte offset and reason, and goes to the quarantine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TypeAlias

from xentrs.corpus.records import RecordError, decode_utf8, parse_record
from xentrs.corpus.sources import Source

MAX_RECORD_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 1 << 20


@dataclass(frozen=True)
class Cursor:
    """A position between two records: source number, byte offset and lines before it in that source."""

    source: int = 0
    byte_offset: int = 0
    line: int = 0


@dataclass(frozen=True)
class Document:
    """A text to score. Without an id of its own it is called `source#line` (jsonl) or `source` (txt)."""

    id: str
    source: str
    line: int
    text: str


@dataclass(frozen=True)
class Rejected:
    """A record that goes to the quarantine; line numbers start at 1, the byte offset is within the file, unpacked."""

    source: str
    line: int
    byte_offset: int
    kind: str
    reason: str


@dataclass(frozen=True)
class Skipped:
    """An empty line of a jsonl file."""


Item: TypeAlias = Document | Rejected | Skipped


def read_items(sources: Sequence[Source], cursor: Cursor, text_key: str, id_key: str) -> Iterator[tuple[Item, Cursor]]:
    """Every record from `cursor` on, each with the cursor behind it.

    Raises:
        InputChangedError: a file is not what was hashed at the start.
    """
    for number in range(cursor.source, len(sources)):
        source = sources[number]
        start = cursor if number == cursor.source else Cursor(number)
        with source.open() as file:
            if source.format == "txt":
                if start.byte_offset == 0 and start.line == 0:
                    yield _read_text(source, file), Cursor(number + 1)
            else:
                yield from _read_lines(source, file, start, text_key, id_key)


def _read_text(source: Source, file: IO[bytes]) -> Document | Rejected:
    """A text file is one document, line ends and all; only a byte order mark is taken off."""
    is_longer = not source.compression and source.byte_count > MAX_RECORD_BYTES
    data = b"" if is_longer else file.read(MAX_RECORD_BYTES + 1)
    if is_longer or len(data) > MAX_RECORD_BYTES:
        return _too_long(source, 1, 0, "document")
    bom = len(_BOM) if data.startswith(_BOM) else 0
    try:
        return Document(source.name, source.name, 1, decode_utf8(data[bom:]))
    except RecordError as error:
        offset = bom + error.byte_offset
        return Rejected(source.name, 1 + data.count(b"\n", 0, offset), offset, error.kind, error.reason)


def _read_lines(
    source: Source, file: IO[bytes], start: Cursor, text_key: str, id_key: str
) -> Iterator[tuple[Item, Cursor]]:
    file.seek(start.byte_offset)
    offset, line_number = start.byte_offset, start.line
    while data := file.readline(MAX_RECORD_BYTES + 1):
        line_number += 1
        item: Item
        record_offset = offset
        offset += len(data)
        if len(data) > MAX_RECORD_BYTES and not data.endswith(b"\n"):
            offset += _skip_line(file)
            item = _too_long(source, line_number, record_offset, "line")
        else:
            item = _line_item(source, data, line_number, record_offset, text_key, id_key)
        del data  # up to 64 MiB that the consumer should not keep alive
        yield item, Cursor(start.source, offset, line_number)


def _line_item(source: Source, data: bytes, line: int, offset: int, text_key: str, id_key: str) -> Item:
    if offset == 0 and data.startswith(_BOM):
        data, offset = data[len(_BOM) :], len(_BOM)
    if not data.strip():
        return Skipped()
    try:
        text, identifier = parse_record(data, text_key, id_key)
    except RecordError as error:
        return Rejected(source.name, line, offset + error.byte_offset, error.kind, error.reason)
    return Document(identifier if identifier is not None else f"{source.name}#{line}", source.name, line, text)


def _too_long(source: Source, line: int, offset: int, what: str) -> Rejected:
    return Rejected(source.name, line, offset, "too_long", f"{what} is longer than {MAX_RECORD_BYTES >> 20} MiB")


def _skip_line(file: IO[bytes]) -> int:
    """Read on to the end of the line in small pieces; returns the bytes passed."""
    passed = 0
    while data := file.readline(_SKIP_BYTES):
        passed += len(data)
        if data.endswith(b"\n"):
            break
    return passed

"""Records of the sources, in order, from any position: documents, rejected records, skipped lines.

In: sources and a `Cursor`. Out: one item per record with the cursor behind it. A bad record never stops the
rest: it is `Rejected` with file, line, byte offset and reason, and goes to the quarantine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TypeAlias

from xentrs.corpus.reading import Reading
from xentrs.corpus.records import Fields, RecordError, decode_utf8, parse_record
from xentrs.corpus.sources import Source
from xentrs.errors import FormatError

MAX_RECORD_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 1 << 20


@dataclass(frozen=True)
class Cursor:
    """A position between two records: source number, byte offset and lines (rows of a table) before it in that source,
    records before it in all of them.
    """

    source: int = 0
    byte_offset: int = 0
    line: int = 0
    record: int = 0

    def byte_position(self, byte_counts: Sequence[int]) -> int:
        """Bytes before it in inputs of these sizes; of a compressed one those read unpacked, at most its size."""
        inside = min(self.byte_offset, byte_counts[self.source]) if self.source < len(byte_counts) else 0
        return sum(byte_counts[: self.source]) + inside


@dataclass(frozen=True)
class Document:
    """A record to score, `number` among all records. Without an id of its own it is called `source#line`, a text file
    by its name.
    """

    number: int
    id: str
    source: str
    line: int
    fields: Fields


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
ReadItems: TypeAlias = Callable[[Cursor], Iterator[tuple[Item, Cursor]]]
"""Records from a cursor on, each with the cursor behind it: of sources (`reader_of`), or of objects."""


def reader_of(sources: Sequence[Source], reading: Reading) -> ReadItems:
    """`read_items` of these sources."""
    return lambda cursor: read_items(sources, cursor, reading)


def read_items(sources: Sequence[Source], cursor: Cursor, reading: Reading) -> Iterator[tuple[Item, Cursor]]:
    """Every record from `cursor` on that `reading` takes, each with the cursor behind it. A file that breaks off or is
    damaged (.gz, .zst, parquet) gives what stands before that and one `Rejected`.

    Raises:
        InputChangedError: a file is not what was hashed at the start.
        InputError: a table lacks a column, and `open_sources` was not asked to look.
    """
    for number in range(cursor.source, len(sources)):
        if number > cursor.source:
            cursor = Cursor(number, record=cursor.record)
        if reading.is_behind(cursor.record):
            return
        source = sources[number]
        with source.open() as file:
            try:
                # Behind records that are not ours, too: the number of the next source's first record depends on them.
                records = _READERS[source.format](source, file, cursor, reading)
                for item, cursor in records:
                    if item is not None:
                        source.check_unchanged()  # or a part of what was not hashed would be kept
                        yield item, cursor
            except FormatError as error:
                rejected = Rejected(source.name, cursor.line + 1, cursor.byte_offset, "damaged_file", str(error))
                cursor = Cursor(number + 1, record=cursor.record)
                yield rejected, cursor


_Read: TypeAlias = Iterator[tuple[Item | None, Cursor]]
"""What a reader of one format yields: None for a record that is not ours."""


def _read_text(source: Source, file: IO[bytes], start: Cursor, reading: Reading) -> _Read:
    """A text file is one document, line ends and all; only a byte order mark is taken off."""
    if (start.byte_offset, start.line) != (0, 0):
        return
    behind = Cursor(start.source, source.byte_count, 1, start.record + 1)
    yield _text_item(source, file, start.record) if reading.takes(start.record) else None, behind


def _text_item(source: Source, file: IO[bytes], number: int) -> Document | Rejected:
    is_longer = not source.compression and source.byte_count > MAX_RECORD_BYTES
    data = b"" if is_longer else file.read(MAX_RECORD_BYTES + 1)
    if is_longer or len(data) > MAX_RECORD_BYTES:
        return _too_long(source, 1, 0, "document")
    bom = len(_BOM) if data.startswith(_BOM) else 0
    try:
        return Document(number, source.name, source.name, 1, Fields(decode_utf8(data[bom:])))
    except RecordError as error:
        offset = bom + error.byte_offset
        return Rejected(source.name, 1 + data.count(b"\n", 0, offset), offset, error.kind, error.reason)


def _read_lines(source: Source, file: IO[bytes], start: Cursor, reading: Reading) -> _Read:
    """A line is a record; an empty one is counted where the record behind it is ours, so that shards add up."""
    file.seek(start.byte_offset)
    offset, line, record = start.byte_offset, start.line, start.record
    while not reading.is_behind(record) and (data := file.readline(MAX_RECORD_BYTES + 1)):
        line += 1
        record_offset = offset
        offset += len(data)
        if is_too_long := len(data) > MAX_RECORD_BYTES and not data.endswith(b"\n"):
            offset += _skip_line(file)
        number, is_record = record, bool(data.strip() and (record_offset > 0 or data.strip() != _BOM))
        record += is_record
        item: Item | None = Skipped()
        if not reading.takes(number):
            item = None
        elif is_too_long:
            item = _too_long(source, line, record_offset, "line")
        elif is_record:
            item = _line_item(source, data, line, record_offset, number, reading)
        del data  # up to 64 MiB that the consumer should not keep alive
        yield item, Cursor(start.source, offset, line, record)


def _line_item(source: Source, data: bytes, line: int, offset: int, number: int, reading: Reading) -> Item:
    if offset == 0 and data.startswith(_BOM):
        data, offset = data[len(_BOM) :], len(_BOM)
    try:
        fields = parse_record(data, reading)
    except RecordError as error:
        return Rejected(source.name, line, offset + error.byte_offset, error.kind, error.reason)
    return Document(number, fields.id if fields.id is not None else f"{source.name}#{line}", source.name, line, fields)


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


def _read_rows(source: Source, file: IO[bytes], start: Cursor, reading: Reading) -> _Read:
    # Loads pyarrow, which other formats do without.
    from xentrs.corpus.columnar import read_rows

    return read_rows(source, file, start, reading)


_READERS = {"txt": _read_text, "jsonl": _read_lines, "parquet": _read_rows}

"""Records as they stand in the inputs, with all their fields: what is handed on to others.

In: a source, lines or rows of it. Out: each as a line of JSON with a field added. The line of a jsonl file keeps its
fields byte for byte; a row of a table becomes an object; a text file an object with its name and text. Nothing of the
other records is kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import IO, Any

from xentrs.corpus.documents import MAX_RECORD_BYTES, Cursor, Document, read_items
from xentrs.corpus.json_text import dump_line
from xentrs.corpus.reading import Reading
from xentrs.corpus.sources import Source
from xentrs.errors import FormatError, ParamError

_BOM = b"\xef\xbb\xbf"
_PIECE_BYTES = 1 << 20
_TEXT_FIELDS = ("id", "text")


def require_absent(sources: Sequence[Source], reading: Reading, key: str) -> None:
    """Check that no record that `reading` takes has a field of this name: one more look at every line, before work that
    a record with it would end.

    Raises:
        ParamError: one has; the message names the first.
        InputChangedError: a file is not what was read before.
    """
    holding = [_lines_with_field(source, key) for source in sources]
    if not any(holding):
        return
    for item, cursor in read_items(sources, Cursor(), reading):
        if isinstance(item, Document) and item.line in holding[cursor.source]:
            raise _taken(item.source, item.line, key)


def _taken(source: str, line: int, key: str) -> ParamError:
    return ParamError(f"{source}:{line}: the record has a field {key!r} already, expected another name")


def _lines_with_field(source: Source, key: str) -> Collection[int]:
    """Lines, or rows, whose record has the field."""
    with source.open() as file:
        if source.format == "txt":
            return (1,) if key in _TEXT_FIELDS else ()
        try:
            if source.format == "parquet":
                # Loads pyarrow, which other formats do without.
                from xentrs.corpus.columnar import column_names

                return range(1, sys.maxsize) if key in column_names(source, file) else ()
            return set(_jsonl_lines_with_field(file, key))
        except FormatError:  # the records before the damage are read again, and the damage is said, by whoever reads
            return ()


def _jsonl_lines_with_field(file: IO[bytes], key: str) -> Iterator[int]:
    name, line = key.encode("utf-8", "surrogateescape"), 0
    while data := file.readline(MAX_RECORD_BYTES + 1):
        line += 1
        is_record = len(data) <= MAX_RECORD_BYTES or data.endswith(b"\n")
        piece = data
        while not piece.endswith(b"\n") and (piece := file.readline(_PIECE_BYTES)):
            pass
        # A name can be written with escapes.
        if is_record and (name in data or b"\\" in data) and _has_field(data, key):
            yield line


def _has_field(data: bytes, key: str) -> bool:
    try:
        record = json.loads(data.removeprefix(_BOM))
    except (ValueError, RecursionError):  # no record: others quarantine it
        return False
    return isinstance(record, dict) and key in record


def lines_with(source: Source, fields: Mapping[int, Any], key: str) -> Iterator[tuple[int, bytes]]:
    """For each line (row, from 1 on) of `source` that is in `fields`, in order: its number, and the record as a line of
    JSON with that value under `key`.

    Raises:
        ParamError: a record has such a key already.
        InputChangedError: the file is not what was read before.
        FormatError: a table is damaged.
    """
    with source.open() as file:
        for line, record in _READERS[source.format](source, file, fields.keys()):
            known = json.loads(record) if isinstance(record, bytes) else record
            if key in known:
                raise _taken(source.name, line, key)
            yield line, _with(record, key, fields[line])


def _with(record: bytes | dict[str, Any], key: str, value: Any) -> bytes:
    if isinstance(record, dict):
        return dump_line({**record, key: value})
    # The object has a field, that of the text: a comma is in place.
    return record[: record.rindex(b"}")].rstrip() + b"," + dump_line({key: value})[1:]


def _text(source: Source, file: IO[bytes], wanted: Collection[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    if 1 in wanted:
        text = file.read().removeprefix(_BOM).decode("utf-8")
        yield 1, dict(zip(_TEXT_FIELDS, (source.name, text), strict=True))


def _lines(source: Source, file: IO[bytes], wanted: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """In pieces, for a line that nobody wants can be of any length."""
    line, last, pieces = 1, max(wanted, default=0), list[bytes]()
    while line <= last and (piece := file.readline(_PIECE_BYTES)):
        if line in wanted:
            pieces.append(piece)
        if piece.endswith(b"\n"):
            if pieces:
                yield line, b"".join(pieces).removeprefix(_BOM)
            line, pieces = line + 1, []
    if pieces:
        yield line, b"".join(pieces).removeprefix(_BOM)


def _rows(source: Source, file: IO[bytes], wanted: Collection[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    # Loads pyarrow, which other formats do without.
    from xentrs.corpus.columnar import whole_rows

    return whole_rows(source, file, wanted)


_READERS: dict[str, Any] = {"txt": _text, "jsonl": _lines, "parquet": _rows}

"""Records as they stand in the inputs, with all their fields: what is handed on to others.

In: a source, lines or rows of it. Out: each as a line of JSON with a field added. The line of a jsonl file keeps its
fields byte for byte; a row of a table becomes an object; a text file an object with its name and text. Nothing of the
other records is kept.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import IO, Any

from xentrs.corpus.json_text import dump_line
from xentrs.corpus.sources import Source
from xentrs.errors import ParamError

_BOM = b"\xef\xbb\xbf"
_PIECE_BYTES = 1 << 20


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
                raise ParamError(f"{source.name}:{line}: the record has a field {key!r} already, expected another name")
            yield line, _with(record, key, fields[line])


def _with(record: bytes | dict[str, Any], key: str, value: Any) -> bytes:
    if isinstance(record, dict):
        return dump_line({**record, key: value})
    # The object has a field, that of the text: a comma is in place.
    return record[: record.rindex(b"}")].rstrip() + b"," + dump_line({key: value})[1:]


def _text(source: Source, file: IO[bytes], wanted: Collection[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    if 1 in wanted:
        yield 1, {"id": source.name, "text": file.read().removeprefix(_BOM).decode("utf-8")}


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

"""Python objects as records: what a caller has in memory or makes as it goes.

In: an iterable of records, or a table of any library that speaks Arrow. Out: a function like `documents.read_items`,
for `parts.PartReader`. A record is

- a text,
- a mapping with the fields that a `Reading` names, such as a row of a Hugging Face `Dataset` or `IterableDataset`,
- a pair, a tuple `(context, continuation)` of texts,
- a chat, a list of messages `{"role": ..., "content": ...}`,
- a row of a table: anything with `__arrow_c_stream__`, as pyarrow, polars, duckdb and pandas have it.

Nothing is kept: an iterator is advanced as records are asked for. A bad record is `Rejected` and stops nothing.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xentrs.corpus import documents
from xentrs.corpus.documents import Cursor, Document, Item, Rejected
from xentrs.corpus.reading import Reading
from xentrs.corpus.records import Fields, RecordError, record_fields
from xentrs.errors import DTypeError, ParamError

_EXPECTED = "expected an iterable of texts, mappings, (context, continuation) tuples or chats, or an Arrow table"
_ARROW = ("__arrow_c_stream__", "__arrow_c_array__")


def read_objects(
    data: Any, reading: Reading, name: str = "<data>"
) -> Callable[[Cursor], Iterator[tuple[Item, Cursor]]]:
    """Records of `data` from a cursor on, each with the cursor behind it; both count from 0. A document without an id
    is called `name#number`, from 1 on.

    An iterator can be gone through once: from a cursor behind what was read so far. Whatever gives a new iterator each
    time is read again.

    Raises:
        DTypeError: `data` can be no records.
        InputError: when read, a table lacks a column.
        ParamError: when read, an iterator is past the cursor.

    Example:
        >>> from xentrs.corpus import Cursor, Reading
        >>> read = read_objects(["one", {"text": "two", "id": "b"}, None], Reading())
        >>> [getattr(item, "id", None) for item, _ in read(Cursor())]
        ['<data>#1', 'b', None]
    """
    _check_data(data)
    return _Objects(data, reading, name)


def _check_data(data: Any) -> None:
    """Refuse what iterates over something else than records, or not at all."""
    if isinstance(data, str):
        raise DTypeError("data is a text on its own: pass [text]")
    if isinstance(data, bytes | bytearray | memoryview):
        raise DTypeError("data is bytes: decode them, and pass [text]")
    if isinstance(data, Mapping):
        raise DTypeError("data is a mapping on its own: pass [record], or one data set of several")
    if isinstance(data, os.PathLike | io.IOBase):
        raise DTypeError(f"data is a {type(data).__name__}: files are inputs of `xentrs score`; {_EXPECTED}")
    if isinstance(data, set | frozenset):
        raise DTypeError(f"data is a {type(data).__name__}, which has no order: pass sorted(data)")
    if any(hasattr(data, method) for method in _ARROW):
        return
    if hasattr(data, "iloc") and hasattr(data, "columns"):
        raise DTypeError("data is a data frame that does not speak Arrow: pass data.to_dict('records')")
    if hasattr(data, "collect_schema"):
        raise DTypeError(f"data is a {type(data).__name__}, not computed yet: pass data.collect()")
    try:
        iter(data)
    except TypeError:
        raise DTypeError(f"data is a {type(data).__name__}; {_EXPECTED}") from None


class _Objects:
    """`ReadItems` of some data. What can be read once only is shared by all calls."""

    def __init__(self, data: Any, reading: Reading, name: str) -> None:
        self._data, self._reading, self._name = data, reading, name
        self._item: Callable[[Any, int], Item] = self._object_item
        self._is_once = hasattr(data, "__next__")
        self._rows: Iterator[Any] | None = None
        self._passed = 0

    def __call__(self, cursor: Cursor) -> Iterator[tuple[Item, Cursor]]:
        reading = self._reading
        if self._rows is None or not self._is_once:
            self._rows, self._passed = self._open(), 0
        rows, number = self._rows, self._passed
        if number > cursor.line:
            raise ParamError(
                f"{self._name}: an iterator is read once, and record {cursor.line} is gone by: pass a list, or "
                "something that can be gone through again"
            )
        # What lies behind the limit is not even made.
        while not reading.is_behind(number):
            try:
                row = next(rows)
            except StopIteration:
                return
            if rows is self._rows:
                self._passed = number + 1
            if number >= cursor.line and reading.takes(number):
                yield self._item(row, number), Cursor(0, 0, number + 1, number + 1)
            number += 1

    def _open(self) -> Iterator[Any]:
        if any(hasattr(self._data, method) for method in _ARROW):
            table = self._open_table()
            if table is not None:
                return table
        return iter(self._data)

    def _open_table(self) -> Iterator[Any] | None:
        """The rows as batches and places in them; None where the data is a single column."""
        import pyarrow as pa  # type: ignore[import-untyped]

        from xentrs.corpus.columnar import key_paths, row_item

        try:
            if hasattr(self._data, "__arrow_c_stream__"):
                stream = pa.RecordBatchReader.from_stream(self._data)
            else:
                batch = pa.record_batch(self._data)
                stream = pa.RecordBatchReader.from_batches(batch.schema, [batch])
        except pa.ArrowInvalid as error:
            if "non-struct" not in str(error):
                raise
            return None
        paths = key_paths(stream.schema, self._reading, self._name)

        def item(row: Any, number: int) -> Item:
            batch, place = row
            return row_item(batch, place, paths, self._reading, self._name, number, number)

        self._item = item
        return ((batch, place) for batch in stream for place in range(batch.num_rows))

    def _object_item(self, record: Any, number: int) -> Item:
        try:
            fields = _fields(record, self._reading)
        except RecordError as error:
            return Rejected(self._name, number + 1, 0, error.kind, error.reason)
        identifier = fields.id if fields.id is not None else f"{self._name}#{number + 1}"
        return Document(number, identifier, self._name, number + 1, fields)


def _fields(record: Any, reading: Reading) -> Fields:
    """The fields of a record of any of the forms."""
    if hasattr(record, "as_py"):  # an element of an Arrow array
        record = record.as_py()
    if not isinstance(record, Mapping):
        record, reading = _named(record, reading)
    fields = record_fields(record, reading)
    texts = fields.texts
    limit = documents.MAX_RECORD_BYTES
    # UTF-8 has at most 4 bytes for a character.
    if 4 * sum(map(len, texts)) > limit and sum(len(text.encode("utf-8")) for text in texts) > limit:
        raise RecordError("too_long", f"record is longer than {limit >> 20} MiB")
    return fields


def _named(record: Any, reading: Reading) -> tuple[Mapping[str, Any], Reading]:
    """A record without names of its fields as one with names, and how that is read."""
    wanted = reading.messages_key or reading.context_key
    plain = replace(reading, messages_key=None, context_key=None, continuation_key=None)
    if isinstance(record, tuple) and [isinstance(entry, str) for entry in record] == [True, True]:
        named = {"context": record[0], "continuation": record[1]}
        return named, replace(plain, context_key="context", continuation_key="continuation")
    if _is_chat(record):
        return {"messages": record}, replace(plain, messages_key="messages")
    if not isinstance(record, str):
        raise RecordError("not_a_record", f"{_description(record)}, expected a text, a mapping, a pair or a chat")
    if wanted is not None:
        raise RecordError("not_a_record", f"a text, expected a mapping with key {wanted!r}")
    return {reading.text_key: record}, plain


def _is_chat(record: Any) -> bool:
    return isinstance(record, list | tuple) and len(record) > 0 and all(isinstance(entry, Mapping) for entry in record)


def _description(record: Any) -> str:
    if isinstance(record, Sequence) and not isinstance(record, bytes | bytearray):
        kinds = sorted({type(entry).__name__ for entry in record[:8]})
        return f"a {type(record).__name__} of {len(record)} {' and '.join(kinds) or 'entries'}"
    return "null" if record is None else f"a value of type {type(record).__name__}"

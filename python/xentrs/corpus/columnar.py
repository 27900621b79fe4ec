"""Tables as records: the rows of a parquet file, and of record batches that somebody else holds.

In: an open parquet file, or a batch of rows, and what of a row is what. Out: the items of `documents`, one for each
row. Only the columns that are needed are read, a few rows at a time; row groups without a row of ours are not read at
all. A key names a column, or, where there is none of that name, a field inside a struct: `meta.lang`.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Mapping
from typing import IO, Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from xentrs.corpus import documents
from xentrs.corpus.documents import Cursor, Document, Item, Rejected
from xentrs.corpus.reading import Reading
from xentrs.corpus.records import Fields, RecordError, decode_utf8, record_fields
from xentrs.corpus.sources import InputError, Source
from xentrs.errors import FormatError

Paths = Mapping[str, tuple[str, ...]]
"""By key: the column, and the names of the fields inside it."""

_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError)
_CONVERSION_ERRORS = (*_ARROW_ERRORS, OverflowError)
_BUFFER_BYTES = 1 << 16
# Of decoded rows at once, if each were as long as the whole row group: a dictionary can make many long rows out of few
# bytes.
_BATCH_BYTES = 128 << 20
_MIN_BATCH_ROWS, _MAX_BATCH_ROWS = 4, 256


def check_parquet(file: IO[bytes], name: str, reading: Reading | None) -> None:
    """Read the footer, and look whether it has what `reading` asks for.

    Raises:
        InputError: it is no intact parquet file, is encrypted, or lacks a column.
    """
    try:
        parquet = _open(file, name)
    except FormatError as error:
        raise InputError(str(error)) from None
    if reading is None:
        return
    columns = _columns(key_paths(parquet.schema_arrow, reading, name))
    try:
        next(parquet.iter_batches(1, [0] if parquet.num_row_groups else [], columns, use_threads=False), None)
    except _ARROW_ERRORS as error:
        # Other damage is left to the reader, which keeps the rows before it.
        if "decrypt" in str(error).lower():
            raise InputError(f"{name}: a column that is needed is encrypted: {error}") from None


def read_rows(source: Source, file: IO[bytes], start: Cursor, reading: Reading) -> Iterator[tuple[Item | None, Cursor]]:
    """A row is a record. A cursor's byte offset is the share of the file that the rows before it are.

    Raises:
        InputError: a column is missing.
        FormatError: the file is damaged, after the rows before the damage.
    """
    parquet = _open(file, source.name)
    paths = key_paths(parquet.schema_arrow, reading, source.name)
    row_counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    total, line = sum(row_counts), 0

    def behind(line: int) -> Cursor:
        return Cursor(start.source, source.byte_count * line // total, line, start.record + line - start.line)

    for group, count in enumerate(row_counts):
        first, line = max(line, start.line), line + count
        if line <= first:
            continue
        record = behind(first).record
        if reading.is_behind(record):
            return
        if not takes_any(reading, record, line - first):
            yield None, behind(line)
            continue
        for row, values in enumerate(_group_rows(parquet, group, paths, source.name), start=line - count):
            number = behind(row).record
            if reading.is_behind(number):
                return
            if row >= first:
                is_ours = reading.takes(number)
                item = row_item(*values, paths, reading, source.name, row, number) if is_ours else None
                yield item, behind(row + 1)


def column_names(source: Source, file: IO[bytes]) -> list[str]:
    """The fields that every row has.

    Raises:
        FormatError: the file is damaged.
    """
    names: list[str] = _open(file, source.name).schema_arrow.names
    return names


def whole_rows(source: Source, file: IO[bytes], wanted: Collection[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows, numbered from 1 on, with all their columns, as JSON can hold them. A value that Python has no type for, as
    a point in time to the nanosecond, is text.

    Raises:
        FormatError: the file is damaged.
    """
    parquet, end = _open(file, source.name), 0
    for group in range(parquet.num_row_groups):
        start, end = end, end + parquet.metadata.row_group(group).num_rows
        if not any(row in wanted for row in range(start + 1, end + 1)):
            continue
        for batch in _whole_batches(parquet, group, source.name):
            for place in range(batch.num_rows):
                start += 1
                if start in wanted:
                    yield start, _json_row(batch, place)


def _whole_batches(parquet: Any, group: int, name: str) -> Iterator[Any]:
    try:
        yield from parquet.iter_batches(_batch_rows(parquet, group), [group], use_threads=False)
    except _ARROW_ERRORS as error:
        raise _format_error(error, f"{name} is damaged in row group {group + 1}") from error


def _json_row(batch: Any, place: int) -> dict[str, Any]:
    try:
        row = batch.slice(place, 1).to_pylist()[0]
    except _CONVERSION_ERRORS:
        names = batch.schema.names
        row = {name: _converted(batch.column(column)[place]) for column, name in enumerate(names)}
    return {name: _json_value(value) for name, value in row.items()}


def _converted(scalar: Any) -> Any:
    """As `as_py` does it, and what it cannot convert as text."""
    while isinstance(scalar, pa.DictionaryScalar | pa.ExtensionScalar):
        scalar = scalar.value
    if not scalar.is_valid:
        return None
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "backslashreplace")
    except _CONVERSION_ERRORS:
        pass
    if isinstance(scalar, pa.StructScalar):
        return {scalar.type.field(place).name: _converted(scalar[place]) for place in range(scalar.type.num_fields)}
    if hasattr(scalar, "values"):  # a list, or a map as a list of keys and values
        entries = [_converted(entry) for entry in scalar.values]
        return [list(entry.values()) for entry in entries] if isinstance(scalar, pa.MapScalar) else entries
    text: str = scalar.cast(pa.string()).as_py()
    # As `isoformat` writes the points in time beside it.
    return text.replace(" ", "T", 1) if isinstance(scalar, pa.TimestampScalar) and text[:1] != "<" else text


def _json_value(value: Any) -> Any:
    """Points in time by ISO 8601, bytes in base64, what else JSON does not know as text."""
    if isinstance(value, dict):
        return {name: _json_value(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(entry) for entry in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def takes_any(reading: Reading, record: int, count: int) -> bool:
    """Whether one of `count` records from number `record` on is ours."""
    first = max(record, reading.skip)
    first += (reading.shard - (first - reading.skip)) % reading.shard_count
    return first < record + count and not reading.is_behind(first)


def key_paths(schema: Any, reading: Reading, name: str) -> dict[str, tuple[str, ...]]:
    """Where the fields of a record stand in a table.

    Raises:
        InputError: a column is missing, or stands there twice.
    """
    keys = [reading.messages_key] if reading.messages_key is not None else [reading.text_key]
    if reading.context_key is not None and reading.continuation_key is not None:
        keys = [reading.context_key, reading.continuation_key]
    paths = {}
    for key in (*keys, reading.id_key, *reading.by):
        path = _key_path(schema, key)
        if path is not None:
            paths[key] = path
        elif key in schema.names:
            raise InputError(f"{name}: column {key!r} stands twice")
        elif key != Reading.id_key:  # the default id is there or not, one that was asked for is there
            raise InputError(f"{name}: no column {key!r}; there are {', '.join(map(repr, schema.names)) or 'none'}")
    return paths


def _key_path(schema: Any, key: str) -> tuple[str, ...] | None:
    if key in schema.names:
        return (key,) if schema.names.count(key) == 1 else None
    column, *names = key.split(".")
    if schema.names.count(column) != 1:
        return None
    kind = schema.field(column).type
    for name in names:
        if not pa.types.is_struct(kind) or len(kind.get_all_field_indices(name)) != 1:
            return None
        kind = kind.field(name).type
    return (column, *names)


def row_item(
    batch: Any, place: int, paths: Paths, reading: Reading, source: str, row: int, number: int
) -> Document | Rejected:
    """The record in row `place` of `batch`, which is row `row` of its source, counted from 0."""
    try:
        fields = _row_fields(batch, place, paths, reading)
    except RecordError as error:
        return Rejected(source, row + 1, 0, error.kind, error.reason)
    return Document(number, fields.id if fields.id is not None else f"{source}#{row + 1}", source, row + 1, fields)


def _row_fields(batch: Any, place: int, paths: Paths, reading: Reading) -> Fields:
    record, byte_count = {}, 0
    for key, (column, *names) in paths.items():
        scalar = batch.column(column)[place]
        for name in names:
            scalar = scalar[name] if scalar.is_valid else pa.scalar(None)
        while isinstance(scalar, pa.DictionaryScalar | pa.ExtensionScalar):
            scalar = scalar.value
        byte_count += _byte_count(scalar)
        if byte_count > documents.MAX_RECORD_BYTES:
            raise RecordError("too_long", f"row is longer than {documents.MAX_RECORD_BYTES >> 20} MiB")
        record[key] = _python_value(scalar, key)
    if reading.messages_key is not None:
        record[reading.messages_key] = _without_nulls(record[reading.messages_key])
    return record_fields(record, reading)


def _byte_count(scalar: Any) -> int:
    """Of texts and lists; what else there is is short, or refused by its type."""
    if not scalar.is_valid:
        return 0
    if hasattr(scalar, "as_buffer"):
        return int(scalar.as_buffer().size)
    return int(scalar.values.nbytes) if isinstance(scalar, pa.ListScalar | pa.LargeListScalar) else 0


def _python_value(scalar: Any, key: str) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return decode_utf8(error.object)  # the same error as of a line
    except _ARROW_ERRORS as error:  # a point in time that Python has no type for
        raise RecordError("bad_value", f"key {key!r} holds a {scalar.type} that cannot be read: {error}") from None


def _without_nulls(value: Any) -> Any:
    """A struct has all its fields in every row; a message has those that are set."""
    if isinstance(value, dict):
        return {name: _without_nulls(entry) for name, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value


def _open(file: IO[bytes], name: str) -> Any:
    try:
        # Without pre_buffer and with a small buffer a column chunk is read page by page.
        return pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
    except _ARROW_ERRORS as error:
        raise _format_error(error, f"{name} is no intact parquet file") from error


def _format_error(error: Exception, what: str) -> FormatError:
    if isinstance(error, OSError) and error.errno is not None:
        raise error  # of the file itself
    return FormatError(f"{what}: {' '.join(str(error).split())}")


def _group_rows(parquet: Any, group: int, paths: Paths, name: str) -> Iterator[tuple[Any, int]]:
    """The rows of a row group, each as a batch and the place in it. Where a batch cannot be decoded, its rows before
    the damage come one by one.
    """
    what = f"{name} is damaged in row group {group + 1}"
    columns = _columns(paths)
    expected, done = parquet.metadata.row_group(group).num_rows, 0
    for size in (_batch_rows(parquet, group), 1):
        found = 0
        try:
            for batch in parquet.iter_batches(size, [group], columns, use_threads=False):
                for place in range(max(done - found, 0), batch.num_rows):
                    yield batch, place
                found += batch.num_rows
                done = max(done, found)
        except _ARROW_ERRORS as error:
            if size == 1:
                raise _format_error(error, what) from error
            continue
        if found != expected:
            raise FormatError(f"{what}: {found} rows, expected {expected}")
        return


def _batch_rows(parquet: Any, group: int) -> int:
    """How many rows are decoded at once."""
    # Not asked of the columns themselves: for an encrypted one that ends the process (pyarrow 26).
    fitting = _BATCH_BYTES // max(parquet.metadata.row_group(group).total_byte_size, 1)
    return int(max(_MIN_BATCH_ROWS, min(fitting, _MAX_BATCH_ROWS)))


def _columns(paths: Paths) -> list[str]:
    """As pyarrow names what is to be read."""
    return list(dict.fromkeys(".".join(path) for path in paths.values()))

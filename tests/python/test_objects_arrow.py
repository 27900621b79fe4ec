"""Tables of any library that speaks Arrow as documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from xentrs.corpus.documents import Cursor, Document, Item, Rejected
from xentrs.corpus.objects import read_objects
from xentrs.corpus.reading import Reading
from xentrs.corpus.sources import InputError
from xentrs.errors import ParamError


def items(data: Any, **reading: Any) -> list[Item]:
    return [item for item, _ in read_objects(data, Reading(**reading))(Cursor())]


def texts(found: list[Item]) -> list[str]:
    assert all(isinstance(item, Document) for item in found), found
    return [item.fields.text for item in found if isinstance(item, Document)]


TABLE = pa.table({"text": ["a", None, "c"], "id": [1, 2, None], "meta": [{"lang": "de"}] * 3})


class Stream:
    """The least that speaks Arrow."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "data",
    [
        TABLE,
        Stream(TABLE),
        pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches(max_chunksize=1)),
        TABLE.combine_chunks().to_batches()[0],
        pa.chunked_array([TABLE.to_struct_array().combine_chunks()]),
    ],
    ids=["table", "stream", "reader", "batch", "structs"],
)
def test_arrow(data: Any) -> None:
    first, bad, last = items(data, by=("meta.lang",))
    assert isinstance(bad, Rejected)
    assert (bad.kind, bad.line) == ("not_text", 2)
    assert texts([first, last]) == ["a", "c"]
    assert [item.id for item in (first, last) if isinstance(item, Document)] == ["1", "<data>#3"]
    assert isinstance(last, Document)
    assert last.fields.by == {"meta.lang": "de"}


def test_a_single_arrow_column_is_texts() -> None:
    for column in (pa.chunked_array([["a", "b"]]), pa.array(["a", "b"]), Column(["a", "b"])):
        assert texts(items(column)) == ["a", "b"]


class Column:
    """As a polars Series: speaks Arrow, and iterates over its values."""

    def __init__(self, values: list[str]) -> None:
        self._values = values

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return pa.chunked_array([self._values]).__arrow_c_stream__(requested_schema)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)


def test_a_stream_is_read_once_and_a_batch_at_a_time() -> None:
    made = []

    def batches() -> Iterator[Any]:
        for place in range(5):
            made.append(place)
            yield pa.record_batch({"text": [f"{place} a", f"{place} b"]})

    reader = pa.RecordBatchReader.from_batches(pa.schema([("text", pa.string())]), batches())
    read = read_objects(reader, Reading())
    item, cursor = next(read(Cursor()))
    assert texts([item]) == ["0 a"]
    assert made == [0]
    assert texts([item for item, _ in read(cursor)])[:2] == ["0 b", "1 a"]
    with pytest.raises(ParamError, match="read once"):
        next(read(Cursor()))


def test_a_table_without_the_column() -> None:
    with pytest.raises(InputError, match="here: no column 'body'; there are 'text', 'id', 'meta'"):
        next(read_objects(TABLE, Reading(text_key="body"), "here")(Cursor()))


@pytest.mark.parametrize("library", ["polars", "pandas", "duckdb"])
def test_tables_of_other_libraries(library: str) -> None:
    """What they give is what `Stream` stands for."""
    module = pytest.importorskip(library)
    if library == "duckdb":
        data = module.sql("select 'a' as text union all select 'b' order by 1")
    else:
        data = module.DataFrame({"text": ["a", "b"]})
    assert texts(items(data)) == ["a", "b"]

"""The two tables of a part as parquet, and back.

In: `PartColumns`. Out: bytes of a parquet file, the same for the same columns. A token without statistics (the first of
a document without prefix) has nulls and the flag IGNORED; NaN and infinities of the model stay what they are.
docs/schema.md describes every column.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from xentrs.corpus.columns import document_names, float_names
from xentrs.corpus.score import PartColumns
from xentrs.corpus.settings import Columns, Settings

SCHEMA_VERSION = "2"
_METADATA = {"xentrs_schema": SCHEMA_VERSION}

_TEXTS = ("id", "source", "status")
_NULLABLE_TEXTS = ("reason", "text")
_RATES = ("mean_nll", "perplexity", "bits_per_byte", "recipe_mean_nll")


def documents_schema(settings: Settings) -> pa.Schema:
    """The documents table of a run."""
    return pa.schema([_document_field(name) for name in document_names(settings)], metadata=_METADATA)


def _document_field(name: str) -> pa.Field:
    if name in _NULLABLE_TEXTS or name.startswith("by_"):
        return pa.field(name, pa.string())
    if name in _TEXTS:
        return pa.field(name, pa.string(), nullable=False)
    if name in _RATES:
        return pa.field(name, pa.float64())
    if name == "greedy_match":
        return pa.field(name, pa.bool_())
    return pa.field(name, pa.float64() if name == "nll_sum" else pa.int64(), nullable=False)


def tokens_schema(columns: Columns) -> pa.Schema:
    """The tokens table of a run at its level."""
    places = {"document": pa.int64(), "position": pa.int32(), "token_id": pa.int32()}
    places.update(byte_start=pa.int64(), byte_end=pa.int64())
    floats = float_names(columns)
    statistics = {name: pa.float64() for name in floats[:3]}
    statistics.update(rank=pa.int32(), ties=pa.int32(), top1_id=pa.int32())
    statistics.update({name: pa.float64() for name in floats[3:]})
    if columns.level == "all":
        statistics.update(top_ids=pa.list_(pa.int32()), top_log_probs=pa.list_(pa.float64()))
    fields = [pa.field(name, kind, nullable=False) for name, kind in places.items()]
    fields += [pa.field(name, kind) for name, kind in statistics.items()]
    return pa.schema([*fields, pa.field("flags", pa.uint8(), nullable=False)], metadata=_METADATA)


def documents_parquet(part: PartColumns, settings: Settings) -> bytes:
    """The documents table of a part."""
    return _parquet_bytes(pa.Table.from_pydict(part.documents, schema=documents_schema(settings)))


def tokens_parquet(part: PartColumns, settings: Settings) -> bytes:
    """The tokens table of a part; statistics are null where there are none."""
    schema = tokens_schema(settings.columns)
    return _parquet_bytes(pa.Table.from_arrays([_array(part, field) for field in schema], schema=schema))


def _array(part: PartColumns, field: pa.Field) -> pa.Array:
    values, unscored = part.tokens[field.name], ~part.scored
    if not pa.types.is_list(field.type):
        return pa.array(values, type=field.type, mask=unscored if field.nullable else None)
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=field.type.value_type)
    return pa.ListArray.from_arrays(offsets, flat, mask=pa.array(unscored))


def read_documents(data: bytes) -> dict[str, list[Any]]:
    """The documents table as columns of Python values."""
    columns: dict[str, list[Any]] = pq.read_table(io.BytesIO(data)).to_pydict()
    return columns


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3, version="2.6")
    return sink.getvalue()

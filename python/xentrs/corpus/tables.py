"""The tables of a RUN folder: schemas, parquet bytes, and back.

In: `PartColumns`. Out: parquet as bytes, the same bytes for the same columns. A token without statistics (the
first of a document without prefix) has nulls and the flag IGNORED; NaN and infinities of the model stay what
they are.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from xentrs.corpus.score import PartColumns

SCHEMA_VERSION = "1"
_METADATA = {"xentrs_schema": SCHEMA_VERSION}

DOCUMENTS = pa.schema(
    [
        pa.field("document", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("token_count", pa.int64(), nullable=False),
        pa.field("scored_count", pa.int64(), nullable=False),
        pa.field("byte_count", pa.int64(), nullable=False),
        pa.field("nll_sum", pa.float64(), nullable=False),
        pa.field("perplexity", pa.float64()),
        pa.field("bits_per_byte", pa.float64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
    ],
    metadata=_METADATA,
)

TOKENS = pa.schema(
    [
        pa.field("document", pa.int64(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("token_id", pa.int32(), nullable=False),
        pa.field("byte_start", pa.int64(), nullable=False),
        pa.field("byte_end", pa.int64(), nullable=False),
        pa.field("nll", pa.float64()),
        pa.field("entropy", pa.float64()),
        pa.field("varentropy", pa.float64()),
        pa.field("rank", pa.int32()),
        pa.field("ties", pa.int32()),
        pa.field("top1_id", pa.int32()),
        pa.field("top1_log_prob", pa.float64()),
        pa.field("flags", pa.uint8(), nullable=False),
    ],
    metadata=_METADATA,
)


def documents_parquet(columns: PartColumns) -> bytes:
    """The documents table of a part."""
    return _parquet_bytes(pa.Table.from_pydict(columns.documents, schema=DOCUMENTS))


def tokens_parquet(columns: PartColumns) -> bytes:
    """The tokens table of a part; statistics are null where there are none."""
    unscored = ~columns.scored
    arrays = [
        pa.array(columns.tokens[field.name], type=field.type, mask=unscored if field.nullable else None)
        for field in TOKENS
    ]
    return _parquet_bytes(pa.Table.from_arrays(arrays, schema=TOKENS))


def read_documents(data: bytes) -> dict[str, list[Any]]:
    """The documents table as columns of Python values."""
    columns: dict[str, list[Any]] = pq.read_table(io.BytesIO(data)).to_pydict()
    return columns


def read_scored_nll(data: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The nll of every scored token of a tokens table."""
    column = pq.read_table(io.BytesIO(data), columns=["nll"])["nll"]
    values: np.ndarray[Any, np.dtype[np.float64]] = column.drop_null().to_numpy()
    return values


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3, version="2.6")
    return sink.getvalue()

"""Parquet files for the tests of reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from xentrs.corpus.documents import Cursor, Document, Item, read_items
from xentrs.corpus.reading import Reading
from xentrs.corpus.sources import open_sources

TEXTS = [f"row {place} " * (place % 5 + 1) for place in range(50)]


def write(path: Path, table: Any, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def read(path: Path, reading: Reading = Reading(), cursor: Cursor = Cursor()) -> list[tuple[Item, Cursor]]:  # noqa: B008
    sources, _ = open_sources([str(path)], reading=reading)
    return list(read_items(sources, cursor, reading))


def items(path: Path, **reading: Any) -> list[Item]:
    return [item for item, _ in read(path, Reading(**reading))]


def texts(found: list[Item]) -> list[str]:
    assert all(isinstance(item, Document) for item in found), found
    return [item.fields.text for item in found if isinstance(item, Document)]


def write_rows(tmp_path: Path) -> Path:
    """50 rows in groups of 8, with a column that nobody asks for."""
    table = pa.table({"text": TEXTS, "id": list(range(50)), "other": [[{"a": place}] for place in range(50)]})
    return write(tmp_path / "a.parquet", table, row_group_size=8)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """From now on: rows at once, row groups and columns of everything that is decoded."""
    calls: list[Any] = []
    iterate = pq.ParquetFile.iter_batches

    def spy(self: Any, size: int, groups: list[int], columns: list[str], **options: Any) -> Any:
        calls.append((size, groups, columns))
        return iterate(self, size, groups, columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    return calls

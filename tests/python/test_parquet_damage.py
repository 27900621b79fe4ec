"""Parquet files that cannot be read, or not wholly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_files import items, texts, watch, write, write_rows
from xentrs.corpus import columnar
from xentrs.corpus import documents as documents_module
from xentrs.corpus.documents import Cursor, Document, Rejected, read_items
from xentrs.corpus.reading import Reading
from xentrs.corpus.sources import InputError, open_sources


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path)


@pytest.mark.parametrize(
    ("reading", "what"),
    [
        ({}, r"a\.parquet: no column 'text'; there are 'body', 'meta'"),
        ({"text_key": "body", "by": ("x",)}, r"no column 'x'; there are 'body', 'meta'"),
        ({"text_key": "body", "id_key": "nr"}, r"no column 'nr'"),
        ({"text_key": "meta.other"}, r"no column 'meta\.other'"),
        ({"text_key": "body.x"}, r"no column 'body\.x'"),
        ({"messages_key": "m"}, r"no column 'm'"),
        ({"context_key": "body", "continuation_key": "c"}, r"no column 'c'"),
    ],
)
def test_a_missing_column_is_named_before_anything_is_scored(
    tmp_path: Path, reading: dict[str, Any], what: str
) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"body": ["x"], "meta": [{"lang": "x"}]}))
    choice = Reading(**reading)
    with pytest.raises(InputError, match=what):
        open_sources([str(path)], reading=choice)
    sources, _ = open_sources([str(path)])
    with pytest.raises(InputError, match=what):
        list(read_items(sources, Cursor(), choice))


def test_a_column_that_stands_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(InputError, match=r"a\.parquet: column 'text' stands twice"):
        items(write(tmp_path / "a.parquet", table))


def test_no_rows(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string())])
    assert items(write(tmp_path / "a.parquet", schema.empty_table())) == []
    with pq.ParquetWriter(tmp_path / "b.parquet", schema):
        pass
    assert pq.read_metadata(tmp_path / "b.parquet").num_row_groups == 0
    assert items(tmp_path / "b.parquet") == []
    with pytest.raises(InputError, match="no column 'body'; there are 'text'"):
        items(tmp_path / "b.parquet", text_key="body")
    assert items(write(tmp_path / "c.parquet", pa.table({"text": ["a"]}))) != []
    with pytest.raises(InputError, match="no column 'text'; there are none"):
        items(write(tmp_path / "d.parquet", pa.table({})))


def cut(data: bytes) -> bytes:
    return data[:-10]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def footer(data: bytes) -> bytes:
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:start] + b"\xff" * 20 + data[start + 20 :]


@pytest.mark.parametrize("damage", [cut, half, footer, lambda data: b"", lambda data: b"PAR1", lambda data: b"{}"])
def test_a_damaged_footer_is_an_error_at_opening(table_file: Path, damage: Callable[[bytes], bytes]) -> None:
    table_file.write_bytes(damage(table_file.read_bytes()))
    with pytest.raises(InputError, match=r"a\.parquet is no intact parquet file"):
        open_sources([str(table_file)])


def test_an_encrypted_file_is_an_error_at_opening(tmp_path: Path) -> None:
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):  # type: ignore[misc,name-defined]
        def wrap_key(self, key: bytes, name: str) -> bytes:
            return b"k" + key.hex().encode()

        def unwrap_key(self, wrapped: bytes, name: str) -> bytes:
            return bytes.fromhex(wrapped[1:].decode())

    factory = encryption.CryptoFactory(lambda _: Keys())
    for plaintext_footer, keys in ((False, ["text"]), (True, ["text"]), (True, ["other"])):
        config = encryption.EncryptionConfiguration(
            footer_key="footer", column_keys={"column": keys}, plaintext_footer=plaintext_footer
        )
        properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), config)
        table = pa.table({"text": ["a"] * 9, "other": ["b"] * 9})
        path = write(tmp_path / "a.parquet", table, encryption_properties=properties)
        if keys == ["other"]:
            assert texts(items(path)) == ["a"] * 9, "what is encrypted is not needed"
            continue
        with pytest.raises(InputError, match=r"a\.parquet.*crypt"):
            items(path)


@pytest.mark.parametrize("rows", [0, 1, 20])
def test_a_damaged_page_ends_the_file_and_the_rows_before_it_are_kept(tmp_path: Path, rows: int) -> None:
    """Twenty rows of 1 KB to a page; what follows in other sources is read."""
    values = [f"{place:04d}" + "x" * 1000 for place in range(60)]
    options = {"use_dictionary": False, "compression": "none", "data_page_size": 1, "write_batch_size": 1}
    options.update(write_statistics=False, write_page_checksum=True)
    if rows == 20:
        options.update(data_page_size=20_000, write_batch_size=20)
    path = write(tmp_path / "a.parquet", pa.table({"text": values}), **options)
    data = path.read_bytes()
    place = data.index(values[rows].encode()) + 500
    path.write_bytes(data[:place] + b"?" + data[place + 1 :])
    (tmp_path / "b.txt").write_text("behind")
    sources, _ = open_sources([str(path), f"{tmp_path}/b.txt"], reading=Reading())
    found = list(read_items(sources, Cursor(), Reading()))
    kept = [item.fields.text for item, _ in found if isinstance(item, Document)]
    assert kept == [*values[:rows], "behind"]
    (bad,) = (item for item, _ in found if isinstance(item, Rejected))
    assert (bad.kind, bad.line) == ("damaged_file", rows + 1)
    assert "a.parquet is damaged in row group 1" in bad.reason
    for number, (_, cursor) in enumerate(found):
        assert list(read_items(sources, cursor, Reading())) == found[number + 1 :]


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_row_beyond_the_limit_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_dictionary: bool
) -> None:
    monkeypatch.setattr(documents_module, "MAX_RECORD_BYTES", 64)
    chat = [{"role": "user", "content": "z" * 80}]
    table = pa.table({"text": ["x" * 64, "x" * 65, "é" * 33, "ok"], "m": [chat, chat[:0], None, None]})
    path = write(tmp_path / "a.parquet", table, use_dictionary=use_dictionary)
    kinds = [getattr(item, "kind", "document") for item in items(path)]
    assert kinds == ["document", "too_long", "too_long", "document"]
    (first, *_) = items(path, messages_key="m")
    assert isinstance(first, Rejected)
    assert first.kind == "too_long"


def test_many_long_rows_out_of_few_bytes_are_read_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "_BATCH_BYTES", 10_000)
    path = write(tmp_path / "a.parquet", pa.table({"text": ["y" * 5_000] * 300}))
    assert path.stat().st_size < 10_000
    sources, _ = open_sources([str(path)])
    asked = watch(monkeypatch)
    assert texts([item for item, _ in read_items(sources, Cursor(), Reading())]) == ["y" * 5_000] * 300
    assert [size for size, _, _ in asked] == [4]


def test_compressed_outside_is_no_kind_of_input(table_file: Path) -> None:
    packed = table_file.rename(table_file.with_name("a.parquet.gz"))
    with pytest.raises(InputError, match=r"unknown kind of file; expected one of .*behind it or not, \.parquet, \.pq"):
        open_sources([str(packed)])

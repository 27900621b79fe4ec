"""What an input may be: compressed files, folders, patterns."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from xentrs.corpus import documents as documents_module
from xentrs.corpus.documents import Cursor, Document, Item, Rejected, read_items
from xentrs.corpus.reading import Reading
from xentrs.corpus.sources import InputError, open_sources

LINES = b'{"text": "one", "id": "a"}\n\nbroken\n' + b"".join(b'{"text": "%d"}\n' % i for i in range(3000))


def zst(data: bytes) -> bytes:
    target = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(target, "zstd") as stream:
        stream.write(data)
    packed: bytes = target.getvalue().to_pybytes()
    return packed


PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zst}
COMPRESSION = pytest.mark.parametrize("compression", PACK)


def read(*paths: Path) -> list[tuple[Item, Cursor]]:
    sources, _ = open_sources([str(path) for path in paths])
    return list(read_items(sources, Cursor(), Reading()))


def content(items: list[tuple[Item, Cursor]]) -> list[Any]:
    """Everything but the names of files."""
    kept: list[Any] = []
    for item, cursor in items:
        parts = [getattr(item, field, None) for field in ("number", "line", "kind", "reason", "byte_offset")]
        kept.append((type(item), parts, cursor, item.fields.text if isinstance(item, Document) else None))
    return kept


@COMPRESSION
def test_a_compressed_file_gives_what_it_holds(tmp_path: Path, compression: str) -> None:
    """Records, lines and byte offsets are those of the content; several frames are one content."""
    plain, packed = tmp_path / "a.jsonl", tmp_path / f"a.jsonl{compression}"
    plain.write_bytes(LINES)
    half = len(LINES) // 2
    packed.write_bytes(PACK[compression](LINES[:half]) + PACK[compression](LINES[half:]))
    assert content(read(packed)) == content(read(plain))
    sources, _ = open_sources([str(packed)])
    assert (sources[0].byte_count, sources[0].format) == (packed.stat().st_size, "jsonl")


@COMPRESSION
def test_reading_goes_on_from_any_cursor(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"A.JSONL{compression.upper()}"
    path.write_bytes(PACK[compression](LINES))
    sources, _ = open_sources([str(path)])
    whole = list(read_items(sources, Cursor(), Reading()))
    for place in (0, 1, 2, 1500, len(whole) - 1):
        assert list(read_items(sources, whole[place][1], Reading())) == whole[place + 1 :]


@COMPRESSION
def test_a_compressed_text_is_one_document(tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(PACK[compression]("naïve\n".encode()))
    ((item, _),) = read(path)
    assert isinstance(item, Document)
    assert (item.id, item.fields.text) == (str(path), "naïve\n")
    monkeypatch.setattr(documents_module, "MAX_RECORD_BYTES", 1000)
    path.write_bytes(PACK[compression](b"x" * 10_000_000))  # small as it lies, long as it is
    ((item, _),) = read(path)
    assert isinstance(item, Rejected)
    assert item.kind == "too_long"


@COMPRESSION
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-9], "ends in the middle of its"),
        (lambda data: b"junk" + data, "is no intact"),
        (lambda data: data[:10] + bytes(byte ^ 255 for byte in data[10:60]) + data[60:], "is no intact"),
    ],
    ids=["cut", "another-format", "damaged"],
)
def test_a_damaged_file_is_rejected_by_name(
    tmp_path: Path, compression: str, change: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(change(PACK[compression](os.urandom(5000).hex().encode())))
    ((item, cursor),) = read(path)
    assert isinstance(item, Rejected)
    assert (item.kind, item.line, item.byte_offset) == ("damaged_file", 1, 0)
    assert f"a.jsonl{compression} {message}" in item.reason
    assert cursor == Cursor(1)


@COMPRESSION
def test_a_file_that_breaks_off_gives_the_records_before(tmp_path: Path, compression: str) -> None:
    """Then one rejected entry that says where, and the files behind; from any cursor on."""
    lines = [json.dumps({"text": os.urandom(4000).hex()}).encode() + b"\n" for _ in range(60)]
    path, other = tmp_path / f"a.jsonl{compression}", tmp_path / "b.jsonl"
    packed = PACK[compression](b"".join(lines))
    path.write_bytes(packed[: len(packed) * 2 // 3])
    other.write_bytes(b'{"text": "behind"}\n')
    whole = read(path, other)
    *before, damaged, behind = [item for item, _ in whole]
    assert 10 < len(before) < 50
    assert [item.line for item in before if isinstance(item, Document)] == list(range(1, len(before) + 1))
    assert isinstance(damaged, Rejected)
    assert (damaged.kind, damaged.line, damaged.byte_offset) == (
        "damaged_file",
        len(before) + 1,
        sum(len(line) for line in lines[: len(before)]),
    )
    assert isinstance(behind, Document)
    assert behind.number == len(before)  # the damaged rest is no record
    sources, _ = open_sources([str(path), str(other)])
    for place in (0, 5, len(before) - 1, len(before)):
        assert list(read_items(sources, whole[place][1], Reading())) == whole[place + 1 :]


def test_folders_and_patterns(tmp_path: Path) -> None:
    """In the order of names, whatever the system lists first; other kinds of files and hidden ones are left out."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z.txt", "a.jsonl", "b/d.jsonl.gz", "b/c/e.md", "b/picture.png", "b/.hidden.txt", "notes"):
        (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")

    def names(given: str) -> list[str]:
        return [os.path.relpath(source.name, tmp_path) for source in open_sources([given])[0]]

    assert names(str(tmp_path)) == ["a.jsonl", "b/c/e.md", "b/d.jsonl.gz", "z.txt"]
    assert names(f"{tmp_path}/*.t?t") == ["z.txt"]
    assert names(f"{tmp_path}/**/*.jsonl*") == ["a.jsonl", "b/d.jsonl.gz"]
    (tmp_path / "[1].txt").write_bytes(b"")
    assert names(f"{tmp_path}/[1].txt") == ["[1].txt"], "a name that is there is no pattern"
    sources, warnings = open_sources([str(tmp_path), f"{tmp_path}/z.txt"])
    assert len(sources) == 5
    assert ["z.txt is the same input as" in warning for warning in warnings] == [True]
    with pytest.raises(InputError, match=r"picture\.png: unknown kind of file"):
        open_sources([f"{tmp_path}/b/*.png"])


@COMPRESSION
def test_scores_of_a_compressed_file_are_those_of_its_content(
    tmp_path: Path, compression: str, xentrs_command: Any, tiny_model: Path
) -> None:
    lines = b'{"text": "The quick brown fox"}\n{"text": "jumps over"}\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / f"b.jsonl{compression}").write_bytes(PACK[compression](lines))
    results = []
    for name in ("a.jsonl", f"b.jsonl{compression}"):
        run = tmp_path / f"RUN-{name}"
        assert xentrs_command("score", tmp_path / name, "--model", tiny_model, "-o", run).code == 0
        results.append((run / "tokens-00000.parquet").read_bytes())
        assert "finished already" in xentrs_command("score", tmp_path / name, "--model", tiny_model, "-o", run).err
    assert results[0] == results[1]

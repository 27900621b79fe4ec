"""The inputs of a run: which files, in which format, with which content.

In: the names a user gave, files, folders, patterns, "-" for stdin. Out: `Source` entries with size and SHA-256 (they go
into the fingerprint), and warnings. stdin is spooled into an unnamed temporary file first, so that a RUN can tell
whether it gets the same text again.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

from xentrs.corpus.compressed import COMPRESSIONS, unpack
from xentrs.corpus.reading import Reading
from xentrs.errors import InputChangedError, XentrsError

FORMATS = {".txt": "txt", ".text": "txt", ".md": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl"}
FORMATS.update({".parquet": "parquet", ".pq": "parquet"})
_UNPACKED = ("parquet",)  # compressed inside, and read from places all over the file
_PACKED_KINDS = ", ".join(ending for ending, name in FORMATS.items() if name not in _UNPACKED)
_KINDS = f"{_PACKED_KINDS}, with {' or '.join(COMPRESSIONS)} behind it or not, .parquet, .pq"
_READ_BYTES = 1 << 20


class InputError(XentrsError, ValueError):
    """An input that cannot be one: missing, a folder of nothing, of an unknown kind."""


@dataclass(frozen=True)
class Source:
    """One input. `name` is as the user gave it, printable in any encoding."""

    name: str
    format: str  # "txt": the file is one document; "jsonl": one document per line; "parquet": one per row
    byte_count: int
    sha256: str
    path: Path | None  # None: the spooled stdin
    compression: str = ""  # one of COMPRESSIONS, or none; byte_count and sha256 are those of the file as it lies
    spool: BinaryIO | None = field(default=None, compare=False, repr=False)
    changed_ns: int = 0

    def block(self) -> dict[str, Any]:
        """For the fingerprint of a RUN and its summary."""
        return {"name": self.name, "format": self.format, "bytes": self.byte_count, "sha256": self.sha256}

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The content as it was when it was hashed.

        Raises:
            InputChangedError: the file is gone, or has another size or modification time by now.
        """
        if self.spool is not None:
            self.spool.seek(0)
            yield self.spool
            return
        assert self.path is not None
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            raise InputChangedError(f"{self.name} vanished during the run") from None
        with file:
            yield unpack(file, self.name, self.compression) if self.compression else file
            self.check_unchanged()

    def check_unchanged(self) -> None:
        """What was read before this call is what was hashed.

        Raises:
            InputChangedError: the file is gone, or has another size or modification time.
        """
        if self.path is None:
            return
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise InputChangedError(f"{self.name} vanished during the run") from None
        if (status.st_size, status.st_mtime_ns) != (self.byte_count, self.changed_ns):
            raise InputChangedError(
                f"{self.name} changed during the run: {self.byte_count} bytes, now {status.st_size}"
            )


def open_sources(
    inputs: Sequence[str], stdin_format: str = "txt", reading: Reading | None = None
) -> tuple[list[Source], list[str]]:
    """Check and hash every input, in the order given; a file given twice counts once, with a warning. A folder stands
    for the files of known kinds in it and below it, a pattern for the files it matches, both in the order of names.
    With `reading` tables are held against it.

    Raises:
        InputError: an input is missing, unreadable or of an unknown kind, stands for no file, or is a table that is
            damaged or lacks a column.
    """
    sources: list[Source] = []
    warnings: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    for name in (found for given in inputs for found in _expanded(given)):
        shown = printable_name(name)
        if name == "-":
            key = (-1, -1)
        else:
            status = _status(name, shown)
            key = (status.st_dev, status.st_ino)
        if key in seen:
            warnings.append(f"{shown} is the same input as {seen[key]}: scored once")
            continue
        seen[key] = shown
        sources.append(_spool_stdin(stdin_format) if name == "-" else _known_source(name, shown))
        _check_table(sources[-1], reading)
    return sources, warnings


def _check_table(source: Source, reading: Reading | None) -> None:
    if source.format == "parquet":
        # Loads pyarrow, which other formats do without.
        from xentrs.corpus.columnar import check_parquet

        with source.open() as file:
            check_parquet(file, source.name, reading)


def _expanded(name: str) -> list[str]:
    """The files that a name stands for."""
    shown = printable_name(name)
    if "\0" in name or name == "-":
        return [name]
    if Path(name).is_dir():
        files = (os.path.join(folder, file) for folder, _, names in os.walk(name) for file in names)
        found = [file for file in files if not Path(file).name.startswith(".") and _kind(Path(file)) is not None]
        if not found:
            raise InputError(f"{shown}: a folder without a file of a known kind: {_KINDS}")
        return sorted(found)
    if glob.has_magic(name) and not Path(name).exists():
        found = [file for file in glob.glob(name, recursive=True) if not Path(file).is_dir()]
        if not found:
            raise InputError(f"{shown}: matches no file")
        return sorted(found)
    return [name]


def _kind(path: Path) -> tuple[str, str] | None:
    """Format and compression by the name's endings; None if they are not known."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    known = FORMATS.get(suffixes[-1]) if suffixes else None
    return None if known is None or (compression and known in _UNPACKED) else (known, compression)


def printable_name(name: str) -> str:
    """A file name as text that any output can hold; bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _status(name: str, shown: str) -> os.stat_result:
    path = Path(name)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{shown}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{shown}: {getattr(error, 'strerror', None) or error}") from None
    if _kind(path) is None:
        raise InputError(f"{shown}: unknown kind of file; expected one of {_KINDS}")
    return status


def _known_source(name: str, shown: str) -> Source:
    path = Path(name)
    kind = _kind(path)
    assert kind is not None, "the caller has checked it"
    return file_source(path, shown, *kind)


def file_source(path: Path, shown: str, kind: str, compression: str = "") -> Source:
    """A file, hashed, under the name `shown`.

    Raises:
        InputError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            changed_ns = os.fstat(file.fileno()).st_mtime_ns
            byte_count = 0
            while block := file.read(_READ_BYTES):
                digest.update(block)
                byte_count += len(block)
    except OSError as error:
        raise InputError(f"{shown}: {error.strerror}") from None
    return Source(shown, kind, byte_count, digest.hexdigest(), path, compression, changed_ns=changed_ns)


def _spool_stdin(stdin_format: str) -> Source:
    spool: Any = tempfile.TemporaryFile(prefix="xentrs-stdin-")  # noqa: SIM115  # open for the whole run
    digest = hashlib.sha256()
    byte_count = 0
    while block := sys.stdin.buffer.read(_READ_BYTES):
        digest.update(block)
        byte_count += spool.write(block)
    return Source("-", stdin_format, byte_count, digest.hexdigest(), None, spool=spool)

"""A RUN folder for readers: finished or not, part by part, in constant memory.

In: a path. Out: `OpenRun`: protocol, summary, tables, texts, totals. Nothing is written and nothing locked: what stands
in the manifest is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from xentrs.corpus.aggregates import Totals
from xentrs.corpus.journal import FORMAT_VERSION, MANIFEST, SUMMARY, part_names, read_manifest
from xentrs.durable import sha256_hex
from xentrs.errors import ManifestMismatch
from xentrs.runs.columns import missing_column
from xentrs.runs.texts import texts_of


class OpenRun:
    """What stands in a RUN folder."""

    def __init__(self, path: str | Path) -> None:
        """Read its manifest.

        Raises:
            ManifestMismatch: no RUN folder, a damaged one, or one of another version.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise ManifestMismatch(f"{self.path}: no such folder")
        lines, _ = read_manifest(self.path / MANIFEST)
        if not lines:
            raise ManifestMismatch(f"{self.path}: is not a RUN folder (no {MANIFEST})")
        self.header: dict[str, Any] = lines[0]
        if self.header["format"] != FORMAT_VERSION:
            raise ManifestMismatch(
                f"{self.path}: RUN of format {self.header['format']}, expected {FORMAT_VERSION}: score again"
            )
        # A part that was found damaged and scored again has two lines; the later one holds.
        by_number = {line["part"]: line for line in lines[1:]}
        self.parts: list[dict[str, Any]] = [by_number[number] for number in sorted(by_number)]

    @property
    def protocol(self) -> dict[str, Any]:
        """What decides the digits."""
        protocol: dict[str, Any] = self.header["protocol"]
        return protocol

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """Name, format, size and SHA-256 of each input."""
        inputs: list[dict[str, Any]] = self.header["inputs"]
        return inputs

    @cached_property
    def sha256(self) -> str:
        """Identity of what was scored: of the fingerprint and of each part's line, which has the hashes of its files.

        A part that was found damaged and scored again to the same bytes does not change it.
        """
        lines = json.dumps([self.header, self.parts], sort_keys=True)
        return sha256_hex(lines.encode())

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """summary.json; None for an unfinished RUN.

        Raises:
            ManifestMismatch: it is damaged or counts other parts.
        """
        path = self.path / SUMMARY
        if not path.is_file():
            return None
        try:
            summary: dict[str, Any] = json.loads(path.read_bytes())
            expected = summary["parts"]
        except (ValueError, TypeError, KeyError):
            raise ManifestMismatch(f"{path}: damaged") from None
        if expected != len(self.parts):
            raise ManifestMismatch(f"{path} counts {expected} parts, the manifest {len(self.parts)}")
        return summary

    def require_finished(self) -> dict[str, Any]:
        """The summary.

        Raises:
            ManifestMismatch: the RUN is unfinished.
        """
        if self.summary is None:
            raise ManifestMismatch(
                f"{self.path}: unfinished RUN; the xentrs score command that began it goes on with it"
            )
        return self.summary

    def documents(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The documents tables, one part after the other; `columns`: these alone."""
        return self._tables(0, columns)

    def tokens(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The tokens tables, one part after the other; none of a RUN with --tokens none."""
        return self._tables(1, columns)

    @cached_property
    def document_columns(self) -> tuple[str, ...]:
        """The columns of the documents table."""
        return self._names(0)

    @cached_property
    def token_columns(self) -> tuple[str, ...]:
        """The columns of the tokens table; none where no tokens are kept."""
        return self._names(1)

    def require_columns(self, names: Iterable[str]) -> None:
        """Check that documents or tokens have these columns; a RUN without a part lacks none.

        Raises:
            MissingColumn: one is missing; the message names the option that makes it.
        """
        held = {*self.document_columns, *self.token_columns}
        for name in names if self.parts else ():
            if name not in held:
                raise missing_column(str(self.path), name, sorted(held))

    def texts(self) -> Iterator[tuple[int, str]]:
        """Number and text of every document, as it was encoded, from the RUN itself or read again from the inputs.

        Raises:
            InputChangedError: an input is gone or another by now.
            MissingColumn: chats, whose text only a RUN with --keep-text knows.
        """
        return texts_of(self)

    def totals(self, group_offset: int = 0) -> Totals:
        """The totals, made again from the parts: the bits of the run that wrote them."""
        totals = Totals()
        names = [name for name in self.document_columns if name != "text"]
        for line, table in zip(self.parts, self.documents(names), strict=True):
            totals.add_finished(table.to_pydict(), line, group_offset)
        return totals

    def _tables(self, kind: int, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        for line in self.parts:
            name = part_names(line["part"])[kind]
            if name in line["files"]:
                yield self._read(name, columns)

    def _read(self, name: str, columns: Sequence[str] | None) -> pa.Table:
        return self._opened(name, lambda path: pq.read_table(path, columns=None if columns is None else list(columns)))

    def _opened(self, name: str, read: Callable[[Path], Any]) -> Any:
        try:
            return read(self.path / name)
        except FileNotFoundError:
            raise ManifestMismatch(f"{self.path / name}: missing; xentrs verify tells what else is") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise ManifestMismatch(f"{self.path / name}: damaged ({error})") from None

    def _names(self, kind: int) -> tuple[str, ...]:
        for line in self.parts:
            name = part_names(line["part"])[kind]
            if name in line["files"]:
                return tuple(self._opened(name, pq.read_schema).names)
        return ()

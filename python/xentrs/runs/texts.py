"""The texts of a RUN: out of its own table, or read again from the inputs it was made of.

In: an `OpenRun`. Out: texts or records in the order of its documents. An input that is not the one that was scored is
refused: figures and text would not belong together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, Protocol

from xentrs.corpus.documents import Cursor, Document, read_items
from xentrs.corpus.reading import Reading
from xentrs.corpus.sources import InputError, Source, open_sources
from xentrs.errors import InputChangedError, MissingColumn


class _Run(Protocol):
    @property
    def header(self) -> dict[str, Any]: ...
    @property
    def document_columns(self) -> tuple[str, ...]: ...
    def documents(self, columns: Sequence[str] | None = None) -> Iterator[Any]: ...


def texts_of(run: _Run) -> Iterator[tuple[int, str]]:
    """See `OpenRun.texts`."""
    if "text" in run.document_columns:
        for table in run.documents(["document", "text"]):
            yield from zip(table["document"].to_pylist(), table["text"].to_pylist(), strict=True)
        return
    for document in records_of(run):
        if document.fields.messages is not None:
            raise MissingColumn(f"{document.id}: the text of a chat is made by its template: score with --keep-text")
        yield document.number, (document.fields.context or "") + document.fields.text


def records_of(run: _Run) -> Iterator[Document]:
    """The record of every document, read again.

    Raises:
        InputChangedError: an input is gone, or another by now, or holds other records.
    """
    sources = [_reopened(entry) for entry in run.header["inputs"]]
    items = (item for item, _ in read_items(sources, Cursor(), reading_of(run)) if isinstance(item, Document))
    for table in run.documents(["document", "id"]):
        for number, identifier in zip(table["document"].to_pylist(), table["id"].to_pylist(), strict=True):
            # Records that no document was made of, as the tokenizer refused them, are passed over.
            document = next((item for item in items if item.number >= number), None)
            if document is None or (document.number, document.id) != (number, identifier):
                raise InputChangedError(f"document {number} ({identifier}) is not in the inputs any more")
            yield document


def reading_of(run: _Run) -> Reading:
    """How the inputs were read."""
    known = {field.name for field in fields(Reading)}
    block = {name: value for name, value in run.header["reading"].items() if name in known}
    return Reading(**{**block, "by": tuple(block["by"])})


def _reopened(entry: dict[str, Any]) -> Source:
    """The input of this entry, if it still is what it was."""
    name = entry["name"]
    if name == "-":
        raise InputChangedError("standard input cannot be read again: score with --keep-text")
    try:
        sources, _ = open_sources([name])
    except InputError as error:
        raise InputChangedError(f"the inputs cannot be read again: {error}; or score with --keep-text") from None
    if len(sources) != 1 or sources[0].sha256 != entry["sha256"]:
        raise InputChangedError(f"{name} is not what was scored: its SHA-256 was {entry['sha256']}")
    return sources[0]

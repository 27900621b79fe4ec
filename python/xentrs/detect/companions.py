"""Further passes over the documents of a RUN: in lower case, after shots, under a reference model.

In: runners, sources and settings of the RUN. Out: jobs (`xentrs.corpus.run.run_job`), each with a RUN folder of its own
below the RUN's, resumed and checked like any; and their tokens, document by document.

Shots are token ids before the document's own ids, so that these are the same in every pass, and documents of a part
read them once (`EncodedDocument.shared_context`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xentrs.corpus.ahead import Reader
from xentrs.corpus.documents import Cursor, Document, Item, read_items
from xentrs.corpus.encoding import EncodedDocument
from xentrs.corpus.parts import Part, PartReader
from xentrs.corpus.run import Job, text_job
from xentrs.corpus.settings import Columns, Settings
from xentrs.corpus.sources import Source
from xentrs.detect.checked_inputs import FloatColumn
from xentrs.detect.tokens import DocumentTokens
from xentrs.durable import sha256_hex
from xentrs.errors import ParamError
from xentrs.models import EncodedText, SplitRunner
from xentrs.results import Flag

FOLDER = "companions"
NAMES = ("lowercase", "reference", "nonmember_shots", "member_shots")


def companion_folder(run: Path, name: str) -> Path:
    """Where a pass over the documents of `run` stands."""
    return run / FOLDER / name


def companion_settings(settings: Settings) -> Settings:
    """Those of the RUN, with the columns that a pass is for."""
    return replace(settings, columns=Columns("basic"), keep_text=False, reading=replace(settings.reading, by=()))


def lowercase_job(runner: SplitRunner, sources: Sequence[Source], settings: Settings) -> Job:
    """The same texts, `str.lower` of each."""

    def read(cursor: Cursor) -> Iterator[tuple[Item, Cursor]]:
        return ((_lowered(item), behind) for item, behind in read_items(sources, cursor, settings.reading))

    reader = PartReader(read, runner.encoder, runner.info.vocab_size, settings.part_tokens)
    return _changed(text_job(runner, sources, settings), reader, {"pass": "lowercase"})


def shots_job(runner: SplitRunner, sources: Sequence[Source], settings: Settings, shots: str) -> Job:
    """The same tokens after shots.

    Raises:
        ParamError: they leave no room in a window.
    """
    encoded = runner.encoder.encode([shots])[0]
    count, window = len(encoded.token_ids), settings.windowing.window
    if count >= window:
        raise ParamError(f"the shots are {count} tokens, the window {window}: expected room for a document behind them")
    job = text_job(runner, sources, settings)
    about = {"pass": "shots", "shots_sha256": sha256_hex(shots.encode()), "shots_token_count": count}
    return _changed(job, ShotReader(job.reader, encoded), about)


def reference_job(reference: SplitRunner, sources: Sequence[Source], settings: Settings) -> Job:
    """The same texts under another model; `settings` are resolved for it."""
    job = text_job(reference, sources, settings)
    return _changed(job, job.reader, {"pass": "reference"})


def _changed(job: Job, reader: Reader, about: dict[str, Any]) -> Job:
    return replace(job, reader=reader, protocol={**job.protocol, **about})


def _lowered(item: Item) -> Item:
    if not isinstance(item, Document):
        return item
    fields = item.fields
    messages = fields.messages
    if messages is not None:
        messages = tuple({**message, "content": message["content"].lower()} for message in messages)
    context = None if fields.context is None else fields.context.lower()
    return replace(item, fields=replace(fields, text=fields.text.lower(), context=context, messages=messages))


@dataclass
class ShotReader:
    """A `Reader` whose documents begin with the tokens of shots, which only condition."""

    reader: Reader
    shots: EncodedText

    def seek(self, number: int, cursor: Cursor) -> None:
        """As the reader does."""
        self.reader.seek(number, cursor)

    def next_part(self) -> Part | None:
        """The reader's next part, shots before each document."""
        part = self.reader.next_part()
        if part is not None:
            part.documents = [self._after_shots(document) for document in part.documents]
        return part

    def _after_shots(self, document: EncodedDocument) -> EncodedDocument:
        shots, own = self.shots, document.encoded
        encoded = EncodedText(
            np.concatenate([shots.token_ids, own.token_ids]),
            np.concatenate([shots.byte_start, own.byte_start + shots.byte_count]),
            np.concatenate([shots.byte_end, own.byte_end + shots.byte_count]),
            shots.byte_count + own.byte_count,
        )
        return replace(document, encoded=encoded, wanted=document.wanted + len(shots.token_ids))


class CompanionTokens:
    """Columns of a RUN's tokens, in the order of its documents, each read once."""

    def __init__(self, run: Any, columns: Sequence[str] = ("nll",)) -> None:
        """Begin with the first document of an `OpenRun`."""
        self.columns = tuple(columns)
        self._documents = self._read(run)
        self._next = next(self._documents, None)

    def take(self, number: int) -> dict[str, Any] | None:
        """The rows of a document, with those that have no score, and `flags`; None where it has none. Numbers rise."""
        while self._next is not None and self._next[0] < number:
            self._next = next(self._documents, None)
        return self._next[1] if self._next is not None and self._next[0] == number else None

    def documents(self, numbers: Sequence[int]) -> DocumentTokens:
        """The nll of these documents, of no tokens where there are none."""
        found = [_scored(self.take(number)) for number in numbers]
        offsets = np.concatenate([[0], np.cumsum([len(nll) for nll in found])]).astype(np.int64)
        return DocumentTokens(np.concatenate([np.zeros(0), *found]), offsets)

    def _read(self, run: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for table in run.tokens(["document", *self.columns, "flags"]):
            held = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
            starts = np.flatnonzero(np.diff(held["document"], prepend=-1)).tolist()
            for start, end in zip(starts, [*starts, len(table)][1:], strict=True):
                rows = {name: held[name][start:end] for name in (*self.columns, "flags")}
                yield int(held["document"][start]), rows


def _scored(rows: dict[str, Any] | None) -> FloatColumn:
    if rows is None:
        return np.zeros(0)
    nll: FloatColumn = rows["nll"][(rows["flags"] & int(Flag.IGNORED)) == 0].astype(np.float64)
    return nll

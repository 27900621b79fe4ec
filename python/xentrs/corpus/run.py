"""A whole run: parts from a reader, scored, into a RUN folder or into memory.

In: a `Job`, perhaps a folder. Out: `CorpusResult`. Finished parts of a RUN are read, not scored again; totals of a
resumed run equal those of an uninterrupted one bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from xentrs.corpus.aggregates import Totals, document_rows
from xentrs.corpus.ahead import AheadReader, Reader
from xentrs.corpus.documents import Cursor, reader_of
from xentrs.corpus.parts import Part, PartReader
from xentrs.corpus.score import PartColumns, score_part
from xentrs.corpus.settings import Settings, protocol_block
from xentrs.corpus.sources import Source
from xentrs.models import SplitRunner


class Listener(Protocol):
    """Who wants to hear how far a run is."""

    def part_started(self, byte_position: int, byte_count: int, token_count: int) -> None: ...
    def tokens_scored(self, token_count: int) -> None: ...
    def part_finished(self, byte_position: int) -> None: ...


class Silent:
    """A `Listener` that hears nothing."""

    def part_started(self, byte_position: int, byte_count: int, token_count: int) -> None: ...
    def tokens_scored(self, token_count: int) -> None: ...
    def part_finished(self, byte_position: int) -> None: ...


@dataclass(frozen=True)
class CorpusResult:
    """What came out: plain data. `documents` and `quarantine` are kept only when no RUN was written."""

    summary: dict[str, Any]
    documents: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    already_finished: bool = False
    resumed_parts: int = 0
    seconds: float = 0.0
    tokens_scored_now: int = 0


@dataclass(frozen=True)
class Job:
    """What is to be scored, by what, and how it is called in the results."""

    reader: Reader
    score: Callable[[Part, Callable[[int], None]], PartColumns]
    settings: Settings
    protocol: dict[str, Any]
    inputs: list[dict[str, Any]]
    byte_counts: Sequence[int]  # of the inputs, for progress

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the bytes of a RUN; two equal ones may share a folder."""
        settings = self.settings
        return {
            "protocol": self.protocol,
            "inputs": self.inputs,
            "reading": settings.reading.block(),
            "output": {
                **settings.columns.block(),
                "keep_text": settings.keep_text,
                "part_tokens": settings.part_tokens,
            },
        }

    def byte_position(self, cursor: Cursor) -> int:
        """Bytes of all inputs before `cursor`."""
        return cursor.byte_position(self.byte_counts)


PartSink = Callable[[Part, PartColumns], None]


def score_corpus(
    runner: SplitRunner,
    sources: Sequence[Source],
    settings: Settings,
    output: Path | None,
    listener: Listener,
    on_part: PartSink | None = None,
) -> CorpusResult:
    """Score all sources; with `output` into a RUN folder, which is resumed where it stands. `on_part` gets every part
    that is scored now; without it and without `output` the documents are kept for the result.

    Raises:
        ManifestMismatch: `output` holds another run, is in use, or is no RUN folder.
        InputChangedError: an input changed while it was read.
    """
    return run_job(text_job(runner, sources, settings), output, listener, on_part)


def score_parts(parts: Iterable[Part], runner: SplitRunner, settings: Settings) -> dict[str, Any]:
    """The totals of parts that are at hand."""
    totals = Totals()
    for part in parts:
        _add(totals, part, score_part(part, runner, settings))
    return totals.block()


def text_job(runner: SplitRunner, sources: Sequence[Source], settings: Settings) -> Job:
    """The job of scoring the records of `sources` with a model."""
    return Job(
        PartReader(
            reader_of(sources, settings.reading),
            runner.encoder,
            runner.info.vocab_size,
            settings.part_tokens,
            settings.keep_text,
        ),
        lambda part, on_batch: score_part(part, runner, settings, on_batch),
        settings,
        protocol_block(runner, settings),
        [source.block() for source in sources],
        [source.byte_count for source in sources],
    )


def run_job(job: Job, output: Path | None, listener: Listener, on_part: PartSink | None = None) -> CorpusResult:
    """Run `job`; see `score_corpus`."""
    if output is None:
        return _run_in_memory(job, listener, on_part)
    from xentrs.corpus.journal import RunFolder

    with RunFolder(output, job.fingerprint()) as folder:
        if (summary := folder.finished_summary()) is not None:
            return CorpusResult(summary, already_finished=True, resumed_parts=len(folder.parts))
        return _run_into(folder, job, listener, on_part)


def _summary(job: Job, totals: Totals, parts: int) -> dict[str, Any]:
    return {
        **job.fingerprint(),
        "parts": parts,
        "totals": totals.block(),
        "best_documents": totals.best(),
        "worst_documents": totals.worst(),
    }


def _run_in_memory(job: Job, listener: Listener, on_part: PartSink | None) -> CorpusResult:
    started = time.monotonic()
    totals = Totals()
    documents: list[dict[str, Any]] = []
    quarantine: list[dict[str, Any]] = []
    parts = 0
    with AheadReader(job.reader) as reader:
        while (part := reader.next_part()) is not None:
            columns = _score(job, part, listener)
            _add(totals, part, columns)
            if on_part is not None:
                on_part(part, columns)
            else:
                documents.extend(document_rows(columns.documents))
            quarantine.extend(vars(rejected) for rejected in part.rejected)
            parts += 1
    summary = _summary(job, totals, parts)
    return CorpusResult(
        summary,
        documents,
        quarantine,
        seconds=time.monotonic() - started,
        tokens_scored_now=summary["totals"]["scored_tokens"],
    )


def _run_into(folder: Any, job: Job, listener: Listener, on_part: PartSink | None) -> CorpusResult:
    from xentrs.corpus.tables import documents_parquet, tokens_parquet

    started = time.monotonic()
    settings, totals = job.settings, Totals()
    resumed = tokens_now = number = 0
    with AheadReader(job.reader) as reader:
        while True:
            if number in folder.parts:
                _add_finished(totals, folder, number)
                reader.seek(number + 1, folder.end_of(number))
                listener.part_finished(job.byte_position(folder.end_of(number)))
                resumed += 1
            elif (part := reader.next_part()) is None:
                break
            else:
                columns = _score(job, part, listener)
                tokens = None if settings.columns.level == "none" else tokens_parquet(columns, settings)
                folder.write_part(part, documents_parquet(columns, settings), tokens, columns.nll.to_bytes())
                _add(totals, part, columns)
                if on_part is not None:
                    on_part(part, columns)
                tokens_now += int(columns.scored.sum())
            number += 1
    seconds = time.monotonic() - started
    summary = _summary(job, totals, number)
    folder.finish(summary, {"seconds": seconds, "tokens_scored": tokens_now, "resumed_parts": resumed})
    return CorpusResult(summary, resumed_parts=resumed, seconds=seconds, tokens_scored_now=tokens_now)


def _add(totals: Totals, part: Part, columns: PartColumns) -> None:
    totals.add(columns.documents, columns.nll, len(part.rejected), part.skipped_lines)


def _add_finished(totals: Totals, folder: Any, number: int) -> None:
    from xentrs.corpus.tables import read_documents

    totals.add_finished(read_documents(folder.documents_bytes(number)), folder.parts[number])


def _score(job: Job, part: Part, listener: Listener) -> PartColumns:
    start, end = job.byte_position(part.start), job.byte_position(part.end)
    listener.part_started(start, end - start, part.row_count)
    columns = job.score(part, listener.tokens_scored)
    listener.part_finished(end)
    return columns

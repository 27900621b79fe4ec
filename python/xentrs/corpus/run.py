"""A whole run: parts from the sources through the model into a RUN folder or into memory.

In: a prepared `Runner`, sources, settings, perhaps a `RunFolder`. Out: `CorpusResult`. Finished parts of a
RUN are read, not scored again; totals of a resumed run equal those of an uninterrupted one bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from xentrs.corpus.parts import Part, PartReader, Position
from xentrs.corpus.score import score_part
from xentrs.corpus.settings import Settings, protocol_block
from xentrs.corpus.sources import Source
from xentrs.corpus.totals import Totals, document_rows
from xentrs.models import Runner


class Listener(Protocol):
    """Who wants to hear how far a run is."""

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


def score_corpus(
    runner: Runner, sources: Sequence[Source], settings: Settings, output: Path | None, listener: Listener
) -> CorpusResult:
    """Score all sources; with `output` into a RUN folder, which is resumed where it stands.

    Raises:
        ManifestMismatch: `output` holds another run, is in use, or is no RUN folder.
        InputChangedError: an input changed while it was read.
    """
    protocol = protocol_block(runner, settings)
    if output is None:
        return _score_in_memory(runner, sources, settings, protocol, listener)
    from xentrs.corpus.journal import RunFolder

    with RunFolder(output, fingerprint(protocol, sources, settings)) as folder:
        if (summary := folder.finished_summary()) is not None:
            return CorpusResult(summary, already_finished=True, resumed_parts=len(folder.parts))
        return _score_into(folder, runner, sources, settings, protocol, listener)


def fingerprint(protocol: dict[str, Any], sources: Sequence[Source], settings: Settings) -> dict[str, Any]:
    """Everything that decides the bytes of a RUN; two equal ones may share a folder."""
    return {
        "protocol": protocol,
        "inputs": _inputs(sources),
        "reading": {
            "text_key": settings.text_key,
            "id_key": settings.id_key,
            "limit": settings.limit,
            "part_tokens": settings.part_tokens,
        },
    }


def _inputs(sources: Sequence[Source]) -> list[dict[str, Any]]:
    return [
        {"name": source.name, "format": source.format, "bytes": source.byte_count, "sha256": source.sha256}
        for source in sources
    ]


def _summary(protocol: dict[str, Any], sources: Sequence[Source], totals: Totals, parts: int) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "inputs": _inputs(sources),
        "parts": parts,
        "totals": totals.block(),
        "best_documents": totals.best(),
        "worst_documents": totals.worst(),
    }


def _score_in_memory(
    runner: Runner,
    sources: Sequence[Source],
    settings: Settings,
    protocol: dict[str, Any],
    listener: Listener,
) -> CorpusResult:
    started = time.monotonic()
    reader = PartReader(sources, runner.encoder, runner.info.vocab_size, settings)
    totals = Totals()
    documents: list[dict[str, Any]] = []
    quarantine: list[dict[str, Any]] = []
    parts = 0
    while (part := reader.next_part()) is not None:
        columns = _score(part, runner, sources, settings, listener)
        nll = columns.tokens["nll"][columns.scored]
        totals.add(columns.documents, nll, len(part.rejected), part.skipped_lines)
        documents.extend(document_rows(columns.documents))
        quarantine.extend(vars(rejected) for rejected in part.rejected)
        parts += 1
    summary = _summary(protocol, sources, totals, parts)
    return CorpusResult(
        summary,
        documents,
        quarantine,
        seconds=time.monotonic() - started,
        tokens_scored_now=summary["totals"]["scored_tokens"],
    )


def _score_into(
    folder: Any,
    runner: Runner,
    sources: Sequence[Source],
    settings: Settings,
    protocol: dict[str, Any],
    listener: Listener,
) -> CorpusResult:
    from xentrs.corpus.tables import documents_parquet, read_documents, read_scored_nll, tokens_parquet

    started = time.monotonic()
    reader = PartReader(sources, runner.encoder, runner.info.vocab_size, settings)
    totals = Totals()
    resumed = tokens_now = number = 0
    while True:
        if number in folder.parts:
            documents, tokens = folder.part_bytes(number)
            line = folder.parts[number]
            totals.add(
                read_documents(documents),
                read_scored_nll(tokens),
                len(line["quarantine"]),
                line["skipped_lines"],
            )
            position = folder.end_of(number)
            reader.seek(number + 1, position)
            listener.part_finished(_byte_position(sources, position))
            resumed += 1
        else:
            part = reader.next_part()
            if part is None:
                break
            columns = _score(part, runner, sources, settings, listener)
            folder.write_part(part, documents_parquet(columns), tokens_parquet(columns))
            nll = columns.tokens["nll"][columns.scored]
            totals.add(columns.documents, nll, len(part.rejected), part.skipped_lines)
            tokens_now += len(nll)
        number += 1
    seconds = time.monotonic() - started
    summary = _summary(protocol, sources, totals, number)
    folder.finish(summary, {"seconds": seconds, "tokens_scored": tokens_now, "resumed_parts": resumed})
    return CorpusResult(summary, resumed_parts=resumed, seconds=seconds, tokens_scored_now=tokens_now)


def _score(part: Part, runner: Runner, sources: Sequence[Source], settings: Settings, listener: Listener) -> Any:
    start, end = _byte_position(sources, part.start), _byte_position(sources, part.end)
    listener.part_started(start, end - start, part.token_count)
    columns = score_part(part, runner, settings, listener.tokens_scored)
    listener.part_finished(end)
    return columns


def _byte_position(sources: Sequence[Source], position: Position) -> int:
    """Bytes of all inputs before `position`; of a compressed one those read unpacked, at most its size."""
    cursor = position.cursor
    inside = min(cursor.byte_offset, sources[cursor.source].byte_count) if cursor.source < len(sources) else 0
    return sum(source.byte_count for source in sources[: cursor.source]) + inside

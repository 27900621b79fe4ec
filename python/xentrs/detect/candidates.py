"""Records of a corpus that resemble a target: ZIP-FIT alignment of each, read and compared as a stream.

In: sources of candidates, texts of the target. Out: `Candidate` entries in the order of the records; the best of them.
In memory are the targets, one chunk of candidates and what was chosen; the formula is that of `compression`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from xentrs.corpus.documents import Cursor, Document, Rejected, read_items
from xentrs.corpus.reading import Reading
from xentrs.corpus.run import Listener
from xentrs.corpus.sources import Source
from xentrs.detect.checked_inputs import count_of
from xentrs.detect.compression import zip_fit_alignment
from xentrs.errors import ParamError

# Each chunk compresses every target anew: enough candidates that this is little beside them.
_CHUNK_RECORDS = 1024
_CHUNK_CHARACTERS = 4 << 20


@dataclass(frozen=True)
class Candidate:
    """A record and how well it fits the target."""

    number: int
    """Among all records of the inputs."""
    id: str
    source: int
    """Place of its source."""
    line: int
    alignment: float


@dataclass
class Counted:
    """What was met on the way."""

    candidates: int = 0
    empty: int = 0
    """Candidates without text, whose alignment is 0."""
    in_target: int = 0
    """Candidates whose text is one of the target's."""
    rejected: list[Rejected] = field(default_factory=list)


def read_targets(sources: Sequence[Source], reading: Reading) -> list[str]:
    """All texts of the target.

    Raises:
        ParamError: a record is no text, or an empty one; there is none.
    """
    texts = []
    for item, _ in read_items(sources, Cursor(), reading):
        if isinstance(item, Rejected):
            raise ParamError(f"target {item.source}:{item.line}: {item.reason}")
        if isinstance(item, Document):
            if not item.fields.text:
                raise ParamError(
                    f"target {item.source}:{item.line}: no text, expected one that candidates can resemble"
                )
            texts.append(item.fields.text)
    if not texts:
        raise ParamError(f"target {', '.join(source.name for source in sources)}: no text")
    return texts


def align_records(
    sources: Sequence[Source],
    reading: Reading,
    targets: Sequence[str],
    counted: Counted,
    listener: Listener,
    **options: Any,
) -> Iterator[Candidate]:
    """Every record with its alignment, in order. `options` are those of `zip_fit_alignment`.

    Raises:
        ParamError: no target, or an option outside its range.
    """
    known = set(targets)
    sizes = [source.byte_count for source in sources]
    for chunk, behind in _chunks(sources, reading, counted):
        texts = [document.fields.text for document, _ in chunk]
        found = zip_fit_alignment(texts, targets, **options)
        counted.candidates += len(chunk)
        counted.empty += found.empty_sources
        counted.in_target += sum(text in known for text in texts)
        for (document, place), value in zip(chunk, found.values.tolist(), strict=True):
            yield Candidate(document.number, document.id, place, document.line, value)
        listener.tokens_scored(len(chunk))
        listener.part_finished(behind.byte_position(sizes))


def best_of(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """The `count` that fit best, best first, equal ones in their order: what `select_top` chooses, of a stream."""
    return heapq.nlargest(count_of(count, "count", 0), candidates, key=attrgetter("alignment"))


def _chunks(
    sources: Sequence[Source], reading: Reading, counted: Counted
) -> Iterator[tuple[list[tuple[Document, int]], Cursor]]:
    """Documents with the places of their sources, and the cursor behind them."""
    chunk: list[tuple[Document, int]] = []
    characters, cursor = 0, Cursor()
    for item, cursor in read_items(sources, Cursor(), reading):
        if isinstance(item, Rejected):
            counted.rejected.append(item)
        if isinstance(item, Document):
            chunk.append((item, cursor.source))
            characters += len(item.fields.text)
        if len(chunk) >= _CHUNK_RECORDS or characters >= _CHUNK_CHARACTERS:
            yield chunk, cursor
            chunk, characters = [], 0
    if chunk:
        yield chunk, cursor

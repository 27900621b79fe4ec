"""Documents to parts: runs of whole documents, cut by a token budget that follows from the inputs alone.

In: sources, an encoder, a cursor. Out: `Part` entries with encoded documents, rejected records and the cursor
behind them. A part ends with the document that fills its budget, so a resumed run cuts exactly as an
uninterrupted one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from xentrs.corpus.documents import Cursor, Document, Item, Rejected, read_items
from xentrs.corpus.settings import Settings
from xentrs.corpus.sources import Source
from xentrs.models import EncodedText, TextEncoder

# Bounds memory where records carry no tokens: a corpus of empty texts or of corrupt lines.
MAX_PART_RECORDS = 16_384
_GROUP_CHARACTERS = 65_536
_GROUP_RECORDS = 256


@dataclass(frozen=True)
class EncodedDocument:
    """A document's place in the run and its tokens; the text is gone by now."""

    number: int
    id: str
    source: str
    encoded: EncodedText


@dataclass(frozen=True)
class Position:
    """Where a part starts or ends: cursor in the sources and documents before it."""

    cursor: Cursor = field(default_factory=Cursor)
    document_count: int = 0


@dataclass
class Part:
    """Documents that are scored and written together."""

    number: int
    start: Position
    end: Position
    documents: list[EncodedDocument] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    skipped_lines: int = 0
    token_count: int = 0


class PartReader:
    """Parts in order, from any position."""

    def __init__(self, sources: Sequence[Source], encoder: TextEncoder, vocab_size: int, settings: Settings) -> None:
        self._sources = sources
        self._encoder = encoder
        self._vocab_size = vocab_size
        self._settings = settings
        self.seek(0, Position())

    def seek(self, number: int, position: Position) -> None:
        """Go on with part `number`, which starts at `position`."""
        self._number = number
        self._position = position
        self._items: Iterator[tuple[Item, Cursor]] = read_items(
            self._sources, position.cursor, self._settings.text_key, self._settings.id_key
        )
        self._pending: deque[tuple[Item, Cursor, EncodedText | None]] = deque()

    def next_part(self) -> Part | None:
        """The next part, or None behind the last record."""
        part = Part(self._number, self._position, self._position)
        record_count = 0
        limit = self._settings.limit
        while part.token_count < self._settings.part_tokens and record_count < MAX_PART_RECORDS:
            if limit is not None and part.end.document_count >= limit:
                break
            if not self._pending and not self._fill():
                break
            self._take(part)
            record_count += 1
        if record_count == 0:
            return None
        self._number += 1
        self._position = part.end
        return part

    def _fill(self) -> bool:
        """Read and encode a group of records ahead; False at the end of the sources."""
        group: list[tuple[Item, Cursor]] = []
        characters = 0
        for item, cursor in self._items:
            group.append((item, cursor))
            characters += len(item.text) if isinstance(item, Document) else 0
            if characters >= _GROUP_CHARACTERS or len(group) >= _GROUP_RECORDS:
                break
        texts = [item.text for item, _ in group if isinstance(item, Document)]
        encoded = iter(self._encoder.encode(texts) if texts else [])
        for item, cursor in group:
            self._pending.append((item, cursor, next(encoded) if isinstance(item, Document) else None))
        return bool(group)

    def _take(self, part: Part) -> None:
        item, cursor, encoded = self._pending.popleft()
        document_count = part.end.document_count
        if isinstance(item, Document) and encoded is not None:
            if (rejected := self._outside_vocabulary(item, encoded)) is not None:
                part.rejected.append(rejected)
            else:
                part.documents.append(EncodedDocument(document_count, item.id, item.source, encoded))
                part.token_count += len(encoded.token_ids)
                document_count += 1
        elif isinstance(item, Rejected):
            part.rejected.append(item)
        else:
            part.skipped_lines += 1
        part.end = Position(cursor, document_count)

    def _outside_vocabulary(self, document: Document, encoded: EncodedText) -> Rejected | None:
        if len(encoded.token_ids) == 0 or int(encoded.token_ids.max()) < self._vocab_size:
            return None
        worst = int(encoded.token_ids.max())
        reason = f"token {worst} is outside the model's vocabulary [0, {self._vocab_size})"
        return Rejected(document.source, document.line, 0, "outside_vocabulary", reason)

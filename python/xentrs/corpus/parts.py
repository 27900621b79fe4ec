"""Documents to parts: runs of whole documents, cut by a token budget that follows from the inputs alone.

In: sources, an encoder, a cursor. Out: `Part` entries with encoded documents, rejected records and the cursor
behind them. A part ends with the document that fills its budget, so a resumed run cuts exactly as an
uninterrupted one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from xentrs.corpus.documents import Cursor, Document, Item, ReadItems, Rejected
from xentrs.corpus.encoding import EncodedDocument, encode_documents
from xentrs.corpus.records import RecordError
from xentrs.models import EncodedText, TextEncoder

# Bounds memory where records carry no tokens: a corpus of empty texts or of corrupt lines.
MAX_PART_RECORDS = 16_384
_GROUP_CHARACTERS = 65_536
_GROUP_RECORDS = 256


@dataclass
class Part:
    """Documents that are scored and written together. `row_count` rows of tokens: those to be scored."""

    number: int
    start: Cursor
    end: Cursor
    documents: list[EncodedDocument] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    skipped_lines: int = 0
    token_count: int = 0  # contexts included

    @property
    def row_count(self) -> int:
        return sum(len(document.wanted) for document in self.documents)


class PartReader:
    """Parts in order, from any position."""

    def __init__(
        self, read: ReadItems, encoder: TextEncoder, vocab_size: int, part_tokens: int, keep_text: bool = False
    ) -> None:
        self._read = read
        self._encoder = encoder
        self._vocab_size = vocab_size
        self._part_tokens = part_tokens
        self._keep_text = keep_text
        self.seek(0, Cursor())

    def seek(self, number: int, cursor: Cursor) -> None:
        """Go on with part `number`, which starts at `cursor`."""
        self._number = number
        self._cursor = cursor
        self._items = self._read(cursor)
        self._pending: deque[tuple[Item | EncodedDocument, Cursor]] = deque()

    def next_part(self) -> Part | None:
        """The next part, or None behind the last record."""
        part = Part(self._number, self._cursor, self._cursor)
        record_count = 0
        while part.token_count < self._part_tokens and record_count < MAX_PART_RECORDS:
            if not self._pending and not self._fill():
                break
            self._take(part)
            record_count += 1
        if record_count == 0:
            return None
        self._number += 1
        self._cursor = part.end
        return part

    def _fill(self) -> bool:
        """Read and encode a group of records ahead; False at the end of the sources."""
        group: list[tuple[Item, Cursor]] = []
        characters = 0
        for item, cursor in self._items:
            group.append((item, cursor))
            characters += sum(map(len, item.fields.texts)) if isinstance(item, Document) else 0
            if characters >= _GROUP_CHARACTERS or len(group) >= _GROUP_RECORDS:
                break
        documents = [item for item, _ in group if isinstance(item, Document)]
        encoded = iter(encode_documents(documents, self._encoder, self._keep_text))
        for item, cursor in group:
            self._pending.append((self._checked(item, next(encoded)) if isinstance(item, Document) else item, cursor))
        return bool(group)

    def _take(self, part: Part) -> None:
        item, part.end = self._pending.popleft()
        if isinstance(item, EncodedDocument):
            part.documents.append(item)
            part.token_count += len(item.encoded.token_ids)
        elif isinstance(item, Rejected):
            part.rejected.append(item)
        else:
            part.skipped_lines += 1

    def _checked(self, document: Document, encoded: EncodedDocument | RecordError) -> EncodedDocument | Rejected:
        if isinstance(encoded, RecordError):
            return Rejected(document.source, document.line, 0, encoded.kind, encoded.reason)
        return self._outside_vocabulary(document, encoded.encoded) or encoded

    def _outside_vocabulary(self, document: Document, encoded: EncodedText) -> Rejected | None:
        if len(encoded.token_ids) == 0 or int(encoded.token_ids.max()) < self._vocab_size:
            return None
        worst = int(encoded.token_ids.max())
        reason = f"token {worst} is outside the model's vocabulary [0, {self._vocab_size})"
        return Rejected(document.source, document.line, 0, "outside_vocabulary", reason)

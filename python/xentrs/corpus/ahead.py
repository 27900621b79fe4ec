"""Parts read and tokenised ahead, while the model works on the one before.

In: a reader. Out: the same reader's parts, the next one made by a thread meanwhile; errors come when their part is
asked for.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

from xentrs.corpus.documents import Cursor
from xentrs.corpus.parts import Part


class Reader(Protocol):
    """Parts in order, from any position: `parts.PartReader`, or another source of rows."""

    def seek(self, number: int, cursor: Cursor) -> None: ...
    def next_part(self) -> Part | None: ...


class AheadReader:
    """A `Reader` that is one part ahead; use as a context manager."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._thread = ThreadPoolExecutor(1, "xentrs-reader")
        self._next: Future[Part | None] | None = None

    def __enter__(self) -> AheadReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def seek(self, number: int, cursor: Cursor) -> None:
        """Go on with part `number`, which starts at `cursor`."""
        if self._next is not None:
            # What was read ahead is of another place now; nor may two threads read at once.
            self._next.exception()
            self._next = None
        self._reader.seek(number, cursor)

    def next_part(self) -> Part | None:
        """The next part, or None behind the last record."""
        part = self._next.result() if self._next is not None else self._reader.next_part()
        self._next = None if part is None else self._thread.submit(self._reader.next_part)
        return part

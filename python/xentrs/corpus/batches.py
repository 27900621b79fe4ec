"""Windows to batches: sorted by length, right-padded, bounded by a token budget.

In: one part's documents. Out: `Batch` entries: a matrix of input ids, and for each row of the tables where its hidden
state stands and its target. Padding, contexts and what an earlier window predicted stand in the matrix only.

Documents of a part that have the same context before all they want scored share one forward pass over it
(`shared_ids`), where the runner can.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xentrs.corpus.encoding import EncodedDocument
from xentrs.corpus.settings import Settings
from xentrs.corpus.windows import Window, plan_windows
from xentrs.models.runner import IntArray

# Rows of a batch repeat the keys and values of a shared context in memory: their inputs, contexts counted for each row,
# stay below so many token budgets.
_SHARED_BUDGETS = 4


@dataclass(frozen=True)
class Batch:
    """`input_ids` `(windows, length)`; the other three have one entry per scored token."""

    input_ids: IntArray
    hidden_index: IntArray  # into the flattened (windows * length) hidden states
    targets: IntArray
    row_index: IntArray  # into the part's rows
    shared_ids: IntArray | None = None  # (shared,), before every window


@dataclass(frozen=True)
class _Placed:
    """A window of one document, less `dropped` inputs at its start that others share."""

    document: EncodedDocument
    row_base: int  # of the document's first row in the part
    window: Window
    dropped: int = 0

    @property
    def length(self) -> int:
        return self.window.input_count - self.dropped


def plan_batches(
    documents: Sequence[EncodedDocument], settings: Settings, *, max_windows: int | None = None, shares: bool = False
) -> Iterator[Batch]:
    """Batches that score every wanted token once that has something before it, the longest windows first."""
    alone, groups = _place(documents, settings, shares)
    prefix_id = settings.prefix.token_id
    for group in groups:
        first = group[0]
        shared_ids = _window_ids(first, prefix_id)[: first.dropped]
        yield from _cut(group, settings, prefix_id, max_windows, shared_ids)
    yield from _cut(alone, settings, prefix_id, max_windows, None)


def _place(
    documents: Sequence[EncodedDocument], settings: Settings, shares: bool
) -> tuple[list[_Placed], list[list[_Placed]]]:
    """Windows that stand alone, and those of documents with the same context."""
    alone: list[_Placed] = []
    by_context: dict[tuple[bytes, bool], list[_Placed]] = {}
    row_base = 0
    for document in documents:
        windows = document_windows(document, settings)
        placed = [_Placed(document, row_base, window) for window in windows]
        context = document.shared_context
        if shares and context is not None and len(windows) == 1 and windows[0].start == 0:
            # A document that is just too long for the prefix has a window from its first token on, too.
            by_context.setdefault((context, windows[0].prefixed), []).extend(placed)
        else:
            alone.extend(placed)
        row_base += len(document.wanted)
    groups = []
    for group in by_context.values():
        # The last input before the first wanted token differs in nothing either, but its row predicts that token.
        dropped = group[0].window.scored_from
        if len(group) > 1 and dropped > 0:
            groups.append([_Placed(entry.document, entry.row_base, entry.window, dropped) for entry in group])
        else:
            alone.extend(group)
    return alone, groups


def document_windows(document: EncodedDocument, settings: Settings) -> list[Window]:
    """The windows of a document, those that predict something wanted."""
    wanted = document.wanted
    if len(wanted) == 0:
        return []
    first = int(wanted[0])
    planned = plan_windows(len(document.encoded.token_ids), settings.windowing, _has_prefix(document, settings), first)
    windows = [entry.scoring_from(first - entry.first_target) for entry in planned]
    return [
        entry for entry, (low, high) in ((entry, _wanted_range(document, entry)) for entry in windows) if low < high
    ]


def _has_prefix(document: EncodedDocument, settings: Settings) -> bool:
    """A chat whose template writes the prefix itself gets none besides, so that none stands twice; nor does a pair with
    a context by the LM harness's rule.
    """
    prefix_id = settings.prefix.token_id
    if document.is_chat:
        return prefix_id is not None and document.encoded.token_ids[0] != prefix_id
    return prefix_id is not None and not (settings.windowing.rule == "backfilled" and document.context_count > 0)


def _wanted_range(document: EncodedDocument, window: Window) -> tuple[int, int]:
    """Which of a document's wanted tokens the window predicts: from, to."""
    low, high = window.first_target + window.scored_from, window.end
    if document.is_contiguous:
        first, count = int(document.wanted[0]), len(document.wanted)
        return min(max(low - first, 0), count), min(max(high - first, 0), count)
    found = document.wanted.searchsorted(np.array([low, high]))
    return int(found[0]), int(found[1])


def _cut(
    placed: list[_Placed], settings: Settings, prefix_id: int | None, max_windows: int | None, shared: IntArray | None
) -> Iterator[Batch]:
    # A stable sort by length alone: the composition follows from the part's documents and nothing else.
    placed.sort(key=lambda entry: -entry.length)
    first = 0
    while first < len(placed):
        length = placed[first].length
        count = max(1, settings.batch_tokens // length)
        if shared is not None:
            count = max(1, min(count, _SHARED_BUDGETS * settings.batch_tokens // (length + len(shared))))
        if max_windows is not None:
            count = min(count, max_windows)
        yield _batch(placed[first : first + count], length, prefix_id, shared)
        first += count


def _window_ids(entry: _Placed, prefix_id: int | None) -> IntArray:
    window = entry.window
    ids = entry.document.encoded.token_ids[window.start : window.start + window.input_count - window.prefixed]
    return np.concatenate([[prefix_id], ids]).astype(np.int64) if window.prefixed else ids


def _batch(placed: Sequence[_Placed], length: int, prefix_id: int | None, shared: IntArray | None) -> Batch:
    input_ids = np.zeros((len(placed), length), dtype=np.int64)  # padding is id 0: valid, and never looked at
    hidden_index, targets, row_index = [], [], []
    for place, entry in enumerate(placed):
        window, document = entry.window, entry.document
        input_ids[place, : entry.length] = _window_ids(entry, prefix_id)[entry.dropped :]
        low, high = _wanted_range(document, window)
        positions = document.wanted[low:high]
        hidden_index.append(positions - window.first_target - entry.dropped + place * length)
        targets.append(document.encoded.token_ids[positions])
        row_index.append(np.arange(low, high, dtype=np.int64) + entry.row_base)
    return Batch(input_ids, np.concatenate(hidden_index), np.concatenate(targets), np.concatenate(row_index), shared)

"""Windows to batches: sorted by length, right-padded, bounded by a token budget.

In: windows over one part's sequences. Out: `Batch` entries: a matrix of input ids, and for each row that
counts where its hidden state stands, its target and the token it scores. Rows of padding and of context stand
in the matrix only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xentrs.corpus.parts import EncodedDocument
from xentrs.corpus.windows import Window, plan_windows
from xentrs.models.runner import IntArray


@dataclass(frozen=True)
class Batch:
    """`input_ids` `(windows, length)`; the other three have one entry per scored token."""

    input_ids: IntArray
    hidden_index: IntArray  # into the flattened (windows * length) hidden states
    targets: IntArray
    token_index: IntArray  # into the part's tokens


@dataclass(frozen=True)
class _Placed:
    """A window of one document: its sequence and where the document's tokens begin in the part."""

    sequence: IntArray
    token_base: int  # part index of the token at sequence position 0 (one less with a prefix)
    window: Window


def plan_batches(
    documents: Sequence[EncodedDocument],
    *,
    prefix_id: int | None,
    window: int,
    stride: int,
    batch_tokens: int,
    max_windows: int | None = None,
) -> Iterator[Batch]:
    """Batches that score every token of `documents` once, the longest windows first."""
    placed = list(_place(documents, prefix_id, window, stride))
    # A stable sort by length alone: the composition follows from the part's documents and nothing else.
    placed.sort(key=lambda entry: -entry.window.input_count)
    first = 0
    while first < len(placed):
        length = placed[first].window.input_count
        count = max(1, batch_tokens // length)
        if max_windows is not None:
            count = min(count, max_windows)
        yield _batch(placed[first : first + count], length)
        first += count


def _place(documents: Sequence[EncodedDocument], prefix_id: int | None, window: int, stride: int) -> Iterator[_Placed]:
    token_base = 0
    for document in documents:
        tokens = document.encoded.token_ids
        sequence, shift = tokens, 0
        if prefix_id is not None:
            sequence, shift = np.concatenate([np.array([prefix_id], dtype=np.int64), tokens]), 1
        for entry in plan_windows(len(sequence), window, stride):
            yield _Placed(sequence, token_base - shift, entry)
        token_base += len(tokens)


def _batch(placed: Sequence[_Placed], length: int) -> Batch:
    input_ids = np.zeros((len(placed), length), dtype=np.int64)  # padding is id 0: valid, and never looked at
    hidden_index, targets, token_index = [], [], []
    for row, entry in enumerate(placed):
        start, count, scored_from = entry.window.start, entry.window.input_count, entry.window.scored_from
        input_ids[row, :count] = entry.sequence[start : start + count]
        hidden_index.append(np.arange(row * length + scored_from, row * length + count, dtype=np.int64))
        positions = np.arange(start + scored_from + 1, start + count + 1, dtype=np.int64)
        targets.append(entry.sequence[positions])
        token_index.append(positions + entry.token_base)
    return Batch(input_ids, np.concatenate(hidden_index), np.concatenate(targets), np.concatenate(token_index))

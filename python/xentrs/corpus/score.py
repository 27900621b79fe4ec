"""One part through the model: hidden states, row statistics, columns.

In: a `Part`, a `SplitRunner`, `Settings`. Out: `PartColumns`, the part's two tables as columns. Rows of padding and of
contexts never reach the head. With a linear head (`SplitRunner.head`) no logits exist; without one, for one block of
rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

import xentrs
from xentrs.corpus.batches import Batch, plan_batches
from xentrs.corpus.columns import (
    document_columns,
    empty_statistics,
    statistics,
    statistics_options,
    token_places,
)
from xentrs.corpus.parts import Part
from xentrs.corpus.settings import Columns, Settings
from xentrs.models import SplitRunner
from xentrs.models.runner import IntArray, LinearHead

# Of logits, for runners without a linear head. Small enough that the allocator reuses the memory of the last block
# instead of mapping fresh pages.
BLOCK_BYTES = 24 << 20


@dataclass(frozen=True)
class PartColumns:
    """`documents` and `tokens` by column name, as in the RUN folder; `scored` marks those with statistics."""

    documents: dict[str, list[Any]]
    tokens: dict[str, npt.NDArray[Any]]
    scored: npt.NDArray[np.bool_]

    @cached_property
    def nll(self) -> xentrs.Perplexity:
        """Exact totals of the scored tokens."""
        total = xentrs.Perplexity()
        total.update_nll(self.tokens["nll"][self.scored])
        return total


def score_part(
    part: Part, runner: SplitRunner, settings: Settings, on_batch: Callable[[int], None] = lambda count: None
) -> PartColumns:
    """Score every document of `part`; `on_batch` hears how many tokens each batch scored."""
    batches = plan_batches(
        part.documents, settings, max_windows=runner.max_batch_windows, shares=runner.shares_contexts
    )
    return fill_part(part, batches, settings, lambda batch: _batch_statistics(batch, runner, settings), on_batch)


Statistics = Iterator[tuple[slice, dict[str, Any]]]
"""Rows of a batch, and their values by column."""


def fill_part(
    part: Part,
    batches: Iterable[Batch],
    settings: Settings,
    statistics_of: Callable[[Batch], Statistics],
    on_batch: Callable[[int], None] = lambda count: None,
    further: Sequence[str] = (),
) -> PartColumns:
    """The columns of a part out of those of its batches; `further` are columns of floats besides those of its level."""
    row_count = part.row_count
    columns = empty_statistics(row_count, settings.columns)
    columns.update({name: np.full(row_count, np.nan) for name in further})
    scored = np.zeros(row_count, dtype=np.bool_)
    for batch in batches:
        assert not scored[batch.row_index].any()  # every token once
        scored[batch.row_index] = True
        for block, found in statistics_of(batch):
            index = batch.row_index[block]
            for name, values in found.items():
                columns[name][index] = np.asarray(values)
        on_batch(len(batch.targets))
    columns["flags"][~scored] = int(xentrs.Flag.IGNORED)
    tokens = {**token_places(part), **columns}
    return PartColumns(document_columns(part, tokens, scored, settings), tokens, scored)


def _batch_statistics(batch: Batch, runner: SplitRunner, settings: Settings) -> Statistics:
    rows = batch_rows(batch, runner)
    for block, stats in runner_row_stats(runner, rows, batch.targets, settings.num_threads, settings.columns):
        yield block, statistics(stats, settings.columns)


def batch_rows(batch: Batch, runner: SplitRunner) -> Any:
    """The hidden states of a batch that predict something to be scored."""
    # Runners without shared contexts need not know the argument.
    shared = () if batch.shared_ids is None else (batch.shared_ids,)
    hidden = runner.hidden_states(batch.input_ids, *shared)
    return hidden.reshape(-1, hidden.shape[-1])[batch.hidden_index]


def head_row_stats(head: LinearHead, hidden_rows: Any, targets: IntArray, **options: Any) -> xentrs.RowStats:
    """`xentrs.linear_row_stats` of a runner's head."""
    scaled = {"bias": head.bias, "logit_scale": head.logit_scale, "softcap": head.softcap}
    return xentrs.linear_row_stats(hidden_rows, head.weight, targets, **scaled, **options)


def runner_row_stats(
    runner: SplitRunner,
    hidden_rows: Any,
    targets: IntArray,
    num_threads: int | None,
    columns: Columns = Columns(),  # noqa: B008  # plain data, never changed
) -> Iterator[tuple[slice, xentrs.RowStats]]:
    """Statistics of hidden rows, and which rows they are: all at once and without logits where the runner has a linear
    head, else from blocks of logits.
    """
    options = statistics_options(columns)
    if (head := runner.head) is not None:
        yield slice(0, len(targets)), head_row_stats(head, hidden_rows, targets, num_threads=num_threads, **options)
        return
    count = max(1, BLOCK_BYTES // (4 * runner.info.vocab_size))
    for first in range(0, len(targets), count):
        block = slice(first, first + count)
        logits = runner.logits(hidden_rows[block])
        stats = xentrs.row_stats(logits, targets[block], num_threads=num_threads, **options)
        del logits
        yield block, stats

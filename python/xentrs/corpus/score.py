"""One part through the model: hidden states, row statistics, columns.

In: a `Part`, a `SplitRunner`, `Settings`. Out: `PartColumns`, the part's two tables as columns. Rows of padding and of
contexts never reach the head. With a linear head (`SplitRunner.head`) no logits exist; without one, for one block of
rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    row_count = part.row_count
    columns = empty_statistics(row_count, settings.columns)
    scored = np.zeros(row_count, dtype=np.bool_)
    batches = plan_batches(
        part.documents, settings, max_windows=runner.max_batch_windows, shares=runner.shares_contexts
    )
    for batch in batches:
        assert not scored[batch.row_index].any()  # every token once
        scored[batch.row_index] = True
        _score_batch(batch, runner, settings, columns)
        on_batch(len(batch.targets))
    columns["flags"][~scored] = int(xentrs.Flag.IGNORED)
    tokens = {**token_places(part), **columns}
    return PartColumns(document_columns(part, columns, scored, settings), tokens, scored)


def _score_batch(batch: Batch, runner: SplitRunner, settings: Settings, columns: dict[str, npt.NDArray[Any]]) -> None:
    # Runners without shared contexts need not know the argument.
    shared = () if batch.shared_ids is None else (batch.shared_ids,)
    hidden = runner.hidden_states(batch.input_ids, *shared)
    rows = hidden.reshape(-1, hidden.shape[-1])[batch.hidden_index]
    del hidden
    for block, stats in runner_row_stats(runner, rows, batch.targets, settings.num_threads, settings.columns):
        index = batch.row_index[block]
        for name, values in statistics(stats, settings.columns).items():
            columns[name][index] = np.asarray(values)


def runner_row_stats(
    runner: SplitRunner,
    hidden_rows: Any,
    targets: npt.NDArray[np.int64],
    num_threads: int | None,
    columns: Columns = Columns(),  # noqa: B008  # plain data, never changed
) -> Iterator[tuple[slice, xentrs.RowStats]]:
    """Statistics of hidden rows, and which rows they are: all at once and without logits where the runner has a linear
    head, else from blocks of logits.
    """
    options = statistics_options(columns)
    if (head := runner.head) is not None:
        yield (
            slice(0, len(targets)),
            xentrs.linear_row_stats(
                hidden_rows,
                head.weight,
                targets,
                bias=head.bias,
                logit_scale=head.logit_scale,
                softcap=head.softcap,
                num_threads=num_threads,
                **options,
            ),
        )
        return
    count = max(1, BLOCK_BYTES // (4 * runner.info.vocab_size))
    for first in range(0, len(targets), count):
        block = slice(first, first + count)
        logits = runner.logits(hidden_rows[block])
        stats = xentrs.row_stats(logits, targets[block], num_threads=num_threads, **options)
        del logits
        yield block, stats

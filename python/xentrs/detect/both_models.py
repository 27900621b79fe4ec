"""Rows of two models at once: the statistics of each and their divergences.

In: a reference and a model as runners, hidden rows of both for the same tokens. Out: `xentrs.RowStats` of each, and
`xentrs.Divergences`, p of the reference. Where both have a linear head no logits exist and each head is multiplied
once; else logits of both exist for one block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import xentrs
from xentrs.corpus.columns import statistics_options
from xentrs.corpus.score import BLOCK_BYTES, head_row_stats
from xentrs.corpus.settings import Columns
from xentrs.heads import GivenSide
from xentrs.linear_pairs import linear_joint_row_stats
from xentrs.models import SplitRunner
from xentrs.models.runner import IntArray, LinearHead

Found = Iterator[tuple[slice, xentrs.RowStats, xentrs.RowStats, xentrs.Divergences]]
"""Which rows; the reference's statistics, the model's, divergences."""


def joint_row_stats(
    runners: tuple[SplitRunner, SplitRunner],
    rows: Sequence[Any],
    targets: IntArray,
    num_threads: int | None,
    columns: Columns,
) -> Found:
    """What the reference and the model say of rows; the model's statistics have what `columns` need, with the bits that
    `xentrs.corpus.score.runner_row_stats` gives them.
    """
    reference, model = runners
    options = statistics_options(columns)
    if reference.head is not None and model.head is not None:
        sides = (_side(rows[0], reference.head), _side(rows[1], model.head))
        found = linear_joint_row_stats(*sides, targets, num_threads=num_threads, **options)
        yield slice(0, len(targets)), *found
        return
    # As many rows as the model alone would get: a runner's logits may depend on what it runs together.
    count = max(1, BLOCK_BYTES // (4 * model.info.vocab_size))
    for first in range(0, len(targets), count):
        block = slice(first, first + count)
        p_logits, q_logits = (runner.logits(part[block]) for runner, part in zip(runners, rows, strict=True))
        yield (
            block,
            _row_stats(reference, rows[0][block], p_logits, targets[block], num_threads, {}),
            _row_stats(model, rows[1][block], q_logits, targets[block], num_threads, options),
            xentrs.divergences(p_logits, q_logits, num_threads=num_threads),
        )


def _side(rows: Any, head: LinearHead) -> GivenSide:
    return rows, head.weight, head.bias, head.logit_scale, head.softcap


def _row_stats(
    runner: SplitRunner, rows: Any, logits: Any, targets: IntArray, num_threads: int | None, options: dict[str, Any]
) -> xentrs.RowStats:
    if runner.head is not None:
        return head_row_stats(runner.head, rows, targets, num_threads=num_threads, **options)
    return xentrs.row_stats(logits, targets, num_threads=num_threads, **options)

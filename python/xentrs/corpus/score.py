"""One part through the model: hidden states, row statistics, columns.

In: a `Part`, a `Runner`, `Settings`. Out: `PartColumns`, the part's two tables as numpy columns. Rows of
padding never reach the head. With a linear head (`Runner.head`) no logits exist; without one, for one block of rows at
a time. A document's sum is exact (`xentrs.Perplexity`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import xentrs
from xentrs.corpus.batches import Batch, plan_batches
from xentrs.corpus.parts import EncodedDocument, Part
from xentrs.corpus.settings import Settings
from xentrs.models import Runner

# Of logits, for runners without a linear head. Small enough that the allocator reuses the memory of the last block
# instead of mapping fresh pages.
BLOCK_BYTES = 24 << 20

_Column = npt.NDArray[Any]


@dataclass(frozen=True)
class PartColumns:
    """`documents` and `tokens` by column name, as in the RUN folder; `scored` marks those with statistics."""

    documents: dict[str, list[Any]]
    tokens: dict[str, _Column]
    scored: npt.NDArray[np.bool_]


def score_part(
    part: Part, runner: Runner, settings: Settings, on_batch: Callable[[int], None] = lambda count: None
) -> PartColumns:
    """Score every document of `part`; `on_batch` hears how many tokens each batch scored."""
    columns = _empty_statistics(part.token_count)
    scored = np.zeros(part.token_count, dtype=np.bool_)
    batches = plan_batches(
        part.documents,
        prefix_id=settings.prefix.token_id,
        window=settings.window,
        stride=settings.stride,
        batch_tokens=settings.batch_tokens,
        max_windows=runner.max_batch_windows,
    )
    for batch in batches:
        assert not scored[batch.token_index].any()  # every token once
        scored[batch.token_index] = True
        _score_batch(batch, runner, settings, columns)
        on_batch(len(batch.targets))
    unscored = sum(_unscored_count(document, settings) for document in part.documents)
    assert int(scored.sum()) == part.token_count - unscored
    columns["flags"][~scored] = int(xentrs.Flag.IGNORED)
    tokens = {**_token_places(part), **columns}
    return PartColumns(_document_columns(part, columns["nll"], scored), tokens, scored)


def _unscored_count(document: EncodedDocument, settings: Settings) -> int:
    """Without a prefix nothing predicts the first token."""
    return int(settings.prefix.token_id is None and len(document.encoded.token_ids) > 0)


def _score_batch(batch: Batch, runner: Runner, settings: Settings, columns: dict[str, _Column]) -> None:
    hidden = runner.hidden_states(batch.input_ids)
    rows = hidden.reshape(-1, hidden.shape[-1])[batch.hidden_index]
    del hidden
    for block, stats in runner_row_stats(runner, rows, batch.targets, settings.num_threads):
        index = batch.token_index[block]
        for name, values in _statistics(stats).items():
            columns[name][index] = np.asarray(values)


def runner_row_stats(
    runner: Runner, hidden_rows: Any, targets: npt.NDArray[np.int64], num_threads: int | None
) -> Iterator[tuple[slice, xentrs.RowStats]]:
    """Statistics of hidden rows, and which rows they are: all at once and without logits where the runner has a linear
    head, else from blocks of logits.
    """
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
            ),
        )
        return
    count = max(1, BLOCK_BYTES // (4 * runner.info.vocab_size))
    for first in range(0, len(targets), count):
        block = slice(first, first + count)
        logits = runner.logits(hidden_rows[block])
        stats = xentrs.row_stats(logits, targets[block], num_threads=num_threads)
        del logits
        yield block, stats


def _statistics(stats: xentrs.RowStats) -> dict[str, Any]:
    """What of them is kept, by column name."""
    return {
        "nll": stats.nll,
        "entropy": stats.entropy,
        "varentropy": stats.varentropy,
        "rank": stats.rank,
        "ties": stats.ties,
        "top1_id": stats.argmax,
        "top1_log_prob": stats.max_log_prob,
        "flags": stats.flags,
    }


def _empty_statistics(token_count: int) -> dict[str, _Column]:
    floats = ("nll", "entropy", "varentropy", "top1_log_prob")
    integers = ("rank", "ties", "top1_id")
    return {
        **{name: np.full(token_count, np.nan) for name in floats},
        **{name: np.zeros(token_count, dtype=np.int32) for name in integers},
        "flags": np.zeros(token_count, dtype=np.uint8),
    }


def _token_places(part: Part) -> dict[str, _Column]:
    """Which token each row is: document number, position, id, byte range in the original text."""
    counts = [len(document.encoded.token_ids) for document in part.documents]
    numbers = np.array([document.number for document in part.documents], dtype=np.int64)
    positions = [np.arange(count, dtype=np.int32) for count in counts]
    return {
        "document": np.repeat(numbers, counts),
        "position": _joined(positions, np.int32),
        "token_id": _joined([document.encoded.token_ids for document in part.documents], np.int32),
        "byte_start": _joined([document.encoded.byte_start for document in part.documents], np.int64),
        "byte_end": _joined([document.encoded.byte_end for document in part.documents], np.int64),
    }


def _joined(pieces: list[_Column], dtype: Any) -> _Column:
    return np.concatenate(pieces).astype(dtype) if pieces else np.zeros(0, dtype=dtype)


def _document_columns(part: Part, nll: _Column, scored: npt.NDArray[np.bool_]) -> dict[str, list[Any]]:
    rows = []
    first = 0
    for document in part.documents:
        last = first + len(document.encoded.token_ids)
        rows.append(_document_row(document, nll[first:last][scored[first:last]]))
        first = last
    names = _document_row_names()
    return {name: [row[name] for row in rows] for name in names}


def _document_row_names() -> tuple[str, ...]:
    return (
        "document",
        "id",
        "source",
        "token_count",
        "scored_count",
        "byte_count",
        "nll_sum",
        "perplexity",
        "bits_per_byte",
        "status",
        "reason",
    )


def _document_row(document: EncodedDocument, nll: _Column) -> dict[str, Any]:
    """A document's line; one without a scored token is unscorable and has no perplexity."""
    encoded = document.encoded
    row: dict[str, Any] = {
        "document": document.number,
        "id": document.id,
        "source": document.source,
        "token_count": len(encoded.token_ids),
        "scored_count": len(nll),
        "byte_count": encoded.byte_count,
        "nll_sum": 0.0,
        "perplexity": None,
        "bits_per_byte": None,
        "status": "unscorable",
        "reason": "no_tokens" if len(encoded.token_ids) == 0 else "one_token",
    }
    if len(nll) == 0:
        return row
    total = xentrs.Perplexity()
    total.update_nll(nll)
    result = total.compute()
    row.update(nll_sum=result.nll_sum, perplexity=result.perplexity, status="scored", reason=None)
    row["bits_per_byte"] = result.nll_sum / math.log(2) / encoded.byte_count if encoded.byte_count else None
    return row

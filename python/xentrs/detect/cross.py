"""Both models over the same windows: cross-entropy of the model under the reference, and its variance, for each token.

In: two runners with one tokenizer and one vocabulary, a job's parts. Out: a RUN folder whose tokens have the reference
model's `nll`, and `cross_entropy` and `cross_varentropy` with p of the reference and q of the model.

Logits of both exist for one block of rows at a time; `xentrs.divergences` reads each once.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

import xentrs
from xentrs.corpus.aggregates import Totals
from xentrs.corpus.ahead import AheadReader
from xentrs.corpus.batches import Batch, plan_batches
from xentrs.corpus.columns import statistics
from xentrs.corpus.journal import RunFolder
from xentrs.corpus.parts import Part
from xentrs.corpus.run import Job, Listener, text_job
from xentrs.corpus.score import BLOCK_BYTES, PartColumns, Statistics, batch_rows, fill_part
from xentrs.corpus.settings import Settings, protocol_block
from xentrs.corpus.sources import Source
from xentrs.corpus.tables import SCHEMA_VERSION, documents_parquet
from xentrs.detect.pipeline import CROSS
from xentrs.errors import ParamError
from xentrs.models import SplitRunner
from xentrs.runs.open_run import OpenRun

_COLUMNS = ("document", "token_id", "nll", *CROSS, "flags")


def require_one_vocabulary(model: SplitRunner, reference: SplitRunner) -> None:
    """Check that column i of both models' logits is one token.

    Raises:
        ParamError: tokenizers or vocabularies differ; the message says both.
    """
    hashes = model.encoder.sha256, reference.encoder.sha256
    if hashes[0] != hashes[1]:
        raise ParamError(
            f"model {model.info.name} has tokenizer {hashes[0][:12]}, reference {reference.info.name} has "
            f"{hashes[1][:12]}: expected one tokenizer for cross_entropy"
        )
    sizes = model.info.vocab_size, reference.info.vocab_size
    if sizes[0] != sizes[1]:
        raise ParamError(
            f"model {model.info.name} has a vocabulary of {sizes[0]} tokens, reference {reference.info.name} of "
            f"{sizes[1]}: expected one vocabulary for cross_entropy"
        )


def require_window(reference: SplitRunner, settings: Settings) -> None:
    """Check that the reference model takes the windows of the model.

    Raises:
        ParamError: they are too long for it.
    """
    longest, window = reference.info.max_length, settings.windowing.window
    if longest is not None and longest < window:
        raise ParamError(
            f"reference {reference.info.name} takes {longest} tokens, the window is {window}: expected --window "
            f"{longest} or less"
        )


def write_cross(
    model: SplitRunner,
    reference: SplitRunner,
    sources: Sequence[Source],
    settings: Settings,
    folder: Path,
    listener: Listener,
) -> None:
    """Score every document under both models into `folder`, which is resumed where it stands.

    Raises:
        ParamError: as `require_one_vocabulary` and `require_window`.
        ManifestMismatch, InputChangedError: as `xentrs.corpus.run.score_corpus`.
    """
    require_one_vocabulary(model, reference)
    require_window(reference, settings)
    job = text_job(reference, sources, settings)
    protocol = {**job.protocol, "pass": "cross", "scoring_model": protocol_block(model, settings)}
    with RunFolder(folder, {**job.fingerprint(), "protocol": protocol}) as run:
        if run.finished_summary() is None:
            number = _write_parts(run, job, model, reference, listener)
            totals = OpenRun(folder).totals() if number else Totals()
            found = {"totals": totals.block(), "best_documents": totals.best(), "worst_documents": totals.worst()}
            run.finish({**job.fingerprint(), "protocol": protocol, "parts": number, **found}, {})


def _write_parts(run: RunFolder, job: Job, model: SplitRunner, reference: SplitRunner, listener: Listener) -> int:
    number = 0
    with AheadReader(job.reader) as reader:
        while True:
            if number in run.parts:
                reader.seek(number + 1, run.end_of(number))
            elif (part := reader.next_part()) is None:
                return number
            else:
                columns = _score_part(part, model, reference, job.settings)
                documents = documents_parquet(columns, job.settings)
                run.write_part(part, documents, _tokens_parquet(columns), columns.nll.to_bytes())
                listener.tokens_scored(int(columns.scored.sum()))
            listener.part_finished(job.byte_position(run.end_of(number)))
            number += 1


def _score_part(part: Part, model: SplitRunner, reference: SplitRunner, settings: Settings) -> PartColumns:
    batches = plan_batches(part.documents, settings, max_windows=_max_windows(model, reference))
    return fill_part(
        part, batches, settings, lambda batch: _batch_statistics(batch, model, reference, settings), further=CROSS
    )


def _batch_statistics(batch: Batch, model: SplitRunner, reference: SplitRunner, settings: Settings) -> Statistics:
    """Rows of a batch, and what of them is kept: statistics of the reference model, and of both."""
    p_rows, q_rows = (batch_rows(batch, runner) for runner in (reference, model))
    count = max(1, BLOCK_BYTES // (8 * reference.info.vocab_size))
    for first in range(0, len(batch.targets), count):
        block = slice(first, first + count)
        p_logits, q_logits = reference.logits(p_rows[block]), model.logits(q_rows[block])
        stats = xentrs.row_stats(p_logits, batch.targets[block], num_threads=settings.num_threads)
        both = xentrs.divergences(p_logits, q_logits, num_threads=settings.num_threads)
        yield block, {**statistics(stats, settings.columns), **{name: getattr(both, name) for name in CROSS}}


def _max_windows(*runners: SplitRunner) -> int | None:
    return min((runner.max_batch_windows for runner in runners if runner.max_batch_windows is not None), default=None)


def _tokens_parquet(columns: PartColumns) -> bytes:
    unscored = ~columns.scored
    floats = ("nll", *CROSS)
    arrays = [pa.array(columns.tokens[name], mask=unscored if name in floats else None) for name in _COLUMNS]
    sink = io.BytesIO()
    table = pa.Table.from_arrays(arrays, names=list(_COLUMNS), metadata={"xentrs_schema": SCHEMA_VERSION})
    pq.write_table(table, sink, compression="zstd", compression_level=3)
    return sink.getvalue()

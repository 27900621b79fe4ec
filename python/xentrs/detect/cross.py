"""Both models over the same windows: cross-entropy of the model under the reference, and its variance, for each token.

In: two runners with one tokenizer and one vocabulary, sources, settings. Out: a RUN folder whose tokens have the
reference model's `nll`, and `cross_entropy` and `cross_varentropy` with p of the reference and q of the model; where
both models take the same batches it is written beside the model's own RUN, from the same hidden states.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from xentrs.corpus.aggregates import Totals
from xentrs.corpus.ahead import AheadReader
from xentrs.corpus.batches import Batch, plan_batches
from xentrs.corpus.columns import statistics
from xentrs.corpus.journal import RunFolder
from xentrs.corpus.parts import Part
from xentrs.corpus.run import Job, Listener, text_job
from xentrs.corpus.score import PartColumns, batch_rows, fill_part
from xentrs.corpus.settings import Columns, Settings, protocol_block
from xentrs.corpus.sources import Source
from xentrs.corpus.tables import SCHEMA_VERSION, documents_parquet
from xentrs.detect.both_models import joint_row_stats
from xentrs.detect.pipeline import CROSS
from xentrs.errors import ParamError
from xentrs.models import SplitRunner
from xentrs.runs.open_run import OpenRun

_COLUMNS = ("document", "token_id", "nll", *CROSS, "flags")
_Block = tuple[slice, dict[str, Any]]
"""Rows of a batch, and their values by column."""


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


class CrossPass:
    """The pass over both models, with a RUN folder of its own: beside the model's own pass, alone, or some parts so and
    the rest so. It reads what the RUN reads, fields to group by included, so that both have the same parts.
    """

    def __init__(
        self, model: SplitRunner, reference: SplitRunner, sources: Sequence[Source], settings: Settings, folder: Path
    ) -> None:
        """Score nothing yet; `settings` are those of the RUN.

        Raises:
            ParamError: as `require_one_vocabulary` and `require_window`.
        """
        require_one_vocabulary(model, reference)
        require_window(reference, settings)
        self._model, self._reference, self._folder = model, reference, folder
        self._settings = replace(settings, columns=Columns("basic"), keep_text=False)
        own = text_job(model, sources, self._settings)
        # Chats are written by the model's template, as in the RUN: the reference's may be another.
        template = own.protocol["chat_template_sha256"]
        about = {"pass": "cross", "scoring_model": own.protocol, "chat_template_sha256": template}
        self._job = replace(own, protocol={**protocol_block(reference, self._settings), **about})

    @contextmanager
    def beside(self, main: Job) -> Iterator[Job]:
        """The job of the RUN as one that writes the parts of this pass too, those that are not there yet. The job as it
        is where the reference does not take the batches of the model: the bits of the RUN depend on these alone.
        """
        if _limits(self._model) != _limits(self._reference):
            yield main
            return
        with ExitStack() as stack:
            run: RunFolder | None = None

            def score(part: Part, on_batch: Callable[[int], None]) -> PartColumns:
                nonlocal run
                # Not before the RUN is there: a folder with another one in it would be none.
                run = run or stack.enter_context(self._open())
                if part.number in run.parts:
                    return main.score(part, on_batch)
                own, crossed = self._score_both(part, main.settings, on_batch)
                self._write_part(run, part, crossed)
                return own

            yield replace(main, score=score)

    def write(self, listener: Listener) -> None:
        """Score every part that is not there yet, and finish.

        Raises:
            ManifestMismatch, InputChangedError: as `xentrs.corpus.run.score_corpus`.
        """
        with self._open() as run:
            if run.finished_summary() is None:
                number = self._write_parts(run, listener)
                totals = OpenRun(self._folder).totals() if number else Totals()
                documents = {"best_documents": totals.best(), "worst_documents": totals.worst()}
                summary = {**self._job.fingerprint(), "parts": number, "totals": totals.block(), **documents}
                run.finish(summary, {})

    def _open(self) -> RunFolder:
        return RunFolder(self._folder, self._job.fingerprint())

    def _write_parts(self, run: RunFolder, listener: Listener) -> int:
        number = 0
        with AheadReader(self._job.reader) as reader:
            while True:
                if number in run.parts:
                    reader.seek(number + 1, run.end_of(number))
                elif (part := reader.next_part()) is None:
                    return number
                else:
                    columns = self._fill(part, self._batches(part), self._statistics_of)
                    self._write_part(run, part, columns)
                    listener.tokens_scored(int(columns.scored.sum()))
                listener.part_finished(self._job.byte_position(run.end_of(number)))
                number += 1

    def _write_part(self, run: RunFolder, part: Part, columns: PartColumns) -> None:
        documents = documents_parquet(columns, self._settings)
        run.write_part(part, documents, _tokens_parquet(columns), columns.nll.to_bytes())

    def _score_both(
        self, part: Part, settings: Settings, on_batch: Callable[[int], None]
    ) -> tuple[PartColumns, PartColumns]:
        """The part's columns for the RUN, with these settings, and for this pass."""
        batches = list(self._batches(part))
        kept: list[list[_Block]] = []

        def own_of(batch: Batch) -> Iterator[_Block]:
            kept.append([])
            for block, own, crossed in self._statistics(batch, settings.columns):
                kept[-1].append((block, crossed))
                yield block, own

        columns = fill_part(part, batches, settings, own_of, on_batch)
        crossed = iter(kept)
        return columns, self._fill(part, batches, lambda batch: iter(next(crossed)))

    def _fill(
        self, part: Part, batches: Iterable[Batch], statistics_of: Callable[[Batch], Iterator[_Block]]
    ) -> PartColumns:
        return fill_part(part, batches, self._settings, statistics_of, further=CROSS)

    def _batches(self, part: Part) -> Iterator[Batch]:
        runners = self._model, self._reference
        limits = [runner.max_batch_windows for runner in runners if runner.max_batch_windows is not None]
        shares = all(runner.shares_contexts for runner in runners)
        return plan_batches(part.documents, self._settings, max_windows=min(limits, default=None), shares=shares)

    def _statistics_of(self, batch: Batch) -> Iterator[_Block]:
        return ((block, crossed) for block, _, crossed in self._statistics(batch, self._settings.columns))

    def _statistics(self, batch: Batch, columns: Columns) -> Iterator[tuple[slice, dict[str, Any], dict[str, Any]]]:
        """Rows of a batch; what the RUN keeps of the model's statistics, and what this pass does of both models'."""
        runners = self._reference, self._model
        rows = [batch_rows(batch, runner) for runner in runners]
        found = joint_row_stats(runners, rows, batch.targets, self._settings.num_threads, columns)
        for block, reference_stats, own_stats, both in found:
            crossed = {name: getattr(both, name) for name in CROSS}
            crossed |= statistics(reference_stats, self._settings.columns)
            yield block, statistics(own_stats, columns), crossed


def _limits(runner: SplitRunner) -> tuple[int | None, bool]:
    """What decides how documents are cut into batches for it."""
    return runner.max_batch_windows, runner.shares_contexts


def _tokens_parquet(columns: PartColumns) -> bytes:
    unscored = ~columns.scored
    floats = ("nll", *CROSS)
    arrays = [pa.array(columns.tokens[name], mask=unscored if name in floats else None) for name in _COLUMNS]
    sink = io.BytesIO()
    table = pa.Table.from_arrays(arrays, names=list(_COLUMNS), metadata={"xentrs_schema": SCHEMA_VERSION})
    pq.write_table(table, sink, compression="zstd", compression_level=3)
    return sink.getvalue()

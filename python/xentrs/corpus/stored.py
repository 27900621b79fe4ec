"""Stored logits, or hidden states and a head, as a run without a model.

In: files of numbers and of targets. Out: a `Job` for `run.run_job`, whose RUN is like any other. A file of shape
(rows, vocab) is a document called `file`; one of (documents, length, vocab) holds documents called `file#0`, `file#1`
and so on. Row i predicts target i, or with `shift` the target behind it; targets equal to -100 are not scored, and
count as context. There is no text, so nothing has bytes. Of logits and hidden states a block of rows is in memory.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

import xentrs
from xentrs.corpus.columns import document_columns, empty_statistics, statistics, statistics_options, token_places
from xentrs.corpus.documents import Cursor
from xentrs.corpus.encoding import EncodedDocument, TextSize
from xentrs.corpus.parts import MAX_PART_RECORDS, Part
from xentrs.corpus.run import Job
from xentrs.corpus.score import BLOCK_BYTES, PartColumns
from xentrs.corpus.settings import Columns, Prefix, Settings
from xentrs.corpus.tensor_files import Tensor, open_tensor
from xentrs.corpus.windows import Windowing
from xentrs.errors import DTypeError, ParamError, ShapeError, TargetError
from xentrs.models import EncodedText

IGNORE_INDEX = -100
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_TARGET_BLOCK = 1 << 20
# A window that holds any document: nothing is cut here.
_WHOLE = Windowing(1 << 40, 1 << 40)


@dataclass(frozen=True, eq=False)
class Head:
    """What turns hidden states into logits: z = hidden . weight + bias."""

    weight: xentrs.PackedHead
    bias: npt.NDArray[Any] | None
    tensors: tuple[Tensor, ...]

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class Stored:
    """A file of rows, logits or hidden states, and the file of their targets."""

    rows: Tensor
    targets: Tensor

    @property
    def document_count(self) -> int:
        return self.rows.shape[0] if len(self.rows.shape) == 3 else 1

    @property
    def length(self) -> int:
        """Rows of each document."""
        return self.rows.shape[-2]

    def document_id(self, index: int) -> str:
        return f"{self.rows.name}#{index}" if len(self.rows.shape) == 3 else self.rows.name


def stored_job(
    rows: Sequence[str],
    targets: Sequence[str],
    head: str | None = None,
    head_bias: str | None = None,
    *,
    shift: int = 0,
    columns: Columns = Columns(),  # noqa: B008  # plain data, never changed
    num_threads: int | None = None,
    is_mapped: bool = False,
) -> Job:
    """The job of scoring stored rows; with `head` they are hidden states, else logits. Headers and all targets are
    checked here, before anything is scored.

    Raises:
        ParamError: another number of files of targets than of rows.
        ShapeError, DTypeError: files do not fit one another.
        TargetError: a target is outside the vocabulary.
        InputError, FormatError: a file is none that can be read; see `tensor_files.open_tensor`.
    """
    if len(rows) != len(targets) or not rows:
        raise ParamError(f"{len(rows)} files of rows and {len(targets)} of targets, expected one for each")
    pairs = zip(rows, targets, strict=True)
    stored = [Stored(open_tensor(of_rows, is_mapped), open_tensor(of_targets)) for of_rows, of_targets in pairs]
    loaded = _load_head(head, head_bias) if head is not None else None
    width = stored[0].rows.shape[-1:] if loaded is None else loaded.weight.shape[1:]
    for entry in stored:
        _check_rows(entry, stored[0], tuple(width), loaded)
    vocab_size = width[0] if loaded is None else loaded.vocab_size
    for entry in stored:
        _check_targets(entry.targets, vocab_size)
    settings = Settings(Prefix("none", "none", None), _WHOLE, columns=columns, num_threads=num_threads)
    scorer = _Scorer(stored, loaded, settings, shift)
    tensors = [*(entry.rows for entry in stored), *(entry.targets for entry in stored)]
    tensors += loaded.tensors if loaded is not None else ()
    return Job(
        StoredReader(stored, settings.part_tokens, shift),
        scorer.score,
        settings,
        _protocol(stored[0].rows.dtype, loaded, vocab_size, shift),
        [tensor.source.block() for tensor in tensors],
        [entry.rows.source.byte_count for entry in stored],
    )


def _load_head(weight: str, bias: str | None) -> Head:
    tensors = [open_tensor(name) for name in (weight, bias) if name is not None]
    if len(tensors[0].shape) != 2:
        raise ShapeError(f"{tensors[0].name} has shape {tensors[0].shape}, expected (vocab, width) of a head")
    for tensor in tensors:
        _check_floats(tensor)
    if bias is not None and tensors[1].shape != tensors[0].shape[:1]:
        raise ShapeError(
            f"{tensors[1].name} has shape {tensors[1].shape}, expected {tensors[0].shape[:1]}: one for each row of "
            f"{tensors[0].name}"
        )
    return Head(xentrs.PackedHead(tensors[0].whole()), tensors[1].whole() if bias is not None else None, tuple(tensors))


def _check_rows(entry: Stored, first: Stored, width: tuple[int, ...], head: Head | None) -> None:
    """One RUN has one vocabulary and one type of numbers, as a model has."""
    rows, targets = entry.rows, entry.targets
    last = "vocab" if head is None else "width"
    if len(rows.shape) not in (2, 3):
        raise ShapeError(f"{rows.name} has shape {rows.shape}, expected (rows, {last}) or (documents, length, {last})")
    if rows.shape[-1:] != width:
        of_whom = first.rows.name if head is None else head.tensors[0].name
        raise ShapeError(f"{rows.name} has shape {rows.shape}, expected (..., {width[0]}) as {of_whom} has")
    _check_floats(rows)
    if rows.dtype != first.rows.dtype:
        raise DTypeError(f"{rows.name} has dtype {rows.dtype}, expected {first.rows.dtype} as {first.rows.name} has")
    if targets.dtype.kind not in "iu":
        raise DTypeError(f"{targets.name} has dtype {targets.dtype}, expected integers")
    if targets.shape != rows.shape[:-1]:
        raise ShapeError(
            f"{targets.name} has shape {targets.shape}, expected {rows.shape[:-1]} as {rows.name} has {rows.shape}"
        )
    if targets.header.is_fortran:
        raise DTypeError(f"{targets.name} is in Fortran order: save np.ascontiguousarray of it")


def _check_floats(tensor: Tensor) -> None:
    if tensor.dtype.name not in _FLOATS:
        raise DTypeError(f"{tensor.name} has dtype {tensor.dtype}, expected one of {', '.join(_FLOATS)}")


def _check_targets(targets: Tensor, vocab_size: int) -> None:
    size = math.prod(targets.shape)
    with targets.open() as file:
        for first in range(0, size, _TARGET_BLOCK):
            values = targets.flat(file, first, min(_TARGET_BLOCK, size - first))
            is_outside = (values >= vocab_size) | (values < 0)
            if values.dtype.kind == "i":
                is_outside &= values != IGNORE_INDEX
            if is_outside.any():
                found = int(is_outside.argmax())
                place = ", ".join(map(str, np.unravel_index(first + found, targets.shape)))
                raise TargetError(f"targets[{place}] = {values[found]} of {targets.name} is outside [0, {vocab_size})")


class StoredReader:
    """Parts of whole documents, from any position; a `Reader`."""

    def __init__(self, stored: Sequence[Stored], part_tokens: int, shift: int) -> None:
        self._stored, self._part_tokens, self._shift = stored, part_tokens, shift
        self.seek(0, Cursor())

    def seek(self, number: int, cursor: Cursor) -> None:
        """Go on with part `number`, which starts at `cursor`."""
        self._number, self._cursor = number, cursor

    def next_part(self) -> Part | None:
        """The next part, or None behind the last document."""
        part = Part(self._number, self._cursor, self._cursor)
        while part.token_count < self._part_tokens and len(part.documents) < MAX_PART_RECORDS:
            document = self._next_document()
            if document is None:
                break
            part.documents.append(document)
            part.token_count += len(document.encoded.token_ids)
        if not part.documents:
            return None
        part.end = self._cursor
        self._number += 1
        return part

    def _next_document(self) -> EncodedDocument | None:
        source, index, record = self._cursor.source, self._cursor.line, self._cursor.record
        while source < len(self._stored) and index >= self._stored[source].document_count:
            source, index = source + 1, 0
        if source == len(self._stored):
            return None
        entry = self._stored[source]
        offset = entry.rows.source.byte_count * (index + 1) // entry.document_count
        self._cursor = Cursor(source, offset, index + 1, record + 1)
        with entry.targets.open() as file:
            targets = entry.targets.flat(file, index * entry.length, entry.length).astype(np.int64)
        wanted = np.flatnonzero(targets != IGNORE_INDEX)
        wanted = wanted[wanted >= self._shift]
        nowhere, none = np.zeros(len(targets), dtype=np.int64), np.zeros(len(wanted), dtype=np.int64)
        encoded = EncodedText(targets, nowhere, nowhere, 0)
        sizes = (none, none, none)
        return EncodedDocument(
            record, entry.document_id(index), entry.rows.name, encoded, wanted, TextSize(0, 0, 0), sizes
        )


class _Scorer:
    """The statistics of stored rows."""

    def __init__(self, stored: Sequence[Stored], head: Head | None, settings: Settings, shift: int) -> None:
        self._stored, self._head, self._settings, self._shift = stored, head, settings, shift
        self._firsts = list(accumulate((entry.document_count for entry in stored), initial=0))
        self._options = {**statistics_options(settings.columns), "num_threads": settings.num_threads}

    def score(self, part: Part, on_batch: Callable[[int], None]) -> PartColumns:
        """Score every document of `part`; `on_batch` hears how many tokens each block scored."""
        columns = empty_statistics(part.row_count, self._settings.columns)
        first = 0
        for document in part.documents:
            of_document = {name: values[first : first + len(document.wanted)] for name, values in columns.items()}
            if len(document.wanted):
                self._score_document(document, of_document, on_batch)
            first += len(document.wanted)
        scored = np.ones(part.row_count, dtype=np.bool_)
        tokens = {**token_places(part), **columns}
        return PartColumns(document_columns(part, tokens, scored, self._settings), tokens, scored)

    def _score_document(
        self, document: EncodedDocument, columns: dict[str, npt.NDArray[Any]], on_batch: Callable[[int], None]
    ) -> None:
        source = bisect_right(self._firsts, document.number) - 1
        entry = self._stored[source]
        base = (document.number - self._firsts[source]) * entry.length - self._shift
        low, high = int(document.wanted[0]), int(document.wanted[-1]) + 1
        count = max(1, BLOCK_BYTES // (entry.rows.shape[-1] * entry.rows.dtype.itemsize))
        done = 0
        with entry.rows.open() as file:
            for first in range(low, high, count):
                targets = document.encoded.token_ids[first : min(first + count, high)]
                chosen = targets != IGNORE_INDEX
                if not chosen.any():
                    continue
                stats = self._row_stats(entry.rows.rows(file, base + first, len(targets)), targets)
                block = slice(done, done + int(chosen.sum()))
                for name, values in statistics(stats, self._settings.columns).items():
                    columns[name][block] = np.asarray(values)[chosen]
                done = block.stop
                on_batch(block.stop - block.start)

    def _row_stats(self, rows: npt.NDArray[Any], targets: npt.NDArray[np.int64]) -> xentrs.RowStats:
        if self._head is None:
            return xentrs.row_stats(rows, targets, **self._options)
        return xentrs.linear_row_stats(rows, self._head.weight, targets, bias=self._head.bias, **self._options)


def _protocol(dtype: np.dtype[Any], head: Head | None, vocab_size: int, shift: int) -> dict[str, Any]:
    """The keys of `settings.protocol_block`, None where they are a model's; the files' hashes stand in the inputs."""
    of_model = ("model_revision", "model_sha256", "model_note", "tokenizer_sha256", "chat_template_sha256")
    isa = xentrs.isa()
    if head is not None:
        isa = xentrs.linear_row_stats(np.zeros((1, head.weight.shape[1]), dtype=dtype), head.weight).isa
    return {
        "model": "stored logits" if head is None else "stored hidden states",
        **dict.fromkeys(of_model),
        "dtype": dtype.name,
        "device": "cpu",
        "prefix": "none",
        "prefix_requested": "none",
        **dict.fromkeys(("prefix_token_id", "protocol", "prefix_every", "window", "stride", "window_rule")),
        "batch_tokens": None,
        "vocab_size": vocab_size,
        "shift": shift,
        "xentrs_version": xentrs.__version__,
        "numerics_version": xentrs.numerics_version,
        "isa": isa,
    }

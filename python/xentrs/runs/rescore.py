"""Some documents of a RUN scored again, from the inputs, and held against what stands in it.

In: a RUN whose tokens are kept, a model. Out: `Comparison`.

On the same machine, and where a document meets the same batch, the bits are the same. In another batch they need not
be: the model's body adds up in another order for another shape. Then nll may be off by the tolerance, relative, or
absolute below 1 nat.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from xentrs.corpus.documents import Cursor, Document
from xentrs.corpus.parts import PartReader
from xentrs.corpus.score import score_part
from xentrs.corpus.settings import Prefix, Settings
from xentrs.corpus.windows import Windowing
from xentrs.models import SplitRunner
from xentrs.runs.open_run import OpenRun
from xentrs.runs.texts import reading_of, records_of

TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""By the type of the body: 16-bit ones round hidden states to 11 and 8 bits at every step."""


@dataclass(frozen=True)
class DocumentScores:
    """Tokens of a document and their nll, NaN where none was scored."""

    token_ids: npt.NDArray[np.int64]
    nll: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """How far the scores are from those of the RUN; `largest` is relative to the larger of 1 nat and the nll."""

    documents: int
    tokens: int
    equal_tokens: int
    tolerance: float
    largest: float
    largest_at: str | None  # which token
    other_tokens: list[str]  # documents whose text has other tokens now

    @property
    def passed(self) -> bool:
        """Whether all is within the tolerance; NaN is not."""
        return not self.other_tokens and self.largest <= self.tolerance


def choose_documents(run: OpenRun, count: int, seed: int) -> dict[int, str]:
    """Numbers and ids of `count` scored documents, each as likely (reservoir sampling), ascending."""
    generator = random.Random(seed)
    chosen: list[tuple[int, str]] = []
    seen = 0
    for table in run.documents(["document", "id", "status"]):
        for number, identifier, status in zip(*table.to_pydict().values(), strict=True):
            if status != "scored":
                continue
            seen += 1
            if len(chosen) < count:
                chosen.append((number, identifier))
            elif (place := generator.randrange(seen)) < count:
                chosen[place] = (number, identifier)
    return dict(sorted(chosen))


def compare(run: OpenRun, runner: SplitRunner, chosen: dict[int, str]) -> Comparison:
    """Score the chosen documents again with a prepared `runner`.

    Raises:
        InputChangedError: the inputs are not what they were.
        MissingColumn: the RUN holds no tokens.
    """
    run.require_columns(["nll"])
    stored, again = _stored(run, set(chosen)), scores_of(run, runner, set(chosen))
    tokens = equal = 0
    largest, largest_at = 0.0, None
    other_tokens = []
    for number, identifier in chosen.items():
        old, new = stored[number], again.get(number)
        if new is None or not np.array_equal(old.token_ids, new.token_ids):
            other_tokens.append(identifier)
            continue
        is_same = (old.nll == new.nll) | (np.isnan(old.nll) & np.isnan(new.nll))
        with np.errstate(invalid="ignore"):
            apart = np.where(is_same, 0.0, np.abs(old.nll - new.nll) / np.maximum(1.0, np.abs(old.nll)))
        apart[np.isnan(apart)] = np.inf  # a number against none
        tokens, equal = tokens + len(apart), equal + int(is_same.sum())
        if len(apart) and apart.max() > largest:
            place = int(apart.argmax())
            largest = float(apart[place])
            largest_at = f"{identifier}, token {place}: {old.nll[place]:.9g} in the RUN, {new.nll[place]:.9g} now"
    tolerance = TOLERANCES.get(run.protocol["dtype"], TOLERANCES["bfloat16"])
    return Comparison(len(chosen), tokens, equal, tolerance, largest, largest_at, other_tokens)


def scores_of(run: OpenRun, runner: SplitRunner, numbers: set[int]) -> dict[int, DocumentScores]:
    """Scores of the documents of these numbers, by the protocol of the RUN."""
    settings = _settings(run)

    def read(cursor: Cursor) -> Iterator[tuple[Document, Cursor]]:
        return ((document, cursor) for document in records_of(run) if document.number in numbers)

    reader = PartReader(read, runner.encoder, runner.info.vocab_size, settings.part_tokens)
    scores: dict[int, DocumentScores] = {}
    while (part := reader.next_part()) is not None:
        columns = score_part(part, runner, settings)
        nll = np.where(columns.scored, columns.tokens["nll"], np.nan)
        scores.update(_by_document(columns.tokens["document"], columns.tokens["token_id"], nll))
    return scores


def _stored(run: OpenRun, numbers: set[int]) -> dict[int, DocumentScores]:
    scores: dict[int, DocumentScores] = {}
    wanted = np.array(sorted(numbers), dtype=np.int64)
    for table in run.tokens(["document", "token_id", "nll"]):
        columns = [table[name].to_numpy(zero_copy_only=False) for name in ("document", "token_id", "nll")]
        rows = np.isin(columns[0], wanted)
        scores.update(_by_document(*(column[rows] for column in columns)))
    return scores


def _by_document(documents: Any, token_ids: Any, nll: Any) -> Iterator[tuple[int, DocumentScores]]:
    starts = np.flatnonzero(np.diff(documents, prepend=-1)).tolist()
    for start, end in pairwise([*starts, len(documents)]):
        yield int(documents[start]), DocumentScores(token_ids[start:end].astype(np.int64), nll[start:end])


def _settings(run: OpenRun) -> Settings:
    protocol = run.protocol
    return Settings(
        Prefix(protocol["prefix_requested"], protocol["prefix"], protocol["prefix_token_id"]),
        Windowing(protocol["window"], protocol["stride"], protocol["window_rule"], protocol["prefix_every"]),
        protocol["protocol"],
        batch_tokens=protocol["batch_tokens"],
        part_tokens=run.header["output"]["part_tokens"],
        reading=reading_of(run),
    )

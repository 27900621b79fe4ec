"""Dataset inference from two RUNs: their documents' scores are the features.

In: a RUN of suspect documents and one of validation documents, scored alike, names of scores. Out: `RunInference`. What
would make the answer wrong is refused: other models, windows or kinds of records, documents that are in both sets.

Documents are known by their scored tokens, which the RUNs hold: texts need not be read again. Of pairs and chats, where
the same answer can stand behind other questions, the id counts besides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn
from xentrs.detect.dataset_tests import DatasetInference, dataset_inference
from xentrs.detect.frequency import TokenFrequencies
from xentrs.detect.pipeline import Extras, ScoredDocuments, score_run
from xentrs.errors import ManifestMismatch, ParamError
from xentrs.runs.merging import require_one_protocol

if TYPE_CHECKING:
    from xentrs.runs.open_run import OpenRun

_NAMED = 10
_KINDS = {"context_key": "pairs", "messages_key": "chats"}


@dataclass(frozen=True)
class RunInference:
    """What came out, and what it was made of."""

    result: DatasetInference
    suspect: ScoredDocuments
    validation: ScoredDocuments
    unavailable: dict[str, str]
    """Scores of a group that one of the RUNs cannot give, and why."""
    higher: tuple[str, ...]
    """Features whose median is higher in the suspect set: the test learns what tells the sets apart, whichever way."""
    left_out: dict[str, list[str]]
    """By set, ids of the documents that have a feature which is not finite."""

    def block(self) -> dict[str, Any]:
        """Plain data: the first ten of the ids."""
        return {
            **self.result.block(),
            "higher_features": list(self.higher),
            "unavailable": self.unavailable,
            "left_out": {side: ids[:_NAMED] for side, ids in self.left_out.items()},
            "windowed_documents": {
                "suspect": self.suspect.windowed_count,
                "validation": self.validation.windowed_count,
            },
        }


def infer_runs(
    suspect: OpenRun,
    validation: OpenRun,
    names: Sequence[str] = ("membership",),
    *,
    frequencies: TokenFrequencies | None = None,
    companions: tuple[dict[str, OpenRun], dict[str, OpenRun]] = ({}, {}),
    **settings: Any,
) -> RunInference:
    """Score both RUNs, and test whether the sets differ in their scores.

    `names` are those of `score_documents`; of a group every score that both RUNs can give. `companions` are the further
    passes of each RUN (`xentrs.detect.passes.opened_companions`), `settings` those of `dataset_inference`.

    Raises:
        ManifestMismatch: a RUN is unfinished, or the two differ in protocol, kind of records or a further pass.
        MissingColumn: a score that was named needs what a RUN lacks.
        ParamError: documents are in both sets, a set is too small, or no score can be given by both.
    """
    require_comparable(suspect, validation, companions)
    runs = {"suspect": suspect, "validation": validation}
    require_apart(suspect, validation)
    scored = [
        score_run(run, names, Extras(frequencies, held)) for run, held in zip(runs.values(), companions, strict=True)
    ]
    features = [name for name in scored[0].values if name in scored[1].values]
    unavailable = _unavailable(dict(zip(runs, scored, strict=True)))
    if not features:
        lacks = "; ".join(f"{name}: {reason}" for name, reason in unavailable.items())
        raise ParamError(f"{suspect.path} and {validation.path} have no score in common: {lacks}")
    tables = [{name: entry.values[name] for name in features} for entry in scored]
    result = dataset_inference(*tables, **settings)
    left_out = {side: _not_finite(entry, features) for side, entry in zip(runs, scored, strict=True)}
    return RunInference(result, scored[0], scored[1], unavailable, _higher(tables[0], tables[1]), left_out)


def require_comparable(
    suspect: OpenRun, validation: OpenRun, companions: tuple[dict[str, OpenRun], dict[str, OpenRun]] = ({}, {})
) -> None:
    """Check that scores of both mean the same.

    Raises:
        ManifestMismatch: they do not; the message names the field.
    """
    require_one_protocol([suspect, validation])
    kinds = [_kind(run) for run in (suspect, validation)]
    if kinds[0] != kinds[1]:
        raise ManifestMismatch(
            f"{suspect.path} holds {kinds[0]} and {validation.path} {kinds[1]}: expected one kind of records"
        )
    for name in companions[0].keys() & companions[1].keys():
        require_one_protocol([held[name] for held in companions])


def require_apart(suspect: OpenRun, validation: OpenRun) -> None:
    """Check that no document is in both sets.

    Raises:
        MissingColumn: a RUN has no tokens.
        ParamError: some are; the message names the first.
    """
    known = dict(_documents(suspect))
    both = [(known[key], name) for key, name in _documents(validation) if key in known]
    if both:
        raise ParamError(
            f"{len(both):,} documents of {validation.path} stand in {suspect.path} too, the first as {both[0][1]} and "
            f"{both[0][0]}: a document is in one set, take it out of the other"
        )


def _documents(run: OpenRun) -> Iterator[tuple[bytes, str]]:
    """A key and the id of each document with tokens."""
    run.require_columns(["token_id"])
    columns = ["id", "token_count", "context_count"]
    for table, tokens in zip(run.documents(columns), run.tokens(["token_id"]), strict=True):
        ids = tokens["token_id"].to_numpy(zero_copy_only=False).astype(np.int64)
        end = 0
        for name, count, context_count in zip(*(table[column].to_pylist() for column in columns), strict=True):
            start, end = end, end + count
            digest = hashlib.blake2b(ids[start:end].tobytes(), digest_size=16)
            if context_count:
                digest.update(b"\0" + name.encode("utf-8", "surrogatepass"))
            if count:
                yield digest.digest(), name


def _kind(run: OpenRun) -> str:
    reading = run.header["reading"]
    return next((kind for key, kind in _KINDS.items() if reading.get(key) is not None), "texts")


def _unavailable(scored: dict[str, ScoredDocuments]) -> dict[str, str]:
    """By score, what is lacking, and of which set where it is one alone."""
    found: dict[str, str] = {}
    for side, entry in scored.items():
        for name, lacks in entry.unavailable.items():
            found[name] = lacks if name in found else f"the {side} documents lack {lacks}"
    return found


def _higher(suspect: dict[str, FloatColumn], validation: dict[str, FloatColumn]) -> tuple[str, ...]:
    medians = ((name, np.nanmedian(suspect[name]), np.nanmedian(validation[name])) for name in suspect)
    return tuple(name for name, one, other in medians if one > other)


def _not_finite(documents: ScoredDocuments, features: Sequence[str]) -> list[str]:
    table: list[FloatColumn] = [documents.values[name] for name in features]
    places = np.flatnonzero(~np.isfinite(table).all(axis=0)).tolist()
    return [documents.ids[place] for place in places]

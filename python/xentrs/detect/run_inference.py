"""Dataset inference from two RUNs: their documents' scores are the features.

In: a RUN of suspect documents and one of validation documents, scored alike, names of scores. Out: `RunInference`. What
would make the answer wrong is refused: other models, windows or kinds of records, documents that are in both sets or
twice in one.

Texts are known by their tokens, which the RUNs hold: they need not be read again. Of pairs and chats, whose tokens are
those of the answer alone, the whole text is read; where it is not to be had, `RunInference.unchecked` says so.
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
from xentrs.detect.registry import requests_of
from xentrs.errors import InputChangedError, ManifestMismatch, MissingColumn, ParamError
from xentrs.runs.merging import kind_of_records, require_one_protocol

if TYPE_CHECKING:
    from xentrs.runs.open_run import OpenRun

_NAMED = 10
_REFERENCES = ("cross", "reference")
"""Passes that give the need `reference`, the first that is there."""


@dataclass(frozen=True)
class RunInference:
    """What came out, and what it was made of."""

    result: DatasetInference
    suspect: ScoredDocuments
    validation: ScoredDocuments
    unavailable: dict[str, str]
    """Scores of a group, and columns of scores, that one of the RUNs cannot give, and why."""
    higher: tuple[str, ...]
    """Features whose median is higher in the suspect set: the test learns what tells the sets apart, whichever way."""
    left_out: dict[str, list[str]]
    """By set, ids of the documents that have a feature which is not finite."""
    unchecked: str | None = None
    """Why documents in both sets, or twice in one, could not be looked for; None where they were."""

    def block(self) -> dict[str, Any]:
        """Plain data: the first ten of the ids."""
        return {
            **self.result.block(),
            "higher_features": list(self.higher),
            "unavailable": self.unavailable,
            "left_out": {side: ids[:_NAMED] for side, ids in self.left_out.items()},
            "unchecked": self.unchecked,
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
        ParamError: documents are in both sets or twice in one, a set is too small, or both give no column of a score
            that was named, or of any.
    """
    require_comparable(suspect, validation, companions)
    runs = {"suspect": suspect, "validation": validation}
    unchecked = require_apart(suspect, validation)
    scored = [
        score_run(run, names, Extras(frequencies, held)) for run, held in zip(runs.values(), companions, strict=True)
    ]
    features = [name for name in scored[0].values if name in scored[1].values]
    unavailable = _unavailable(dict(zip(runs, scored, strict=True)))
    _require_named(names, features, unavailable)
    if not features:
        lacks = "; ".join(f"{name}: {reason}" for name, reason in unavailable.items())
        raise ParamError(f"{suspect.path} and {validation.path} have no score in common: {lacks}")
    tables = [{name: entry.values[name] for name in features} for entry in scored]
    result = dataset_inference(*tables, **settings)
    left_out = {side: _not_finite(entry, features) for side, entry in zip(runs, scored, strict=True)}
    return RunInference(result, scored[0], scored[1], unavailable, _higher(tables[0], tables[1]), left_out, unchecked)


def require_comparable(
    suspect: OpenRun, validation: OpenRun, companions: tuple[dict[str, OpenRun], dict[str, OpenRun]] = ({}, {})
) -> None:
    """Check that scores of both mean the same.

    Raises:
        ManifestMismatch: they do not; the message names the field.
    """
    require_one_protocol([suspect, validation])
    kinds = [kind_of_records(run) for run in (suspect, validation)]
    if kinds[0] != kinds[1]:
        raise ManifestMismatch(
            f"{suspect.path} holds {kinds[0]} and {validation.path} {kinds[1]}: expected one kind of records"
        )
    for name in sorted(companions[0].keys() & companions[1].keys()):
        require_one_protocol([held[name] for held in companions])
    given = [next((held[name] for name in _REFERENCES if name in held), None) for held in companions]
    if given[0] is not None and given[1] is not None and given[0].path.name != given[1].path.name:
        raise ManifestMismatch(
            f"{given[0].path} and {given[1].path} are the reference passes: expected one kind, of one reference model"
        )


def require_apart(suspect: OpenRun, validation: OpenRun) -> str | None:
    """Check that no document is in both sets, or twice in one. Returns why that could not be done, None where it was.

    Raises:
        MissingColumn: a RUN of texts has no tokens.
        ParamError: some are; the message names the first.
    """
    known: list[dict[bytes, str]] = []
    unchecked: list[str] = []
    for run in (suspect, validation):
        try:
            known.append(_ids_by_key(run))
        except (InputChangedError, MissingColumn) as error:
            if kind_of_records(run) == "texts":
                raise
            unchecked.append(f"{run.path}: {error}")
    if unchecked:
        return "; ".join(unchecked)
    both = [(known[0][key], name) for key, name in known[1].items() if key in known[0]]
    if both:
        raise ParamError(
            f"{len(both):,} documents of {validation.path} stand in {suspect.path} too, the first as {both[0][1]} and "
            f"{both[0][0]}: a document is in one set, take it out of the other"
        )
    return None


def _ids_by_key(run: OpenRun) -> dict[bytes, str]:
    """The id of each document with tokens, by what it says.

    Raises:
        ParamError: some say the same.
    """
    known: dict[bytes, str] = {}
    copies: list[tuple[str, str]] = []
    for content, name in _texts(run) if kind_of_records(run) != "texts" else _tokens(run):
        key = hashlib.blake2b(content, digest_size=16).digest()
        if key in known:
            copies.append((known[key], name))
        known.setdefault(key, name)
    if copies:
        raise ParamError(
            f"{len(copies):,} documents of {run.path} repeat another of the same set, the first {copies[0][1]} repeats "
            f"{copies[0][0]}: copies fall into both halves of a split and p-values do not hold, remove duplicates first"
        )
    return known


def _tokens(run: OpenRun) -> Iterator[tuple[bytes, str]]:
    """The tokens and the id of each document that has some."""
    run.require_columns(["token_id"])
    for table, tokens in zip(run.documents(["id", "token_count"]), run.tokens(["token_id"]), strict=True):
        ids = tokens["token_id"].to_numpy(zero_copy_only=False).astype(np.int64)
        end = 0
        for name, count in zip(table["id"].to_pylist(), table["token_count"].to_pylist(), strict=True):
            start, end = end, end + count
            if count:
                yield ids[start:end].tobytes(), name


def _texts(run: OpenRun) -> Iterator[tuple[bytes, str]]:
    """The text, context included, and the id of each document that has tokens."""
    texts = run.texts()
    for table in run.documents(["id", "token_count"]):
        for name, count in zip(table["id"].to_pylist(), table["token_count"].to_pylist(), strict=True):
            _, text = next(texts)
            if count:
                yield text.encode("utf-8", "surrogatepass"), name


def _unavailable(scored: dict[str, ScoredDocuments]) -> dict[str, str]:
    """By score or column, what is lacking, and of which set where it is one alone."""
    found: dict[str, str] = {}
    for side, entry in scored.items():
        for name, lacks in entry.unavailable.items():
            found[name] = lacks if name in found else f"the {side} documents lack {lacks}"
    scores, columns = list(found), dict.fromkeys(column for entry in scored.values() for column in entry.values)
    for side, entry in scored.items():
        for column in columns:
            if column not in entry.values and not any(_is_of(column, name) for name in scores):
                found[column] = f"the {side} documents lack this column of the score"
    return found


def _is_of(column: str, name: str) -> bool:
    """Whether a column is the score's, or one of its several."""
    return column == name or column.startswith(f"{name}_")


def _require_named(names: Sequence[str], features: Sequence[str], unavailable: dict[str, str]) -> None:
    """Check that each score asked for by name gives a feature.

    Raises:
        ParamError: one does not.
    """
    for request in requests_of(names)[0]:
        if not any(_is_of(column, request.column) for column in features):
            lacks = "; ".join(f"{name}: {why}" for name, why in unavailable.items() if _is_of(name, request.column))
            raise ParamError(f"score {request.column} has no column that both sets give: {lacks}")


def _higher(suspect: dict[str, FloatColumn], validation: dict[str, FloatColumn]) -> tuple[str, ...]:
    medians = ((name, np.nanmedian(suspect[name]), np.nanmedian(validation[name])) for name in suspect)
    return tuple(name for name, one, other in medians if one > other)


def _not_finite(documents: ScoredDocuments, features: Sequence[str]) -> list[str]:
    table: list[FloatColumn] = [documents.values[name] for name in features]
    places = np.flatnonzero(~np.isfinite(table).all(axis=0)).tolist()
    return [documents.ids[place] for place in places]

"""Scores of several RUNs as of one: shards of an input, or inputs scored alike.

In: finished RUNs with their passes. Out: `ScoredDocuments` in document order, of the shards of an input the bits of the
whole. Documents are numbered as `xentrs.runs.merging` does it: those of one input by their records, those of several
inputs one behind the other, in an order that follows from the inputs and not from that of the RUNs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xentrs.detect.frequency import TokenFrequencies
from xentrs.detect.pipeline import Extras, ScoredDocuments, score_run
from xentrs.errors import ManifestMismatch, ParamError
from xentrs.runs.merging import check_mergeable, document_offsets, kind_of_records
from xentrs.runs.open_run import OpenRun


@dataclass(frozen=True)
class ScoredRun:
    """A RUN whose documents got scores."""

    run: OpenRun
    companions: dict[str, OpenRun] = field(default_factory=dict)
    """The passes that were used."""
    document_offset: int = 0
    """What was added to the numbers of its documents."""

    def identity(self) -> dict[str, Any]:
        """Which tokens the scores were made of."""
        return {"sha256": self.run.sha256, "passes": {name: run.sha256 for name, run in self.companions.items()}}

    def block(self) -> dict[str, Any]:
        """Plain data, with where it was and the model of each pass."""
        passes = {name: {"sha256": run.sha256, "model": run.protocol["model"]} for name, run in self.companions.items()}
        return {"run": str(self.run.path), "document_offset": self.document_offset, **self.identity(), "passes": passes}


def score_runs(
    given: Sequence[tuple[OpenRun, dict[str, OpenRun]]],
    names: Sequence[str],
    frequencies: TokenFrequencies | None = None,
    label_key: str | None = None,
) -> tuple[ScoredDocuments, list[ScoredRun]]:
    """Score the documents of finished RUNs, each with its passes by name. Passes count that every RUN has.

    Raises:
        ManifestMismatch: a RUN is unfinished, protocols of RUNs or of their passes differ, or documents would count
            twice.
        MissingColumn, ParamError: as `score_run`.
    """
    runs = [run for run, _ in given]
    check_mergeable(runs)
    for run in runs[1:]:
        if (kind := kind_of_records(run)) != (first := kind_of_records(runs[0])):
            raise ManifestMismatch(
                f"{runs[0].path} holds {first} and {run.path} {kind}: expected one kind of records, or scores tell "
                f"the kinds apart"
            )
    # A shard without a record has no part, and so neither columns nor passes that it could lack.
    filled = [(run, companions) for run, companions in given if run.parts]
    if not filled:
        raise ParamError(f"{', '.join(str(run.path) for run in runs)}: no document")
    common, lacking = _common_passes(filled)
    offsets = dict(zip(map(id, runs), document_offsets(runs), strict=True))
    used, scored = [], []
    for run, companions in filled:
        passes = {name: companions[name] for name in common}
        used.append(ScoredRun(run, passes, offsets[id(run)]))
        scored.append(score_run(run, names, Extras(frequencies, passes), label_key, may_be_empty=True))
    joined = scored[0] if len(filled) == 1 else _joined(used, scored)
    if not joined.numbers:
        raise ParamError(f"{', '.join(str(run.path) for run in runs)}: no document")
    joined.left_out_passes = lacking
    return joined, used


def _common_passes(given: Sequence[tuple[OpenRun, dict[str, OpenRun]]]) -> tuple[list[str], dict[str, str]]:
    """The passes of all, checked to be alike, and those that some lack."""
    found = dict.fromkeys(name for _, companions in given for name in companions)
    lacking = {name: next((str(run.path) for run, there in given if name not in there), None) for name in found}
    common = [name for name, path in lacking.items() if path is None]
    for name in common if len(given) > 1 else ():
        check_mergeable([companions[name] for _, companions in given])
    return common, {name: path for name, path in lacking.items() if path is not None}


def _joined(used: Sequence[ScoredRun], scored: Sequence[ScoredDocuments]) -> ScoredDocuments:
    numbers = np.concatenate(
        [np.array(found.numbers, dtype=np.int64) + one.document_offset for one, found in zip(used, scored, strict=True)]
    )
    order = np.argsort(numbers, kind="stable")
    place_of = np.empty(len(order), dtype=np.int64)
    place_of[order] = np.arange(len(order))
    columns, unavailable = _common_columns(used, scored)
    joined = ScoredDocuments(
        numbers=numbers[order].tolist(),
        ids=_ordered([found.ids for found in scored], order),
        sources=_ordered([found.sources for found in scored], order),
        labels=_ordered([found.labels for found in scored], order),
        texts=_ordered([found.texts for found in scored], order),
        no_texts_reason=next((found.no_texts_reason for found in scored if found.no_texts_reason is not None), None),
        unavailable=unavailable,
        windowed_count=sum(found.windowed_count for found in scored),
    )
    for column in columns:
        # A RUN all of whose records are in quarantine may have no column.
        there = [found.values[column] for found in scored if found.numbers]
        joined.values[column] = np.concatenate(there)[order]
    first = 0
    for found in scored:
        for column in columns:
            held = joined.reasons.setdefault(column, {})
            held.update({int(place_of[first + p]): why for p, why in found.reasons.get(column, {}).items()})
        for name, count in found.cut_shots_counts.items():
            joined.cut_shots_counts[name] = joined.cut_shots_counts.get(name, 0) + count
        first += len(found.numbers)
    joined.reasons = {column: dict(sorted(by_place.items())) for column, by_place in joined.reasons.items()}
    return joined


def _ordered(pieces: Sequence[list[Any] | None], order: Any) -> Any:
    """The entries of all RUNs in the order of their documents; None where a RUN has none."""
    there = [piece for piece in pieces if piece is not None]
    if len(there) < len(pieces):
        return None
    entries = [entry for piece in there for entry in piece]
    return [entries[place] for place in order.tolist()]


def _common_columns(used: Sequence[ScoredRun], scored: Sequence[ScoredDocuments]) -> tuple[list[str], dict[str, str]]:
    """The scores that every RUN with documents has, and why others are left out."""
    filled = [(one, found) for one, found in zip(used, scored, strict=True) if found.numbers]
    unavailable = {name: lacks for _, found in reversed(filled) for name, lacks in found.unavailable.items()}
    columns = list(dict.fromkeys(column for _, found in filled for column in found.values))
    common = []
    for column in columns:
        lacking = next((one.run.path for one, found in filled if column not in found.values), None)
        if lacking is None:
            common.append(column)
        elif not any(column == name or column.startswith(f"{name}_") for name in unavailable):
            unavailable[column] = f"what {lacking} lacks"
    return common, unavailable

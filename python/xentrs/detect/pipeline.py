"""Scores of every document of a RUN, out of its tokens, part by part.

In: an `OpenRun`, names of scores, what else is known (`Extras`). Out: `ScoredDocuments`, one row for each document. Of
the tokens one part at a time is in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn
from xentrs.detect.companions import NAMES, CompanionTokens
from xentrs.detect.frequency import TokenFrequencies
from xentrs.detect.records import label_of
from xentrs.detect.registry import needs_of, requests_of
from xentrs.detect.scoring import score_documents
from xentrs.detect.tokens import DocumentTokens, zlib_byte_counts
from xentrs.errors import InputChangedError, ManifestMismatch, MissingColumn, ParamError
from xentrs.runs.columns import option_of

if TYPE_CHECKING:
    from xentrs.runs.open_run import OpenRun

CROSS = ("cross_entropy", "cross_varentropy")
_OPTIONS = {
    "reference": "--reference MODEL",
    **dict.fromkeys(CROSS, "--reference MODEL with the same tokenizer"),
    "nonmember_shots": "--shots FILE",
    "member_shots": "--member-shots FILE",
    "frequencies": "--frequencies FILE",
    "lowercase": "a pass over the texts in lower case",
    "zlib_byte_count": "the texts",
    "tempered": "--tokens detect --inverse-temperatures B,B,...",
}
_COUNTS = ("token_count", "context_count")
_TEMPERED = re.compile(r"(nll|mean|variance)_beta_.+")


@dataclass(frozen=True)
class Extras:
    """What a RUN's own tokens do not hold."""

    frequencies: TokenFrequencies | None = None
    companions: dict[str, OpenRun] = field(default_factory=dict)
    """Further passes by name, of `companions.NAMES` and `cross`."""


@dataclass
class ScoredDocuments:
    """One entry for each document, in the order of the RUN."""

    numbers: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    labels: list[bool | None] | None = None
    """None where nobody asked for them, or of one document where it has none."""
    texts: list[str] | None = None
    """As they were tokenised; None where nobody needs them, or they are not to be had."""
    no_texts_reason: str | None = None
    values: dict[str, FloatColumn] = field(default_factory=dict)
    """Scores by column, larger for member or machine; NaN with its reason in `reasons`, by place."""
    reasons: dict[str, dict[int, str]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    """Scores of a group that were left out, and what they lack."""
    windowed_count: int = 0
    """Documents longer than a window."""
    cut_shots_counts: dict[str, int] = field(default_factory=dict)
    """By pass, documents that do not fit into one window with the shots."""
    left_out_passes: dict[str, str] = field(default_factory=dict)
    """Passes that not every one of several RUNs has, and the first RUN that lacks it."""


def wanted_needs(names: Sequence[str]) -> tuple[set[str], set[str]]:
    """What scores asked for by name need, and what those of a group would."""
    named, grouped = requests_of(names)
    return set(needs_of([request.column for request in named])), {n for r in grouped for n in r.score.needs}


def require_needs(names: Sequence[str], held: Iterable[str], no_texts_reason: str | None = None) -> None:
    """Check that scores asked for by name have what no column of a RUN gives.

    Raises:
        MissingColumn: one has not; the message names the option.
    """
    there = set(held)
    for request in requests_of(names)[0]:
        for need in request.score.needs:
            if need in _OPTIONS and need not in there:
                hint = no_texts_reason if need == "zlib_byte_count" and no_texts_reason else _OPTIONS[need]
                raise MissingColumn(f"score {request.score.name} needs {need}: {hint}")


def score_run(
    run: OpenRun, names: Sequence[str], extras: Extras, label_key: str | None = None, *, may_be_empty: bool = False
) -> ScoredDocuments:
    """Score the documents of a finished RUN; `joining.score_runs` does it for several.

    Raises:
        MissingColumn: a score that was named, or the label, needs a column that the RUN lacks; the message names the
            option.
        ParamError: a label is another value, the frequencies are of another tokenizer, or the RUN has no document.
        ManifestMismatch: the RUN is unfinished or damaged, or has passes of two reference models.
    """
    run.require_finished()
    _require_one_reference(names, extras.companions)
    columns = _token_columns(run, names, label_key)
    found = ScoredDocuments(labels=None if label_key is None else [])
    texts = _texts(run, found) if label_key is not None or _needs_texts(names) else None
    require_needs(names, _held(extras, columns, has_texts=texts is not None), found.no_texts_reason)
    passes = _Passes(extras)
    pieces: dict[str, list[FloatColumn]] = {}
    for table, tokens in zip(run.documents(_document_columns(label_key)), run.tokens(columns), strict=True):
        documents = table.to_pydict()
        part = passes.tokens(run, documents, {name: tokens[name].to_numpy(zero_copy_only=False) for name in columns})
        part_texts = [next(texts)[1] for _ in documents["document"]] if texts is not None else None
        zlib_counts = None if part_texts is None else zlib_byte_counts(part_texts)
        found.windowed_count += _longer(documents, run)
        _add(found, documents, part_texts, label_key)
        _add_scores(found, pieces, part(zlib_counts), names)
    if not found.numbers and not may_be_empty:
        raise ParamError(f"{run.path}: no document")
    found.values = {name: np.concatenate(held) for name, held in pieces.items()}
    found.cut_shots_counts = _cut_shots(extras.companions)
    return found


def _require_one_reference(names: Sequence[str], companions: dict[str, OpenRun]) -> None:
    """Check that `reference` and `cross`, which both give the reference's nll, are of one model, where it is used."""
    named, grouped = wanted_needs(names)
    if not {"reference", "cross"} <= companions.keys() or not (named | grouped) & {"reference", *CROSS}:
        return
    passes = [companions[name] for name in ("reference", "cross")]
    if _model_of(passes[0]) != _model_of(passes[1]):
        shown = " and ".join(f"{one.path} of {one.protocol['model']}" for one in passes)
        raise ManifestMismatch(f"two reference models, {shown}: expected one, remove one of these folders")


def _model_of(run: OpenRun) -> Any:
    """By its content where that is known."""
    protocol = run.protocol
    return protocol.get("model_sha256") or [protocol["model"], protocol.get("model_revision")]


def _held(extras: Extras, columns: Sequence[str], *, has_texts: bool) -> set[str]:
    """Which needs besides columns of the RUN are there."""
    held = set(extras.companions)
    if "cross" in held:
        held |= {*CROSS, "reference"}
    if extras.frequencies is not None:
        held.add("frequencies")
    if has_texts:
        held.add("zlib_byte_count")
    if any(map(_TEMPERED.fullmatch, columns)):
        held.add("tempered")
    return held


def _token_columns(run: OpenRun, names: Sequence[str], label_key: str | None) -> list[str]:
    """The columns to read: what scores need, as far as it is there."""
    named, grouped = wanted_needs(names)
    run.require_columns(["nll", *sorted(need for need in named if option_of(need) is not None)])
    if label_key is not None:
        run.require_columns([f"by_{label_key}"])
    wanted = {"nll", "flags", *named, *grouped}
    tempered = "tempered" in wanted
    return [name for name in run.token_columns if name in wanted or (tempered and _TEMPERED.fullmatch(name))]


def _document_columns(label_key: str | None) -> list[str]:
    return ["document", "id", "source", *_COUNTS, *([] if label_key is None else [f"by_{label_key}"])]


def _needs_texts(names: Sequence[str]) -> bool:
    named, grouped = wanted_needs(names)
    return "zlib_byte_count" in named | grouped


def _texts(run: OpenRun, found: ScoredDocuments) -> Iterator[tuple[int, str]] | None:
    """The texts, or why they are not to be had."""
    texts = run.texts()
    try:
        first = next(texts, None)
    except (InputChangedError, MissingColumn) as error:
        found.no_texts_reason = str(error)
        return None
    found.texts = None if found.labels is None else []
    return chain([] if first is None else [first], texts)


def _longer(documents: dict[str, list[Any]], run: OpenRun) -> int:
    """Documents with more inputs than a window; the last token is no input, the prefix is one."""
    window = run.protocol["window"]
    if window is None:
        return 0
    inputs = np.array([documents[name] for name in _COUNTS], dtype=np.int64).sum(axis=0) - 1
    return int((inputs + (run.protocol["prefix_token_id"] is not None) > window).sum())


def _cut_shots(companions: dict[str, OpenRun]) -> dict[str, int]:
    """By pass after shots, documents that do not fit into one window with them."""
    shots = {name: run for name, run in companions.items() if name.endswith("_shots")}
    counts = {name: sum(_longer(t.to_pydict(), run) for t in run.documents(_COUNTS)) for name, run in shots.items()}
    return {name: count for name, count in counts.items() if count}


def _add(
    found: ScoredDocuments, documents: dict[str, list[Any]], texts: list[str] | None, label_key: str | None
) -> None:
    found.numbers += documents["document"]
    found.ids += documents["id"]
    found.sources += documents["source"]
    if found.labels is not None:
        values = zip(documents[f"by_{label_key}"], documents["id"], strict=True)
        found.labels += [label_of(value, f"document {identifier}") for value, identifier in values]
    if found.texts is not None and texts is not None:
        found.texts += texts


def _add_scores(
    found: ScoredDocuments, pieces: dict[str, list[FloatColumn]], tokens: DocumentTokens, names: Sequence[str]
) -> None:
    scores = score_documents(tokens, names)
    base = len(found.numbers) - tokens.document_count
    for column, values in scores.values.items():
        pieces.setdefault(column, []).append(values)
        reasons = found.reasons.setdefault(column, {})
        reasons.update({base + place: reason for place, reason in scores.reasons[column].items()})
    found.unavailable = {name: _hints(lacks) for name, lacks in scores.unavailable.items()}


def _hints(lacks: str) -> str:
    """What a score lacks, with the option that gives it."""
    hints = ((need, _OPTIONS.get(need) or option_of(need)) for need in lacks.split(", "))
    return ", ".join(need if hint is None else f"{need} ({hint})" for need, hint in hints)


class _Passes:
    """The further passes beside the parts of the RUN."""

    def __init__(self, extras: Extras) -> None:
        self._extras = extras
        runs = extras.companions
        self._streams = {name: CompanionTokens(runs[name]) for name in NAMES if name in runs}
        self._cross = CompanionTokens(runs["cross"], ("nll", *CROSS)) if "cross" in runs else None

    def tokens(self, run: OpenRun, documents: dict[str, list[Any]], columns: dict[str, Any]) -> Any:
        """What makes the `DocumentTokens` of a part, once its zlib sizes are known."""
        numbers, counts = documents["document"], documents["token_count"]
        others: dict[str, Any] = {name: stream.documents(numbers) for name, stream in self._streams.items()}
        if self._cross is not None:
            rows = [_rows_of(self._cross.take(number), count) for number, count in zip(numbers, counts, strict=True)]
            columns = columns | {name: _joined(rows, name) for name in CROSS}
            nll, flags = _joined(rows, "nll"), columns["flags"]
            others["reference"] = DocumentTokens.from_columns({"nll": nll, "flags": flags}, counts)
        return lambda zlib_counts: DocumentTokens.from_columns(
            columns,
            counts,
            zlib_byte_count=zlib_counts,
            frequencies=self._extras.frequencies,
            tokenizer_sha256=run.protocol.get("tokenizer_sha256"),
            **others,
        )


def _rows_of(rows: dict[str, FloatColumn] | None, count: int) -> dict[str, FloatColumn]:
    """A document's rows of the pass over both models; NaN where it has none."""
    if rows is not None and len(rows["nll"]) == count:
        return rows
    return {name: np.full(count, np.nan) for name in ("nll", *CROSS)}


def _joined(rows: list[dict[str, FloatColumn]], name: str) -> FloatColumn:
    return np.concatenate([np.zeros(0), *(entry[name] for entry in rows)])

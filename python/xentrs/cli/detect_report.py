"""What `xentrs detect` says to people.

In: `ScoredDocuments`, perhaps a `Judgement`. Out: lines: a table of scores for stdout, findings and notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xentrs.detect.baseline import BlindBaseline
    from xentrs.detect.evaluation import ScoreEvaluation
    from xentrs.detect.judgement import Judgement
    from xentrs.detect.pipeline import ScoredDocuments
    from xentrs.detect.unlabeled import Unlabeled

_HEADER = ("score", "AUROC", "95 %", "TPR at 1 % FPR", "TPR at 5 % FPR", "documents", "beats words alone")
_UNLABELED_HEADER = ("score", "documents", "known non-members", "lowest p-value", "decided", "")
_SHOWN_DOCUMENTS = 3


def judgement_lines(judgement: Judgement) -> list[str]:
    """One line for each score, best first as they were asked for, the blind baseline's last, and what follows; then the
    documents without a label.
    """
    from xentrs.report.terminal import aligned

    lines: list[str] = []
    if judgement.evaluation is None:
        lines.append(f"no evaluation: {judgement.evaluation_reason}")
    else:
        rows = [_row(entry, _beats(judgement, name)) for name, entry in judgement.evaluation.scores.items()]
        if judgement.blind is not None:
            rows.append(_blind_row(judgement.blind))
        lines += aligned([_HEADER, *rows])
        lines += [f"{name}: not evaluated: {entry.reason}" for name, entry in judgement.evaluation.unevaluated.items()]
        lines += [*_blind_lines(judgement), *_decision_lines(judgement)]
    return lines if judgement.unlabeled is None else [*lines, *_unlabeled_lines(judgement.unlabeled)]


def table_lines(documents: ScoredDocuments) -> list[str]:
    """Without labels: how many documents have each score, and its range."""
    import numpy as np

    from xentrs.report.terminal import aligned, number

    rows = [("score", "documents", "lowest", "median", "highest", "")]
    for name, values in documents.values.items():
        there = values[~np.isnan(values)]
        with np.errstate(invalid="ignore"):  # a median between infinities
            figures = [there.min(), np.median(there), there.max()] if len(there) else []
        cells = [number(float(value)) for value in figures] or ["-"] * 3
        rows.append((name, f"{len(there):,}", cells[0], cells[1], cells[2], ""))
    return list(aligned(rows))


def note_lines(documents: ScoredDocuments, missing: dict[str, Any], window: int | None) -> list[str]:
    """What one should know besides the figures."""
    lines = []
    if documents.windowed_count:
        lines.append(
            f"{documents.windowed_count:,} documents are longer than the window of {window}: scored in windows"
        )
    for name, count in documents.cut_shots_counts.items():
        lines.append(
            f"warning: {count:,} documents do not fit into one window with {name}: their later tokens lack some"
        )
    for name, run in documents.left_out_passes.items():
        lines.append(f"the pass {name} is left out: {run} has none")
    if documents.no_texts_reason is not None:
        lines.append(f"no texts: {documents.no_texts_reason}")
    for what, columns in grouped({name: _missing_text(entry) for name, entry in missing.items()}):
        lines.append(f"{'each score' if columns == ', '.join(documents.values) else columns}: {what}")
    lines += [f"left out {names}: needs {lacks}" for lacks, names in grouped(documents.unavailable)]
    return lines


def _missing_text(entry: dict[str, Any]) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in entry["reasons"].items())
    return f"{entry['count']:,} documents without it ({reasons}): {first_ids(entry['documents'], entry['count'])}"


def first_ids(ids: Sequence[str], count: int) -> str:
    """The first few of `count` ids."""
    from xentrs.report.terminal import printable

    return ", ".join(map(printable, ids[:_SHOWN_DOCUMENTS])) + (", ..." if count > _SHOWN_DOCUMENTS else "")


def grouped(texts: dict[str, str]) -> list[tuple[str, str]]:
    """Each text once, with the names that it holds for."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    return [(text, ", ".join(of)) for text, of in names.items()]


def _row(entry: ScoreEvaluation, beats: str) -> tuple[str, ...]:
    interval, rates = entry.interval, {point.max_fpr: point.tpr for point in entry.operating_points}
    return (
        entry.name,
        f"{entry.auroc:.4f}",
        f"{interval.low:.4f} - {interval.high:.4f}",
        f"{rates[0.01]:.2%}",
        f"{rates[0.05]:.2%}",
        f"{entry.positives:,} + {entry.negatives:,}",
        beats,
    )


def _beats(judgement: Judgement, name: str) -> str:
    comparison = judgement.comparisons.get(name)
    if comparison is None:
        return "-"
    return "yes" if comparison.beats_blind else "no"


def _blind_row(blind: BlindBaseline) -> tuple[str, ...]:
    """Its interval is wider than DeLong's: see `BlindBaseline.interval`."""
    row = _row(blind.evaluation, "")
    return ("words alone", row[1], f"{blind.interval.low:.4f} - {blind.interval.high:.4f}", *row[3:])


def _blind_lines(judgement: Judgement) -> list[str]:
    if judgement.blind is None:
        return [f"no blind baseline: {judgement.blind_reason}; without it an AUROC proves nothing about the model"]
    beating = [name for name, entry in judgement.comparisons.items() if entry.beats_blind]
    count = len(judgement.comparisons)
    found = f"{len(beating)} of {count} scores beat the words alone"
    if len(beating) < count:
        found += "; the others prove nothing about the model"
    return [judgement.blind.sentence, f"{found}."]


def _decision_lines(judgement: Judgement) -> list[str]:
    """How many of label 1 are told from label 0 one by one."""
    if not judgement.decisions:
        return []
    first = next(iter(judgement.decisions.values()))
    counts = {name: entry.count for name, entry in judgement.decisions.items() if entry.count}
    found = ", ".join(f"{count:,} by {name}" for name, count in counts.items()) or "none by any score"
    notes = {name: entry.note for name, entry in judgement.decisions.items() if entry.note is not None}
    return [
        f"Of {len(first.decided):,} documents of label 1, decided against those of label 0 at a false discovery rate "
        f"of {first.q:g}: {found}.",
        *(f"{text}." if len(counts) == 0 else f"{names}: {text}." for text, names in grouped(notes)),
    ]


def _unlabeled_lines(unlabeled: Unlabeled) -> list[str]:
    """A line for each score: which documents without a label it tells from known non-members, one by one."""
    from xentrs.report.terminal import aligned, number

    rows, notes = [], {}
    block = unlabeled.block()
    for name, entry in block["scores"].items():
        lowest = "-" if entry["lowest_p_value"] is None else number(entry["lowest_p_value"])
        ids = first_ids(entry["decided_ids"], entry["decided"])
        there = len(unlabeled.places) - entry["nan_count"]
        rows.append((name, f"{there:,}", f"{entry['reference_count']:,}", lowest, f"{entry['decided']:,}", ids))
        if entry["note"] is not None:
            notes[name] = entry["note"]
    q = next((entry.q for entry in unlabeled.decisions.values()), None)
    lines = (
        [] if q is None else [f"Documents without a label, decided at a false discovery rate of {q:g} by each score:"]
    )
    lines += aligned([_UNLABELED_HEADER, *rows])
    lines += [f"{names}: {text}." for text, names in grouped(notes)]
    lines += [f"{names}: not decided: {text}" for text, names in grouped(unlabeled.undecided)]
    if unlabeled.sentence is not None:
        return [*lines, unlabeled.sentence]
    return [*lines, f"no blind baseline of them: {unlabeled.blind_reason}"]

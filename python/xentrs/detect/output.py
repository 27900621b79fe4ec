"""What detection leaves in a folder: scores.parquet, where there are labels evaluation.json, and where some documents
have none decisions.parquet.

In: `ScoredDocuments`, the RUNs they are of, perhaps a `Judgement`. Out: files, whole or not at all; the page as plain
data. scores.parquet says in its metadata which tokens it was made of, evaluation.json which tables stand beside it:
`xentrs.detect.verification` reads both.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from xentrs.corpus.json_text import dump_page, without_nonfinite
from xentrs.corpus.tables import SCHEMA_VERSION
from xentrs.detect.joining import ScoredRun
from xentrs.detect.judgement import Judgement
from xentrs.detect.pipeline import ScoredDocuments
from xentrs.detect.unlabeled import Unlabeled
from xentrs.durable import sha256_hex, write_atomic

SCORES_FILE = "scores.parquet"
EVALUATION_FILE = "evaluation.json"
DECISIONS_FILE = "decisions.parquet"
RUNS_KEY = "xentrs_runs"
"""In the metadata of scores.parquet: identities of the RUNs and their passes."""
TABLES_KEY = "tables"
"""In evaluation.json: SHA-256 of the tables beside it."""
_NAMED = 10


def scores_table(documents: ScoredDocuments, runs: Sequence[ScoredRun] = ()) -> pa.Table:
    """One row for each document. A score that a document has not is null, and `reasons` says why."""
    reasons: list[list[tuple[str, str]]] = [[] for _ in documents.numbers]
    for column, by_place in documents.reasons.items():
        for place, reason in by_place.items():
            reasons[place].append((column, reason))
    labels: Sequence[bool | None] = documents.labels or [None] * len(documents.numbers)
    columns = {
        "document": pa.array(documents.numbers, pa.int64()),
        "id": pa.array(documents.ids, pa.string()),
        "source": pa.array(documents.sources, pa.string()),
        "label": pa.array(labels, pa.bool_()),
        **{name: pa.array(values, pa.float64(), mask=np.isnan(values)) for name, values in documents.values.items()},
        "reasons": pa.array(reasons, pa.map_(pa.string(), pa.string())),
    }
    made_of = json.dumps([one.identity() for one in runs], sort_keys=True)
    return pa.table(columns).replace_schema_metadata({"xentrs_schema": SCHEMA_VERSION, RUNS_KEY: made_of})


def decisions_table(documents: ScoredDocuments, unlabeled: Unlabeled) -> pa.Table:
    """One row for each document without a label and each score that known non-members have."""
    names = list(unlabeled.decisions)
    repeated = [place for _ in names for place in unlabeled.places]
    decisions = list(unlabeled.decisions.values())
    empty = np.zeros(0)
    p_values = np.concatenate([empty, *(entry.conformal.p_values for entry in decisions)])
    adjusted = np.concatenate([empty, *(entry.adjusted for entry in decisions)])
    decided = [flag for entry in decisions for flag in entry.decided.tolist()]
    columns = {
        "document": pa.array([documents.numbers[place] for place in repeated], pa.int64()),
        "id": pa.array([documents.ids[place] for place in repeated], pa.string()),
        "source": pa.array([documents.sources[place] for place in repeated], pa.string()),
        "score": pa.array([name for name in names for _ in unlabeled.places], pa.string()),
        "p_value": pa.array(p_values, pa.float64(), mask=np.isnan(p_values)),
        "adjusted_p_value": pa.array(adjusted, pa.float64(), mask=np.isnan(adjusted)),
        "decided": pa.array(decided, pa.bool_()),
    }
    return pa.table(columns).replace_schema_metadata({"xentrs_schema": SCHEMA_VERSION})


def page_of(
    runs: Sequence[ScoredRun], documents: ScoredDocuments, judgement: Judgement | None, label_key: str | None
) -> dict[str, Any]:
    """Everything but the scores themselves, as plain data."""
    page = {
        "runs": [one.block() for one in runs],
        "protocol": runs[0].run.protocol,
        "documents": len(documents.numbers),
        "windowed_documents": documents.windowed_count,
        "documents_with_cut_shots": documents.cut_shots_counts,
        "left_out_passes": documents.left_out_passes,
        "scores": list(documents.values),
        "unavailable": documents.unavailable,
        "missing_scores": missing_scores(documents),
        "label_key": label_key,
    }
    if judgement is not None:
        assert documents.labels is not None, "a judgement is made of labels"
        page |= judgement.block(documents.numbers, documents.labels)
    plain: dict[str, Any] = without_nonfinite(page)
    return plain


def missing_scores(documents: ScoredDocuments) -> dict[str, Any]:
    """By score, how many documents have none, why, and which: the first ten."""
    found = {}
    for column, by_place in documents.reasons.items():
        if by_place:
            ids = [documents.ids[place] for place in sorted(by_place)[:_NAMED]]
            found[column] = {"count": len(by_place), "reasons": dict(Counter(by_place.values())), "documents": ids}
    return found


def write_results(
    folder: Path,
    runs: Sequence[ScoredRun],
    documents: ScoredDocuments,
    judgement: Judgement | None,
    page: dict[str, Any],
) -> dict[str, Any]:
    """Write what there is to write; returns the page with the tables' hashes. An evaluation and decisions of earlier
    scores beside them are removed, which they would not belong to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {SCORES_FILE: _parquet(scores_table(documents, runs))}
    if judgement is not None and judgement.unlabeled is not None:
        tables[DECISIONS_FILE] = _parquet(decisions_table(documents, judgement.unlabeled))
    if (folder / SCORES_FILE).is_file():
        for name in (EVALUATION_FILE, DECISIONS_FILE):
            (folder / name).unlink(missing_ok=True)
    for name, data in tables.items():
        write_atomic(folder, name, data)
    page = {**page, TABLES_KEY: {name: sha256_hex(data) for name, data in tables.items()}}
    if judgement is not None:
        write_atomic(folder, EVALUATION_FILE, dump_page(page))
    return page


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3, version="2.6")
    return sink.getvalue()

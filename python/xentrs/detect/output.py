"""What detection leaves in a RUN folder: scores.parquet, and evaluation.json where there are labels.

In: `ScoredDocuments`, perhaps a `Judgement`. Out: files, whole or not at all; the page as plain data.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from xentrs.corpus.json_text import dump_page, without_nonfinite
from xentrs.corpus.tables import SCHEMA_VERSION
from xentrs.detect.judgement import Judgement
from xentrs.detect.pipeline import ScoredDocuments
from xentrs.durable import write_atomic

SCORES_FILE = "scores.parquet"
EVALUATION_FILE = "evaluation.json"
_NAMED = 10


def scores_table(documents: ScoredDocuments) -> pa.Table:
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
    return pa.table(columns).replace_schema_metadata({"xentrs_schema": SCHEMA_VERSION})


def page_of(run: Any, documents: ScoredDocuments, judgement: Judgement | None, label_key: str | None) -> dict[str, Any]:
    """Everything but the scores themselves, as plain data."""
    page = {
        "run": str(run.path),
        "protocol": run.protocol,
        "documents": len(documents.numbers),
        "windowed_documents": documents.windowed_count,
        "documents_with_cut_shots": documents.cut_shots_counts,
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


def write_results(folder: Path, documents: ScoredDocuments, page: dict[str, Any] | None) -> None:
    """Write both files; without a page an evaluation of earlier scores is removed, which it would not belong to."""
    sink = io.BytesIO()
    pq.write_table(scores_table(documents), sink, compression="zstd", compression_level=3, version="2.6")
    (folder / EVALUATION_FILE).unlink(missing_ok=True)
    write_atomic(folder, SCORES_FILE, sink.getvalue())
    if page is not None:
        write_atomic(folder, EVALUATION_FILE, dump_page(page))

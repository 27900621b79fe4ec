"""RUN folders for the tests of what reads them: scored with a tiny model, or written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xentrs
from conftest import TRAINING_LINES
from xentrs.corpus import open_sources, resolve_settings, score_corpus
from xentrs.corpus.aggregates import Totals
from xentrs.corpus.reading import Reading
from xentrs.corpus.run import Silent
from xentrs.corpus.settings import Settings

RECORDS: list[dict[str, Any]] = [
    *(
        {"text": f"{line} {number}", "id": f"d{number}", "lang": ("de", "en", None)[number % 3]}
        for number, line in enumerate(TRAINING_LINES * 4)
    ),
    {"text": "", "id": "empty"},
    {"text": "a", "id": "single"},
    {"wrong": 1},
    {"text": TRAINING_LINES[1] * 4, "id": "long"},
]
PROTOCOL: dict[str, Any] = {
    "model": "tiny", "model_revision": None, "dtype": "float32", "device": "cpu", "protocol": None, "prefix": "none",
    "prefix_token_id": None, "prefix_every": "document", "window": 64, "stride": 64, "isa": "scalar",
}  # fmt: skip


def write_corpus(path: Path, records: Sequence[dict[str, Any]] = RECORDS) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def score_into(folder: Path, runner: Any, corpus: Path, reading: Reading | None = None, **changes: Any) -> Path:
    """Score `corpus` in several parts, each document a batch of its own: its bits do not depend on its neighbours."""
    settings: Settings = resolve_settings(runner, window=32, batch_tokens=1, part_tokens=150)
    settings = replace(settings, reading=reading or Reading(by=("lang",)), **changes)
    sources, _ = open_sources([str(corpus)])
    score_corpus(runner, sources, settings, folder, Silent())
    return folder


def write_run(
    folder: Path,
    parts: Sequence[tuple[Mapping[str, list[Any]], xentrs.Perplexity]],
    *,
    quarantined: int = 0,
    protocol: Mapping[str, Any] = PROTOCOL,
) -> Path:
    """A finished RUN without tokens, from documents tables."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from xentrs.corpus.journal import FORMAT_VERSION, part_names
    from xentrs.corpus.json_text import dump_line, dump_page

    folder.mkdir()
    reading = {"by": [], "skip": 0, "limit": None, "shard": 0, "shard_count": 1}
    header = {"format": FORMAT_VERSION, "protocol": protocol, "inputs": [{"name": folder.name}], "reading": reading}
    lines: list[dict[str, Any]] = [header]
    totals = Totals()
    for number, (table, nll) in enumerate(parts):
        name = part_names(number)[0]
        pq.write_table(pa.table(dict(table)), folder / name)
        end = {"source": 0, "byte_offset": 0, "line": 0, "record": len(table["document"])}
        rejected = [{"source": folder.name}] * (quarantined if number == 0 else 0)
        lines.append({"part": number, "files": {name: {}}, "start": end, "end": end, "skipped_lines": 0})
        lines[-1] |= {"quarantine": rejected, "nll_state": nll.to_bytes().hex()}
        totals.add(table, nll, len(rejected), 0)
    (folder / "manifest.jsonl").write_bytes(b"".join(map(dump_line, lines)))
    extremes = {"best_documents": totals.best(), "worst_documents": totals.worst()}
    summary = {"protocol": protocol, "parts": len(parts), "totals": totals.block(), **extremes}
    (folder / "summary.json").write_bytes(dump_page(summary))
    return folder

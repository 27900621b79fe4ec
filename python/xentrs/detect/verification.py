"""Is what detection left in a RUN whole, and does it belong there?

In: a RUN folder. Out: findings as of `xentrs.runs.verification`, for the passes below it and for scores.parquet,
evaluation.json and decisions.parquet. Scores are not made again: that they are of these tokens is known from the hashes
they were written with. Nothing is repaired.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from xentrs.corpus.journal import MANIFEST, difference
from xentrs.corpus.tables import SCHEMA_VERSION
from xentrs.detect.companions import FOLDER, NAMES
from xentrs.detect.output import DECISIONS_FILE, EVALUATION_FILE, RUNS_KEY, SCORES_FILE, TABLES_KEY
from xentrs.durable import sha256_hex
from xentrs.errors import ManifestMismatch
from xentrs.runs.open_run import OpenRun
from xentrs.runs.verification import Finding, verify_run

_OWN_KEYS = ("pass", "shots_sha256", "shots_token_count", "scoring_model")
"""What a pass adds to the protocol of its model."""


def verify_detection(path: Path) -> tuple[list[Finding], dict[str, int]]:
    """All findings, and the parts of each pass that were looked at.

    Raises:
        ManifestMismatch: a pass is being written.
    """
    run = OpenRun(path)
    findings: list[Finding] = []
    parts = {}
    for folder in sorted(entry for entry in path.glob(f"{FOLDER}/*") if entry.is_dir()):
        found, count = _pass(run, folder)
        findings += [replace(entry, file=f"{FOLDER}/{folder.name}/{entry.file}") for entry in found]
        if count is not None:
            parts[folder.name] = count
    return [*findings, *_scores(run), *_evaluation(path)], parts


def _pass(run: OpenRun, folder: Path) -> tuple[list[Finding], int | None]:
    if folder.name not in (*NAMES, "cross"):
        return [Finding("", "is no pass of xentrs detect")], None
    if not (folder / MANIFEST).is_file():
        return [Finding(MANIFEST, "missing: the pass was not begun")], None
    findings, count = verify_run(folder)
    return [*findings, *_belongs(run, OpenRun(folder))], count


def _belongs(run: OpenRun, companion: OpenRun) -> Iterator[Finding]:
    """Is it a pass over the documents of this RUN, and with its model where that has to be so?"""
    name = companion.path.name
    pairs: list[tuple[str, Any, Any]] = [("inputs", run.inputs, companion.inputs)]
    pairs.append(("reading", _without_labels(run), _without_labels(companion)))
    if name == "cross":
        pairs.append(("scoring model", _plain(run.protocol), _plain(companion.protocol.get("scoring_model", {}))))
    elif name != "reference":
        pairs.append(("protocol", _plain(run.protocol), _plain(companion.protocol)))
    for what, of_run, of_pass in pairs:
        if (text := difference(of_run, of_pass, "in the RUN", "in the pass")) is not None:
            yield Finding(MANIFEST, f"is a pass over something else: {what} differs: {text}")


def _without_labels(run: OpenRun) -> dict[str, Any]:
    """How the inputs were read, less the fields that only the RUN itself keeps."""
    return {**run.header["reading"], "by": []}


def _plain(protocol: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in protocol.items() if name not in _OWN_KEYS}


def _scores(run: OpenRun) -> Iterator[Finding]:
    path = run.path / SCORES_FILE
    if not path.is_file():
        return
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        made_of = json.loads(metadata.get(RUNS_KEY.encode(), b"null"))
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        yield Finding(SCORES_FILE, f"cannot be read: {error}")
        return
    if metadata.get(b"xentrs_schema", b"").decode("utf-8", "replace") != SCHEMA_VERSION or made_of is None:
        yield Finding(SCORES_FILE, "does not say which tokens it was made of: detect again")
        return
    if [entry["sha256"] for entry in made_of] != [run.sha256]:
        yield Finding(SCORES_FILE, "was made of other tokens than those beside it: detect again")
        return
    for name, expected in made_of[0]["passes"].items():
        try:
            found: str | None = OpenRun(run.path / FOLDER / name).sha256
        except ManifestMismatch:
            found = None
        if found != expected:
            yield Finding(SCORES_FILE, f"was made of another pass {name} than the one beside it: detect again")
    rows = sum(line["documents"] for line in run.parts)
    if table.num_rows != rows:
        yield Finding(SCORES_FILE, f"{table.num_rows} rows, {rows} documents in the manifest")


def _evaluation(path: Path) -> Iterator[Finding]:
    """Does it tell of the tables beside it?"""
    if not (path / EVALUATION_FILE).is_file():
        if (path / DECISIONS_FILE).is_file():
            yield Finding(DECISIONS_FILE, f"stands there without {EVALUATION_FILE}: detect again")
        return
    try:
        hashes = json.loads((path / EVALUATION_FILE).read_bytes()).get(TABLES_KEY)
    except (ValueError, AttributeError):
        yield Finding(EVALUATION_FILE, "damaged")
        return
    if not isinstance(hashes, dict):
        yield Finding(EVALUATION_FILE, "does not say which scores it is of: detect again")
        return
    for name in (SCORES_FILE, DECISIONS_FILE):
        found = sha256_hex((path / name).read_bytes()) if (path / name).is_file() else None
        if hashes.get(name) != found:
            yield Finding(EVALUATION_FILE, f"is not of the {name} beside it: detect again")

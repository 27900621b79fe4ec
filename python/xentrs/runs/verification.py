"""Is a RUN what its manifest and summary say?

In: a RUN folder. Out: findings, each with its file; none: everything that was written is still there, unchanged, and
figures follow from the tokens. Nothing is repaired.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

import xentrs
from xentrs.corpus.journal import LOCK, MANIFEST, QUARANTINE, SUMMARY, difference, part_names, read_manifest
from xentrs.corpus.json_text import dump_line, dump_page
from xentrs.corpus.tables import SCHEMA_VERSION
from xentrs.durable import TEMPORARY_MARK
from xentrs.errors import ManifestMismatch
from xentrs.runs.open_run import OpenRun

try:
    import fcntl
except ImportError:  # not on Windows: there a process that writes is not noticed
    fcntl = None  # type: ignore[assignment]

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Finding:
    """What is wrong, and in which file of the RUN."""

    file: str
    message: str


def verify_run(path: Path) -> tuple[list[Finding], int]:
    """All findings, and how many parts were looked at.

    Raises:
        ManifestMismatch: no RUN folder, a manifest that cannot be read, or a RUN that is being written.
    """
    run = OpenRun(path)
    _refuse_if_written(run)
    findings = [*_temporaries(run), *_manifest(run)]
    whole = True
    schemas: dict[int, pa.Schema] = {}
    for line in run.parts:
        found = list(_files(run, line)) or list(_part(run, line, schemas))
        findings += found
        whole = whole and not found
    findings += _strangers(run)
    return [*findings, *_summary(run, whole)], len(run.parts)


def _refuse_if_written(run: OpenRun) -> None:
    """Files come and go while a process writes."""
    if fcntl is None or not (run.path / LOCK).is_file():
        return
    with (run.path / LOCK).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ManifestMismatch(f"{run.path}: another process is writing this RUN") from None


def _temporaries(run: OpenRun) -> Iterator[Finding]:
    for path in sorted(run.path.glob(f"*{TEMPORARY_MARK}*")):
        yield Finding(path.name, "temporary file of a killed process")


def _manifest(run: OpenRun) -> Iterator[Finding]:
    lines, is_whole = read_manifest(run.path / MANIFEST)
    if not is_whole:
        yield Finding(MANIFEST, "the last line is torn")
    if len(lines) - 1 > len(run.parts):
        yield Finding(MANIFEST, "a part has several lines")
    numbers = [line["part"] for line in run.parts]
    for number in sorted(set(range(max(numbers, default=-1))) - set(numbers)):
        yield Finding(MANIFEST, f"part {number} is missing")
    for before, line in zip(run.parts, run.parts[1:], strict=False):
        if line["part"] == before["part"] + 1 and line["start"] != before["end"]:
            yield Finding(MANIFEST, f"part {line['part']} does not start where part {before['part']} ended")


def _files(run: OpenRun, line: dict[str, Any]) -> Iterator[Finding]:
    documents, _ = part_names(line["part"])
    if documents not in line["files"]:
        yield Finding(MANIFEST, f"part {line['part']} has no documents table")
    for name, expected in line["files"].items():
        path = run.path / name
        if not path.is_file():
            yield Finding(name, "missing")
        elif (size := path.stat().st_size) != expected["bytes"]:
            yield Finding(name, f"{size} bytes, {expected['bytes']} in the manifest")
        elif (digest := _sha256(path)) != expected["sha256"]:
            yield Finding(name, f"SHA-256 {digest}, {expected['sha256']} in the manifest")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _strangers(run: OpenRun) -> Iterator[Finding]:
    """Tables that no line of the manifest names."""
    listed = {name for line in run.parts for name in line["files"]}
    for path in sorted(run.path.glob("*-*.parquet")):
        if path.name not in listed:
            yield Finding(path.name, "is not in the manifest")


def _part(run: OpenRun, line: dict[str, Any], schemas: dict[int, pa.Schema]) -> Iterator[Finding]:
    """Schemas, counts and sums of a part whose files are those that were written."""
    tables = {}
    for kind, name in enumerate(part_names(line["part"])):
        if name not in line["files"]:
            continue
        try:
            tables[kind] = pq.read_table(run.path / name)
        except (pa.ArrowInvalid, OSError) as error:
            yield Finding(name, f"cannot be read: {error}")
            return
        schema = tables[kind].schema
        version = (schema.metadata or {}).get(b"xentrs_schema", b"none").decode("utf-8", "replace")
        if version != SCHEMA_VERSION:
            yield Finding(name, f"schema version {version}, expected {SCHEMA_VERSION}")
            return
        if schema != schemas.setdefault(kind, schema):
            yield Finding(name, "has other columns than the part before")
    yield from _documents(line, tables[0])
    if 1 in tables:
        yield from _tokens(line, tables[0], tables[1])


def _documents(line: dict[str, Any], documents: pa.Table) -> Iterator[Finding]:
    name, _ = part_names(line["part"])
    if documents.num_rows != line["documents"]:
        yield Finding(name, f"{documents.num_rows} documents, {line['documents']} in the manifest")
    count = sum(documents["token_count"].to_pylist())
    if count != line["tokens"]:
        yield Finding(name, f"token_count adds up to {count}, {line['tokens']} in the manifest")


def _tokens(line: dict[str, Any], documents: pa.Table, tokens: pa.Table) -> Iterator[Finding]:
    documents_name, tokens_name = part_names(line["part"])
    numbers, counts = documents["document"].to_numpy(), documents["token_count"].to_numpy()
    if tokens.num_rows != counts.sum():
        yield Finding(tokens_name, f"{tokens.num_rows} rows, token_count adds up to {counts.sum()}")
        return
    if (tokens["document"].to_numpy() != np.repeat(numbers, counts)).any():
        yield Finding(tokens_name, "rows are not in the order of the documents")
        return
    nll, is_scored = tokens["nll"].to_numpy(zero_copy_only=False), tokens["nll"].is_valid().to_numpy()
    ends = np.cumsum(counts)
    rows = zip(
        documents["id"].to_pylist(),
        documents["scored_count"].to_pylist(),
        documents["nll_sum"].to_pylist(),
        strict=True,
    )
    for start, end, (identifier, scored_count, nll_sum) in zip(ends - counts, ends, rows, strict=True):
        result = _exact(nll[start:end][is_scored[start:end]]).compute()
        if result.token_count != scored_count:
            yield Finding(
                documents_name, f"{identifier}: scored_count {scored_count}, the tokens say {result.token_count}"
            )
        elif not np.array_equal(result.nll_sum, nll_sum, equal_nan=True):
            yield Finding(documents_name, f"{identifier}: nll_sum {nll_sum!r}, the tokens add up to {result.nll_sum!r}")
    if _exact(nll[is_scored]).to_bytes().hex() != line["nll_state"]:
        yield Finding(MANIFEST, f"part {line['part']}: nll_state is not that of {tokens_name}")


def _exact(nll: Any) -> xentrs.Perplexity:
    total = xentrs.Perplexity()
    total.update_nll(np.asarray(nll, dtype=np.float64))
    return total


def _summary(run: OpenRun, is_whole: bool) -> Iterator[Finding]:
    """What stands at the end; totals only where nothing is wrong with any part."""
    try:
        summary = run.summary
    except ManifestMismatch as error:
        yield Finding(SUMMARY, str(error))
        return
    if summary is None:
        yield Finding(SUMMARY, "missing: the RUN is unfinished")
        return
    for name in ("protocol", "inputs"):
        if (text := difference(run.header[name], summary.get(name), f"in {MANIFEST}", f"in {SUMMARY}")) is not None:
            yield Finding(SUMMARY, f"{name} differs: {text}")
    yield from _quarantine(run)
    if not is_whole:
        return
    totals = run.totals()
    found = {"totals": totals.block(), "best_documents": totals.best(), "worst_documents": totals.worst()}
    found = json.loads(dump_page(found))
    written = {name: summary.get(name) for name in found}
    if (text := difference(written, found, f"in {SUMMARY}", "in the parts")) is not None:
        yield Finding(SUMMARY, f"does not follow from the parts: {text}")


def _quarantine(run: OpenRun) -> Iterator[Finding]:
    expected = b"".join(dump_line(entry) for line in run.parts for entry in line["quarantine"])
    path = run.path / QUARANTINE
    if (path.read_bytes() if path.is_file() else b"") != expected:
        yield Finding(QUARANTINE, "does not hold the rejected records of the manifest")

"""Several RUNs as one: shards, or corpora scored alike.

In: finished RUNs. Out: their common totals; RUNs that differ in protocol or hold the same documents are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from xentrs.corpus.aggregates import Totals
from xentrs.corpus.journal import difference
from xentrs.errors import ManifestMismatch
from xentrs.runs.open_run import OpenRun

_KINDS = {"context_key": "pairs", "messages_key": "chats"}
_SHARES = ("skip", "limit", "shard", "shard_count", "by")
"""What of a reading may differ between shards: which records, and what they are grouped by besides."""


def merged_totals(runs: Sequence[OpenRun]) -> Totals:
    """Totals over all documents of `runs`: of the shards of a corpus, the bits of the whole.

    Raises:
        ManifestMismatch: a RUN is unfinished, protocols differ, or documents would count twice.
    """
    check_mergeable(runs)
    totals = Totals()
    for run, offset in zip(runs, document_offsets(runs), strict=True):
        totals.merge(run.totals(offset))
    return totals


def check_mergeable(runs: Sequence[OpenRun]) -> None:
    """See `merged_totals`."""
    require_one_protocol(runs)
    for one, other in combinations([run for run in runs if run.inputs], 2):
        if _corpus_key(one) == _corpus_key(other):
            _require_one_reading(one, other)
            if _overlap(one.header["reading"], other.header["reading"]):
                raise ManifestMismatch(f"{one.path} and {other.path} hold the same documents: they would count twice")
            continue
        mine, theirs = _names_by_hash(one), _names_by_hash(other)
        if (shared := next((name for sha256, name in mine.items() if sha256 in theirs), None)) is not None:
            raise ManifestMismatch(
                f"{one.path} and {other.path} both hold {shared}, beside other inputs: its documents would count twice"
            )


def require_one_protocol(runs: Sequence[OpenRun]) -> None:
    """Check that RUNs are finished and their figures comparable.

    Raises:
        ManifestMismatch: they are not; the message names the fields.
    """
    for run in runs:
        run.require_finished()
    for other in runs[1:]:
        if (text := difference(runs[0].protocol, other.protocol, f"in {runs[0].path}", f"in {other.path}")) is not None:
            raise ManifestMismatch(f"{runs[0].path} and {other.path} have different protocols: {text}")


def kind_of_records(run: OpenRun) -> str:
    """Texts, pairs or chats."""
    reading = run.header["reading"]
    return next((kind for key, kind in _KINDS.items() if reading.get(key) is not None), "texts")


def _require_one_reading(one: OpenRun, other: OpenRun) -> None:
    """Check that shards of an input read the same fields of it."""
    of_one, of_other = (
        {key: value for key, value in run.header["reading"].items() if key not in _SHARES} for run in (one, other)
    )
    if (text := difference(of_one, of_other, f"in {one.path}", f"in {other.path}")) is not None:
        raise ManifestMismatch(f"{one.path} and {other.path} read the same inputs differently: {text}")


def _names_by_hash(run: OpenRun) -> dict[str, str]:
    """The inputs by what they hold, in order; empty ones hold no document."""
    return {entry["sha256"]: entry["name"] for entry in run.inputs if entry.get("bytes") and entry.get("sha256")}


def _corpus_key(run: OpenRun) -> str:
    """What the inputs hold, in order, wherever they lay; with names and all where one has no hash."""
    hashes = [entry.get("sha256") for entry in run.inputs]
    return json.dumps(run.inputs if None in hashes else hashes, sort_keys=True)


def document_offsets(runs: Sequence[OpenRun]) -> list[int]:
    """What is added to the document numbers of each RUN, so that documents of different corpora do not meet: shards of
    one corpus have the same. By the order of the corpora's names and hashes, not of the RUNs.
    """
    records: dict[str, int] = {}
    places: dict[str, str] = {}
    for run in runs:
        key, place = _corpus_key(run), json.dumps(run.inputs, sort_keys=True)
        places[key] = min(places.get(key, place), place)
        count: int = run.parts[-1]["end"]["record"] if run.parts else 0
        records[key] = max(records.get(key, 0), count)
    offsets, total = {}, 0
    for key in sorted(records, key=lambda key: places[key]):
        offsets[key] = total
        total += records[key]
    return [offsets[_corpus_key(run)] for run in runs]


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two ways to read the same inputs share a record: shards are residues, `skip` and `limit` a range."""

    def behind(reading: dict[str, Any]) -> float:
        return math.inf if reading["limit"] is None else reading["skip"] + reading["limit"]

    if max(one["skip"], other["skip"]) >= min(behind(one), behind(other)):
        return False
    apart = one["shard"] + one["skip"] - other["shard"] - other["skip"]
    return bool(apart % math.gcd(one["shard_count"], other["shard_count"]) == 0)

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
        if _corpus_key(one) == _corpus_key(other) and _overlap(one.header["reading"], other.header["reading"]):
            raise ManifestMismatch(f"{one.path} and {other.path} hold the same documents: they would count twice")


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


def _corpus_key(run: OpenRun) -> str:
    return json.dumps(run.inputs, sort_keys=True)


def document_offsets(runs: Sequence[OpenRun]) -> list[int]:
    """What is added to the document numbers of each RUN, so that documents of different corpora do not meet: shards of
    one corpus have the same. By the order of the corpora's names and hashes, not of the RUNs.
    """
    records: dict[str, int] = {}
    for run in runs:
        key = _corpus_key(run)
        count: int = run.parts[-1]["end"]["record"] if run.parts else 0
        records[key] = max(records.get(key, 0), count)
    offsets, total = {}, 0
    for key in sorted(records):
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

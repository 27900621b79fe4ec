"""Documents scored by `xentrs detect` itself, as users run it, and parts of them evaluated.

In: a model folder, documents as JSONL. Out: `Scored`: a score for each document under its id.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from xentrs.cli import main
from xentrs.detect.evaluation import Evaluation, evaluate

Documents = Mapping[str, str]
"""Texts by id."""


@dataclass(frozen=True)
class Scored:
    """Scores of documents under one model."""

    values: dict[str, Any]
    """By score, one number for each document, larger for member or machine."""
    places: dict[str, int]
    """Of documents by id."""

    def of(self, score: str, ids: Iterable[str]) -> Any:
        """One score of some documents."""
        return self.values[score][[self.places[name] for name in ids]]

    def evaluated(self, members: Sequence[str], others: Sequence[str], level: float = 0.95) -> Evaluation:
        """Every score of members (label 1) against others (label 0)."""
        ids = [*members, *others]
        values = {name: self.of(name, ids) for name in self.values}
        return evaluate(values, [1] * len(members) + [0] * len(others), level=level)


def write_jsonl(path: Path, records: Iterable[dict[str, str]]) -> Path:
    """One record a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def documents_file(path: Path, documents: Documents) -> Path:
    """Documents as `xentrs` reads them."""
    return write_jsonl(path, ({"id": name, "text": text} for name, text in documents.items()))


def command(*arguments: str | Path) -> str:
    """What `xentrs ARGUMENTS` prints; it has to succeed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    if code:
        raise RuntimeError(f"xentrs {' '.join(map(str, arguments))} ended with {code}:\n{err.getvalue()}")
    return out.getvalue()


def detect(inputs: Path, model: Path, run: Path, *options: str | Path) -> Scored:
    """`xentrs detect INPUTS --model MODEL -o RUN OPTIONS`."""
    command("detect", inputs, "--model", model, "-o", run, "--json", "--quiet", *options)
    table = pq.read_table(run / "scores.parquet").to_pydict()
    names = [name for name in table if name not in ("document", "id", "source", "label", "reasons")]
    values = {name: np.array([np.nan if v is None else v for v in table[name]], dtype=np.float64) for name in names}
    return Scored(values, {identifier: place for place, identifier in enumerate(table["id"])})

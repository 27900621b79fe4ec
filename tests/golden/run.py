"""A small run whose every digit is kept: what it gives now, and the file that says what it gave.

Usage: python tests/golden/run.py > tests/golden/run.json   (after numerics_version was raised, never otherwise)

The model is integer arithmetic on token ids, so its logits are the same everywhere; documents, windows, statistics and
sums are xentrs's own. Floats are written in hexadecimal: not a bit is lost.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xentrs
from xentrs.corpus import Columns, open_sources, resolve_settings, score_corpus
from xentrs.corpus.run import Silent
from xentrs.models import EncodedText, ModelInfo

VOCAB = 5_000  # more than one leaf
TEXTS = (
    "It rained all day, and nobody in the town minded.",
    "naïve café Zürich — 東京 🙂",
    "",
    "a",
    "one two three four five six seven eight nine ten",
)


class GoldenEncoder:
    """A token for each byte."""

    sha256 = "golden"
    bos_id, eos_id, adds_bos = 256, 257, True
    special_ids: frozenset[int] = frozenset()
    chat_template_sha256 = None

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        found = []
        for text in texts:
            ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
            places = np.arange(len(ids) + 1)
            found.append(EncodedText(ids, places[:-1], places[1:], len(ids)))
        return found


class GoldenRunner:
    """Logits by a recurrence on ids, multiples of 2^-11 in [-16, 16): exact in float32."""

    def __init__(self) -> None:
        self.encoder = GoldenEncoder()
        self.info = ModelInfo("golden", None, "golden", "float32", "", "cpu", VOCAB, 64)
        self.head = None
        self.max_batch_windows = None
        self.shares_contexts = False
        self.notices: list[str] = []

    def prepare(self) -> None:
        """Nothing to check."""

    def hidden_states(self, input_ids: Any) -> Any:
        state = np.zeros(input_ids.shape, dtype=np.int64)
        for place in range(input_ids.shape[1]):
            before = state[:, place - 1] if place else 0
            state[:, place] = (before * 31 + input_ids[:, place] + 7) % 65_521
        return state[..., None]

    def logits(self, hidden_rows: Any) -> Any:
        columns = np.arange(VOCAB, dtype=np.int64)
        mixed = (hidden_rows * 40_503 + columns * 10_007 + (hidden_rows % 97) * columns % 1_013) % 65_536
        return ((mixed - 32_768) / 2_048).astype(np.float32)


def digits(value: Any) -> Any:
    """`value` with floats in hexadecimal."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {name: digits(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [digits(entry) for entry in value]
    return value


def golden_run() -> dict[str, Any]:
    """Documents, tokens and totals of the run."""
    runner: Any = GoldenRunner()
    columns = Columns("all", (0.0, 0.5, 2.0), 3)
    settings = resolve_settings(runner, window=32, stride=24, columns=columns, part_tokens=64, batch_tokens=128)
    parts: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "golden.jsonl"
        records = [{"id": f"d{place}", "text": text} for place, text in enumerate(TEXTS)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        sources, _ = open_sources([str(path)])
        result = score_corpus(runner, sources, settings, None, Silent(), lambda _, found: parts.append(found))
    for part in parts:
        part.documents["source"] = ["golden.jsonl"] * len(part.documents["source"])
    return {
        "numerics_version": xentrs.numerics_version,
        "documents": [digits(part.documents) for part in parts],
        "tokens": [{name: digits(column.tolist()) for name, column in part.tokens.items()} for part in parts],
        "totals": digits(result.summary["totals"]),
    }


def lines(found: dict[str, Any]) -> Iterator[str]:
    """JSON with a line for each column, so that a change shows where it is."""
    yield json.dumps(found, indent=0, sort_keys=True).replace(",\n", ", ").replace("[\n", "[").replace("\n]", "]")


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines(golden_run())) + "\n")

"""Does memory stay flat over any number of documents? A corpus of N short documents through a tiny synthetic model.

    python benches/stream.py --documents 10000000

The model is arithmetic on token ids over a vocabulary of 64, so that what is measured is everything around a model:
reading, tokenising, windows, batches, statistics, tables, totals. Prints documents, documents per second and resident
memory as the run goes on, and at the end by how much memory grew behind the first tenth of the documents.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from xentrs.corpus import Columns, open_sources, resolve_settings, score_corpus
from xentrs.models import EncodedText, ModelInfo
from xentrs.models.runner import LinearHead

VOCAB, WIDTH = 64, 8
WORDS = ("rain", "fell", "on", "the", "town", "and", "nobody", "minded", "at", "all")


class BytesEncoder:
    """A token for each byte, modulo the vocabulary."""

    sha256 = "synthetic"
    bos_id = eos_id = 0
    adds_bos = True
    special_ids: frozenset[int] = frozenset()
    chat_template_sha256 = None

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        found = []
        for text in texts:
            data = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
            places = np.arange(len(data) + 1)
            found.append(EncodedText(data % VOCAB, places[:-1], places[1:], len(data)))
        return found


class SyntheticRunner:
    """Hidden states are rows of a fixed table, the head another one."""

    def __init__(self) -> None:
        dice = np.random.default_rng(0)
        self._table = dice.normal(size=(VOCAB, WIDTH)).astype(np.float32)
        self.encoder = BytesEncoder()
        self.info = ModelInfo("synthetic", None, "synthetic", "float32", "", "cpu", VOCAB, 2048)
        self.head = LinearHead(dice.normal(size=(VOCAB, WIDTH)).astype(np.float32))
        self.max_batch_windows = None
        self.shares_contexts = False
        self.notices: list[str] = []

    def prepare(self) -> None:
        """Nothing to check."""

    def hidden_states(self, input_ids: Any) -> Any:
        return self._table[input_ids]


class MemoryListener:
    """Prints resident memory now and then."""

    def __init__(self, byte_total: int, documents: int) -> None:
        self._byte_total, self._documents = byte_total, documents
        self._started = time.monotonic()
        self._next = 0.0
        self.seen: list[tuple[float, float]] = []

    def part_started(self, byte_position: int, byte_count: int, token_count: int) -> None: ...
    def tokens_scored(self, token_count: int) -> None: ...

    def part_finished(self, byte_position: int) -> None:
        share = byte_position / self._byte_total
        self.seen.append((share, resident_mib()))
        if share >= self._next:
            rate = share * self._documents / (time.monotonic() - self._started)
            print(f"{share * self._documents:12,.0f} documents  {rate:9,.0f} per second  {self.seen[-1][1]:8.1f} MiB")
            self._next += 0.1


def resident_mib() -> float:
    """Resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def write_corpus(path: Path, documents: int) -> None:
    dice = np.random.default_rng(1)
    with path.open("w") as file:
        for first in range(0, documents, 10_000):
            chosen = dice.integers(0, len(WORDS), size=(min(10_000, documents - first), 6))
            file.writelines(json.dumps({"text": " ".join(WORDS[word] for word in row)}) + "\n" for row in chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--tokens", choices=["none", "basic", "detect"], default="none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        write_corpus(corpus, arguments.documents)
        runner: Any = SyntheticRunner()
        settings = resolve_settings(runner, columns=Columns(arguments.tokens))
        sources, _ = open_sources([str(corpus)])
        listener = MemoryListener(corpus.stat().st_size, arguments.documents)
        result = score_corpus(runner, sources, settings, Path(folder) / "run", listener)
    assert result.summary["totals"]["documents"] == arguments.documents
    early = max(mib for share, mib in listener.seen if share <= max(0.1, listener.seen[0][0]))
    late = max(mib for _, mib in listener.seen)
    print(f"{result.seconds:.0f} s, {result.summary['totals']['tokens']:,} tokens; grew by {late - early:.1f} MiB")


if __name__ == "__main__":
    main()

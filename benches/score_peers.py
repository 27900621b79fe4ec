"""What score.py times: the documents, xentrs itself, the bare body of the model and lm-eval (llama: score_llama.py).

Each tool is an `Entry`: `turn` does the whole work once and returns its seconds, start-up and loading excluded.
"""

from __future__ import annotations

import importlib.util
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

# Before the imports that read them: no peer reaches the network.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="true")

import numpy as np
import torch
import xentrs as xe
from xentrs.corpus import Cursor, Document, Reading, Settings, open_sources, score_corpus
from xentrs.corpus.batches import Batch, plan_batches
from xentrs.corpus.documents import read_items
from xentrs.corpus.parts import PartReader
from xentrs.corpus.run import Silent
from xentrs.models.catalog import resolve_model

LARGE = 1 << 40  # tokens: no limit
Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Entry:
    """One tool with one dtype, and the seconds of its turns. `answer` holds nll: of each document, or of all."""

    name: str
    dtype: str
    tokens: int
    turn: Callable[[], float]
    answer: Values | None = None
    note: str = ""
    is_outside: bool = False  # another program: its processor time is not known
    shares: dict[str, list[float]] = field(default_factory=dict)  # seconds by what they went to, of each turn
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)  # of this process, waiting in a loop included

    @property
    def median(self) -> float:
        """The median in seconds."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """By the median."""
        return self.tokens / self.median

    def warm(self) -> None:
        """Runs it once: it gets its answer."""
        self.turn()
        self.shares.clear()

    def take_turn(self) -> None:
        """Times one turn."""
        start = time.process_time()
        self.seconds.append(self.turn())
        self.processor_seconds.append(time.process_time() - start)


@dataclass(frozen=True)
class Corpus:
    """Documents that have tokens: what every tool scores."""

    sources: list[Any]
    texts: list[str]

    @property
    def joined(self) -> str:
        """All as one text; llama-perplexity takes a file, less one newline at its end."""
        return "\n\n".join(text.strip("\n") for text in self.texts)


def read_corpus(inputs: Sequence[str]) -> Corpus:
    """Reads the documents as `xentrs score` does."""
    sources, _ = open_sources(inputs)
    items = [item for item, _ in read_items(sources, Cursor(), Reading())]
    texts = [item.fields.text for item in items if isinstance(item, Document)]
    if len(texts) < len(items) or not all(texts):
        raise SystemExit("an input is empty or damaged; every tool has to score the same documents")
    return Corpus(sources, texts)


def plan(corpus: Corpus, runner: Any, settings: Settings, max_windows: int) -> list[Batch]:
    """The windows of all documents in batches of so many, sorted by length."""
    reader = PartReader(
        lambda cursor: read_items(corpus.sources, cursor, settings.reading),
        runner.encoder,
        runner.info.vocab_size,
        LARGE,
    )
    part = reader.next_part()
    assert part is not None
    return list(plan_batches(part.documents, replace(settings, batch_tokens=LARGE), max_windows=max_windows))


def token_count(corpus: Corpus, runner: Any) -> int:
    """Tokens of all documents, special ones not counted."""
    return sum(len(encoded.token_ids) for encoded in runner.encoder.encode(corpus.texts))


def body_entry(corpus: Corpus, runner: Any, settings: Settings, size: int, tokens: int) -> Entry:
    """The transformers body alone over the same windows, `size` of them a batch."""
    batches = plan(corpus, runner, settings, size)
    ids = [torch.from_numpy(batch.input_ids) for batch in batches]
    idle = 1 - sum(len(batch.targets) for batch in batches) / sum(batch.input_ids.size for batch in batches)
    turn = partial(_body_turn, runner, ids)
    return Entry(
        f"bare body, {size} a batch", runner.info.dtype, tokens, turn, note=f"{idle:.0%} of inputs have no score"
    )


@torch.inference_mode()
def _body_turn(runner: Any, ids: list[torch.Tensor]) -> float:
    body = runner.model.base_model
    start = time.perf_counter()
    for batch in ids:
        body(input_ids=batch, use_cache=False)
    return time.perf_counter() - start


def body_answer(corpus: Corpus, runner: Any, settings: Settings, size: int) -> Values:
    """The nll of the whole corpus by these hidden states and xentrs' head."""
    total = xe.Perplexity()
    for batch in plan(corpus, runner, settings, size):
        hidden = runner.hidden_states(batch.input_ids)
        rows = hidden.reshape(-1, hidden.shape[-1])[batch.hidden_index]
        total.update_nll(xe.linear_row_stats(rows, runner.head.weight, batch.targets).nll)
    return np.array([total.compute().nll_sum])


def xentrs_entry(corpus: Corpus, runner: Any, settings: Settings, tokens: int, name: str = "xentrs score") -> Entry:
    """The whole of `xentrs score -o RUN`: reading, tokenising, body, head, all statistics, tables."""
    entry = Entry(name, runner.info.dtype, tokens, lambda: _score(corpus, timed, settings, entry))
    timed = _TimedRunner(runner)
    return entry


class _TimedRunner:
    """A runner that adds up the seconds in its body."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def hidden_states(self, *arguments: Any) -> Any:
        """Those of the runner."""
        start = time.perf_counter()
        hidden = self._runner.hidden_states(*arguments)
        self.seconds += time.perf_counter() - start
        return hidden


def _score(corpus: Corpus, runner: _TimedRunner, settings: Settings, entry: Entry) -> float:
    runner.seconds = 0.0
    with tempfile.TemporaryDirectory() as folder, _timed_head() as head:
        start = time.perf_counter()
        score_corpus(runner, corpus.sources, settings, Path(folder) / "run", Silent())
        taken = time.perf_counter() - start
        if entry.answer is None:
            entry.answer = document_nll(Path(folder) / "run")
    shares = {"body": runner.seconds, "head": sum(head), "rest": taken - runner.seconds - sum(head)}
    for name, seconds in shares.items():
        entry.shares.setdefault(name, []).append(seconds)
    return taken


@contextmanager
def _timed_head() -> Iterator[list[float]]:
    """The seconds of each call of `xentrs.linear_row_stats` meanwhile."""
    seconds: list[float] = []
    original = xe.linear_row_stats

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        stats = original(*arguments, **options)
        seconds.append(time.perf_counter() - start)
        return stats

    xe.linear_row_stats = timed
    try:
        yield seconds
    finally:
        xe.linear_row_stats = original


def document_nll(run: Path) -> Values:
    """The nll of each document of a RUN folder, in order."""
    import pyarrow.parquet as parquet

    tables = [parquet.read_table(path, columns=["nll_sum"]) for path in sorted(run.glob("documents-*.parquet"))]
    return np.concatenate([table["nll_sum"].to_numpy() for table in tables])


def lm_eval_missing() -> str:
    """Why lm-eval cannot run; nothing where it can."""
    return "" if importlib.util.find_spec("lm_eval") else "lm_eval is not importable here"


def load_lm_eval(model: str, dtype: str, window: int, batch_size: int) -> Any:
    """lm-eval's runner over transformers, with its own copy of the model."""
    from lm_eval.models.huggingface import HFLM

    folder = resolve_model(model).folder or model
    return HFLM(pretrained=str(folder), dtype=dtype, batch_size=batch_size, device="cpu", max_length=window)


def lm_eval_entry(harness: Any, corpus: Corpus, tokens: int) -> Entry:
    """`loglikelihood_rolling` on the same documents."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=number)
        for number, text in enumerate(corpus.texts)
    ]

    def turn() -> float:
        start = time.perf_counter()
        with redirect_stderr(io.StringIO()):  # its bars cannot be turned off
            found = harness.loglikelihood_rolling(requests, disable_tqdm=True)
        taken = time.perf_counter() - start
        entry.answer = -np.array(found, dtype=np.float64)
        return taken

    dtype = str(harness.model.dtype).removeprefix("torch.")
    entry = Entry(f"lm-eval HFLM, batch_size={harness.batch_size}", dtype, tokens, turn)
    return entry


def weight_bytes(model: Any) -> int:
    """Of a torch model."""
    return sum(weight.nbytes for weight in model.parameters())

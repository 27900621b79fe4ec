"""Same bits: any thread count, row batch, cut of the vocabulary, order of chunks and shards, pickled."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pytest
import reference as ref
import xentrs as xe
from reference import Array
from test_edge_arrays import assert_same_stats
from test_edge_isa import FIELDS, same_bytes
from test_edge_lse import noise

DTYPE = pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
VOCAB: Final = 3 * 4096 + 777
ROWS: Final = 67
Span = tuple[int, int]


def special_rows(dtype: np.dtype[Any], rows: int = ROWS, vocab: int = VOCAB) -> tuple[Array, Array]:
    """Noise with -inf, a NaN row, a +inf row, an all -inf row, ties, a peaked row and an ignored one."""
    logits = noise(vocab, dtype, rows)
    targets = np.random.default_rng(11).integers(0, vocab, rows)
    logits[1, 4000:4200] = -np.inf
    logits[2, 4096], logits[3, vocab - 1], logits[4] = np.nan, np.inf, -np.inf
    logits[5, ::1000] = 30.0
    logits[6] -= dtype.type(50.0)
    logits[6, targets[6]] = 25.0
    logits[7, :4096] = -np.inf
    targets[8] = -100
    logits[9, targets[9]] = -np.inf
    return logits, targets


@DTYPE
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7, 16])
def test_thread_count(threads: int, dtype: np.dtype[Any]) -> None:
    logits, targets = special_rows(dtype)
    wanted = xe.row_stats(logits, targets, top_k=5, num_threads=1)
    assert_same_stats(xe.row_stats(logits, targets, top_k=5, num_threads=threads), wanted)
    one = xe.kl_divergence(logits, logits[::-1], num_threads=1, return_flags=True)
    got = xe.kl_divergence(logits, logits[::-1], num_threads=threads, return_flags=True)
    assert [same_bytes(part) for part in got] == [same_bytes(part) for part in one]
    for reduction in ("sum", "mean"):
        reduced = [
            xe.cross_entropy(logits[10:], targets[10:], reduction=reduction, num_threads=count)
            for count in (1, threads)
        ]
        assert same_bytes(reduced[0]) == same_bytes(reduced[1])


@DTYPE
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_thread_count_on_one_long_row(threads: int, dtype: np.dtype[Any]) -> None:
    """One row may be cut over threads: its bits may not follow the cut."""
    logits, targets = noise(262_144 + 5, dtype, 1), np.array([200_000])
    wanted = xe.row_stats(np.repeat(logits, 5, axis=0), np.repeat(targets, 5), top_k=5, num_threads=2)
    got = xe.row_stats(logits, targets, top_k=5, num_threads=threads)
    for field in FIELDS:
        assert same_bytes(getattr(got, field)) == same_bytes(getattr(wanted, field)[:1]), field


@DTYPE
@pytest.mark.parametrize("batch", [1, 2, 3, 17, 64, ROWS])
def test_row_batch(batch: int, dtype: np.dtype[Any]) -> None:
    logits, targets = special_rows(dtype)
    wanted = xe.row_stats(logits, targets, top_k=5)
    parts = [
        xe.row_stats(logits[start : start + batch], targets[start : start + batch], top_k=5)
        for start in range(0, ROWS, batch)
    ]
    for field in FIELDS:
        together = np.concatenate([getattr(part, field) for part in parts])
        assert same_bytes(together) == same_bytes(getattr(wanted, field)), field


def spans(vocab: int, chunk: int) -> list[Span]:
    return [(start, min(start + chunk, vocab)) for start in range(0, vocab, chunk)]


def target_logits(logits: Array, targets: Array) -> Array:
    """The logit of each target; anything at an ignored row."""
    return logits[np.arange(len(targets)), np.maximum(targets, 0)]


def fresh(logits: Array, targets: Array | None, **options: Any) -> Any:
    picked = None if targets is None else target_logits(logits, targets)
    return xe.RowStatsState(logits.shape[1], targets, picked, rows=len(logits), **options)


def fed(state: Any, logits: Array, order: Iterable[Span], pickles: bool = False) -> Any:
    for number, (start, stop) in enumerate(order):
        state.update(logits[:, start:stop], start)
        if pickles and number % 3 == 0:
            state = pickle.loads(pickle.dumps(state))
    return state


@DTYPE
@pytest.mark.parametrize("chunk", [7, 64, 1000, 4096, VOCAB])
def test_vocabulary_chunks_in_any_order(chunk: int, dtype: np.dtype[Any]) -> None:
    logits, targets = special_rows(dtype, 11)
    wanted = xe.row_stats(logits, targets, top_k=5)
    cut = spans(VOCAB, chunk)
    assert_same_stats(fed(fresh(logits, targets, top_k=5), logits, cut).compute(), wanted, "in order")
    generator = np.random.default_rng(chunk)
    for _ in range(2):
        order = [cut[place] for place in generator.permutation(len(cut))]
        state = fed(fresh(logits, targets, top_k=5), logits, order, pickles=chunk >= 64)
        assert_same_stats(state.compute(), wanted, "shuffled")


@DTYPE
def test_chunks_of_one_column(dtype: np.dtype[Any]) -> None:
    logits, targets = special_rows(dtype, 10, 4096 + 201)
    order = [(int(start), int(start) + 1) for start in np.random.default_rng(1).permutation(4096 + 201)]
    state = fed(fresh(logits, targets), logits, order)
    assert_same_stats(state.compute(), xe.row_stats(logits, targets))


@DTYPE
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}], ids=str)
def test_chunks_without_targets(options: dict[str, Any], dtype: np.dtype[Any]) -> None:
    logits, _ = special_rows(dtype, 10)
    state = fed(fresh(logits, None, top_k=3, **options), logits, reversed(spans(VOCAB, 999)))
    assert_same_stats(state.compute(), xe.row_stats(logits, top_k=3, **options))


BORDERS: Final = {
    "inside-leaves": [100, 4095, 4097, 5000, 9000, VOCAB - 1],
    "on-leaves": [4096, 8192, 12288],
    "one-border": [6000],
    "tiny-shards": [4090, 4091, 4092, 4100, 4101],
}


@DTYPE
@pytest.mark.parametrize("pickles", [False, True], ids=["", "pickled"])
@pytest.mark.parametrize("borders", BORDERS.values(), ids=list(BORDERS))
def test_merged_shards(borders: list[int], pickles: bool, dtype: np.dtype[Any]) -> None:
    """Each shard a state of its own, cut further into chunks; merged in any order, by any tree."""
    logits, targets = special_rows(dtype, 11)
    wanted = xe.row_stats(logits, targets, top_k=5)
    generator = np.random.default_rng(len(borders))
    edges = [0, *borders, VOCAB]
    for _ in range(3):
        states = []
        for low, high in itertools.pairwise(edges):
            cut = [(low + start, low + stop) for start, stop in spans(high - low, 1500)]
            order = [cut[place] for place in generator.permutation(len(cut))]
            states.append(fed(fresh(logits, targets, top_k=5), logits, order))
        while len(states) > 1:
            other = states.pop(int(generator.integers(len(states))))
            if pickles:
                other = pickle.loads(pickle.dumps(other))
            states[int(generator.integers(len(states)))].merge_state(other)
        assert_same_stats(states[0].compute(), wanted)


def test_a_pickle_stands_still() -> None:
    """Bytes of a state do not follow what is done to it later; compute() changes nothing."""
    logits, targets = special_rows(np.dtype(np.float32), 11)
    state = fed(fresh(logits, targets), logits, [(0, 5000)])
    kept = pickle.dumps(state)
    fed(state, logits, [(5000, VOCAB)])
    wanted = xe.row_stats(logits, targets)
    assert_same_stats(state.compute(), wanted)
    assert_same_stats(state.compute(), wanted)
    assert_same_stats(fed(pickle.loads(kept), logits, [(9000, VOCAB), (5000, 9000)]).compute(), wanted)


def test_update_keeps_no_view() -> None:
    """The caller may reuse its buffer as soon as update() returns."""
    logits, targets = special_rows(np.dtype(np.float32), 11)
    state, buffer = fresh(logits, targets), np.empty((11, 1000), np.float32)
    for start, stop in spans(VOCAB, 1000):
        buffer[:, : stop - start] = logits[:, start:stop]
        state.update(buffer[:, : stop - start], start)
        buffer[:] = np.nan
    assert_same_stats(state.compute(), xe.row_stats(logits, targets))

"""Threads and signals: the GIL is released, calls nest, interrupts arrive, inputs may change under a call."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
import pytest
import xentrs as xe
from test_bindings_process import must_succeed
from test_edge_lse import noise

F32: Final = np.dtype(np.float32)
LONG_ROWS: Final = 12_000


def long_input(rows: int = LONG_ROWS) -> Any:
    """One row of 128,256 logits given `rows` times without memory: about a second of work."""
    return np.broadcast_to(noise(128_256, F32, 1), (rows, 128_256))


def test_gil_is_released() -> None:
    """Another Python thread ticks every millisecond while the call runs, without a long gap."""
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    started = time.perf_counter()
    xe.row_stats(long_input())
    ended = time.perf_counter()
    stop.set()
    ticker.join()
    inside = [moment for moment in ticks if started <= moment <= ended]
    gaps = np.diff([started, *inside, ended])
    assert ended - started > 0.1, "too short to tell"
    assert gaps.max() < 0.5 * (ended - started)
    assert len(inside) > 20 * (ended - started)


def test_b24_64_threads_at_once() -> None:
    logits, targets = noise(5000, F32, 64), np.arange(64)
    wanted = xe.row_stats(logits, targets).nll
    barrier = threading.Barrier(64)
    equal: list[bool] = []

    def work(number: int) -> None:
        barrier.wait(30)
        for _ in range(5):
            got = xe.row_stats(logits, targets, num_threads=number % 5)
            equal.append(bool((got.nll == wanted).all()))

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert equal == [True] * 320


def test_b24_calls_from_calls() -> None:
    """Executors inside executors, each level calling; every kind of call at once."""
    p_logits, q_logits = noise(3000, F32, 8), noise(3000, F32, 9)[1:]
    targets = np.arange(8)
    wanted = xe.row_stats(p_logits, targets).lse.tobytes(), xe.kl_divergence(p_logits, q_logits).tobytes()

    def leaf(_: int) -> bool:
        got = xe.row_stats(p_logits, targets).lse.tobytes(), xe.kl_divergence(p_logits, q_logits).tobytes()
        return got == wanted

    def branch(_: int) -> bool:
        with concurrent.futures.ThreadPoolExecutor(4) as inner:
            return all(inner.map(leaf, range(8))) and leaf(0)

    with concurrent.futures.ThreadPoolExecutor(8) as outer:
        assert all(outer.map(branch, range(16), timeout=90))


def test_interrupt_arrives_and_the_next_call_works() -> None:
    """SIGINT 0.3 s into a call of seconds: KeyboardInterrupt in far less time than the call would take."""
    must_succeed("""
        signal.alarm(80)
        wanted = score()
        row = np.random.default_rng(1).normal(0, 3, 128_256).astype(np.float32)
        huge = np.broadcast_to(row, (150_000, row.size))
        ids = np.zeros(len(huge), np.int64)
        part = 1_500
        calls = [
            lambda rows: xe.row_stats(huge[:rows], ids[:rows], num_threads=2),
            lambda rows: xe.row_stats(huge[:rows], num_threads=1),
            lambda rows: xe.kl_divergence(huge[:rows], huge[:rows, ::-1], num_threads=2),
            lambda rows: xe.Perplexity().update(huge[:rows], ids[:rows], num_threads=2),
            lambda rows: xe.RowStatsState(row.size).update(huge[:rows, :65_537], 0, num_threads=2),
        ]
        for number, call in enumerate(calls):
            began = time.monotonic()
            call(part)
            whole = (time.monotonic() - began) * len(huge) / part
            sent = []
            def send():
                time.sleep(0.3)
                sent.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)
            sender = threading.Thread(target=send)
            sender.start()
            try:
                call(len(huge))
                time.sleep(1)
                raise SystemExit(f"call {number} ended before the signal, or swallowed it")
            except KeyboardInterrupt:
                late = time.monotonic() - sent[0]
            sender.join()
            assert late < whole / 2, (number, late, whole)
            assert score() == wanted
    """)


@contextmanager
def mutating(array: Any, values: list[Any]) -> Iterator[None]:
    """Another thread writes the values into the array, in turn, until the block ends."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for value in values:
                array[...] = value

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_c28_targets_change_during_the_call() -> None:
    """Targets are copied, then the copy is checked: an error, or the nll of values that were once there."""
    logits = noise(4099, F32, 512)
    targets = np.zeros(512, np.int64)
    possible = np.stack([xe.row_stats(logits, np.full(512, target)).nll for target in (0, 4098, -100)])
    scored: list[bool] = []
    refused: list[str] = []
    until = time.monotonic() + 5
    with mutating(targets, [0, 4098, -100, 2**40, -(2**60), 0, 4098]):
        while time.monotonic() < until and (len(scored) < 20 or len(refused) < 20):
            try:
                nll = xe.row_stats(logits, targets).nll
            except xe.TargetError as error:
                refused.append(str(error))
            else:
                scored.append(bool((possible == nll).any(axis=0).all()))
    assert scored
    assert all(scored)
    assert refused
    assert all("= 1099511627776 " in text or "= -1152921504606846976 " in text for text in refused)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
def test_b16_logits_change_during_the_call(dtype: Any) -> None:
    """Values are unspecified; shapes and ranges are not, and nothing crashes."""
    logits = noise(20_000, np.dtype(dtype), 16).copy()
    other = logits[::-1].copy()
    targets = np.arange(16)
    until = time.monotonic() + 1.5
    with mutating(logits, [np.nan, 0.0, -np.inf, 50.0, np.inf, other]):
        while time.monotonic() < until:
            stats = xe.row_stats(logits, targets, top_k=4)
            assert ((stats.argmax >= -1) & (stats.argmax < 20_000)).all()
            assert ((stats.top_ids >= -1) & (stats.top_ids < 20_000)).all()
            with suppress(xe.InternalError):
                xe.kl_divergence(logits, other)
    logits[...] = other
    np.testing.assert_array_equal(xe.row_stats(logits, targets).nll, xe.row_stats(other, targets).nll)


def test_totals_shared_by_threads() -> None:
    """One Perplexity for 8 threads: each update counts once, or its caller is told and nothing is counted."""
    logits, targets = noise(3000, F32, 32), np.arange(32)
    shared, alone = xe.Perplexity(), xe.Perplexity()

    def update(_: int) -> bool:
        try:
            shared.update(logits, targets)
        except RuntimeError:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        counted = sum(executor.map(update, range(40)))
    for _ in range(counted):
        alone.update(logits, targets)
    assert counted > 0
    assert shared.compute().token_count == 32 * counted
    assert shared.compute().nll_sum == alone.compute().nll_sum


@pytest.mark.parametrize("value", [-1, 4097, 10**6, 2**63 - 1, -(2**63)], ids=lambda value: f"B23[{value}]")
def test_thread_count_out_of_range(value: int) -> None:
    for call in (xe.row_stats, xe.logsumexp, xe.entropy):
        with pytest.raises(xe.ParamError, match=f"num_threads.*{value}"):
            call(np.zeros((2, 7), np.float32), num_threads=value)


@pytest.mark.parametrize("value", ["2", 1.5, [1], 2**64, float("nan")], ids=lambda value: f"B23[{value!r}]")
def test_thread_count_of_another_type(value: Any) -> None:
    with pytest.raises((TypeError, xe.ParamError, OverflowError)):
        xe.row_stats(np.zeros((2, 7), np.float32), num_threads=value)


@pytest.mark.parametrize("value", [None, 0, 1, 2, 300, 4096], ids=lambda value: f"B23[{value}]")
def test_thread_count_accepted(value: int | None) -> None:
    logits = noise(1000, F32, 500)
    np.testing.assert_array_equal(xe.logsumexp(logits, num_threads=value), xe.logsumexp(logits))

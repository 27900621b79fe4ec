"""Tools that do the same work, timed in turn: repeat k of every tool runs before repeat k + 1 of any."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

# A turn lasts at least so long: OpenMP threads of the tool before spin for a while, and threads that were asleep may
# wake up on one core and share it for milliseconds.
TURN_SECONDS = 0.1


@dataclass(frozen=True)
class Tool:
    """One way to do a work. `answer` takes from the result of `call` what `expected` holds in float64."""

    name: str
    call: Callable[[], Any]
    rows: int
    bytes_read: int
    answer: Callable[[Any], torch.Tensor] | None = None
    expected: torch.Tensor | None = None
    tolerance: float = 0.0
    is_probe: bool = False
    may_fail: bool = False


@dataclass(frozen=True)
class Work:
    """A work and its tools; the first that is no probe is xentrs. `calls` is how many calls one run of a tool makes."""

    name: str
    dtype: str
    rows: int
    vocab: int
    tools: list[Tool]
    calls: int = 1


@dataclass
class Result:
    """The seconds of each repeat of one tool, or why there are none; a repeat is the mean of `calls` calls in a row."""

    tool: Tool
    calls: int = 1
    seconds: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    failure: str = ""

    def take_turn(self) -> None:
        """Times one turn, and how many cores it kept busy. Quick tools first make a call that does not count."""
        if self.calls > 1:
            self.tool.call()
        start, start_busy = time.perf_counter(), time.process_time()
        for _ in range(self.calls):
            self.tool.call()
        taken, busy = time.perf_counter() - start, time.process_time() - start_busy
        self.seconds.append(taken / self.calls)
        self.cores.append(busy / taken)

    @property
    def median(self) -> float:
        """The median in seconds."""
        return statistics.median(self.seconds)

    @property
    def bytes_per_second(self) -> float:
        """Logits read, by the median."""
        return self.tool.bytes_read / self.median

    @property
    def rows_per_second(self) -> float:
        """Rows done, by the median."""
        return self.tool.rows / self.median


def check(tool: Tool) -> None:
    """Runs a tool once, which also compiles and warms it, and compares its answer with float64 truth.

    Raises:
        AssertionError: the answer is off by more than the tool's tolerance.
    """
    result = tool.call()
    if tool.answer is None or tool.expected is None:
        return
    answer = tool.answer(result)[: len(tool.expected)].double()
    error = float((answer - tool.expected).abs().max())
    if not error <= tool.tolerance:
        raise AssertionError(f"{tool.name} is off by {error:.3g}, more than {tool.tolerance:.3g}")


def prepare(tool: Tool) -> Result:
    """Checks a tool and finds how many calls make a turn. A tool that may fail and does so gets no turn."""
    try:
        check(tool)
    except AssertionError:
        raise
    except Exception as error:
        if not tool.may_fail:
            raise
        return Result(tool, failure=f"{type(error).__name__}: {error}".split("\n")[0][:80])
    trial = Result(tool)
    trial.take_turn()
    return Result(tool, calls=math.ceil(TURN_SECONDS / trial.median))


def measure(work: Work, repeats: int) -> list[Result]:
    """Checks every tool, then times them in turn."""
    results = [prepare(tool) for tool in work.tools]
    for _ in range(repeats):
        for result in results:
            if not result.failure:
                result.take_turn()
    return results


def fastest_probe(results: list[Result]) -> Result:
    """Returns the read probe: the faster of ours and torch's sum."""
    return max((result for result in results if result.tool.is_probe), key=lambda result: result.bytes_per_second)


def ours(results: list[Result]) -> Result:
    """Returns what xentrs took for the work itself."""
    return next(result for result in results if not result.tool.is_probe)

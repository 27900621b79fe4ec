"""cross_entropy forward and backward on the CPU against torch, and what a call of xentrs costs beyond its work.

Usage: python benches/backward.py [--vocab 49152 128256 256000] [--dtype float32 bfloat16] [--threads N] [--repeats 7]
       [--work backward overhead compile] [--quick] [--csv [PATH]]

backward: the mean loss and its gradient by the logits, at least 256 MiB of them. Each gradient is checked against the
float64 one on some rows first; then the tools run in turn with as many threads each (measure.py), and a call begins and
ends without a gradient. GB/s is bytes of logits, counted once, by the median; the memory itself carries three times as
many, two reads and a written gradient. "/ first" is a tool's time over that of the work's first tool.

New memory comes in small pages unless large ones are asked for, and their first touch can take longer than the
arithmetic. xentrs asks for its gradient, torch does where THP_MEM_ALLOC_ENABLE=1 is set: run it both ways. The line
above the table says which it was; ratios to quote are those with it.

overhead: one row of 16 logits, the extension's own function on the same memory first. "beyond" is microseconds of a
call beyond it: what arguments, dispatch, autograd and wrapping take.

compile: a function that calls xentrs, eager and by torch.compile, which adds a fixed time to a call: 64 x 32,000 shows
it, 512 x 128,256 what is left of it beside the work.

A tool that cannot run says why. --csv appends to PATH or to benches/results/<machine>/<date>-backward.csv.
"""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import xentrs as xe
from machine import append_csv, facts, print_facts, results_folder
from measure import Result, Tool, Work, measure
from works import CHECKED_ROWS, FLOAT32_TOLERANCE, TOLERANCE, compiled, make_logits
from xentrs import _xentrs

VOCABS = [49_152, 128_256, 256_000]
LOGITS_BYTES, QUICK_BYTES = 256 << 20, 16 << 20
SETTINGS = {"ignore_index": -100, "temperature": 1.0, "softcap": None, "vocab_size": None, "num_threads": None}
COLUMNS = ["us_min", "us_median", "us_max", "gb_per_s", "time_over_first", "us_beyond_first"]
HEADER = (
    f"{'work':10}{'dtype':10}{'rows x vocab':>14}  {'tool':42}"
    f"{'us min':>12}{'median':>12}{'max':>12}{'GB/s':>7}{'/ first':>9}{'beyond':>9}"
)


@dataclass(frozen=True)
class Loss:
    """A function of logits in three ways: the extension on their memory, xentrs and torch."""

    name: str
    extension: Callable[[Any], Any]
    xentrs: Callable[[Any], Any]
    torch: Callable[[Any], Any]


def losses(targets: torch.Tensor) -> list[Loss]:
    """The two functions whose overhead is measured."""
    ids, row_stats = targets.numpy(), {"all": False, "top_k": 0, "strict": False}
    plain = {"label_smoothing": 0.0, "z_loss": 0.0, "weight": None}
    return [
        Loss(
            "cross_entropy",
            lambda array: _xentrs.loss(array, "float32", ids, SETTINGS, **plain)["mean"],
            lambda x: xe.cross_entropy(x, targets),
            lambda x: F.cross_entropy(x, targets),
        ),
        Loss(
            "logsumexp",
            lambda array: _xentrs.row_stats(array, "float32", None, **SETTINGS, **row_stats)["lse"],
            lambda x: xe.logsumexp(x),
            lambda x: torch.logsumexp(x, -1),
        ),
    ]


def forward_and_backward(function: Callable[[Any], Any], logits: torch.Tensor) -> Callable[[], Any]:
    """Returns a call that gives the gradient of a function's sum by the logits."""

    def call() -> torch.Tensor | None:
        value = function(logits)
        (value.sum() if value.ndim else value).backward()
        # Each tool pays for giving its own gradient back.
        gradient, logits.grad = logits.grad, None
        return gradient

    return call


def exact_gradient(function: Callable[[Any], torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """The same in float64."""
    exact = logits.detach().double().requires_grad_()
    return torch.autograd.grad(function(exact).sum(), exact)[0]


def backward(vocab: int, dtype: str, options: argparse.Namespace) -> Work:
    """The mean loss and its gradient by the logits."""
    row_bytes = vocab * getattr(torch, dtype).itemsize
    rows = -(-(QUICK_BYTES if options.quick else LOGITS_BYTES) // (16 * row_bytes)) * 16
    logits = make_logits(rows, vocab, dtype, seed=0).requires_grad_()
    targets = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(1))
    few = slice(CHECKED_ROWS)
    expected = exact_gradient(lambda x: F.cross_entropy(x, targets[few], reduction="sum"), logits[few])
    # A derivative is below 1; bfloat16 and float16 round it to 8 and 11 bits, and torch also what it is made of.
    tolerance = {"float32": 1e-5, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    ours = partial(xe.cross_entropy, targets=targets, num_threads=options.threads)
    theirs = partial(F.cross_entropy, target=targets)

    def tool(name: str, function: Callable[[Any], Any], **more: Any) -> Tool:
        call = forward_and_backward(function, logits)
        check: dict[str, Any] = {"answer": lambda found: found[few].double() * rows, "expected": expected}
        limit = tolerance if name.startswith("xe") else 2 * TOLERANCE[dtype]
        return Tool(name, call, rows, logits.nbytes, **check, tolerance=limit, **more)

    tools = [
        tool("xe.cross_entropy", ours, may_fail=True),
        tool("torch cross_entropy", theirs),
        tool("torch.compile cross_entropy", compiled(theirs), may_fail=True),
    ]
    return Work("backward", dtype, rows, vocab, tools)


def overhead(loss: Loss) -> Work:
    """One row of 16, as tensors that are too small to matter."""
    logits = make_logits(1, 16, "float32", seed=0)
    leaf, array = logits.clone().requires_grad_(), logits.numpy()
    value, gradient = loss.torch(logits.double()).reshape(-1), exact_gradient(loss.torch, logits)

    def tool(name: str, call: Callable[[], Any], expected: torch.Tensor = value, **more: Any) -> Tool:
        def answer(found: Any) -> torch.Tensor:
            return torch.as_tensor(found).detach().double().reshape(expected.shape)

        return Tool(name, call, 1, logits.nbytes, answer, expected, FLOAT32_TOLERANCE, **more)

    in_graph = compiled(loss.xentrs)
    ours, name = loss.xentrs, f"xe.{loss.name}"
    tools = [
        tool("extension", lambda: loss.extension(array)),
        tool(f"{name}, no gradient", lambda: ours(logits)),
        tool(f"{name}, forward with a gradient", lambda: ours(leaf), may_fail=True),
        tool(f"{name}, forward and backward", forward_and_backward(ours, leaf), gradient, may_fail=True),
        tool(f"{name}, torch.compile", lambda: in_graph(logits), may_fail=True),
        tool(f"torch {loss.name}", lambda: loss.torch(logits)),
        tool(f"torch {loss.name}, forward and backward", forward_and_backward(loss.torch, leaf), gradient),
    ]
    return Work("overhead", "float32", 1, 16, tools)


def compile_(loss: Loss, rows: int, vocab: int) -> Iterator[Work]:
    """Eager and compiled, forward alone, then with the backward."""
    logits = make_logits(rows, vocab, "float32", seed=0)
    leaf, in_graph = logits.clone().requires_grad_(), compiled(loss.xentrs)
    name = f"xe.{loss.name}"

    def work(calls: list[Callable[[], Any]], expected: torch.Tensor, what: str) -> Work:
        def answer(found: Any) -> torch.Tensor:
            return torch.as_tensor(found).detach().double().reshape(expected.shape)

        check = (rows, logits.nbytes, answer, expected, FLOAT32_TOLERANCE)
        names = (f"{name}{what}", f"{name}{what}, torch.compile")
        tools = [Tool(label, call, *check, may_fail=True) for label, call in zip(names, calls, strict=True)]
        return Work("compile", "float32", rows, vocab, tools)

    yield work([lambda: loss.xentrs(logits), lambda: in_graph(logits)], loss.torch(logits.double()).reshape(-1), "")
    both = [forward_and_backward(function, leaf) for function in (loss.xentrs, in_graph)]
    yield work(both, exact_gradient(loss.torch, logits), " and backward")


def works(options: argparse.Namespace) -> Iterator[Work]:
    """Makes one work at a time, so that no two inputs are held."""
    if "backward" in options.work:
        for dtype in options.dtype:
            yield from (backward(vocab, dtype, options) for vocab in options.vocab)
    if "overhead" in options.work:
        yield from map(overhead, losses(torch.zeros(1, dtype=torch.int64)))
    if "compile" in options.work:
        for rows, vocab in ((64, 32_000), (512, 128_256)):
            for loss in losses(torch.arange(rows)):
                yield from compile_(loss, rows, vocab)


def row_of(work: Work, result: Result, first: Result) -> dict[str, Any]:
    """Returns the CSV columns of one tool."""
    row = {"work": work.name, "dtype": work.dtype, "rows": work.rows, "vocab": work.vocab, "tool": result.tool.name}
    row |= {"repeats": len(result.seconds), **dict.fromkeys(COLUMNS, ""), "failure": result.failure}
    if result.failure:
        return row
    row |= {"us_min": f"{1e6 * min(result.seconds):.2f}", "us_median": f"{1e6 * result.median:.2f}"}
    row |= {"us_max": f"{1e6 * max(result.seconds):.2f}", "gb_per_s": f"{result.bytes_per_second / 1e9:.2f}"}
    if not first.failure:
        row["time_over_first"] = f"{result.median / first.median:.3f}"
        row["us_beyond_first"] = f"{1e6 * (result.median - first.median):.2f}"
    return row


def print_row(row: dict[str, Any]) -> None:
    """Prints one line of the table."""
    start = f"{row['work']:10}{row['dtype']:10}{row['rows']:>6} x {row['vocab']:<5}  {row['tool']:42}"
    if row["failure"]:
        print(f"{start} {row['failure']}", flush=True)
        return
    times = "".join(f"{float(row[name]):12,.1f}" for name in ("us_min", "us_median", "us_max"))
    beyond = row["us_beyond_first"] if row["work"] == "overhead" else ""
    print(f"{start}{times}{row['gb_per_s']:>7}{row['time_over_first']:>9}{beyond:>9}", flush=True)


def options_of_command_line() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="cross_entropy forward and backward, and the overhead of a call.")
    kinds = ["backward", "overhead", "compile"]
    parser.add_argument("--vocab", type=int, nargs="+", default=VOCABS)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], default=["float32"])
    parser.add_argument("--threads", type=int, default=xe.num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--work", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--quick", action="store_true", help="16 MiB of logits, to see that all runs")
    parser.add_argument("--csv", type=Path, nargs="?", const=Path(), help="append to PATH or to benches/results/...")
    return parser.parse_args()


def main() -> None:
    """Prints the table and keeps it if asked to."""
    options = options_of_command_line()
    torch.set_num_threads(options.threads)
    run = facts(options.threads)
    print_facts(run)
    large_pages = os.environ.get("THP_MEM_ALLOC_ENABLE", "0")
    print(f"THP_MEM_ALLOC_ENABLE={large_pages} (large pages for torch)\n{HEADER}")
    path = options.csv
    if path == Path():
        path = results_folder(run) / f"{run['date'][:10]}-backward.csv"
    for work in works(options):
        results = measure(work, options.repeats)
        rows = [row_of(work, result, results[0]) for result in results]
        for row in rows:
            print_row(row)
        if path is not None:
            append_csv(path, [{**run, "large_pages": large_pages, **row} for row in rows])
        del results
        gc.collect()


if __name__ == "__main__":
    main()

"""Do one row, few rows and many rows all use every core? Prints GB/s for 1, 2, 4, ... all threads.

Usage: python benches/scaling.py [--vocab 128256] [--dtype float32] [--repeats 7] [--few 8]

One row and few rows take other rows of the same large input each call, so that memory is read, not a cache. The thread
counts run in turn, repeat k of each before repeat k + 1 of any. The read probe is ours, over the same rows.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import xentrs as xe
from machine import enough_rows, facts, print_facts
from measure import Result, Tool, Work, measure
from works import Case, make_case, read_probe

Call = Callable[[torch.Tensor, torch.Tensor, int], Any]

CALLS: dict[str, Call] = {
    "read probe": lambda logits, _, threads: read_probe(logits, threads),
    "xe.logsumexp": lambda logits, _, threads: xe.logsumexp(logits, num_threads=threads),
    "xe.row_stats": lambda logits, targets, threads: xe.row_stats(logits, targets, num_threads=threads),
}


def thread_counts(most: int) -> list[int]:
    """Returns 1, 2, 4, ... and all."""
    counts = [1]
    while counts[-1] * 2 < most:
        counts.append(counts[-1] * 2)
    return counts if most == 1 else [*counts, most]


def work_on_blocks(case: Case, block_rows: int, name: str, counts: list[int]) -> Work:
    """Makes the work of calling `name` on every block of rows; its tools are the thread counts."""
    call = CALLS[name]
    pairs = [torch.split(x, block_rows) for x in (case.logits, case.targets)]
    blocks = list(zip(*pairs, strict=True))

    def run(threads: int) -> None:
        for logits, targets in blocks:
            call(logits, targets, threads)

    rows, vocab = case.logits.shape
    tools = [Tool(str(threads), partial(run, threads), rows, case.logits.nbytes) for threads in counts]
    return Work(name, case.dtype, block_rows, vocab, tools, calls=len(blocks))


def print_results(work: Work, results: list[Result]) -> None:
    """Prints a line for each thread count."""
    for result in results:
        shape = f"{work.rows:>6} x {work.vocab:<8}{work.name:14}{result.tool.name:>8}"
        speed = f"{result.bytes_per_second / 1e9:8.2f}{1e3 * result.median / work.calls:11.3f}"
        ratio = results[0].median / result.median
        print(f"{shape}{speed}{statistics.median(result.cores):7.2f}{ratio:14.2f}x", flush=True)


def main() -> None:
    """Prints a table for one row, few rows and many rows."""
    parser = argparse.ArgumentParser(description="Speed against threads.")
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--few", type=int, default=8)
    options = parser.parse_args()
    most = xe.num_threads()
    print_facts(facts(most))
    rows = enough_rows(options.vocab, getattr(torch, options.dtype).itemsize)
    case = make_case(rows, options.vocab, options.dtype, most)
    header = f"{'rows':>6} x {'vocab':8}{'call':14}{'threads':>8}{'GB/s':>8}{'ms a call':>11}{'cores':>7}"
    print(f"{header}{'of one thread':>15}")
    for block_rows in (1, options.few, rows):
        for name in CALLS:
            work = work_on_blocks(case, block_rows, name, thread_counts(most))
            print_results(work, measure(work, options.repeats))


if __name__ == "__main__":
    main()

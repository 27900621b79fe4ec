"""xentrs against torch eager, torch.compile and scipy, each against the speed of reading memory.

Usage: python benches/compare.py [--vocab 49152 128256 256000] [--dtype float32 bfloat16 float16] [--threads N]
       [--repeats 7] [--rows auto] [--work nll lse all topk kl one-row memory] [--csv [PATH]]

Every tool's answer is checked against float64 on some rows first; that call also compiles and warms it. Then the tools
of a work run in turn, repeat k of each before repeat k + 1 of any, with as many threads each; quick calls are made
several times a turn (measure.py says why). GB/s is bytes of logits read by the median; for KL those of both inputs.
"of probe" is against the faster of our read probe and torch's `x.sum()` over the same logits in the same run.
"xentrs is" is rows per second of xentrs over those of the tool. Inputs are at least four times the level-3 caches, or
two of them 2 GiB; the peers' temporaries come on top. "cores" is processor time over time, waiting in a loop included.

One row: float32 of 256,000, another row each call; ms are per call. Memory: see memory.py.

--csv appends, after each work, a row per tool to PATH or to benches/results/<machine>/<date>.csv. Columns: date (UTC),
commit, compiler, cpu, cores, l3_bytes, isa, threads, xentrs, torch, numpy, scipy, python (versions); work, dtype, rows
(those the tool did), vocab, tool, repeats, bytes_read, ms_min, ms_median, ms_max (of one call), cores_busy, gb_per_s,
ratio_to_probe, ratio_of_xentrs; call_bytes, process_bytes (of memory only, where the times are empty); failure.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xentrs as xe
from machine import append_csv, default_csv, enough_rows, facts, print_facts
from measure import Result, Work, fastest_probe, measure, ours
from memory import TOOLS, measure_fresh
from works import ONE_ROW_VOCAB, WORKS, make_case, one_row

MEMORY_ROWS, MEMORY_VOCAB = 512, 128_256
HEADER = (
    f"{'work':8}{'dtype':10}{'rows x vocab':>14}  {'tool':38}{'GB/s':>7}{'rows/s':>9}"
    f"{'ms min':>9}{'median':>9}{'max':>9}{'cores':>6}{'of probe':>9}{'xentrs is':>10}"
)


def row_of(work: Work, result: Result, results: list[Result]) -> dict[str, Any]:
    """Returns the CSV columns of one tool."""
    row: dict[str, Any] = {
        "work": work.name,
        "dtype": work.dtype,
        "rows": result.tool.rows // work.calls,
        "vocab": work.vocab,
        "tool": result.tool.name,
        "repeats": len(result.seconds),
        "bytes_read": result.tool.bytes_read // work.calls,
    }
    if result.failure:
        return with_blanks({**row, "failure": result.failure})
    times = {"ms_min": min(result.seconds), "ms_median": result.median, "ms_max": max(result.seconds)}
    row |= {name: f"{1e3 * seconds / work.calls:.4f}" for name, seconds in times.items()}
    row["cores_busy"] = f"{statistics.median(result.cores):.2f}"
    row["gb_per_s"] = f"{result.bytes_per_second / 1e9:.3f}"
    row["ratio_to_probe"] = f"{result.bytes_per_second / fastest_probe(results).bytes_per_second:.4f}"
    if not result.tool.is_probe:
        row["ratio_of_xentrs"] = f"{ours(results).rows_per_second / result.rows_per_second:.3f}"
    return with_blanks(row)


def with_blanks(row: dict[str, Any]) -> dict[str, Any]:
    """Returns all columns, in order."""
    columns = "work dtype rows vocab tool repeats bytes_read ms_min ms_median ms_max cores_busy gb_per_s ratio_to_probe"
    names = [*columns.split(), "ratio_of_xentrs", "call_bytes", "process_bytes", "failure"]
    return {name: row.get(name, "") for name in names}


def print_row(row: dict[str, Any], rows_per_second: float) -> None:
    """Prints one line of the table."""
    shape = f"{row['rows']} x {row['vocab']}"
    line = f"{row['work']:8}{row['dtype']:10}{shape:>14}  {row['tool']:38}"
    if row["failure"]:
        print(f"{line}  failed: {row['failure']}", flush=True)
        return
    ratio = f"{float(row['ratio_of_xentrs']):.2f}x" if row["ratio_of_xentrs"] else ""
    times = "".join(f"{float(row[name]):9.2f}" for name in ("ms_min", "ms_median", "ms_max"))
    speed = f"{float(row['gb_per_s']):7.2f}{rows_per_second:9.0f}"
    print(f"{line}{speed}{times}{row['cores_busy']:>6}{float(row['ratio_to_probe']):9.1%}{ratio:>10}", flush=True)


def run_work(work: Work, repeats: int) -> list[dict[str, Any]]:
    """Measures one work, prints its lines and returns its CSV columns."""
    results = measure(work, repeats)
    rows = [row_of(work, result, results) for result in results]
    for row, result in zip(rows, results, strict=True):
        print_row(row, 0.0 if result.failure else result.rows_per_second)
    probe = fastest_probe(results).tool.name
    if not probe.startswith("xentrs"):
        print(f"{'':34}(our read probe was slower than {probe}, so {probe} is the probe)")
    return rows


def run_memory(threads: int) -> list[dict[str, Any]]:
    """Measures memory, prints a table and returns CSV columns."""
    print(
        f"memory, float32, {MEMORY_ROWS} x {MEMORY_VOCAB}, MiB less inputs and outputs (peak resident size, memory.py)"
    )
    print(f"{'tool':38}{'added by the call':>20}{'whole process':>16}")
    rows = []
    for tool in TOOLS:
        measured = measure_fresh(tool, MEMORY_ROWS, MEMORY_VOCAB, threads)
        sizes = {name: measured[name] for name in ("call_bytes", "process_bytes")}
        print(f"{tool:38}{sizes['call_bytes'] / 2**20:20.1f}{sizes['process_bytes'] / 2**20:16.1f}", flush=True)
        shape = {"dtype": "float32", "rows": MEMORY_ROWS, "vocab": MEMORY_VOCAB, "repeats": 1}
        rows.append(with_blanks({"work": "memory", "tool": tool, **shape, **sizes}))
    print()
    return rows


def run_all(options: argparse.Namespace, threads: int) -> Iterator[list[dict[str, Any]]]:
    """Runs what was asked for and yields the CSV columns of each work."""
    if "memory" in options.work:
        yield run_memory(threads)
    print(HEADER)
    names = [name for name in options.work if name in WORKS]
    for dtype, vocab in itertools.product(options.dtype if names else [], options.vocab):
        rows = options.rows or enough_rows(vocab, getattr(torch, dtype).itemsize)
        case = make_case(rows, vocab, dtype, threads)
        for name in names:
            torch.compiler.reset()
            yield run_work(WORKS[name](case), options.repeats)
            gc.collect()
    if "one-row" in options.work:
        rows = options.rows or enough_rows(ONE_ROW_VOCAB, 4)
        yield run_work(one_row(make_case(rows, ONE_ROW_VOCAB, "float32", threads)), options.repeats)


def rows_option(text: str) -> int:
    """Reads `auto` as 0."""
    return 0 if text == "auto" else int(text)


def options_of_command_line() -> argparse.Namespace:
    """Reads the command line."""
    works = [*WORKS, "one-row", "memory"]
    parser = argparse.ArgumentParser(description="xentrs against torch and scipy.")
    parser.add_argument("--vocab", type=int, nargs="+", default=[49_152, 128_256, 256_000])
    dtypes = ["float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=dtypes)
    parser.add_argument("--threads", type=int, default=xe.num_threads())
    parser.add_argument("--repeats", type=int, default=7, help="at least 7 for figures that are kept")
    parser.add_argument("--rows", type=rows_option, default=0, help="auto: four times the level-3 caches")
    parser.add_argument("--work", nargs="+", choices=works, default=works)
    parser.add_argument("--csv", type=Path, nargs="?", const=Path(), help="append to PATH or to benches/results/...")
    return parser.parse_args()


def main() -> None:
    """Prints the table and keeps it if asked to."""
    options = options_of_command_line()
    torch.set_num_threads(options.threads)
    run = facts(options.threads)
    print_facts(run)
    path = default_csv(run) if options.csv == Path() else options.csv
    with torch.inference_mode():
        for rows in run_all(options, options.threads):
            if path is not None:
                append_csv(path, [{**run, **row} for row in rows])
    if path is not None:
        print(f"appended to {path}")


if __name__ == "__main__":
    main()

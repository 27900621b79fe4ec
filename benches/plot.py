"""Speed against vocabulary and against rows: measures, keeps a CSV, draws docs/speed-vocabulary.svg and speed-rows.svg.

Usage: python benches/plot.py [--curve vocabulary rows] [--dtype float32 bfloat16] [--threads N] [--repeats 7]
       [--csv PATH] [--folder docs] [--redraw PATH]

Along the vocabulary a call takes many rows, four times the level-3 caches. Along the rows it takes 1, 2, 4, ... 512 of
vocabulary 128,256, other rows of the same large input each call, so that memory is read, not a cache. The calls of a
point run in turn, answers checked first (measure.py). GB/s is bytes of logits read by the median.

A row per point and call is appended to benches/results/<machine>/<date>-speed.csv, or to --csv. --redraw measures
nothing and draws the last run of a CSV.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xentrs as xe
from charts import CURVES, draw
from machine import BENCHES, append_csv, enough_rows, facts, print_facts, results_folder
from measure import Result, Tool, Work, measure
from works import FLOAT32_TOLERANCE, Case, make_case, read_probe

VOCABS = sorted({*(2**power for power in range(10, 19)), 49_152, 128_256, 256_000})
ROWS = [2**power for power in range(10)]
ROWS_VOCAB = 128_256
FACTS = ("date", "commit", "compiler", "cpu", "cores", "l3_bytes", "isa", "threads", "xentrs")
HEADER = f"{'curve':12}{'dtype':10}{'rows x vocab':>16}  {'call':18}{'GB/s':>8}{'ms min':>10}{'median':>10}{'max':>10}"


def work_on_blocks(case: Case, block_rows: int) -> Work:
    """Makes the work of calling each function on every block of rows; one run of a tool reads the whole input."""
    threads = case.threads
    blocks = list(zip(*(torch.split(x, block_rows) for x in (case.logits, case.targets)), strict=True))
    exact: dict[str, Any] = {"expected": case.expected()["nll"], "tolerance": FLOAT32_TOLERANCE}

    def probe() -> list[float]:
        return [read_probe(x, threads) for x, _ in blocks]

    def nll() -> list[torch.Tensor]:
        return [xe.cross_entropy(x, t, reduction="none", num_threads=threads) for x, t in blocks]

    def row_stats() -> list[Any]:
        return [xe.row_stats(x, t, num_threads=threads) for x, t in blocks]

    tools: list[Tool] = [
        case.tool("read probe", probe, is_probe=True),
        case.tool("xe.cross_entropy", nll, answer=torch.cat, **exact),
        case.tool("xe.row_stats", row_stats, answer=lambda parts: torch.cat([part.nll for part in parts]), **exact),
    ]
    return Work("speed", case.dtype, block_rows, case.logits.shape[-1], tools, calls=len(blocks))


def works_of(curve: str, dtype: str, threads: int) -> Iterator[Work]:
    """Makes the works along one curve, one after the other, so that one input is held at a time."""
    element_bytes = getattr(torch, dtype).itemsize
    if curve == "vocabulary":
        for vocab in VOCABS:
            rows = enough_rows(vocab, element_bytes)
            yield work_on_blocks(make_case(rows, vocab, dtype, threads), rows)
        return
    most = max(ROWS)
    rows = -(-enough_rows(ROWS_VOCAB, element_bytes) // most) * most
    case = make_case(rows, ROWS_VOCAB, dtype, threads)
    for block_rows in ROWS:
        yield work_on_blocks(case, block_rows)


def point_of(curve: str, work: Work, result: Result) -> dict[str, Any]:
    """Returns the CSV columns of one call at one point."""
    times = {"ms_min": min(result.seconds), "ms_median": result.median, "ms_max": max(result.seconds)}
    return {
        "curve": curve,
        "dtype": work.dtype,
        "rows": work.rows,
        "vocab": work.vocab,
        "call": result.tool.name,
        "repeats": len(result.seconds),
        "bytes_read": result.tool.bytes_read // work.calls,
        **{name: f"{1e3 * seconds / work.calls:.4f}" for name, seconds in times.items()},
        "gb_per_s": f"{result.bytes_per_second / 1e9:.3f}",
    }


def print_point(point: dict[str, Any]) -> None:
    """Prints one line of the table."""
    shape = f"{point['rows']} x {point['vocab']}"
    times = "".join(f"{float(point[name]):10.3f}" for name in ("ms_min", "ms_median", "ms_max"))
    speed = f"{float(point['gb_per_s']):8.2f}"
    print(f"{point['curve']:12}{point['dtype']:10}{shape:>16}  {point['call']:18}{speed}{times}", flush=True)


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every point, prints it and appends it to the CSV."""
    torch.set_num_threads(options.threads)
    run = facts(options.threads)
    print_facts(run)
    path = options.csv or results_folder(run) / f"{run['date'][:10]}-speed.csv"
    points: list[dict[str, Any]] = []
    print(HEADER)
    for curve in options.curve:
        for dtype in options.dtype:
            for work in works_of(curve, dtype, options.threads):
                new = [point_of(curve, work, result) for result in measure(work, options.repeats)]
                for point in new:
                    print_point(point)
                points += [{**{name: run[name] for name in FACTS}, **point} for point in new]
    append_csv(path, points)
    print(f"appended to {path}")
    return points


def last_run(path: Path) -> list[dict[str, Any]]:
    """Reads the points of the last run in a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        points: list[dict[str, Any]] = list(csv.DictReader(file))
    date = max(point["date"] for point in points)
    return [point for point in points if point["date"] == date]


def options_of_command_line() -> argparse.Namespace:
    """Reads the command line."""
    curves, dtypes = [curve.name for curve in CURVES], ["float32", "bfloat16"]
    parser = argparse.ArgumentParser(description="Speed against vocabulary and against rows.")
    parser.add_argument("--curve", nargs="+", choices=curves, default=curves)
    parser.add_argument("--dtype", nargs="+", choices=[*dtypes, "float16"], default=dtypes)
    parser.add_argument("--threads", type=int, default=xe.num_threads())
    parser.add_argument("--repeats", type=int, default=7, help="at least 7 for figures that are kept")
    parser.add_argument("--csv", type=Path, help="append to PATH, not to benches/results/...")
    parser.add_argument("--folder", type=Path, default=BENCHES.parent / "docs", help="where the drawings go")
    parser.add_argument("--redraw", type=Path, help="draw the last run of this CSV and measure nothing")
    return parser.parse_args()


def main() -> None:
    """Measures, or reads, and draws."""
    options = options_of_command_line()
    with torch.inference_mode():
        points = last_run(options.redraw) if options.redraw else measured(options)
    for path in draw(points, options.folder):
        print(f"drew {path}")


if __name__ == "__main__":
    main()

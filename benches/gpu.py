"""xentrs on a GPU against torch eager, torch.compile and cut-cross-entropy: speed and memory.

Usage: python benches/gpu.py [--device cuda] [--dtype bfloat16 float32] [--logits 4096x128256] [--head 8192x2304x128256]
       [--work forward backward statistics kl head head-backward] [--repeats 7] [--csv [PATH]]

Logits are rows x vocabulary, a head rows x width x vocabulary; logits have standard deviation 3. Each answer is checked
against float64 on some rows first, which also compiles and warms; a tool that cannot run says why. Then the tools of a
work run in turn, repeat k of each before repeat k + 1 of any. Milliseconds are of one call, by CUDA events around as
many calls as take a tenth of a second. "/ xentrs" is a tool's median over that of xentrs: above 1 it is slower. MiB is
the most that torch held during a call beyond what lay there before, results and gradients included.

Without CUDA it says so and does nothing. `--device cpu` takes small shapes and the torch engine, `xe.backend("torch")`,
to see that all runs and gives right answers; its times say nothing of a GPU.

--csv appends to PATH or to benches/results/<gpu>/<date>-gpu.csv; the columns are those of the table.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import re
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import xentrs as xe
from gpu_works import ROUNDED, WORKS, Inputs, make_inputs
from machine import BENCHES, append_csv, facts
from measure import TURN_SECONDS, Tool, check

LOGITS, HEAD = "4096x128256", "8192x2304x128256"
SMALL_LOGITS, SMALL_HEAD = "64x4099", "64x96x4099"
HEADER = (
    f"{'work':15}{'dtype':10}{'shape':>17}  {'tool':34}{'ms min':>10}{'median':>10}{'max':>10}{'/ xentrs':>9}{'MiB':>9}"
)


@dataclass
class Timed:
    """What one tool took: the milliseconds of each repeat and the bytes of a call, or why it did not run."""

    tool: Tool
    calls: int = 1
    milliseconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    failure: str = ""


def milliseconds(tool: Tool, calls: int, is_cuda: bool) -> float:
    """The mean of a few calls in a row."""
    if not is_cuda:
        start = time.perf_counter()
        for _ in range(calls):
            tool.call()
        return 1e3 * (time.perf_counter() - start) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(calls):
        tool.call()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / calls


def peak_bytes(tool: Tool, inputs: Inputs) -> int:
    """The most that a call holds on the GPU beyond what lay there before."""
    for leaf in inputs.leaves():
        leaf.grad = None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tool.call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated()) - before


def prepare(tool: Tool, inputs: Inputs) -> Timed:
    """Checks and warms a tool and finds how many calls make a turn. A wrong answer ends the run."""
    is_cuda = inputs.x.is_cuda
    try:
        check(tool)
        trial = milliseconds(tool, 1, is_cuda)
    except AssertionError:
        raise
    except Exception as error:  # out of memory, no kernel for this device
        return Timed(tool, failure=f"{type(error).__name__}: {error}".split("\n")[0][:70])
    calls = math.ceil(1e3 * TURN_SECONDS / trial) if is_cuda else 1
    return Timed(tool, calls, peak_bytes=peak_bytes(tool, inputs) if is_cuda else None)


def run_work(name: str, inputs: Inputs, repeats: int) -> list[dict[str, Any]]:
    """Measures one work, prints its lines and returns its CSV columns."""
    results = [prepare(tool, inputs) for tool in WORKS[name](inputs)]
    for _ in range(repeats):
        for result in results:
            if not result.failure:
                result.milliseconds.append(milliseconds(result.tool, result.calls, inputs.x.is_cuda))
    shape, first, rows = "x".join(map(str, inputs.shape)), results[0], []
    for result in results:
        row: dict[str, Any] = {"work": name, "dtype": inputs.dtype, "shape": shape, "tool": result.tool.name}
        row |= {"repeats": len(result.milliseconds), **dict.fromkeys(("ms_min", "ms_median", "ms_max"), "")}
        row |= {"time_over_xentrs": "", "peak_bytes": result.peak_bytes, "failure": result.failure}
        start = f"{name:15}{inputs.dtype:10}{shape:>17}  {result.tool.name:34}"
        if result.failure:
            print(start + result.failure, flush=True)
            rows.append(row)
            continue
        median = statistics.median(result.milliseconds)
        ratio = "" if first.failure else f"{median / statistics.median(first.milliseconds):.2f}"
        times = {"ms_min": min(result.milliseconds), "ms_median": median, "ms_max": max(result.milliseconds)}
        rows.append({**row, **{key: f"{value:.4f}" for key, value in times.items()}, "time_over_xentrs": ratio})
        memory = "" if result.peak_bytes is None else f"{result.peak_bytes / 2**20:,.0f}"
        print(start + "".join(f"{value:10.3f}" for value in times.values()) + f"{ratio:>9}{memory:>9}", flush=True)
    return rows


def facts_of(device: str) -> dict[str, Any]:
    """What machine.py tells of a run, the GPU and the versions that matter on it."""
    run = facts(xe.num_threads())
    is_cuda = torch.device(device).type == "cuda"
    run["device"] = torch.cuda.get_device_name(device) if is_cuda else "cpu"
    run["cuda"] = torch.version.cuda or ""
    for package in ("triton", "cut-cross-entropy"):
        run[package] = ""
        with suppress(metadata.PackageNotFoundError):
            run[package] = metadata.version(package)
    return run


def run_all(options: argparse.Namespace, device: str) -> Iterator[list[dict[str, Any]]]:
    """Runs what was asked for and yields the CSV columns of each work."""
    for dtype, name in itertools.product(options.dtype, options.work):
        shape = tuple(map(int, (options.head if name.startswith("head") else options.logits).split("x")))
        inputs = make_inputs(shape, dtype, device, gradient=name.endswith("backward"))
        with torch.inference_mode(not name.endswith("backward")):
            yield run_work(name, inputs, options.repeats)
        del inputs
        torch.compiler.reset()
        gc.collect()


def options_of_command_line() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="xentrs on a GPU against torch and cut-cross-entropy.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the script on small shapes")
    parser.add_argument("--dtype", nargs="+", choices=list(ROUNDED), default=list(ROUNDED))
    parser.add_argument("--logits", help=f"rows x vocabulary, {LOGITS} if not given")
    parser.add_argument("--head", help=f"rows x width x vocabulary, {HEAD} if not given")
    parser.add_argument("--work", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--csv", type=Path, nargs="?", const=Path(), help="append to PATH or to benches/results/...")
    options = parser.parse_args()
    is_small = options.device == "cpu"
    options.logits = options.logits or (SMALL_LOGITS if is_small else LOGITS)
    options.head = options.head or (SMALL_HEAD if is_small else HEAD)
    return options


def main() -> None:
    """Prints the table and keeps it if asked to."""
    options = options_of_command_line()
    if options.device != "cpu" and not torch.cuda.is_available():
        print("no CUDA device here, nothing measured; --device cpu tries the script", file=sys.stderr)
        return
    if options.device != "cpu":
        torch.cuda.set_device(options.device)
    run = facts_of(options.device)
    names = ("xentrs", "torch", "cuda", "triton", "cut-cross-entropy", "python")
    print(f"{run['date']}, commit {run['commit']}\n{run['device']}, {run['cpu']}")
    print("versions: " + ", ".join(f"{name} {run[name] or 'none'}" for name in names))
    print(HEADER)
    path = options.csv
    if path == Path():
        folder = re.sub(r"[^a-z0-9]+", "-", run["device"].lower()).strip("-")
        path = BENCHES / "results" / folder / f"{run['date'][:10]}-gpu.csv"
    with xe.backend("torch") if options.device == "cpu" else nullcontext():
        for rows in run_all(options, options.device):
            if path is not None:
                append_csv(path, [{**run, **row} for row in rows])


if __name__ == "__main__":
    main()

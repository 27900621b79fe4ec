"""The fused head (linear_cross_entropy and its kin) against torch's matmul and cross-entropy.

Usage: python benches/head.py [--shapes 1024x576x49152 ...] [--dtype bfloat16 float32] [--threads N] [--repeats 7]
       [--work forward backward accuracy] [--quick] [--csv [PATH]]
       python benches/head.py --memory [--shapes 8192x2304x256000] [--vocab V] [--threads N] [--csv [PATH]]

Shapes are rows x width x vocabulary; logits have standard deviation 3. Each answer is checked against float64 on some
rows first (the backward's by the gradient of these rows). Then the tools of a work run in turn with as many threads
each (measure.py). "/ first" is the tool's time over that of `xe.linear_cross_entropy`. GFLOP/s counts 2 for each number
of hidden states and weights that meet: once for a loss, twice for KL, three times for forward and backward. "of tiles"
is against the tile probe: the products of the same instructions on operands that stay in the level-1 cache.

torch's F.linear_cross_entropy runs without options, with those that were fastest in a trial on a few thousand weights
(printed), and with `LinearCrossEntropyOptions()` where a call takes seconds, not minutes. Targets stand below each
work; those for other instructions than this machine's are skipped.

Accuracy: the largest error of a row's nll over 2^-24 sqrt(width) max(1, max |z|), truth being the float64 product of
the stored numbers; torch's is its float32 product of them with float64 statistics. Gradients: the norm of the error
over that of the float64 gradient. Memory: see head_memory.py.

--csv appends to PATH or to benches/results/<machine>/<date>-head.csv; the columns are those of the table.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import xentrs as xe
from head_memory import (
    CHECKED_ROWS,
    LCE,
    Case,
    exact_gradient,
    exact_logits,
    gradients,
    make_case,
    make_side,
    peers_of_torch,
    run_accuracy,
    run_memory,
)
from machine import append_csv, facts, print_facts, results_folder
from measure import Result, Tool, Work, measure
from works import FLOAT32_TOLERANCE, TOLERANCE
from xentrs import _xentrs

SHAPES = ["1024x576x49152", "512x2048x128256", "256x2304x256000"]
QUICK_SHAPES = ["128x256x8192"]
MEMORY_SHAPE = "8192x2304x256000"
SHAPE_COLUMNS = ["work", "dtype", "rows", "width", "vocab", "tool", "products_isa", "repeats"]
TIME_COLUMNS = ["s_min", "s_median", "s_max", "cores_busy", "gflop_per_s", "share_of_tiles", "time_over_first"]
COLUMNS = [*SHAPE_COLUMNS, *TIME_COLUMNS, "error", "call_bytes", "process_bytes"]
HEADER = (
    f"{'work':9}{'dtype':9}{'shape':>16}  {'tool':51}{'s min':>8}{'median':>8}{'max':>8}{'cores':>6}{'GFLOP/s':>9}"
    f"{'of tiles':>9}{'/ first':>8}"
)
PROBE = "tile probe"
NLL, ALL, KL = "xe.linear_cross_entropy", "xe.linear_row_stats", "xe.linear_kl_divergence"
FILTERED = "xe. filter_eps='auto', order_vocabulary=True"
LINEAR, LINEAR_CE = "torch F.linear alone", "torch F.linear + float cross_entropy"
# Work, dtype, instructions of the products, tool, peer (the fastest whose name starts so), least ratio of speeds.
TARGETS = [
    ("forward", "bfloat16", "avx512bf16", NLL, LCE, 2.0),
    ("forward", "bfloat16", "avx512bf16", NLL, PROBE, 0.6),
    ("forward", "bfloat16", "amx", NLL, LCE, 2.5),
    ("forward", "bfloat16", "amx", NLL, LINEAR_CE, 4.0),
    ("forward", "bfloat16", "amx", NLL, PROBE, 0.7),
    ("forward", "float32", "", NLL, LINEAR, 1.0),
    ("forward", "", "", ALL, NLL, 1 / 1.25),
    ("forward", "", "", KL, NLL, 1 / 2.3),
    ("backward", "bfloat16", "", NLL, "torch ", 2.0),
]


@dataclass
class Timed:
    """A work, the GFLOP/s that its tile probe read, and what a trial of torch's options found."""

    work: Work
    readings: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_work(case: Case, name: str, tools: list[Tool], notes: list[str]) -> Timed:
    """Makes a work of these tools, with the tile probe in front where the extension has one."""
    timed = Timed(Work(name, case.dtype, case.shape[0], case.shape[2], tools), notes=notes)
    if hasattr(_xentrs, "tile_probe"):
        call = lambda: timed.readings.append(_xentrs.tile_probe(case.dtype, case.threads))  # noqa: E731
        tools.insert(0, Tool(PROBE, call, 0, 0, is_probe=True))
    return timed


def make_tool(case: Case, name: str, call: Callable[[], Any], expected: torch.Tensor, **more: Any) -> Tool:
    """Makes a tool whose answer is held to `expected`: xentrs' as float32 is, torch's as roundings to the dtype are."""
    tolerance = FLOAT32_TOLERANCE if name.startswith("xe.") else 2 * TOLERANCE[case.dtype]  # an nll may be above 16
    answer = {"answer": torch.Tensor.double, "expected": expected, "tolerance": tolerance}
    return Tool(name, call, case.shape[0], case.hidden.nbytes + case.weight.nbytes, **{**answer, **more})


def forward(case: Case) -> Timed:
    """The nll of each row; torch's matmul alone; all statistics; KL of two heads of one width."""
    h, w, t, few = case.hidden, case.weight, case.targets, slice(CHECKED_ROWS)
    packed = xe.PackedHead(w)
    q_h, q_w = make_side(*case.shape, case.dtype, seed=3)
    p, q = (exact_logits(*side).log_softmax(-1) for side in ((h[few], w), (q_h[few], q_w)))
    logits = exact_logits(h[few], w[:64])
    nll = F.cross_entropy(p, t[few], reduction="none")
    kl, entropy = (p.exp() * (p - q)).sum(-1), -(p.exp() * p).sum(-1)
    threads: dict[str, Any] = {"num_threads": case.threads}
    each: dict[str, Any] = {"reduction": "none", **threads}

    def torch_lce(weight: Any, targets: Any, options: Any) -> torch.Tensor:
        return F.linear_cross_entropy(h, weight, targets, reduction="none", options=options)

    def sums(stats: Any) -> torch.Tensor:
        return torch.stack([stats.nll, stats.entropy], -1)

    tool = partial(make_tool, case)
    peers, notes = peers_of_torch(case, torch_lce)
    tools = [
        tool(NLL, lambda: xe.linear_cross_entropy(h, w, t, **each), nll),
        tool("xe.PackedHead, linear_cross_entropy", lambda: xe.linear_cross_entropy(h, packed, t, **each), nll),
        tool(ALL, lambda: xe.linear_row_stats(h, w, t, **threads), torch.stack([nll, entropy], -1), answer=sums),
        tool(KL, lambda: xe.linear_kl_divergence(h, w, q_h, q_w, **threads), kl, tolerance=10 * FLOAT32_TOLERANCE),
        tool(LINEAR, lambda: F.linear(h, w), logits, answer=lambda z: z[few, :64].double()),
        tool(LINEAR_CE, lambda: F.cross_entropy(F.linear(h, w).float(), t, reduction="none"), nll),
        *(tool(name, call, nll) for name, call in peers.items()),
    ]
    return make_work(case, "forward", tools, notes)


def backward(case: Case) -> Timed:
    """The mean loss and its gradients with respect to hidden states and weights; 0.1 of the largest may be off."""
    h, w, t = case.hidden, case.weight, case.targets
    expected = exact_gradient(case, CHECKED_ROWS)
    scale = case.shape[0] / float(expected.abs().max())

    def torch_lce(weight: Any, targets: Any, options: Any) -> Any:
        return gradients(lambda h, w: F.linear_cross_entropy(h, w, targets, options=options), [h, weight])

    def run(loss: Callable[..., Any], **more: Any) -> Callable[[], Any]:
        return lambda: gradients(partial(loss, **more), [h, w])

    def torch_loss(h: Any, w: Any) -> torch.Tensor:
        return F.cross_entropy(F.linear(h, w).float(), t)

    loss = partial(xe.linear_cross_entropy, targets=t, num_threads=case.threads)
    filtered = run(loss, filter_eps="auto", order_vocabulary=True)
    peers, notes = peers_of_torch(case, torch_lce)
    calls = {NLL: run(loss), FILTERED: filtered, LINEAR_CE: run(torch_loss), **peers}
    tolerance = 0.1 if case.dtype == "bfloat16" else 1e-3
    hidden: dict[str, Any] = {"answer": lambda found: found[0].double() * scale, "tolerance": tolerance}
    of_largest = expected * (scale / case.shape[0])
    tools = [make_tool(case, name, call, of_largest, **hidden) for name, call in calls.items()]
    return make_work(case, "backward", tools, notes)


def products(case: Case, tool: str, work: str) -> float:
    """The GFLOP that a work needs at least."""
    return 2e-9 * math.prod(case.shape) * (3 if work == "backward" else 2 if tool == KL else 1)


def row_of(case: Case, work: str, result: Result, first: Result, probe: float | None) -> dict[str, Any]:
    """Returns the CSV columns of one tool; the GFLOP/s of the probe are its own."""
    row: dict[str, Any] = {"work": work, **case.columns(), "tool": result.tool.name, "repeats": len(result.seconds)}
    times = {"s_min": min(result.seconds), "s_median": result.median, "s_max": max(result.seconds)}
    row |= {name: f"{seconds:.5f}" for name, seconds in times.items()}
    row["cores_busy"] = f"{statistics.median(result.cores):.2f}"
    if result.tool.is_probe:
        return {**row, "gflop_per_s": f"{probe:.1f}"}
    speed = products(case, result.tool.name, work) / result.median
    row["gflop_per_s"] = f"{speed:.1f}"
    row["share_of_tiles"] = f"{speed / probe:.3f}" if probe else ""
    row["time_over_first"] = f"{result.median / first.median:.3f}"
    return row


def print_row(case: Case, row: dict[str, Any]) -> None:
    """Prints one line of the table."""
    times = "".join(f"{float(row[name]):8.3f}" for name in ("s_min", "s_median", "s_max"))
    share = f"{float(row['share_of_tiles']):.0%}" if row.get("share_of_tiles") else ""
    ratio = f"{float(row['time_over_first']):.2f}" if row.get("time_over_first") else ""
    line = f"{row['work']:9}{case.label()}{row['tool']:51}{times}{row['cores_busy']:>6}{row['gflop_per_s']:>9}"
    print(f"{line}{share:>9}{ratio:>8}", flush=True)


def print_targets(case: Case, name: str, results: list[Result], probe: float | None) -> None:
    """Prints a verdict for each target of a work."""
    medians = {result.tool.name: result.median for result in results}
    for work, dtype, isa, tool, peer, least in TARGETS:
        if work != name or dtype not in ("", case.dtype):
            continue
        ratios = {other: medians[other] / medians[tool] for other in medians if other.startswith(peer)}
        if peer == PROBE:
            ratios = {PROBE: products(case, tool, work) / medians[tool] / probe} if probe else {}
        if isa not in ("", case.products_isa):
            verdict = f"skipped, products are {case.products_isa} here"
        elif not ratios:
            verdict = "skipped, it is not there"
        else:
            fastest = min(ratios, key=lambda other: ratios[other])
            ratio = ratios[fastest]
            verdict = f"{ratio:.2f} of {fastest}, {'met' if ratio >= least else 'MISSED'}"
            if peer == NLL:
                verdict = f"{verdict} ({1 / ratio:.2f} times its time, at most {1 / least:.2f})"
        speed = f"target{' with ' + isa if isa else ''}: {tool} at least {least:.2f} of the speed of {peer.strip()}"
        print(f"    {speed}: {verdict}", flush=True)


def run_work(case: Case, name: str, repeats: int) -> list[dict[str, Any]]:
    """Measures one work, prints its lines and verdicts and returns its CSV columns."""
    with torch.inference_mode(name == "forward"):
        timed = (forward if name == "forward" else backward)(case)
        results = measure(timed.work, repeats)
    turns = sum(repeats * (result.calls + (result.calls > 1)) for result in results if result.tool.is_probe)
    probe = statistics.median(timed.readings[-turns:]) if turns else None  # the first ones were to check and warm it
    first = next(result for result in results if result.tool.name == NLL)
    rows = [row_of(case, name, result, first, probe) for result in results]
    for row in rows:
        print_row(case, row)
    for note in timed.notes:
        print(f"    {note}")
    print_targets(case, name, results, probe)
    return rows


def run_all(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Runs what was asked for and yields the CSV columns of each work."""
    if options.memory:
        rows, width, vocab = map(int, (options.shapes or [MEMORY_SHAPE])[0].split("x"))
        yield run_memory(rows, width, options.vocab or vocab, options.threads)
        return
    print(HEADER)
    shapes = options.shapes or (QUICK_SHAPES if options.quick else SHAPES)
    for shape, dtype in itertools.product(shapes, options.dtype):
        rows, width, vocab = map(int, shape.split("x"))
        case = make_case(rows, width, vocab, dtype, options.threads)
        for name in options.work:
            yield run_accuracy(case) if name == "accuracy" else run_work(case, name, options.repeats)
            gc.collect()
        del case


def options_of_command_line() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="The fused head against torch.")
    works, dtypes = ["forward", "backward", "accuracy"], ["bfloat16", "float32"]
    parser.add_argument("--shapes", nargs="+", help="rows x width x vocabulary, as 1024x576x49152")
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=dtypes)
    parser.add_argument("--threads", type=int, default=xe.num_threads())
    parser.add_argument("--repeats", type=int, help="7, at least 5 for figures that are kept; 2 if --quick")
    parser.add_argument("--work", nargs="+", choices=works, default=works)
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that all runs")
    parser.add_argument("--memory", action="store_true", help="only memory, in fresh processes")
    parser.add_argument("--vocab", type=int, help="another vocabulary for --memory")
    parser.add_argument("--csv", type=Path, nargs="?", const=Path(), help="append to PATH or to benches/results/...")
    options = parser.parse_args()
    options.repeats = options.repeats or (2 if options.quick else 7)
    return options


def main() -> None:
    """Prints the tables and keeps them if asked to."""
    options = options_of_command_line()
    torch.set_num_threads(options.threads)
    run = facts(options.threads)
    print_facts(run)
    path = options.csv
    if path == Path():
        path = results_folder(run) / f"{run['date'][:10]}-head.csv"
    for rows in run_all(options):
        if path is not None:
            append_csv(path, [{**run, **{name: row.get(name, "") for name in COLUMNS}} for row in rows])
    if path is not None:
        print(f"appended to {path}")


if __name__ == "__main__":
    main()

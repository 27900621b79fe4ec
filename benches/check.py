"""Has a kernel become slower? Ratios of xentrs to the plain read of the same memory, against those that were kept.

Usage: python benches/check.py [--keep] [--work nll all topk kl one-row] [--dtype float32 bfloat16 float16]
       [--threads N] [--repeats 7]

A ratio is GB/s of xentrs over GB/s of the faster read probe (ours or torch's `x.sum()`) by the medians of the same run,
at a vocabulary of 128,256. Below 80 % of the kept ratio the check fails with exit status 1. Machines are shared and
noisy: a ratio that is too low is measured again, and the best of three counts.

Kept ratios stand in benches/results/<machine>/ratios.json, an entry for each instruction set and thread count. --keep
writes this machine's entry anew: of three ratios the middle one, so that luck is not kept. Without an entry there is
nothing to hold to: a sentence says so, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xentrs as xe
from machine import enough_rows, facts, print_facts, results_folder
from measure import Work, fastest_probe, measure, ours
from works import WORKS, Case, make_case, one_row

VOCAB = 128_256
DTYPES = ("float32", "bfloat16", "float16")
CHECKED: dict[str, Callable[[Case], Work]] = {
    **{name: WORKS[name] for name in ("nll", "all", "topk", "kl")},
    "one-row": one_row,
}
ATTEMPTS = 3
LOWEST_PART = 0.8
HEADER = f"{'work':9}{'dtype':10}{'of probe':>9}{'kept':>9}{'of kept':>9}  {'':9}attempts"


@dataclass(frozen=True)
class Verdict:
    """The ratios measured for one work and dtype, and the one that was kept."""

    work: str
    dtype: str
    attempts: list[float]
    kept: float | None

    @property
    def failed(self) -> bool:
        """Whether even the best is too low."""
        return is_too_low(self.attempts, self.kept)

    def line(self) -> str:
        """The line of the table."""
        best = max(self.attempts)
        kept, part, word = ("", "", "not kept")
        if self.kept is not None:
            kept, part, word = f"{self.kept:.1%}", f"{best / self.kept:.1%}", "SLOWER" if self.failed else "ok"
        attempts = " ".join(f"{ratio:.1%}" for ratio in self.attempts)
        return f"{self.work:9}{self.dtype:10}{best:9.1%}{kept:>9}{part:>9}  {word:9}{attempts}"


def is_too_low(attempts: list[float], kept: float | None) -> bool:
    """Tells whether the best attempt falls short of the kept ratio."""
    return kept is not None and max(attempts) < LOWEST_PART * kept


def without_peers(work: Work) -> Work:
    """Leaves the probes and the call of xentrs."""
    probes = [tool for tool in work.tools if tool.is_probe]
    return replace(work, tools=[*probes, next(tool for tool in work.tools if not tool.is_probe)])


def ratio_to_probe(work: Work, repeats: int) -> float:
    """Measures a work once."""
    results = measure(work, repeats)
    return ours(results).bytes_per_second / fastest_probe(results).bytes_per_second


def verdicts(options: argparse.Namespace, kept: dict[str, dict[str, float]]) -> Iterator[Verdict]:
    """Measures each work, as often as its ratio calls for."""
    for dtype in options.dtype:
        case = make_case(enough_rows(VOCAB, getattr(torch, dtype).itemsize), VOCAB, dtype, options.threads)
        for name in options.work:
            work = without_peers(CHECKED[name](case))
            kept_ratio = kept.get(name, {}).get(dtype)
            attempts = [ratio_to_probe(work, options.repeats)]
            while len(attempts) < ATTEMPTS and (options.keep or is_too_low(attempts, kept_ratio)):
                attempts.append(ratio_to_probe(work, options.repeats))
            yield Verdict(name, dtype, attempts, kept_ratio)


def entry_name(run: dict[str, Any]) -> str:
    """Returns what the kept ratios of a run stand under."""
    return f"{run['isa']}, threads {run['threads']}"


def read_entries(path: Path) -> dict[str, Any]:
    """Returns all that is kept for this machine."""
    if not path.exists():
        return {}
    entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def keep(path: Path, run: dict[str, Any], repeats: int, measured: list[Verdict]) -> None:
    """Writes the entry of this run anew."""
    ratios: dict[str, dict[str, float]] = {}
    for verdict in measured:
        ratios.setdefault(verdict.work, {})[verdict.dtype] = round(statistics.median(verdict.attempts), 4)
    entry = {**run, "vocab": VOCAB, "repeats": repeats, "ratios": ratios}
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {**read_entries(path), entry_name(run): entry}
    path.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"kept in {path}")


def options_of_command_line() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Ratios to the read probe against those that were kept.")
    parser.add_argument("--keep", action="store_true", help="write the ratios of this machine anew")
    parser.add_argument("--work", nargs="+", choices=list(CHECKED), default=list(CHECKED))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--threads", type=int, default=xe.num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    is_whole = set(itertools.product(options.work, options.dtype)) == set(itertools.product(CHECKED, DTYPES))
    if options.keep and not (is_whole and options.repeats >= 7):
        parser.error(
            "--keep takes all works, all dtypes and at least 7 repeats, because an entry has one commit and date"
        )
    return options


def main() -> int:
    """Prints the table; returns the exit status."""
    options = options_of_command_line()
    torch.set_num_threads(options.threads)
    run = facts(options.threads)
    print_facts(run)
    path = results_folder(run) / "ratios.json"
    entry = read_entries(path).get(entry_name(run))
    if entry is None and not options.keep:
        print(f"nothing kept for {run['cpu']} with {run['cores']} cores, {entry_name(run)}; run with --keep")
        return 0
    if entry is not None:
        print(f"kept: commit {entry['commit']}, {entry['date']}")
    print(HEADER)
    measured = []
    with torch.inference_mode():
        for verdict in verdicts(options, entry["ratios"] if entry else {}):
            print(verdict.line(), flush=True)
            measured.append(verdict)
    if options.keep:
        keep(path, run, options.repeats, measured)
        return 0
    slower = [f"{verdict.work} {verdict.dtype}" for verdict in measured if verdict.failed]
    if slower:
        print(f"below {LOWEST_PART:.0%} of the kept ratio in {ATTEMPTS} attempts: {', '.join(slower)}")
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())

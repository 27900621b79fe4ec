"""What scores for detection cost on top of the nll, and against the formulas as reference repositories write them.

Usage: python benches/detect.py [--shape 2048x576x49152] [--document 256] [--dtype bfloat16 float32] [--threads N]
       [--repeats 7] [--csv [PATH]]

Rows of hidden states, cut into documents of --document tokens, go through the fused head. Start-up does not count; the
tools run in turn (measure.py) after their answers were compared.

- nll alone: `xe.linear_cross_entropy(..., reduction="none")`.
- statistics: `xe.linear_row_stats` with all that `xentrs score --tokens detect` keeps of a token.
- single-pass scores: the statistics, and every score of `xentrs.detect` that needs no other pass of the model, made of
  them. The target stands at 1.3 times the nll alone.
- with ACMIA: the same at the paper's 52 inverse temperatures besides, and its three scores.
- torch formulas: for each document logits, softmax, log_softmax, sums and argsort over tokens x vocabulary: loss,
  Min-K%, Min-K%++ and its unweighted variant, entropy, rank, log-rank, LRR, Renyi entropies, Gap-K%, SURP,
  Fast-DetectGPT, so fewer scores than above. The target is a tenth of its time.

Memory: the most that a call adds in a fresh process, beyond inputs and outputs (memory.py tells how).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xentrs as xe
from head_memory import Case, make_case
from machine import append_csv, facts, print_facts, results_folder
from measure import Tool, Work, measure
from memory import status_bytes
from xentrs.corpus.columns import statistics, statistics_options
from xentrs.corpus.settings import Columns
from xentrs.detect import ACMIA_INVERSE_TEMPERATURES, DocumentTokens, score_documents

SINGLE_PASS, WITH_ACMIA = Columns("detect"), Columns("detect", ACMIA_INVERSE_TEMPERATURES)
MOST_OVER_NLL, LEAST_OVER_TORCH = 1.3, 10.0
K, WINDOW, SURP_K, SURP_ENTROPY, RENYI_K = 0.2, 3, 0.4, 2.0, 0.1
# Of a score, relative to its size or 1; torch rounds bfloat16 logits, and a rank counts all that lie within rounding.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
NO_ANSWER = -100.0


def xentrs_scores(case: Case, length: int, threads: int, columns: Columns) -> dict[str, Any]:
    """Every score that these statistics give, one for each document."""
    options = statistics_options(columns)
    stats = xe.linear_row_stats(case.hidden, case.weight, case.targets, num_threads=threads, **options)
    found = {name: np.asarray(values) for name, values in statistics(stats, columns).items()}
    found["token_id"] = case.targets.numpy()
    counts = [length] * (len(case.targets) // length)
    return score_documents(DocumentTokens.from_columns(found, counts), "all").values


def torch_scores(case: Case, length: int) -> dict[str, Any]:
    """The formulas over tokens x vocabulary, one document at a time, signs as in `xentrs.detect`."""
    rows = [
        _torch_document(F.linear(hidden, case.weight).float(), targets)
        for hidden, targets in zip(case.hidden.split(length), case.targets.split(length), strict=True)
    ]
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def _torch_document(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    probs, log_probs = F.softmax(logits, dim=-1), F.log_softmax(logits, dim=-1)
    own = log_probs.gather(-1, targets[:, None])[:, 0]
    mean = (probs * log_probs).sum(-1)
    variance = (probs * torch.square(log_probs)).sum(-1) - torch.square(mean)
    entropy = -(probs * log_probs).sum(-1)
    order = torch.argsort(logits, dim=-1, descending=True)
    rank = 1 + (order == targets[:, None]).nonzero()[:, 1].float()
    normed = (own - mean) / variance.sqrt()
    gaps = ((own - log_probs.max(-1).values) / variance.sqrt()).unfold(0, WINDOW, 1).mean(-1)
    renyi_half, renyi_2 = 2.0 * torch.log(probs.pow(0.5).sum(-1)), -torch.log(probs.pow(2.0).sum(-1))
    surprising = own[(own <= _lowest(own, SURP_K)[-1]) & (entropy < SURP_ENTROPY)]
    return {
        "loss": own.mean(),
        "min-k": _lowest(own, K).mean(),
        "min-k++": _lowest(normed, K).mean(),
        "minkpp-unweighted": _lowest((own - log_probs.mean(-1)) / log_probs.std(-1), K).mean(),
        "gap-k": _lowest(gaps, K).mean(),
        "surp": surprising.mean() if len(surprising) else torch.tensor(NO_ANSWER),
        "renyi_0.5": _lowest(-renyi_half, RENYI_K).mean(),
        "renyi_1": _lowest(-entropy, RENYI_K).mean(),
        "renyi_2": _lowest(-renyi_2, RENYI_K).mean(),
        "renyi_inf": _lowest(log_probs.max(-1).values, RENYI_K).mean(),
        "entropy": entropy.mean(),
        "rank": -rank.mean(),
        "log-rank": -rank.log().mean(),
        "lrr": -own.mean() / rank.log().mean(),
        "fast-detectgpt": (own - mean).sum() / variance.sum().sqrt(),
    }


def _lowest(values: torch.Tensor, k: float) -> torch.Tensor:
    return values.sort().values[: max(1, int(k * len(values)))]


def calls(case: Case, length: int, threads: int) -> dict[str, Callable[[], Any]]:
    """The tools by name, ours first."""
    return {
        "single-pass scores": lambda: xentrs_scores(case, length, threads, SINGLE_PASS),
        "nll alone": lambda: xe.linear_cross_entropy(
            case.hidden, case.weight, case.targets, reduction="none", num_threads=threads
        ),
        "statistics": lambda: xe.linear_row_stats(
            case.hidden, case.weight, case.targets, num_threads=threads, **statistics_options(SINGLE_PASS)
        ),
        "with ACMIA": lambda: xentrs_scores(case, length, threads, WITH_ACMIA),
        "torch formulas": lambda: torch_scores(case, length),
    }


def check_answers(case: Case, length: int, threads: int) -> None:
    """Compare every score that both make, where reference code has an answer: Surp may have none.

    Raises:
        AssertionError: a score differs by more than the tolerance.
    """
    ours, theirs = xentrs_scores(case, length, threads, SINGLE_PASS), torch_scores(case, length)
    for name, values in theirs.items():
        has_answer = values != NO_ANSWER
        error = np.abs(ours[name] - values)[has_answer] / np.maximum(1.0, np.abs(values[has_answer]))
        largest = error.max(initial=0.0)
        assert largest <= TOLERANCE[case.dtype], f"{name} is off by {largest:.3g}, more than {TOLERANCE[case.dtype]}"


def run_case(case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Check, time and print one dtype; returns rows of the table."""
    rows, width, vocab = case.shape
    check_answers(case, options.document, options.threads)
    tools = [
        Tool(name, call, rows, rows * vocab * case.hidden.element_size())
        for name, call in calls(case, options.document, options.threads).items()
    ]
    results = {
        result.tool.name: result for result in measure(Work("detect", case.dtype, rows, vocab, tools), options.repeats)
    }
    ours, nll, torch_time = (results[name].median for name in ("single-pass scores", "nll alone", "torch formulas"))
    print(f"\n{case.dtype}, {rows}x{width}x{vocab}, documents of {options.document}, products {case.products_isa}")
    print(f"{'tool':20}{'ms min':>10}{'median':>10}{'max':>10}{'/ nll':>8}{'/ ours':>8}{'added MiB':>11}")
    table = []
    for name, result in results.items():
        added = measure_fresh(name, case, options)
        columns = {
            "dtype": case.dtype,
            "tool": name,
            "rows": rows,
            "width": width,
            "vocab": vocab,
            "document": options.document,
            "repeats": options.repeats,
            "ms_min": round(1e3 * min(result.seconds), 2),
            "ms_median": round(1e3 * result.median, 2),
            "ms_max": round(1e3 * max(result.seconds), 2),
            "over_nll": round(result.median / nll, 3),
            "over_ours": round(result.median / ours, 3),
            "added_mib": round(added / 2**20, 1),
        }
        table.append(columns)
        times = "".join(f"{columns[key]:10.1f}" for key in ("ms_min", "ms_median", "ms_max"))
        print(f"{name:20}{times}{result.median / nll:8.2f}{result.median / ours:8.2f}{added / 2**20:11.1f}", flush=True)
    over_nll, over_torch = ours / nll, torch_time / ours
    verdicts = ["met" if is_met else "MISSED" for is_met in (over_nll <= MOST_OVER_NLL, over_torch >= LEAST_OVER_TORCH)]
    print(f"single-pass scores take {over_nll:.2f} of the nll alone, target {MOST_OVER_NLL}: {verdicts[0]}")
    print(f"torch formulas take {over_torch:.1f} times as long, target {LEAST_OVER_TORCH:g}: {verdicts[1]}")
    return table


def measure_here(tool: str, options: argparse.Namespace) -> int:
    """Bytes that one call adds to the process, less what it returns (small)."""
    torch.set_num_threads(options.threads)
    rows, width, vocab = map(int, options.shape.split("x"))
    case = make_case(rows, width, vocab, options.dtype[0], options.threads)
    small = make_case(2 * WINDOW, width, 64, options.dtype[0], options.threads)
    calls(small, WINDOW, options.threads)[tool]()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that stays resident would hide what the call takes
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status_bytes("VmRSS")
    calls(case, options.document, options.threads)[tool]()
    return max(0, status_bytes("VmHWM") - before)


def measure_fresh(tool: str, case: Case, options: argparse.Namespace) -> int:
    """The same in a fresh process."""
    sizes = ("--shape", options.shape, "--document", str(options.document), "--threads", str(options.threads))
    command = [sys.executable, __file__, "--memory-of", tool, "--dtype", case.dtype, *sizes]
    return int(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def parse_options() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="2048x576x49152", help="rows x width x vocabulary")
    parser.add_argument("--document", type=int, default=256, help="tokens of a document; divides the rows")
    parser.add_argument("--dtype", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=xe.num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--csv", nargs="?", type=Path, const=True)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if int(options.shape.split("x")[0]) % options.document:
        parser.error(f"--document {options.document} does not divide the rows of --shape {options.shape}")
    return options


def main() -> None:
    """Measure every dtype."""
    options = parse_options()
    if options.memory_of is not None:
        print(measure_here(options.memory_of, options))
        return
    torch.set_num_threads(options.threads)
    run = facts(options.threads)
    print_facts(run)
    table = []
    for dtype in options.dtype:
        table += run_case(make_case(*map(int, options.shape.split("x")), dtype, options.threads), options)
    if options.csv is not None:
        path = results_folder(run) / f"{run['date'][:10]}-detect.csv" if options.csv is True else options.csv
        append_csv(path, [{**run, **row} for row in table])


if __name__ == "__main__":
    main()

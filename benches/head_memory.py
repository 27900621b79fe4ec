"""What head.py needs beside its table: inputs, their float64 truth, torch's options, accuracy, the memory of a call.

Usage: python benches/head_memory.py CALL [--rows 8192] [--width 2304] [--vocab 256000] [--threads N]; prints one JSON
object. CALL is `forward` (nll of each row) or `backward` (mean loss, gradients of hidden states and weights), bfloat16.

The process draws its inputs, makes the call once on 64 weights (imports, threads), gives freed memory back, sets its
peak back to its resident size and makes the call, as memory.py does. `call_bytes` is what the call added: the peak less
the resident size before, less its outputs or gradients. `process_bytes` is the largest peak less inputs and outputs or
gradients: torch itself is in it, and where a draw of inputs took more than the call, so is that.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import xentrs as xe
from memory import status_bytes
from works import make_logits

LCE = "torch F.linear_cross_entropy"
TRIAL_VOCAB, SLOW_SECONDS = 4096, 8.0  # of the trial of torch's options; what is slower does not run in turn
TARGET_MIB = {"forward": 64, "backward": 160}
BLOCK = 8192  # weights at a time where float64 is computed
CHECKED_ROWS = 4
ACCURACY_ROWS = 64
GRADIENT_SHAPE = (128, 512, 8192)
Policy = Literal["auto", "compact"]


@dataclass(frozen=True)
class Case:
    """Hidden states, a head and targets."""

    dtype: str
    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    threads: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, width and vocabulary."""
        return (*self.hidden.shape, len(self.weight))

    @cached_property
    def products_isa(self) -> str:
        """What the products are made with."""
        return str(xe.linear_row_stats(self.hidden[:1].detach(), self.weight[:16].detach()).isa)

    def columns(self) -> dict[str, Any]:
        """The CSV columns of this input."""
        shape = dict(zip(("rows", "width", "vocab"), self.shape, strict=True))
        return {"dtype": self.dtype, **shape, "products_isa": self.products_isa}

    def label(self) -> str:
        """The start of a line of a table."""
        return f"{self.dtype:9}{'x'.join(map(str, self.shape)):>16}  "


def make_side(rows: int, width: int, vocab: int, dtype: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws hidden states and weights whose logits have standard deviation 3, as those of works.py."""
    hidden = make_logits(rows, width, dtype, seed).mul_(1.0 / (3.0 * width**0.5))
    return hidden, make_logits(vocab, width, dtype, seed + 1)


def make_case(rows: int, width: int, vocab: int, dtype: str, threads: int) -> Case:
    """Draws an input; the seed is fixed."""
    targets = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(2))
    return Case(dtype, *make_side(rows, width, vocab, dtype, seed=0), targets, threads)


def exact_logits(hidden: torch.Tensor, weight: torch.Tensor, compute: torch.dtype = torch.float64) -> torch.Tensor:
    """The logits as float64, computed as `compute` by blocks, so that the whole head is never copied."""
    blocks = (F.linear(hidden.to(compute), block.to(compute)).double() for block in torch.split(weight, BLOCK))
    return torch.cat(list(blocks), dim=-1)


def exact_gradient(case: Case, rows: int) -> torch.Tensor:
    """The gradient of the first rows' summed nll with respect to their hidden states."""
    slopes = exact_logits(case.hidden[:rows], case.weight).softmax(-1)
    slopes[torch.arange(rows), case.targets[:rows]] -= 1
    pairs = zip(torch.split(slopes, BLOCK, dim=-1), torch.split(case.weight, BLOCK), strict=True)
    return torch.stack([slope @ block.double() for slope, block in pairs]).sum(0)


def nll_errors(case: Case) -> dict[str, float]:
    """The largest error of a row's nll, in the unit that head.py tells, for xentrs and torch's float32 product."""
    hidden, targets = case.hidden[:ACCURACY_ROWS], case.targets[:ACCURACY_ROWS]
    logits = exact_logits(hidden, case.weight)
    expected = F.cross_entropy(logits, targets, reduction="none")
    unit = 2.0**-24 * case.shape[1] ** 0.5 * logits.abs().amax(-1).clamp(min=1)
    found = {
        "nll, xentrs (unit: see head.py)": xe.linear_row_stats(
            hidden, case.weight, targets, num_threads=case.threads
        ).nll,
        "nll, torch float32 product, float64 statistics": F.cross_entropy(
            exact_logits(hidden, case.weight, torch.float32), targets, reduction="none"
        ),
    }
    return {tool: float(((nll - expected).abs() / unit).max()) for tool, nll in found.items()}


def gradient_errors(dtype: str, threads: int) -> dict[str, float]:
    """The norm of the error over the norm, for the gradients of a small head."""
    case = make_case(*GRADIENT_SHAPE, dtype, threads)
    targets = case.targets
    calls: dict[str, Any] = {
        "xentrs": lambda h, w: xe.linear_cross_entropy(h, w, targets, num_threads=threads),
        "xentrs, filter and order": lambda h, w: xe.linear_cross_entropy(
            h, w, targets, filter_eps="auto", order_vocabulary=True, num_threads=threads
        ),
        "torch F.linear + cross_entropy": lambda h, w: F.cross_entropy(F.linear(h, w).float(), targets),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        calls["torch F.linear_cross_entropy Options()"] = lambda h, w: F.linear_cross_entropy(
            h, w, targets, options=options
        )
    double = [x.double() for x in (case.hidden, case.weight)]
    truth = gradients(lambda h, w: F.cross_entropy(F.linear(h, w), targets), double)
    errors = {}
    for tool, call in calls.items():
        found = gradients(call, [case.hidden, case.weight])
        for name, is_, expected in zip(("hidden", "weight"), found, truth, strict=True):
            errors[f"d {name}, {tool}"] = float((is_.double() - expected).norm() / expected.norm())
    return errors


def gradients(call: Any, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The gradients of a loss with respect to its inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(call(*leaves), leaves)


def peers_of_torch(case: Case, call: Callable[..., Any]) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """Returns F.linear_cross_entropy without options, and with those that were fastest in a trial on few weights."""
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return {}, [f"{LCE}: skipped, this torch has none"]
    rows, width, vocab = case.shape
    default = min(rows, 1 << (math.ceil(rows / math.ceil(vocab / width)) - 1).bit_length())  # as torch documents it
    sizes = sorted({default, max(rows // 4, 1), rows}, reverse=True)
    policies: tuple[Policy, ...] = ("auto", "compact") if case.dtype == "bfloat16" else ("auto",)
    weight, targets = case.weight[:TRIAL_VOCAB], case.targets % min(TRIAL_VOCAB, vocab)
    seconds: dict[tuple[int, Policy], float] = {}
    for size, policy in [(rows, "auto"), *itertools.product(sizes, policies)]:  # the first one warms up
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=size, acc_policy=policy)
        start = time.perf_counter()
        call(weight, targets, options)
        seconds[size, policy] = (time.perf_counter() - start) * vocab / len(weight)
    size, policy = min(seconds, key=lambda key: seconds[key])
    chosen = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=size, acc_policy=policy)
    peers: dict[str, Callable[[], Any]] = {
        f"{LCE} options=None": lambda: call(case.weight, case.targets, None),
        f"{LCE} chunk={size}, {policy}": lambda: call(case.weight, case.targets, chosen),
    }
    is_slow = seconds[default, "auto"] > SLOW_SECONDS
    if not is_slow and (size, policy) != (default, "auto"):
        options = torch.nn.LinearCrossEntropyOptions()
        peers[f"{LCE} Options()"] = lambda: call(case.weight, case.targets, options)
    trial = ", ".join(f"chunk {key[0]} {key[1]} {taken:.2f} s" for key, taken in seconds.items())
    note = f"torch's options by a trial on {len(weight)} weights, scaled: {trial}; Options() is chunk {default} auto"
    return peers, [note + ", too slow to run in turn" * is_slow]


def run_accuracy(case: Case) -> list[dict[str, Any]]:
    """Prints and returns the errors of one input, and of gradients of its dtype."""
    small = "x".join(map(str, GRADIENT_SHAPE))
    rows = []
    for tool, error in nll_errors(case).items():
        print(f"accuracy {case.label()}{tool:51}{error:10.3g}", flush=True)
        rows.append({"work": "accuracy", **case.columns(), "tool": tool, "repeats": 1, "error": f"{error:.4g}"})
    for tool, error in gradient_errors(case.dtype, case.threads).items():
        print(f"accuracy {case.dtype:9}{small:>16}  {tool:51}{error:10.3g}", flush=True)
        shape = dict(zip(("rows", "width", "vocab"), GRADIENT_SHAPE, strict=True))
        rows.append({**rows[0], **shape, "tool": tool, "error": f"{error:.4g}"})
    return rows


def run_memory(rows: int, width: int, vocab: int, threads: int) -> list[dict[str, Any]]:
    """Prints and returns the memory of forward and of forward and backward."""
    print(f"memory, bfloat16, {rows}x{width}x{vocab}, MiB by peak resident size (head_memory.py)")
    print(f"{'call':20}{'added by the call':>18}{'target':>8}{'':9}{'whole process':>14}{'of the call, s':>16}")
    columns = []
    for call, target in TARGET_MIB.items():
        found = measure_fresh(call, rows, width, vocab, threads)
        added, whole = (found[name] / 2**20 for name in ("call_bytes", "process_bytes"))
        verdict = "  met" if added <= target else "  MISSED"
        print(f"{call:20}{added:18.1f}{target:8}{verdict:9}{whole:14.1f}{found['s_median']:16.1f}", flush=True)
        columns.append({"work": "memory", "dtype": "bfloat16", "tool": f"xe {call}", "repeats": 1, **found})
    return columns


def measure_here(call: str, rows: int, width: int, vocab: int, threads: int) -> dict[str, Any]:
    """Makes the call in this process."""
    torch.set_num_threads(threads)
    case = make_case(rows, width, vocab, "bfloat16", threads)
    make = loss_of_each if call == "forward" else backward
    make(case.hidden[:1].clone(), case.weight[:64].clone(), torch.zeros(1, dtype=torch.int64), threads)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that stays resident would hide what the call takes
    earlier_peak = status_bytes("VmHWM")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, start = status_bytes("VmRSS"), time.perf_counter()
    outputs = sum(x.nbytes for x in make(case.hidden, case.weight, case.targets, threads))
    taken, peak = time.perf_counter() - start, status_bytes("VmHWM")
    inputs = case.hidden.nbytes + case.weight.nbytes + case.targets.nbytes
    shape = {"rows": rows, "width": width, "vocab": vocab, "products_isa": case.products_isa}
    sizes = {
        "call_bytes": max(peak - before - outputs, 0),
        "process_bytes": max(peak, earlier_peak) - inputs - outputs,
    }
    return {**shape, "s_median": round(taken, 3), **sizes}


def loss_of_each(hidden: Any, weight: Any, targets: Any, threads: int) -> list[torch.Tensor]:
    """The nll of each row."""
    return [xe.linear_cross_entropy(hidden, weight, targets, reduction="none", num_threads=threads)]


def backward(hidden: Any, weight: Any, targets: Any, threads: int) -> list[torch.Tensor]:
    """The gradients of the mean loss."""
    hidden.requires_grad_(), weight.requires_grad_()
    xe.linear_cross_entropy(hidden, weight, targets, num_threads=threads).backward()
    return [hidden.grad, weight.grad]


def measure_fresh(call: str, rows: int, width: int, vocab: int, threads: int) -> dict[str, Any]:
    """Makes the call in a fresh process."""
    sizes = ["--rows", str(rows), "--width", str(width), "--vocab", str(vocab), "--threads", str(threads)]
    done = subprocess.run([sys.executable, __file__, call, *sizes], check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def main() -> None:
    """Measures one call and prints the figures."""
    parser = argparse.ArgumentParser(description="Memory of one call of the fused head.")
    parser.add_argument("call", choices=TARGET_MIB)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--vocab", type=int, default=256_000)
    parser.add_argument("--threads", type=int, default=xe.num_threads())
    options = parser.parse_args()
    print(json.dumps(measure_here(options.call, options.rows, options.width, options.vocab, options.threads)))


if __name__ == "__main__":
    main()

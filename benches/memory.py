"""How much memory a call takes beyond its inputs and outputs, each call in a fresh process.

Usage: python benches/memory.py TOOL [--rows 512] [--vocab 128256] [--threads N]; prints one JSON object.

The process makes its inputs in place, runs the tool on one row of 8 logits (imports, threads), sets its peak back to
its present resident size (5 into /proc/self/clear_refs), makes the call and reads the peak: VmHWM in /proc/self/status.
That is the `ru_maxrss` of getrusage without its fault, that a process inherits the peak of the one which started it,
here one with torch in it. `call_bytes` is the peak less the resident size before the call (VmRSS) and less the outputs:
what the call added. `process_bytes` is the largest peak less inputs and outputs: it holds the interpreter and its
libraries too. Where the peak cannot be set back, `call_bytes` is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

TOOLS = ("xe.cross_entropy", "xe.row_stats", "torch cross_entropy", "torch Min-K%++ formula")


def xentrs_call(tool: str, threads: int) -> Callable[[Any, Any], Any]:
    """Returns a call that takes numpy arrays; torch is not loaded."""
    import xentrs as xe

    if tool == "xe.cross_entropy":
        return lambda x, t: xe.cross_entropy(x, t, reduction="none", num_threads=threads)
    return lambda x, t: xe.row_stats(x, t, num_threads=threads)


def torch_call(tool: str, threads: int) -> Callable[[Any, Any], Any]:
    """Returns a call that takes the same arrays as tensors that share their memory."""
    import torch
    from works import min_k_plus_plus, torch_nll

    torch.set_num_threads(threads)
    call = torch_nll if tool == "torch cross_entropy" else min_k_plus_plus
    return lambda x, t: call(torch.from_numpy(x), torch.from_numpy(t))


def status_bytes(name: str) -> int:
    """Returns a size of this process: VmRSS is resident now, VmHWM the most that was."""
    match = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None, name
    return int(match[1]) << 10


def output_bytes(result: Any) -> int:
    """Returns the size of the arrays of a result."""
    if hasattr(result, "nbytes"):
        return int(result.nbytes)
    return sum(output_bytes(value) for value in vars(result).values() if hasattr(value, "nbytes"))


def measure_here(tool: str, rows: int, vocab: int, threads: int) -> dict[str, Any]:
    """Makes the call in this process."""
    generator = np.random.default_rng(0)
    call = (xentrs_call if tool.startswith("xe.") else torch_call)(tool, threads)
    logits = np.empty((rows, vocab), dtype=np.float32)
    generator.standard_normal(dtype=np.float32, out=logits)
    targets = generator.integers(vocab, size=rows)
    call(logits[:1, :8].copy(), np.zeros(1, dtype=np.int64))
    earlier_peak = status_bytes("VmHWM")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status_bytes("VmRSS")
    result = call(logits, targets)
    peak = status_bytes("VmHWM")
    outputs = output_bytes(result)
    return {
        "tool": tool,
        "rows": rows,
        "vocab": vocab,
        "threads": threads,
        "call_bytes": max(peak - before - outputs, 0),
        "process_bytes": max(peak, earlier_peak) - logits.nbytes - targets.nbytes - outputs,
        "output_bytes": outputs,
    }


def measure_fresh(tool: str, rows: int, vocab: int, threads: int) -> dict[str, Any]:
    """Makes the call in a fresh process."""
    sizes = ["--rows", str(rows), "--vocab", str(vocab), "--threads", str(threads)]
    command = [sys.executable, __file__, tool, *sizes]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def main() -> None:
    """Measures one tool and prints the figures."""
    parser = argparse.ArgumentParser(description="Memory of one call beyond its inputs and outputs.")
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(measure_here(options.tool, options.rows, options.vocab, options.threads)))


if __name__ == "__main__":
    main()

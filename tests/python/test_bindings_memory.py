"""Memory above inputs and outputs: peaks of fresh processes; logits are neither copied nor widened."""

from __future__ import annotations

import pytest
from test_bindings_process import must_succeed

MEMORY = """
import numpy as np
import xentrs as xe
def mebibytes(field):
    # Of this address space: getrusage's ru_maxrss is inherited from the process that started us.
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) / 1024
def above(call):
    xe.row_stats(np.zeros((64, 5000), np.float32), np.zeros(64, np.int64))
    before = mebibytes("VmRSS")
    result = call()
    print(mebibytes("VmHWM") - before)
"""


def test_memory_above_inputs_and_outputs() -> None:
    """512 rows of 128,256 float32: at most 64 MiB."""
    out = must_succeed(
        """
        logits = np.ones((512, 128_256), np.float32)
        above(lambda: xe.row_stats(logits, np.arange(512), top_k=5))
    """,
        prelude=MEMORY,
    )
    assert float(out) <= 64


ONES = "np.ones((1024, 32_768), np.float32)"
CALLS = {
    "B1-numpy": (ONES, "xe.row_stats(logits)"),
    "B1-bfloat16": ("np.ones((2048, 32_768), ml_dtypes.bfloat16)", "xe.row_stats(logits)"),
    "B1-kl": ("np.ones((2, 512, 32_768), np.float32)", "xe.kl_divergence(logits[0], logits[1])"),
    "B1-read-only": (f"np.frombuffer({ONES}.data, np.float32).reshape(1024, -1)", "xe.entropy(logits)"),
    "B2-fortran": ("np.ones((32_768, 1024), np.float32).T", "xe.row_stats(logits)"),
    "B2-slice": ("np.ones((1024, 65_536), np.float16)[:, ::2]", "xe.row_stats(logits)"),
    "B5-misaligned": (
        "np.ones(2**27 + 1, np.uint8)[1:].view(np.float32).reshape(1024, -1)",
        "xe.logsumexp(logits)",
    ),
    "B18-torch": ("torch.ones(1024, 32_768)", "xe.row_stats(logits)"),
    "B18-torch-bfloat16": ("torch.ones(2048, 32_768, dtype=torch.bfloat16)", "xe.row_stats(logits)"),
    "shift": (
        "np.ones((4, 256, 32_768), np.float32)",
        "xe.row_stats(logits, np.ones((4, 256), int), shift=1)",
    ),
}


@pytest.mark.parametrize(("logits", "call"), CALLS.values(), ids=list(CALLS))
def test_no_copy(logits: str, call: str) -> None:
    """128 MiB of logits; a copy of half of them would show. A row for each thread may be gathered."""
    code = f"import ml_dtypes, torch\nlogits = {logits}\nabove(lambda: {call})"
    assert float(must_succeed(code, prelude=MEMORY)) <= 24

"""The same bits on every instruction set, and with denormals flushed.

Run as a script this module prints one hash for each (table row, dtype, vocabulary), of every field of the
results. The tests run it with XENTRS_ISA set and compare with what the default instruction set printed.
test_edge_lse.py and its neighbours hold that one to the reference, so equal bits carry the whole table over.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pytest
import reference as ref
import xentrs as xe
from reference import Array
from test_edge_lse import CASES, SMALL, noise, positions, some_negative_infinity

FLOAT_FIELDS: Final = [
    *("lse", "nll", "log_prob", "entropy"),
    *("varentropy", "max_logit", "margin", "sum_sq_prob"),
]
FIELDS: Final = [*FLOAT_FIELDS, *["argmax", "rank", "ties", "flags", "top_log_probs", "top_ids"]]
ISAS: Final = ("avx512", "avx2", "scalar")
FLUSH = "--flush-denormals"


def same_bytes(values: Any) -> bytes:
    """The bits, but one NaN: its payload is not promised."""
    array = np.asarray(values)
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.nan, array)
    return bytes(array.dtype.str.encode() + np.ascontiguousarray(array).tobytes())


def digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(same_bytes(array) for array in arrays)).hexdigest()[:16]


def calling(function: Callable[..., Any], *arguments: Any, flush: bool, **options: Any) -> Any:
    """The call alone runs with FTZ and DAZ: numpy would flush the subnormals while it makes the inputs."""
    if not flush:
        return function(*arguments, **options)
    import torch

    assert torch.set_flush_denormal(True)
    assert float(torch.tensor(1e-40) * 1) == 0.0
    try:
        return function(*arguments, **options)
    finally:
        torch.set_flush_denormal(False)


def stats_digest(logits: Array, flush: bool, **options: Any) -> str:
    vocab = logits.shape[-1]
    targets = np.resize(positions(vocab), len(logits))
    stats = calling(xe.row_stats, logits, targets, top_k=min(vocab, 5), flush=flush, **options)
    return digest(*(getattr(stats, field) for field in FIELDS))


def state_digest(logits: Array, flush: bool) -> str:
    """Chunks that end inside leaves, in reverse; then the second half merged."""
    vocab, targets = logits.shape[1], np.resize(positions(logits.shape[1]), len(logits))
    states = [xe.RowStatsState(vocab, targets, logits[np.arange(len(logits)), targets]) for _ in range(2)]
    middle = vocab // 2
    for start in reversed(range(0, vocab, 3000)):
        for state, low, high in ((states[0], 0, middle), (states[1], middle, vocab)):
            span = max(start, low), min(start + 3000, high)
            if span[0] < span[1]:
                calling(state.update, logits[:, span[0] : span[1]], span[0], flush=flush)
    calling(states[0].merge_state, states[1], flush=flush)
    stats = calling(states[0].compute, flush=flush)
    return digest(*(getattr(stats, field) for field in FIELDS))


def peaked(vocab: int, dtype: np.dtype[Any]) -> Array:
    """Maximum at a target position, the rest 20 to 110 below: underflow and log1p of small sums."""
    logits = (ref.decode(noise(vocab, dtype, len(positions(vocab)), 20.0)) - 60).astype(dtype)
    logits[np.arange(len(logits)), positions(vocab)] = 0.0
    return logits


def divergence_pairs(vocab: int, dtype: np.dtype[Any]) -> Iterator[tuple[str, Array, Array]]:
    p_logits, q_logits = noise(vocab, dtype, 3), noise(vocab, dtype, 4)[1:]
    yield "far", p_logits, q_logits
    yield "near", p_logits, np.nextafter(p_logits.astype(np.float32), np.float32(9)).astype(dtype)
    yield "masked", some_negative_infinity(vocab, dtype), q_logits
    yield "support", p_logits, some_negative_infinity(vocab, dtype)


def all_digests(flush: bool) -> dict[str, str]:
    """One entry for each table row, dtype and vocabulary."""
    found: dict[str, str] = {}
    with np.errstate(all="ignore"):
        for name, dtype in ref.DTYPES.items():
            for row, case in CASES.items():
                for vocab in case.vocabs:
                    found[f"{row} {name} {vocab}"] = stats_digest(case.build(vocab, dtype), flush)
            for row in ("L1", "L17", "L19"):
                for vocab in (17, 4097, 20_000):
                    found[f"state {row} {name} {vocab}"] = state_digest(CASES[row].build(vocab, dtype), flush)
            for vocab in (*SMALL, 32_000):
                if vocab > 1:
                    found[f"peaked {name} {vocab}"] = stats_digest(peaked(vocab, dtype), flush)
                logits = noise(vocab, dtype, 3)
                for options in (
                    {"temperature": 0.7},
                    {"softcap": 30.0},
                    {"softcap": 5.0, "temperature": 1.3},
                ):
                    found[f"{options} {name} {vocab}"] = stats_digest(logits, flush, **options)
                for label, p_logits, q_logits in divergence_pairs(vocab, dtype):
                    both = calling(xe.kl_divergence, p_logits, q_logits, flush=flush, return_flags=True)
                    found[f"kl-{label} {name} {vocab}"] = digest(*both)
    return found


@functools.cache
def digests_of(isa: str | None, *options: str) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "XENTRS_ISA"}
    if isa is not None:
        environment["XENTRS_ISA"] = isa
    command = [sys.executable, __file__, *options]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, str] = json.loads(ended.stdout)
    assert isa is None or answer.pop("isa") == isa
    answer.pop("isa", None)
    return answer


def assert_same(one: dict[str, str], other: dict[str, str]) -> None:
    assert len(one) > 1000
    assert [key for key in one if one[key] != other.get(key)] == []


@pytest.mark.parametrize("isa", ISAS)
def test_every_table_row_has_the_same_bits(isa: str) -> None:
    if isa not in xe.available_isas():
        pytest.skip(f"this machine lacks {isa}: it has {', '.join(xe.available_isas())}")
    assert_same(digests_of(None), digests_of(isa))


@pytest.mark.parametrize("isa", ISAS)
def test_l19_b26_flushed_denormals_change_no_bit(isa: str) -> None:
    """FTZ and DAZ are set from the first call on: threads made by it inherit them."""
    if isa not in xe.available_isas():
        pytest.skip(f"this machine lacks {isa}: it has {', '.join(xe.available_isas())}")
    assert_same(digests_of(None), digests_of(isa, FLUSH))


def test_available_isas_are_ordered_and_complete() -> None:
    available = xe.available_isas()
    assert available[-1] == "scalar" or available[0] == "scalar"
    assert set(available) <= set(ISAS)
    assert xe.isa() in available


def main() -> None:
    print(json.dumps({"isa": xe.isa(), **all_digests(FLUSH in sys.argv)}))


if __name__ == "__main__":
    main()

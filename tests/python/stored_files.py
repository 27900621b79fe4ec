"""Files of random logits and targets for the tests of stored tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from xentrs.corpus.run import CorpusResult, Silent, run_job
from xentrs.corpus.stored import stored_job

VOCAB = 40
FLOATS = (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)


def random_logits(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(7).normal(scale=3, size=(*shape, VOCAB)).astype(dtype)


def random_targets(*shape: int) -> Any:
    targets = np.random.default_rng(8).integers(0, VOCAB, shape)
    targets[..., 2] = -100
    return targets


def save(path: Path, array: Any) -> str:
    """As .npy, or by that ending as .safetensors."""
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        save_file({"x": np.ascontiguousarray(array)}, path)
    return str(path)


def run(tmp_path: Path, logits: Any, targets: Any, name: str = "a.npy", **options: Any) -> CorpusResult:
    job = stored_job([save(tmp_path / name, logits)], [save(tmp_path / "targets.npy", targets)], **options)
    return run_job(job, None, Silent())

"""The plain definitions in float64, beside what `xentrs detect` made of the same documents.

In: a model folder, texts, scores. Out: checks: log-probability, expected log-probability and its deviation within 1e-4
relative, ranks exact but where two logits are closer than float32 tells, and the same order of documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from checks import Findings
from scipy.stats import kendalltau
from scored import Scored
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

K = 0.2
CLOSE = 1e-4


def agrees(findings: Findings, folder: Path, documents: Mapping[str, str], scored: Scored) -> None:
    """Loss, Min-K%++, entropy and rank of each document."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    plain: dict[str, list[float]] = {"loss": [], "min-k++": [], "entropy": [], "rank": []}
    for text in documents.values():
        for name, value in _plain_scores(model, tokenizer.encode(text).ids).items():
            plain[name].append(value)
    for name, values in plain.items():
        ours, theirs = scored.of(name, documents), np.array(values)
        error = float(np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs))))
        tau = float(kendalltau(ours, theirs).statistic)
        figure = f"{len(theirs)} documents, largest error {error:.1e}, Kendall tau {tau:.5f}"
        findings.check(
            f"float64 referee, {name}", f"{figure}, expected {CLOSE:g}, 0.9999", error <= CLOSE and tau > 0.9999
        )


@torch.no_grad()
def _plain_scores(model: torch.nn.Module, ids: list[int]) -> dict[str, float]:
    logits = model(torch.tensor([ids])).logits[0, :-1]
    targets = torch.tensor(ids[1:])[:, None]
    log_probs = torch.log_softmax(logits, dim=-1)
    probs = log_probs.exp()
    own = log_probs.gather(1, targets)[:, 0]
    mean = (probs * log_probs).sum(-1)
    deviation = ((probs * log_probs.square()).sum(-1) - mean.square()).clamp_min(0.0).sqrt()
    lowest = ((own - mean) / deviation).sort().values[: max(1, int(K * len(own)))]
    rank = 1 + (log_probs > own[:, None]).sum(-1)
    return {
        "loss": float(own.mean()),
        "min-k++": float(lowest.mean()),
        "entropy": float(-mean.mean()),
        "rank": -float(rank.double().mean()),
    }

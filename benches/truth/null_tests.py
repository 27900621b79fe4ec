"""Do the tests keep their promises where nothing is to be found, and find what is there?

In: scores of documents that no model read, and of a model's members. Out: checks: p-values are uniform over random
splits of documents that are alike, dataset inference errs as often as it says and finds the set that was read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from checks import Findings
from scipy.stats import kstest
from scored import Scored
from xentrs.detect.dataset_tests import dataset_inference
from xentrs.detect.decisions import conformal_p_values

FEATURES = ("loss", "zlib", "lowercase", "min-k", "min-k++", "gap-k", "surp")
SPLITS, PERMUTATIONS = 200, 199
ALPHA = 0.05
LEAST_P_VALUE = 0.001  # of the test of uniformity itself


def conformal_is_uniform(findings: Findings, scored: Scored, ids: Sequence[str], seed: int) -> None:
    """In each split one document, drawn at random, is tested against half of the others."""
    draw = np.random.default_rng(seed)
    values = scored.of("min-k++", ids)
    p_values = []
    for split in range(SPLITS):
        order = draw.permutation(len(values))
        tested, reference = values[order[:1]], values[order[1 : len(values) // 2]]
        p_values.append(conformal_p_values(tested, reference, ties="randomised", seed=split).p_values[0])
    _check_uniform(findings, "conformal p-values of non-members", np.array(p_values))


def dataset_inference_keeps_its_level(
    findings: Findings, scored: Scored, ids: Sequence[str], what: str, seed: int
) -> None:
    """Halves of one set, drawn at random, as suspect and validation."""
    draw = np.random.default_rng(seed)
    features = _features(scored, ids)
    tests = []
    for split in range(SPLITS):
        order = draw.permutation(len(features))
        suspect, validation = np.array_split(features[order], 2)
        found = dataset_inference(suspect, validation, splits=1, permutations=PERMUTATIONS, seed=split)
        tests.append((found.permutation_p_value, found.welch_p_value))
    permutation, welch = np.array(tests).T
    _check_uniform(findings, f"dataset inference, permutation test, {what}", permutation)
    _check_uniform(findings, f"dataset inference, Welch's test, {what}", welch)
    most = ALPHA + 2.0 * math.sqrt(ALPHA * (1.0 - ALPHA) / SPLITS)
    for name, p_values in (("permutation", permutation), ("Welch", welch)):
        share = float((p_values <= ALPHA).mean())
        figure = f"{share:.3f} of {SPLITS} splits at most {ALPHA}, expected at most {most:.3f}"
        findings.check(f"dataset inference, type-I error, {name}, {what}", figure, share <= most)


def dataset_inference_finds(
    findings: Findings, scored: Scored, suspect: Sequence[str], validation: Sequence[str], what: str
) -> None:
    """A set that the model read, with the settings of the command."""
    found = dataset_inference(_features(scored, suspect), _features(scored, validation), seed=0)
    figure = f"permutation p {found.permutation_p_value:.4f}, Welch p {found.welch_p_value:.1e}, expected below {ALPHA}"
    findings.check(f"dataset inference, {what}", figure, found.permutation_p_value < ALPHA)


def _features(scored: Scored, ids: Sequence[str]) -> Any:
    return np.stack([scored.of(name, ids) for name in FEATURES], axis=1)


def _check_uniform(findings: Findings, what: str, p_values: Any) -> None:
    """The Kolmogorov-Smirnov distance from the uniform distribution; p-values on a grid lie up to a step above it."""
    found = kstest(p_values, "uniform")
    figure = f"{len(p_values)} splits, mean {p_values.mean():.3f}, KS p {found.pvalue:.3f}, expected uniform"
    findings.check(what, figure, found.pvalue > LEAST_P_VALUE)

"""Dataset inference: was this set of documents, as a whole, in the training data?

In: features (membership scores) of the suspect documents and of validation documents that come from the same source but
cannot have been trained on. Out: `DatasetInference` with a p-value of Welch's test and one of a permutation test. Needs
scipy, of the extra `detect`.

After Maini, Jia, Papernot and Dziedzic (LLM Dataset Inference, arXiv 2406.06443): one half of both sets fits a linear
combination of the features, the other half is tested. Here the halves are honest: means, deviations and clipping limits
of the features are those of the fitting half and are applied alike to both sets of the tested half, so that the tested
documents have no say in what they are tested with.

What it means. Under the null the tested documents of both sets are exchangeable, and the permutation test is exact at
any size; Welch's test holds approximately. A small p-value says that the sets differ in their scores. That is evidence
of training only as far as the validation set differs from the suspect set in nothing else: run the same test with a
model that cannot have seen either, or the blind baseline, beside it. The order test of a benchmark, which needs no
validation set, is in `xentrs.detect.benchmark_order`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn, column_of, count_of, optional_module, table_of
from xentrs.detect.random_draws import Draws
from xentrs.errors import ParamError, ShapeError

FEWEST_DOCUMENTS = 10
"""Of each set, so that halves hold five."""
COMBINATION = "twice the median over the splits, at most 1"
_STREAM = 2
_BLOCK_WORDS = 1 << 22  # random words drawn at once
_ROUNDING = 1e-12


@dataclass(frozen=True)
class SplitTest:
    """One split into halves, tested on the half that was not fitted."""

    suspect_tested: int
    validation_tested: int
    difference: float
    """Mean combined score of the suspect documents less that of the validation documents."""
    t: float | None
    """Welch's statistic; None where neither set varies, and its p-value is then 1."""
    welch_p_value: float
    permutation_p_value: float


@dataclass(frozen=True)
class DatasetInference:
    """Whether the suspect set scores higher than the validation set; both p-values are one-sided."""

    permutation_p_value: float
    welch_p_value: float
    combination: str
    """How the p-values of the splits became one."""
    splits: tuple[SplitTest, ...]
    permutations: int
    seed: int
    features: tuple[str, ...]
    weights: tuple[float, ...]
    """Weight of each feature in deviations, the mean over the splits."""
    suspect_documents: int
    validation_documents: int
    suspect_left_out: int
    """Suspect documents with a feature that is not finite."""
    validation_left_out: int

    def block(self) -> dict[str, Any]:
        """Plain data without NaN."""
        return asdict(self) | {
            "splits": [
                asdict(split) | {"t_reason": "no_variance" if split.t is None else None} for split in self.splits
            ],
            "features": list(self.features),
            "weights": list(self.weights),
        }

    def __repr__(self) -> str:
        """Says p-values and sizes."""
        return (
            f"DatasetInference(permutation p = {self.permutation_p_value:.4g}, Welch p = {self.welch_p_value:.4g}, "
            f"{self.suspect_documents} suspect and {self.validation_documents} validation documents, "
            f"{len(self.splits)} splits, seed {self.seed})"
        )


def dataset_inference(
    suspect: Any,
    validation: Any,
    *,
    splits: int = 11,
    permutations: int = 999,
    clip: float = 0.025,
    ridge: float = 0.1,
    seed: int = 0,
) -> DatasetInference:
    """Test whether the suspect set scores higher than the validation set.

    Both are a mapping of feature names to one number for each document, or an array `(documents, features)`. Each split
    halves both sets at random. On the fitting half features are clipped at their quantiles `clip` and `1 - clip`,
    scaled to mean 0 and deviation 1, and combined by least squares with the penalty `ridge` (in the units of their
    correlation matrix), towards suspect. The permutation test compares the difference of means with `permutations`
    exchanges of the labels: (1 + #{as large}) / (1 + permutations).

    A p-value of several splits is twice their median, the lower one of an even number (at most 1): whatever the
    dependence of the splits, P(it <= a) <= a (Meinshausen, Meier and Buehlmann, J. Amer. Statist. Assoc. 104, 2009;
    2 is 1 over the quantile's level). One split stands for itself. Choose the number of splits before you look.

    Documents with a feature that is not finite are left out and counted.

    Raises:
        ParamError: a set has fewer than 10 documents with all features; no feature; a setting outside its range.
        ShapeError: the sets have other features, or a set's features another number of documents.
        DTypeError: no numbers.

    >>> validation = np.arange(60.0).reshape(30, 2) % 7
    >>> dataset_inference(validation + 4.0, validation).permutation_p_value < 0.05
    True
    """
    count_of(splits, "splits")
    count_of(permutations, "permutations")
    if not 0.0 <= clip < 0.5:
        raise ParamError(f"clip = {clip!r} is outside [0, 0.5)")
    if not (ridge > 0.0 and math.isfinite(ridge)):
        raise ParamError(f"ridge = {ridge!r} is outside (0, inf)")
    names, (suspect_table, validation_table) = _tables(suspect, validation)
    suspect_rows = _with_all_features(suspect_table, "suspect", names)
    validation_rows = _with_all_features(validation_table, "validation", names)
    draws = Draws(seed, _STREAM)
    tests, weights = [], np.zeros(len(names))
    for _ in range(splits):
        test, split_weights = _one_split(suspect_rows, validation_rows, draws, permutations, clip, ridge)
        tests.append(test)
        weights += split_weights / splits
    return DatasetInference(
        permutation_p_value=combined_p_value([test.permutation_p_value for test in tests]),
        welch_p_value=combined_p_value([test.welch_p_value for test in tests]),
        combination=COMBINATION if splits > 1 else "one split",
        splits=tuple(tests),
        permutations=permutations,
        seed=seed,
        features=names,
        weights=tuple(weights.tolist()),
        suspect_documents=len(suspect_rows),
        validation_documents=len(validation_rows),
        suspect_left_out=len(suspect_table) - len(suspect_rows),
        validation_left_out=len(validation_table) - len(validation_rows),
    )


def combined_p_value(p_values: Sequence[float]) -> float:
    """Twice the median, the lower one of an even number, and at most 1; a single one as it is."""
    if len(p_values) == 1:
        return p_values[0]
    return min(1.0, 2.0 * sorted(p_values)[(len(p_values) + 1) // 2 - 1])


def _tables(suspect: Any, validation: Any) -> tuple[tuple[str, ...], list[FloatColumn]]:
    if isinstance(suspect, Mapping) and isinstance(validation, Mapping):
        if set(suspect) != set(validation) or not suspect:
            raise ShapeError(
                f"suspect has the features {', '.join(suspect) or 'none'} and validation "
                f"{', '.join(validation) or 'none'}: expected the same, at least one"
            )
        names = tuple(suspect)
        return names, [
            _stack(features, names, side) for features, side in ((suspect, "suspect"), (validation, "validation"))
        ]
    tables = [table_of(suspect, "suspect"), table_of(validation, "validation")]
    counts = [table.shape[1] for table in tables]
    if counts[0] != counts[1] or counts[0] == 0:
        raise ShapeError(f"suspect has {counts[0]} features and validation {counts[1]}: expected as many, at least one")
    return tuple(f"feature {place}" for place in range(counts[0])), tables


def _stack(features: Mapping[str, Any], names: Sequence[str], side: str) -> FloatColumn:
    columns: list[FloatColumn] = []
    for name in names:
        count = len(columns[0]) if columns else None
        columns.append(column_of(features[name], f"{side}[{name!r}]", count, f"{side}[{names[0]!r}]"))
    return np.column_stack(columns)


def _with_all_features(table: FloatColumn, side: str, names: Sequence[str]) -> FloatColumn:
    is_finite = np.isfinite(table)
    rows: FloatColumn = table[is_finite.all(axis=1)]
    if len(rows) < FEWEST_DOCUMENTS:
        fewest = int(np.argmin(is_finite.sum(axis=0)))
        raise ParamError(
            f"{side} has {len(table)} documents, {len(rows)} of them with all features finite, expected at least "
            f"{FEWEST_DOCUMENTS}; {names[fewest]} is finite for {int(is_finite[:, fewest].sum())}"
        )
    return rows


def _one_split(
    suspect: FloatColumn, validation: FloatColumn, draws: Draws, permutations: int, clip: float, ridge: float
) -> tuple[SplitTest, FloatColumn]:
    orders = [draws.permutations(1, len(rows))[0] for rows in (suspect, validation)]
    halves = [len(order) // 2 for order in orders]
    sides = list(zip((suspect, validation), orders, halves, strict=True))
    fitting = np.concatenate([rows[order[:half]] for rows, order, half in sides])
    tested = np.concatenate([rows[order[half:]] for rows, order, half in sides])
    is_suspect = np.arange(len(fitting)) < halves[0]
    limits = np.quantile(fitting, [clip, 1.0 - clip], axis=0)
    clipped = np.clip(fitting, *limits)
    center, deviation = clipped.mean(axis=0), clipped.std(axis=0)
    # A feature that the fitting half has only one value of tells nothing there.
    varies = np.ptp(clipped, axis=0) > 0.0
    scale = np.where(varies, deviation, np.inf)
    scaled = (clipped - center) / scale
    correlation = scaled.T @ scaled / len(scaled) + ridge * np.eye(scaled.shape[1])
    weights: FloatColumn = np.linalg.solve(correlation, scaled.T @ (is_suspect - is_suspect.mean()) / len(scaled))
    combined = ((np.clip(tested, *limits) - center) / scale) @ weights
    return _test_half(combined, len(suspect) - halves[0], draws, permutations), weights


def _test_half(scores: FloatColumn, suspect_count: int, draws: Draws, permutations: int) -> SplitTest:
    one, other = scores[:suspect_count], scores[suspect_count:]
    t, welch_p_value = None, 1.0
    if np.ptp(one) > 0.0 or np.ptp(other) > 0.0:
        found = optional_module("scipy.stats").ttest_ind(one, other, equal_var=False, alternative="greater")
        t, welch_p_value = float(found.statistic), float(found.pvalue)
    return SplitTest(
        suspect_tested=len(one),
        validation_tested=len(other),
        difference=float(one.mean() - other.mean()),
        t=t,
        welch_p_value=welch_p_value,
        permutation_p_value=_permutation_p_value(scores, suspect_count, draws, permutations),
    )


def _permutation_p_value(scores: FloatColumn, suspect_count: int, draws: Draws, permutations: int) -> float:
    """The sum over the suspect documents stands for the difference of means, of which it is a rising function. Sums
    that differ by rounding alone count as equal.
    """
    observed = scores[:suspect_count].sum() - _ROUNDING * np.abs(scores).sum()
    as_large, left = 0, permutations
    while left:
        count = min(left, max(1, _BLOCK_WORDS // len(scores)))
        chosen = draws.permutations(count, len(scores))[:, :suspect_count]
        as_large += int((scores[chosen].sum(axis=1) >= observed).sum())
        left -= count
    return (1 + as_large) / (1 + permutations)

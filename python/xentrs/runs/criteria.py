"""What a run has to hold so that a pipeline goes on.

In: limits, totals, perhaps an increase over a baseline. Out: a `Verdict`, one `Criterion` for each limit given. A
figure that is not there, or no number, never passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xentrs.runs.paired import Increase


@dataclass(frozen=True)
class Limits:
    """One field for each criterion; None: not asked for."""

    max_bits_per_byte: float | None = None
    max_perplexity: float | None = None
    max_mean_nll: float | None = None
    max_unscored: float | None = None  # share of all tokens
    max_quarantined: int | None = None
    min_documents: int | None = None
    max_increase: float | None = None  # of bits per byte, in percent

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return all(limit is None for limit in vars(self).values())


@dataclass(frozen=True)
class Criterion:
    """A limit and what was found; `note` says more, or why there is no value."""

    name: str  # the option
    figure: str
    limit: float
    value: float | None
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """All criteria; `passed` is the only source of the verdict line and of the exit code."""

    runs: list[str]
    baseline: str | None
    criteria: list[Criterion]
    increase: Increase | None = None

    @property
    def passed(self) -> bool:
        """Whether every criterion holds; without one, none does."""
        return bool(self.criteria) and all(criterion.passed for criterion in self.criteria)

    @property
    def line(self) -> str:
        """The verdict in one sentence."""
        count, failed = len(self.criteria), sum(not criterion.passed for criterion in self.criteria)
        noun = "criterion" if count == 1 else "criteria"
        return f"gate passed: {count} {noun} met" if self.passed else f"gate failed: {failed} of {count} {noun} not met"

    def block(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "passed": self.passed,
            "runs": self.runs,
            "baseline": self.baseline,
            "criteria": [vars(criterion) for criterion in self.criteria],
            "increase": None if self.increase is None else self.increase.block(),
        }


_FIGURES = {
    "max_bits_per_byte": "bits_per_byte",
    "max_perplexity": "perplexity_per_token",
    "max_mean_nll": "mean_nll",
    "max_unscored": "unscored_fraction",
    "max_quarantined": "quarantined",
    "min_documents": "scored_documents",
    "max_increase": "bits_per_byte_increase_percent",
}


def judge(
    limits: Limits, totals: Mapping[str, Any], increase: Increase | None, runs: list[str], baseline: str | None
) -> Verdict:
    """Hold `totals` (a block of `Totals`) and `increase` against `limits`."""
    criteria = []
    for name, limit in vars(limits).items():
        if limit is not None:
            value, note = _found(name, totals, increase)
            criteria.append(_criterion(name, limit, value, note))
    return Verdict(runs, baseline, criteria, increase)


def _found(name: str, totals: Mapping[str, Any], increase: Increase | None) -> tuple[float | None, str]:
    if name == "max_increase":
        return (None, "no baseline") if increase is None else (increase.increase_percent, _increase_note(increase))
    if name == "max_unscored":
        count = totals["tokens"]
        return (totals["unscored_tokens"] / count, "") if count else (None, "cannot be computed: no_tokens")
    figure = _FIGURES[name]
    value: float | None = totals[figure]
    interval = totals["confidence_interval"].get(figure)
    if interval is None or None in interval:
        return value, ""
    return value, f"95 % interval {interval[0]:.4f} to {interval[1]:.4f}"


def _criterion(name: str, limit: float, value: float | None, note: str) -> Criterion:
    option, figure = f"--{name.replace('_', '-')}", _FIGURES[name]
    if value is None or not math.isfinite(value):
        return Criterion(option, figure, limit, None, False, note or "cannot be computed: there is no finite value")
    return Criterion(option, figure, limit, value, value >= limit if name.startswith("min") else value <= limit, note)


def _increase_note(increase: Increase) -> str:
    documents = f"{increase.documents:,} documents in both"
    left_out = [
        f"{count:,} {what}"
        for count, what in (
            (increase.only_here, "only here"),
            (increase.only_in_baseline, "only in the baseline"),
            (increase.changed, "with another text"),
        )
        if count
    ]
    if left_out:
        documents += f" ({', '.join(left_out)}: left out)"
    if increase.increase_percent is None:
        return f"cannot be computed: {increase.reason}; {documents}"
    rates = f"{increase.bits_per_byte:.4f} after {increase.baseline_bits_per_byte:.4f} bits per byte over {documents}"
    if increase.interval is None:
        return f"{rates}, no interval: {increase.reason}"
    low, high = increase.interval
    return f"{rates}, 95 % interval {low:+.2f} % to {high:+.2f} %"

"""The definition of every score, in plain float64 from full logits, as papers write it; larger is member or machine.

Nothing here is fast and nothing is shared with the package. A document is a list of rows of logits with a target each.
d_i = z_i - max z; p_i = e^(d_i) / s; ln p_i = d_i - ln s; 0 ln 0 = 0. Where a paper leaves something open, the rule is
docs/detection-scores.md's and stands in `share`, `standardise` and `quotient`. Longer than other files: all scores are
read in one place.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
INF, NAN = math.inf, math.nan


@dataclass
class Passage:
    """One document under one model, and what else is known of it."""

    logits: Floats  # (tokens, vocab)
    targets: list[int]
    text: str = ""
    reference: Passage | None = None
    lowercase: Passage | None = None
    nonmember_shots: Passage | None = None
    member_shots: Passage | None = None
    counts: list[int] = field(default_factory=list)  # of each token id in the reference corpus
    inverse_temperatures: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)


def log_probs(row: Floats, inverse_temperature: float = 1.0) -> Floats:
    """ln softmax(b z); at b = 0 all ids that are possible have the same probability."""
    gap = row - row.max()
    scaled = np.where(np.isneginf(gap), -INF, inverse_temperature * np.where(np.isneginf(gap), 0.0, gap))
    return scaled - math.log(math.fsum(np.exp(scaled)))


def expected(weights: Floats, values: Floats) -> float:
    """sum p v, with 0 times anything 0."""
    return math.fsum(weights[weights > 0] * values[weights > 0])


def moments(row: Floats, values: Floats, inverse_temperature: float = 1.0) -> tuple[float, float]:
    """Mean and variance of `values` under softmax(b z)."""
    weights = np.exp(log_probs(row, inverse_temperature))
    mean = expected(weights, values)
    return mean, expected(weights, (values - mean) ** 2)


def token_log_probs(passage: Passage, inverse_temperature: float = 1.0) -> list[float]:
    rows = zip(passage.logits, passage.targets, strict=True)
    return [float(log_probs(row, inverse_temperature)[target]) for row, target in rows]


def entropies(passage: Passage) -> list[float]:
    return [-expected(np.exp(log_probs(row)), log_probs(row)) for row in passage.logits]


def varentropies(passage: Passage) -> list[float]:
    return [moments(row, row - row.max())[1] for row in passage.logits]


def renyi(row: Floats, order: float) -> float:
    values = log_probs(row)
    if order == INF:
        return -float(values.max())
    if order == 1:
        return -expected(np.exp(values), values)
    return math.log(math.fsum(np.exp(order * values[values > -INF]))) / (1 - order)


def rank(row: Floats, target: int) -> int:
    return 1 + sum(1 for value in row if value > row[target])


def mean(values: list[float]) -> float:
    """NaN of nothing."""
    if not values:
        return NAN
    return -INF if -INF in values else INF if INF in values else math.fsum(values) / len(values)


def share(values: list[float], k: float) -> list[float]:
    """The max(1, floor(k N)) lowest."""
    return sorted(values)[: max(1, math.floor(k * len(values)))]


def standardise(deviation: float, variance: float) -> float:
    """0 / 0 = 0."""
    if variance == 0:
        return 0.0 if deviation > -INF else -INF
    return deviation / math.sqrt(variance)


def quotient(above: float, below: float, both_zero: float) -> float:
    if above == 0 and below == 0:
        return both_zero
    if below == 0:
        return math.copysign(INF, above)
    return NAN if math.isinf(above) and math.isinf(below) else above / below


def firsts(targets: list[int]) -> list[int]:
    """Places of first occurrences."""
    return [place for place, target in enumerate(targets) if target not in targets[:place]]


def log_likelihood(passage: Passage) -> float:
    return mean(token_log_probs(passage))


def min_k(passage: Passage, k: float = 0.2) -> float:
    return mean(share(token_log_probs(passage), k))


def min_k_plus_plus(passage: Passage, k: float = 0.2) -> float:
    scores = []
    for row, target in zip(passage.logits, passage.targets, strict=True):
        gap = row - row.max()
        centre, variance = moments(row, gap)
        scores.append(standardise(float(gap[target]) - centre, variance))
    return mean(share(scores, k))


def min_k_plus_plus_unweighted(passage: Passage, k: float = 0.2) -> float:
    scores = []
    for row, target in zip(passage.logits, passage.targets, strict=True):
        if np.isneginf(row).any():
            return NAN
        values = log_probs(row)
        centre = math.fsum(values) / len(values)
        variance = 0.0 if (row == row[0]).all() else math.fsum((values - centre) ** 2) / len(values)
        scores.append(standardise(float(values[target]) - centre, variance))
    return mean(share(scores, k))


def dc_pdd(passage: Passage, clip: float = 0.01) -> float:
    total, vocab = sum(passage.counts), len(passage.counts)
    values = token_log_probs(passage)
    terms = []
    for place in firsts(passage.targets):
        frequency = (passage.counts[passage.targets[place]] + 1) / (total + vocab)
        terms.append(min(math.exp(values[place]) * math.log(1 / frequency), clip))
    return mean(terms)


def surp(passage: Passage, k: float = 0.4, max_entropy: float = 2.0) -> float:
    values = token_log_probs(passage)
    if not values:
        return NAN
    order = sorted(range(len(values)), key=lambda place: values[place])
    lowest = order[: max(1, math.floor(k * len(values)))]
    uncertain = entropies(passage)
    certain = [values[place] for place in lowest if uncertain[place] < max_entropy]
    smallest = min(uncertain[place] for place in lowest)
    return mean(certain or [values[place] for place in lowest if uncertain[place] == smallest])


def gap_k(passage: Passage, k: float = 0.2, window: int = 3) -> float:
    gaps = []
    for row, target in zip(passage.logits, passage.targets, strict=True):
        gaps.append(standardise(float(row[target] - row.max()), moments(row, row - row.max())[1]))
    if len(gaps) >= window:
        gaps = [mean(gaps[start : start + window]) for start in range(len(gaps) - window + 1)]
    return mean(share(gaps, k))


def max_renyi(passage: Passage, k: float = 0.1) -> dict[str, float]:
    orders = {"0.5": 0.5, "1": 1.0, "2": 2.0, "inf": INF}
    return {name: mean(share([-renyi(row, a) for row in passage.logits], k)) for name, a in orders.items()}


def acmia(passage: Passage) -> dict[str, float]:
    found = {}
    plain = token_log_probs(passage)
    for beta in (beta for beta in passage.inverse_temperatures if beta != 1):
        at, sign = token_log_probs(passage, beta), 1 if beta > 1 else -1
        terms = [-INF if plain[i] == -INF else sign * (at[i] - plain[i]) for i in firsts(passage.targets)]
        found[f"beta_{beta:g}"] = mean(terms)
    return found


def acmia_deriv(passage: Passage) -> dict[str, float]:
    found = {}
    grid = sorted(passage.inverse_temperatures)
    for low, high in pairwise(grid):
        before, after = token_log_probs(passage, low), token_log_probs(passage, high)
        terms = [-INF if after[i] == -INF else after[i] - before[i] for i in firsts(passage.targets)]
        found[f"beta_{low:g}_{high:g}"] = mean(terms)
    return found


def acmia_norm(passage: Passage) -> dict[str, float]:
    found = {}
    for beta in (beta for beta in passage.inverse_temperatures if beta > 0):
        terms = []
        for place in firsts(passage.targets):
            row = passage.logits[place]
            gap = row - row.max()
            centre, variance = moments(row, gap, beta)
            terms.append(standardise(float(gap[passage.targets[place]]) - centre, variance))
        found[f"beta_{beta:g}"] = mean(terms)
    return found


def shared(*passes: Passage) -> list[float]:
    """Mean log-likelihood of each over the tokens that all have, the last ones."""
    count = min(len(one) for one in passes)
    return [mean(token_log_probs(one)[len(one) - count :]) for one in passes]


def recall(passage: Passage) -> float:
    after, plain = shared(passage.nonmember_shots, passage)
    return quotient(-after, -plain, 1.0)


def con_recall(passage: Passage, gamma: float = 0.5) -> float:
    after, members, plain = shared(passage.nonmember_shots, passage.member_shots, passage)
    return quotient(-after + gamma * members, -plain, 1 - gamma)


def cross_moments(passage: Passage) -> tuple[list[float], list[float]]:
    """E_p[-ln q] and Var_p[ln q] of each row; p of the reference model, q of the model."""
    means, variances = [], []
    for p_row, q_row in zip(passage.reference.logits, passage.logits, strict=True):
        weights, values = np.exp(log_probs(p_row)), log_probs(q_row)
        centre = expected(weights, values)
        means.append(-centre)
        variances.append(NAN if math.isinf(centre) else moments(p_row, (q_row - q_row.max()))[1])
    return means, variances


def curvature(passage: Passage, crossed: bool) -> tuple[float, float]:
    """sum l + sum H, and the sum of variances."""
    means, variances = cross_moments(passage) if crossed else (entropies(passage), varentropies(passage))
    values = token_log_probs(passage)
    if math.isinf(sum(values)) or math.isinf(sum(means)):
        return -INF if math.isfinite(sum(means)) else NAN, math.fsum(variances)
    return math.fsum([*values, *means]), math.fsum(variances)


def fast_detect_gpt(passage: Passage, crossed: bool = False) -> float:
    return standardise(*curvature(passage, crossed)) if len(passage) else NAN


def normal_p(passage: Passage, crossed: bool = False) -> float:
    return math.erfc(abs(fast_detect_gpt(passage, crossed)) / math.sqrt(2))


def bound_p(passage: Passage, crossed: bool = False, rho: float = 100.0) -> float:
    """1 / E, E the mixture of exp(a S - a^2 W / 2) over a ~ Normal(0, 1/rho)."""
    if not len(passage):
        return NAN
    means, variances = cross_moments(passage) if crossed else (entropies(passage), varentropies(passage))
    x = [-value - centre for value, centre in zip(token_log_probs(passage), means, strict=True)]
    total, spread = sum(x), (sum(step**2 for step in x) + 2 * sum(variances)) / 3
    if total == INF:
        return 0.0
    return min(1.0, math.sqrt((rho + spread) / rho) * math.exp(-(total**2) / (2 * (rho + spread))))


def binoculars(passage: Passage, numerator: Passage) -> float:
    means, _ = cross_moments(passage)
    return -quotient(-log_likelihood(numerator), mean(means), 1.0)


def gltr(passage: Passage) -> dict[str, float]:
    ranks = [rank(row, target) for row, target in zip(passage.logits, passage.targets, strict=True)]
    return {f"top{top}": mean([float(found <= top) for found in ranks]) for top in (10, 100, 1000)}


def mean_of_ranks(passage: Passage, of: Callable[[int], float]) -> float:
    return mean([of(rank(row, target)) for row, target in zip(passage.logits, passage.targets, strict=True)])


def lrr(passage: Passage) -> float:
    return quotient(-log_likelihood(passage), mean_of_ranks(passage, math.log), INF) if len(passage) else NAN


DEFINITIONS: Final[dict[str, Callable[..., Any]]] = {
    "loss": log_likelihood,
    "perplexity": lambda passage: -(INF if log_likelihood(passage) < -709 else math.exp(-log_likelihood(passage))),
    "zlib": lambda passage: log_likelihood(passage) / len(zlib.compress(passage.text.encode())),
    "lowercase": lambda passage: quotient(-log_likelihood(passage.lowercase), -log_likelihood(passage), 1.0),
    "ref-difference": lambda passage: log_likelihood(passage) - log_likelihood(passage.reference),
    "ref-ratio": lambda passage: -quotient(-log_likelihood(passage), -log_likelihood(passage.reference), 1.0),
    "min-k": min_k,
    "min-k++": min_k_plus_plus,
    "minkpp-unweighted": min_k_plus_plus_unweighted,
    "dc-pdd": dc_pdd,
    "surp": surp,
    "gap-k": gap_k,
    "renyi": max_renyi,
    "acmia": acmia,
    "acmia-deriv": acmia_deriv,
    "acmia-norm": acmia_norm,
    "recall": recall,
    "con-recall": con_recall,
    "entropy": lambda passage: mean(entropies(passage)),
    "rank": lambda passage: -mean_of_ranks(passage, float),
    "log-rank": lambda passage: -mean_of_ranks(passage, math.log),
    "lrr": lrr,
    "gltr": gltr,
    "fast-detectgpt": fast_detect_gpt,
    "fast-detectgpt-cross": lambda passage: fast_detect_gpt(passage, crossed=True),
    "binoculars": lambda passage: binoculars(passage, passage.reference),
    "binoculars-code": lambda passage: binoculars(passage, passage),
    "entropy-test": lambda passage: -abs(fast_detect_gpt(passage)),
    "entropy-test-normal": normal_p,
    "entropy-test-bound": bound_p,
    "cross-entropy-test": lambda passage: -abs(fast_detect_gpt(passage, crossed=True)),
    "cross-entropy-test-normal": lambda passage: normal_p(passage, crossed=True),
    "cross-entropy-test-bound": lambda passage, rho=100.0: bound_p(passage, True, rho),
}
"""By the name of the score, with its parameters; several values by label where the score has several."""

"""The definition, in plain float64 numpy: one row in, one number out, and the error each number is allowed.

Nothing here is fast and nothing is shared with the package. x is a row of logits (the float64 values of what
the kernel was given), m its maximum, d_i = m - x_i >= 0, e_i = exp(-d_i), s = sum e_i, p_i = e_i / s.
Sums are made in long double: what is left is the rounding of exp and log, about 2^-52.
"""

from __future__ import annotations

import decimal
import math
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
NAN, POSINF, ALL_NEGINF, TARGET_NEGINF, IGNORED, SUPPORT, CLAMPED, OVERFLOW = (1 << bit for bit in range(8))
UNIT_F32: Final = 2.0**-24
"""u: half the distance from 1 to the next float32, the largest relative error of one float32 rounding."""
UNIT_F64: Final = 2.0**-53


def decode(logits: Array) -> Floats:
    """The float64 values of an array; exact for every dtype here."""
    return logits.astype(np.float64)


def largest_finite(dtype: np.dtype[Any]) -> float:
    """MAX: the neighbour of infinity."""
    return float(np.nextafter(dtype.type(np.inf), dtype.type(0)))


def smallest_subnormal(dtype: np.dtype[Any]) -> float:
    """The neighbour of zero."""
    return float(np.nextafter(dtype.type(0), dtype.type(1)))


def total(values: Array) -> float:
    """The sum, made in long double (64 bits of mantissa) and rounded once."""
    return float(np.sum(values, dtype=np.longdouble))


def gaps(row: Floats) -> Floats:
    """d_i = max x - x_i, made without inf - inf: -inf logits are infinitely far away."""
    gap = np.full(row.shape, np.inf)
    finite = row > -np.inf
    with np.errstate(over="ignore"):
        gap[finite] = row.max() - row[finite]
    return gap


def rest(row: Floats) -> float:
    """r = s - 1 = sum of exp(x_i - m) over all columns but one that holds the maximum."""
    return total(np.exp(-np.delete(gaps(row), int(row.argmax()))))


def logsumexp(row: Floats) -> float:
    """ln sum exp x_i = m + log1p(r)."""
    if row.size == 0:
        return -math.inf
    if np.isnan(row).any() or np.isinf(row.max()):
        return float(row.max())
    return float(row.max()) + math.log1p(rest(row))


def nll(row: Floats, target: int) -> float:
    """-ln p(target) = (m - x_t) + log1p(r); both terms are at least 0."""
    if np.isnan(row).any() or np.isinf(row.max()):
        return math.nan
    return float(gaps(row)[target]) + math.log1p(rest(row))


def probabilities(row: Floats) -> Floats:
    """p_i = exp(x_i - m) / s."""
    weights: Floats = np.exp(-gaps(row))
    return weights / total(weights)


def surprisals(row: Floats) -> Floats:
    """-ln p_i = d_i + log1p(r)."""
    return gaps(row) + math.log1p(rest(row))


def entropy(row: Floats) -> float:
    """H = log1p(r) + sum p_i d_i, with 0 * inf = 0; both terms are at least 0."""
    probability, gap = probabilities(row), gaps(row)
    present = probability > 0
    return math.log1p(rest(row)) + total(probability[present] * gap[present])


def varentropy(row: Floats) -> float:
    """sum p_i (-ln p_i - H)^2."""
    probability = probabilities(row)
    present = probability > 0
    return total(probability[present] * (surprisals(row)[present] - entropy(row)) ** 2)


def sum_sq_prob(row: Floats) -> float:
    """sum p_i^2."""
    return total(probabilities(row) ** 2)


def margin(row: Floats) -> float:
    """Largest less second largest logit."""
    if row.size < 2:
        return math.inf
    second, first = np.partition(row, row.size - 2)[-2:]
    return float(first - second)


def rank(row: Floats, target: int) -> int:
    """1 + the number of logits above the target's."""
    return 1 + int((row > row[target]).sum())


def ties(row: Floats, target: int) -> int:
    """The number of other columns that hold the target's logit."""
    return int((row == row[target]).sum()) - 1


def cross_entropy(p_row: Floats, q_row: Floats) -> float:
    """CE(p, q) = -sum p_i ln q_i."""
    probability = probabilities(p_row)
    present = probability > 0
    return total(probability[present] * surprisals(q_row)[present])


def log_ratios(p_row: Floats, q_row: Floats) -> npt.NDArray[np.longdouble]:
    """ln(p_i / q_i) = (x_p - x_q)_i - (m_p - m_q) - (log1p(r_p) - log1p(r_q)) where p_i > 0, else 0.

    In long double, because the differences cancel.
    """
    present = probabilities(p_row) > 0
    ratio = np.zeros(p_row.shape, np.longdouble)
    p_wide, q_wide = p_row[present].astype(np.longdouble), q_row[present].astype(np.longdouble)
    maxima = np.longdouble(p_row.max()) - np.longdouble(q_row.max())
    logs = np.log1p(np.longdouble(rest(p_row))) - np.log1p(np.longdouble(rest(q_row)))
    ratio[present] = (p_wide - q_wide) - maxima - logs
    return ratio


def kl_divergence(p_row: Floats, q_row: Floats) -> float:
    """KL(p || q) = sum p_i ln(p_i / q_i), with 0 * ln 0 = 0."""
    return total(probabilities(p_row) * log_ratios(p_row, q_row))


def half_ulp(value: float) -> float:
    """Half a float32 ulp of a value: the last term of the bound."""
    return float(np.spacing(np.float32(min(abs(value), 3e38)))) / 2


def lse_bound(vocab: int, value: float, dtype: np.dtype[Any]) -> float:
    """Allowed error of lse or nll over `vocab` columns.

    16- and 32-bit logits compute in float32 lanes: the argument d_i is rounded (u * d_i), exp adds 2u, and
    sum p_i d_i <= ln V, so ln s is off by at most (2 + ln V) u; then half a float32 ulp of the value.
    float64: the same with u = 2^-53 gives 1.8e-15 at V = 262,144, and docs/numerics.md grants 4e-15
    with the pairwise sum; 1e-15 more for this module's own exp and log, one float64 ulp to add the maximum.
    """
    if dtype == np.float64:
        return 5e-15 + float(np.spacing(abs(value)))
    return (2 + math.log(max(vocab, 1))) * UNIT_F32 + half_ulp(value)


def unit_of(dtype: np.dtype[Any]) -> float:
    """u of the compute type. For float64 4 u: this module's own exp, log and quotient are as coarse."""
    return 4 * UNIT_F64 if dtype == np.float64 else UNIT_F32


def ulp_of(value: float, dtype: np.dtype[Any]) -> float:
    """One ulp of the compute type at `value`."""
    return float(np.spacing(abs(value))) if dtype == np.float64 else 2 * half_ulp(value)


def flushed(row: Floats, dtype: np.dtype[Any]) -> npt.NDArray[np.bool_]:
    """Columns that count as exactly 0 in float32 lanes: more than 87.33 below the maximum."""
    below: npt.NDArray[np.bool_] = gaps(row) > (708.0 if dtype == np.float64 else 87.33)
    return below


def entropy_bound(row: Floats, dtype: np.dtype[Any]) -> float:
    """Allowed error of the entropy of this row.

    A relative error eps_i of e_i moves H by p_i eps_i (-ln p_i - H). eps_i <= u (2 + d_i): argument and exp.
    The products d_i e_i carry a further u each for d_i, the product and its addition: 3 u sum p_i d_i.
    H is made as ln s + E[d], so both parts round once more, and the result has half an ulp. Terms that
    count as 0 miss with all they have: p_i (1 - ln p_i).
    """
    probability, gap = probabilities(row), gaps(row)
    present = probability > 0
    p, d, surprisal = probability[present], gap[present], surprisals(row)[present]
    value = entropy(row)
    moved = total(p * ((2 + d) * np.abs(surprisal - value) + 3 * d))
    missed = total((p * (1 + surprisal))[flushed(row, dtype)[present]])
    spare = ulp_of(value, dtype) if dtype == np.float64 else half_ulp(value)
    return unit_of(dtype) * (moved + value) + missed + spare + 1e-300


def varentropy_bound(row: Floats, dtype: np.dtype[Any]) -> float:
    """Allowed error of the varentropy: moments to order 2 about the maximum, each weight off by u (2 + d_i).

    M2 = E[d^2] - E[d]^2 cancels, so the error is that of the raw second moment: u E[(4 + d) (1 + d)^2].
    """
    probability, gap = probabilities(row), gaps(row)
    present = probability > 0
    p, d = probability[present], gap[present]
    return unit_of(dtype) * total(p * (4 + d) * (1 + d) ** 2) + ulp_of(1.0, dtype)


def kl_bound(p_row: Floats, q_row: Floats, dtype: np.dtype[Any]) -> float:
    """Allowed error of KL(p || q).

    A relative error eps_i of p's weights moves KL by p_i eps_i (ln(p_i/q_i) - KL); one of q's by
    (p_i - q_i) eps_i. eps_i <= u (4 + d_i): argument, exp, product, addition. The difference of the gaps
    of p and q is rounded, multiplied by its weight and added: 3 u |d_p - d_q|.
    """
    p, q, ratio = probabilities(p_row), probabilities(q_row), log_ratios(p_row, q_row)
    present_p, present_q = p > 0, q > 0
    value = total(p * ratio)
    p_gap, q_gap = gaps(p_row), gaps(q_row)
    difference = np.abs(p_gap[present_p] - q_gap[present_p])
    from_p = p[present_p] * ((4 + p_gap[present_p]) * np.abs(ratio[present_p] - value) + 3 * difference)
    from_q = np.abs(p - q)[present_q] * (4 + q_gap[present_q])
    spare = ulp_of(1.0 + value, dtype) if dtype == np.float64 else half_ulp(value)
    return unit_of(dtype) * (total(from_p) + total(from_q)) + spare


# With 60 digits a difference loses nothing that a float64 result could show.
EXACT: Final = decimal.Context(prec=60, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
NEVER: Final = decimal.Decimal("-Infinity")
Exact = list[decimal.Decimal]


def exact_log_probs(row: Floats, inverse_temperature: float = 1.0) -> tuple[Exact, decimal.Decimal]:
    """ln softmax(b x), and ln sum e^(b x)."""
    with decimal.localcontext(EXACT):
        factor = decimal.Decimal(inverse_temperature)
        scaled = [decimal.Decimal(value) * factor if value > -math.inf else NEVER for value in row.tolist()]
        largest = max(scaled)
        lse = largest + sum(((value - largest).exp() for value in scaled), start=decimal.Decimal(0)).ln()
        return [value - lse for value in scaled], lse


def exact_mean(log_probs: Exact, values: Exact) -> decimal.Decimal:
    """sum p v; 0 where p is 0, whatever v is there."""
    with decimal.localcontext(EXACT):
        pairs = zip(log_probs, values, strict=True)
        return sum((log_p.exp() * value for log_p, value in pairs if log_p > NEVER), start=decimal.Decimal(0))


def exact_ratios(log_p: Exact, log_q: Exact) -> Exact:
    """ln(p / q); 0 where p is 0."""
    with decimal.localcontext(EXACT):
        return [p - q if p > NEVER else decimal.Decimal(0) for p, q in zip(log_p, log_q, strict=True)]


def exact_divergences(p_row: Floats, q_row: Floats, inverse_temperature: float = 1.0) -> dict[str, float]:
    """Every field of `divergences`, and the Jensen-Shannon divergence."""
    (log_p, _), (log_q, _) = (exact_log_probs(row, inverse_temperature) for row in (p_row, q_row))
    with decimal.localcontext(EXACT):
        middle = [((p.exp() + q.exp()) / 2).ln() for p, q in zip(log_p, log_q, strict=True)]
        forward, reverse = (exact_mean(a, exact_ratios(a, b)) for a, b in ((log_p, log_q), (log_q, log_p)))
        entropy = -exact_mean(log_p, log_q)
        spread = [(value + entropy) ** 2 if entropy.is_finite() else entropy for value in log_q]
        halves = [exact_mean(side, exact_ratios(side, middle)) for side in (log_p, log_q)]
        return {
            "kl_divergence": float(forward),
            "reverse_kl_divergence": float(reverse),
            "symmetric_kl_divergence": float(forward + reverse),
            "cross_entropy": float(entropy),
            "cross_varentropy": float(exact_mean(log_p, spread)) if entropy.is_finite() else math.nan,
            "js_divergence": float(sum(halves) / 2),
        }

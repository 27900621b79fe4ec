"""docs/detection-scores.md out of the table: `python -m xentrs.detect.documentation > docs/detection-scores.md`.

In: `SCORES`. Out: Markdown. A test holds the file to it.
"""

from __future__ import annotations

import sys

from xentrs.detect.definition import Parameter, Score
from xentrs.detect.registry import SCORES, group_of

_TITLES = {
    "membership": "Membership: larger means the text was in the training data",
    "machine": "Machine text: larger means a machine wrote it",
}
_HEAD = """# Detection scores: definitions

Made from the table in `xentrs.detect` by `python -m xentrs.detect.documentation`; change it there.

**Direction.** What xentrs returns is always larger for a member or for machine text. *As published* says which way the
formula itself points; where lower means member or machine, the sign is changed (*turned*), in one place.

**Symbols.** Means and sums are over the N scored tokens of a document; the first token of a text without prefix has no
score. l = -nll, the natural logarithm of the token's probability; H entropy and v varentropy of the prediction, nats;
r rank, 1 for the most likely. With two models p is the prediction of the reference model, q that of the model, and
CE(p, q) = -sum p ln q. l_b is the log-probability under softmax(b z). f is a token's frequency in a reference corpus.
*first* are the first occurrences of token ids among the scored tokens. low_k and high_k are the k N lowest or highest.

**A share of N tokens** is max(1, floor(k N)) of them, k N in float64: the floor of the published code, and 1 token
where that gives none. One rule for every score.

**Special values.** Nothing is clamped and no epsilon is added. A quotient 0 / 0 by a standard deviation is 0: a
distribution with one log-probability only (one-hot, uniform) gives each token that it allows exactly that one. A token
of probability 0 makes a score infinite, not NaN. NaN is left for documents without a scored token, for statistics that
are NaN, and for infinity less or over infinity; each carries its reason (`DocumentScores.reasons`).

**Parameters** are given as `NAME:PARAMETER=VALUE`, such as `min-k:k=0.1`, which is then the column's name. The groups
`all`, `membership` and `machine` stand for every score that the columns at hand suffice for.

**Needs** are columns of the tokens table (docs/schema.md) and: `zlib_byte_count`, from the text; `lowercase`,
`reference`, `nonmember_shots`, `member_shots`, the same documents scored once more; `cross_entropy` and
`cross_varentropy`, from one pass over both models; `frequencies`, a `TokenFrequencies` of the same tokenizer;
`tempered`, the columns of `--inverse-temperatures`.
"""
_TAIL = """## The bound of the tests

Let x_t = nll_t - H_t with H_t the mean and v_t the variance of nll under the prediction that the token is said to be
drawn from. Then S = sum x_t is a martingale, whatever the text depends on. For every real x,
exp(x - x^2 / 6) <= 1 + x + x^2 / 3, so exp(a S - a^2 W / 2) with W = (sum x_t^2 + 2 sum v_t) / 3 is a supermartingale
for every a (Delyon 2009); log-probabilities, which have no lower bound, need none here. Mixed over
a ~ Normal(0, 1 / rho) it is E = sqrt(rho / (rho + W)) exp(S^2 / (2 (rho + W))). E has mean at most 1, at any length and
at one that the model itself chose, so min(1, 1 / E) is a p-value (Ville 1939). rho is a constant, not chosen after the
text.

It is not the bound of arXiv 2501.02406, whose constants depend on a bound of the log-probabilities. The hypothesis is
that every token was drawn from the whole distribution at temperature 1, given the context that the score was made with.
Top-k, top-p or another temperature break it; a large p-value proves nothing.
"""


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for task, title in _TITLES.items():
        parts += [f"## {title}\n", *(_entry(score) for score in group_of(task))]
    return "\n".join([*parts, _TAIL])


def _entry(score: Score) -> str:
    turned = ", turned" if score.published == "lower" else ""
    lines = [
        f"### {score.name}\n",
        f"`{score.formula}`\n",
        f"- source: {score.source}",
        f"- as published: {score.published} means {'member' if score.task == 'membership' else 'machine'}{turned}",
        f"- needs: {', '.join(f'`{need}`' for need in score.needs)}",
        *(f"- parameter {_parameter(parameter)}" for parameter in score.parameters),
    ]
    modes = [other.name for other in SCORES.values() if other.mode_of == score.name]
    if score.mode_of is not None:
        lines.append(f"- a variant of `{score.mode_of}`")
    if modes:
        lines.append(f"- variants: {', '.join(f'`{name}`' for name in modes)}")
    if score.note:
        lines.append(f"- {score.note}")
    return "\n".join(lines) + "\n"


def _parameter(parameter: Parameter) -> str:
    return f"`{parameter.name}` = {parameter.default:g}: {parameter.meaning}; {parameter.range_text}"


if __name__ == "__main__":
    sys.stdout.write(markdown())

"""Members against non-members under models whose training data is known.

In: `Scored` documents of each model. Out: checks: members beat non-members, the models swapped mirror it, models that
read neither side tell nothing, canaries are ordered by how often they were seen, more epochs show more.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from checks import Findings, area_of, interval_of
from scipy.stats import spearmanr
from scored import Documents, Scored
from texts import Canary
from xentrs.detect.baseline import BlindBaseline, beats_blind, blind_baseline
from xentrs.detect.evaluation import Evaluation

# Asserted under every model; all others are reported. Entropy and its tests do not look at the token that came.
ASSERTED = (
    "loss",
    "perplexity",
    "zlib",
    "lowercase",
    "min-k",
    "min-k++",
    "gap-k",
    "rank",
    "log-rank",
    "fast-detectgpt",
)
ASSERTED_WITH_REFERENCE = ("ref-difference", "ref-ratio")
CEILING = 0.01  # near an area of 1 a document more or less is chance


def members_win(findings: Findings, found: Evaluation, names: Sequence[str], what: str) -> None:
    """Each interval lies above one half."""
    for name in names:
        entry = found.scores[name]
        findings.check(f"{what}, {name}", f"{area_of(entry)}, expected above 0.5", entry.interval.low > 0.5)


def members_lose(findings: Findings, found: Evaluation, names: Sequence[str], what: str) -> None:
    """The mirrored result: each interval lies below one half."""
    for name in names:
        entry = found.scores[name]
        findings.check(f"{what}, {name}", f"{area_of(entry)}, expected below 0.5", entry.interval.high < 0.5)


def all_at_chance(
    findings: Findings, scored: Scored, members: Sequence[str], others: Sequence[str], what: str, error: float
) -> None:
    """Every interval covers one half, but for `error`, the chance that any of them does not."""
    level = 1.0 - error / len(scored.values)
    scores = scored.evaluated(members, others, level).scores
    wrong = [name for name, entry in scores.items() if not entry.interval.low <= 0.5 <= entry.interval.high]
    furthest = max(scores.values(), key=lambda entry: abs(entry.auroc - 0.5))
    found = f"{len(scores)} scores, furthest {furthest.name} {area_of(furthest)} at level {level:.4f}"
    figure = f"{found}, expected to cover 0.5"
    findings.check(what, figure if not wrong else f"{figure}; not by {', '.join(wrong)}", not wrong)


def words_tell_nothing(
    findings: Findings, texts: Documents, members: Sequence[str], others: Sequence[str]
) -> BlindBaseline:
    """The blind guard: a bag of words does not tell the sets apart. Returns it."""
    blind = blind_baseline([texts[name] for name in (*members, *others)], [1] * len(members) + [0] * len(others))
    interval = blind.interval
    figure = f"AUROC {blind.evaluation.auroc:.3f} [{interval.low:.3f}, {interval.high:.3f}], expected to cover 0.5"
    findings.check(f"words alone, {members[0][0]} against {others[0][0]}", figure, interval.low <= 0.5 <= interval.high)
    return blind


def main_table(
    findings: Findings, blind: BlindBaseline, scored: Scored, members: Sequence[str], others: Sequence[str]
) -> None:
    """Every score of the model that read `members`, beside the words alone."""
    ids = [*members, *others]
    rows = []
    for name, entry in scored.evaluated(members, others).scores.items():
        rates = {point.max_fpr: point.tpr for point in entry.operating_points}
        beats = beats_blind(scored.of(name, ids), blind, name=name).beats_blind
        rows.append(
            {
                "score": name,
                "AUROC": entry.auroc,
                "95 %": interval_of(entry),
                "TPR at 1 % FPR": rates[0.01],
                "TPR at 5 % FPR": rates[0.05],
                "beats words alone": "yes" if beats else "no",
            }
        )
    findings.table(f"{len(members)} members against {len(others)} non-members", rows)


def canaries_ordered(findings: Findings, scored: Scored, canaries: Mapping[str, Canary]) -> None:
    """The more often a canary was seen, the likelier it is."""
    times = sorted({canary.times_seen for canary in canaries.values()})
    groups = [scored.of("loss", [name for name, canary in canaries.items() if canary.times_seen == t]) for t in times]
    means = [float(group.mean()) for group in groups]
    seen = np.repeat(times, [len(group) for group in groups])
    found = spearmanr(seen, np.concatenate(groups), alternative="greater")
    figure = ", ".join(f"{t} times {mean:.3f}" for t, mean in zip(times, means, strict=True))
    is_ordered = all(low < high for low, high in itertools.pairwise(means))
    findings.check(
        "canaries, mean log-probability of a token",
        f"{figure}; Spearman {found.statistic:.3f}, p {found.pvalue:.1e}, expected to rise",
        is_ordered and found.pvalue < 0.01,
    )


def dose_rises(findings: Findings, doses: Mapping[int, Evaluation], names: Sequence[str]) -> None:
    """More epochs, more to see: from chance without any to the most at last."""
    for name in names:
        areas = {epochs: found.scores[name] for epochs, found in doses.items()}
        values = [entry.auroc for entry in areas.values()]
        figure = ", ".join(f"{epochs} epochs {entry.auroc:.3f}" for epochs, entry in areas.items())
        rises = all(low <= high + CEILING for low, high in itertools.pairwise(values))
        findings.check(f"dose, {name}", f"{figure}, expected to rise", rises and values[-1] > values[0])

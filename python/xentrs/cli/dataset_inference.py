"""`xentrs dataset-inference`: was this set of documents, as a whole, in the training data?

In: two RUNs, of suspect and of validation documents. Out: p-values and what they prove on stdout, or one JSON object;
the same in a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich_click as click

from xentrs.cli.detect_report import first_ids, grouped
from xentrs.cli.extras import require
from xentrs.cli.results import check_output_file, show_page
from xentrs.cli.score_options import POSITIVE, take

MEANING = (
    "A small p-value says that the sets differ in their scores under this model: what was learned on one half of the "
    "documents tells the other half apart, whichever way. It is evidence of training only if the suspect documents "
    "score higher, and only as far as the sets differ in nothing else: run the same test with a model that cannot have "
    "seen either, and look at the words alone of `xentrs detect --label-key` over both.",
    "Documents have to be independent of each other: exact copies are refused, near ones are not looked for and can "
    "make p-values too small.",
    "A large p-value does not show that the documents were not trained on.",
)
_SHOWN_FEATURES = 3


@dataclass(frozen=True)
class InferenceOptions:
    """How the test is made, and where its result goes."""

    scores: str
    frequencies: str | None
    splits: int
    permutations: int
    clip: float
    ridge: float
    seed: int
    output: str | None
    as_json: bool
    quiet: bool


@click.command(name="dataset-inference")
@click.argument("suspect", metavar="SUSPECT")
@click.argument("validation", metavar="VALIDATION")
@click.option(
    "--scores", default="membership", show_default=True, metavar="membership|all|NAME,...", help="The features."
)
@click.option("--frequencies", metavar="FILE", help="Token counts of `xentrs freq build`: dc-pdd.")
@click.option(
    "--splits", type=POSITIVE, default=11, show_default=True, help="Into halves that fit and that are tested."
)
@click.option(
    "--permutations",
    type=POSITIVE,
    default=999,
    show_default=True,
    help="The smallest p is 2 / (1 + N), with one split 1 / (1 + N).",
)
@click.option("--clip", type=float, default=0.025, show_default=True, help="Quantile that features are cut off at.")
@click.option("--ridge", type=float, default=0.1, show_default=True, help="Penalty of the least squares.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of splits and permutations.")
@click.option("-o", "--output", metavar="FILE", help="Write the result as JSON, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--quiet", is_flag=True, help="Nothing on stderr but errors.")
def dataset_inference_command(suspect: str, validation: str, **options: Any) -> None:
    """Do suspect documents, as a set, score otherwise than validation documents?

    SUSPECT and VALIDATION are RUNs of `xentrs detect`, or of `xentrs score --tokens detect`, made alike; no model runs.
    VALIDATION holds documents of the same source that cannot have been trained on. docs/detection.md says what the test
    needs and proves.
    """
    taken: InferenceOptions = take(InferenceOptions, options)
    require("dataset-inference", ("pyarrow", "scipy"))
    check_output_file(taken.output)
    from xentrs.cli.freq import load_table
    from xentrs.detect.passes import opened_companions
    from xentrs.detect.run_inference import infer_runs
    from xentrs.runs.open_run import OpenRun

    frequencies = None if taken.frequencies is None else load_table(taken.frequencies)
    runs = OpenRun(Path(suspect)), OpenRun(Path(validation))
    settings = {name: getattr(taken, name) for name in ("splits", "permutations", "clip", "ridge", "seed")}
    found = infer_runs(
        *runs,
        [name.strip() for name in taken.scores.split(",")],
        frequencies=frequencies,
        companions=(opened_companions(runs[0].path), opened_companions(runs[1].path)),
        **settings,
    )
    page = {
        "suspect": {"run": suspect, "inputs": runs[0].inputs},
        "validation": {"run": validation, "inputs": runs[1].inputs},
        "protocol": runs[0].protocol,
        "scores": taken.scores,
        "settings": settings,
        "result": found.block(),
        "meaning": " ".join(MEANING),
    }
    notes = [] if taken.quiet else _notes(found)
    show_page(page, [*_lines(found.result, len(found.higher)), *MEANING], notes, taken.output, taken.as_json)


def _lines(result: Any, higher_count: int) -> list[str]:
    features = sorted(zip(result.weights, result.features, strict=True), key=lambda entry: -abs(entry[0]))
    shown = ", ".join(f"{name} {weight:+.3f}" for weight, name in features[:_SHOWN_FEATURES])
    splits = f"{len(result.splits):,} splits: {result.combination}" if len(result.splits) > 1 else "one split"
    return [
        f"documents      {result.suspect_documents:,} suspect, {result.validation_documents:,} validation",
        f"features       {len(features):,} scores, {higher_count:,} of them higher (medians) in the suspect documents",
        f"weights        the largest of the combination: {shown}",
        f"Welch p        {result.welch_p_value:.4g}",
        f"permutation p  {result.permutation_p_value:.4g} ({result.permutations:,} permutations, seed {result.seed})",
        f"splits         {splits}",
    ]


def _notes(found: Any) -> list[str]:
    notes = []
    if found.unchecked is not None:
        notes.append(f"documents in both sets, or twice in one, could not be looked for: {found.unchecked}")
    for side, ids in found.left_out.items():
        if ids:
            shown = first_ids(ids, len(ids))
            notes.append(f"left out {len(ids):,} {side} documents with a score that is not finite: {shown}")
    for side in ("suspect", "validation"):
        if count := getattr(found, side).windowed_count:
            notes.append(f"{count:,} {side} documents are longer than the window: scored in windows")
    return [*notes, *(f"left out {names}: {reason}" for reason, names in grouped(found.unavailable))]

"""The truth bench: is what `xentrs detect` says true where the truth is known?

Usage: python benches/truth [--corpus examples|debian] [--documents N] [--epochs N] [--work FOLDER] [--json FILE]

Real text, without duplicates, is split by a hash into A, B and C. One small language model is trained on A and
canaries, one on B, one on nothing; then `xentrs detect` scores every document under each, and what has to follow is
asserted: members beat non-members, the models swapped mirror it, models that read neither side and a bag of words tell
nothing, canaries are ordered by repetition, p-values are uniform where nothing is to be found, tests of whole sets and
of an order err as rarely as they say, and find what was read. At last the default model writes text, which is told from
that of people. Every assertion is printed with its figure; the exit code is 1 if one does not hold.

TRUTH_CORPUS=debian is --corpus debian: packages that apt downloads. The work folder keeps texts, models and RUNs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import transformers
import xentrs as xe
from checks import Findings
from debian import debian_texts
from machine_text import machine_text_is_told
from membership import (
    ASSERTED,
    ASSERTED_WITH_REFERENCE,
    all_at_chance,
    canaries_ordered,
    dose_rises,
    main_table,
    members_lose,
    members_win,
    words_tell_nothing,
)
from null_tests import conformal_is_uniform, dataset_inference_finds, dataset_inference_keeps_its_level
from orders import ITEMS, benchmark, order_is_found, passages
from referee import agrees
from scored import Documents, Scored, command, detect, documents_file
from texts import Canary, Split, canaries, example_texts, split_pool
from tokenizers import Tokenizer
from training import Recipe, new_model, save, train, train_tokenizer
from xentrs.models import catalog

CORPORA = ("examples", "debian")
DOSES = (1, 2, 5)  # epochs, before the last
# Not Min-K%++: one epoch is enough for it to tell tokens that were read from those that were not, whatever the text.
DOSE_SCORES = ("loss", "zlib", "min-k")
TIMES_SEEN, CANARIES_EACH = (0, 1, 4, 16, 64), 8
TRAINED_ERROR = 0.001  # a model trained on the spot differs by rounding from machine to machine: chance is drawn anew
OFTEN = 16  # canaries seen so often are found as a set
SHOTS = 4
REFEREE_DOCUMENTS = 40


@dataclass(frozen=True)
class Bench:
    """What all parts of a run have in common."""

    work: Path
    tokenizer: Tokenizer
    recipe: Recipe
    split: Split
    traps: dict[str, Canary]
    items: list[str]
    """Of a benchmark that A's model reads in this order."""
    findings: Findings

    def texts(self, *sides: str) -> Documents:
        """Documents of some of A, B and C by id; those that serve as shots are none."""
        return {
            f"{side}{place}": text
            for side in sides
            for place, text in enumerate(getattr(self.split, side))
            if side == "b" or place >= SHOTS
        }

    def ids(self, side: str) -> list[str]:
        """Of the documents of one side."""
        return list(self.texts(side))


def run(options: argparse.Namespace, work: Path) -> Findings:
    """Everything, in the order of the docstring."""
    bench = prepare(options, work)
    models = train_models(bench)
    scored = score_everything(bench, models)
    check_membership(bench, scored)
    check_tests(bench, scored)
    order_is_found(bench.findings, bench.items, models, work)
    agrees(bench.findings, models["a"], dict(list(bench.texts("a", "c").items())[::8][:REFEREE_DOCUMENTS]), scored["a"])
    people = [*bench.split.a, *bench.split.b, *bench.split.c][: options.machine_texts]
    machine_text_is_told(bench.findings, catalog.imported_folder(catalog.DEFAULT_MODEL), people, work, options.seed)
    return bench.findings


def prepare(options: argparse.Namespace, work: Path) -> Bench:
    """Texts, split; nothing trained yet."""
    texts = example_texts() if options.corpus == "examples" else debian_texts(work)
    split = split_pool(texts, options.seed, options.documents)
    traps = canaries(split, TIMES_SEEN, CANARIES_EACH, options.seed)
    counts = {side: len(getattr(split, side)) for side in "abc"}
    print(f"{options.corpus}: {counts} documents, {split.duplicates} duplicates left out; isa {xe.isa()}")
    recipe = Recipe(epochs=options.epochs, seed=options.seed)
    named = {f"canary{place}": trap for place, trap in enumerate(traps)}
    tokenizer = train_tokenizer([*split.a, *split.b, *split.c])
    items = benchmark(canaries(split, [0], ITEMS, options.seed + 1))
    return Bench(work, tokenizer, recipe, split, named, items, Findings())


def train_models(bench: Bench) -> dict[str, Path]:
    """Model folders: one that has read nothing, of A and its canaries after each dose and at the end, of B."""
    untrained = new_model(bench.recipe)
    folders = {"untrained": save(untrained, bench.tokenizer, bench.work / "model-untrained")}
    folders |= _trained(
        bench, "a", [*bench.traps.values(), *passages(bench.items)], {epochs: f"a-{epochs}" for epochs in DOSES}
    )
    return folders | _trained(bench, "b", [], {})


def _trained(bench: Bench, side: str, traps: list[Canary], doses: dict[int, str]) -> dict[str, Path]:
    model, start, folders = new_model(bench.recipe), time.perf_counter(), {}

    def keep(name: str) -> None:
        folders[name] = save(model, bench.tokenizer, bench.work / f"model-{name}")

    def after_epoch(epoch: int) -> None:
        if epoch in doses:
            keep(doses[epoch])

    losses = train(model, bench.tokenizer, getattr(bench.split, side), traps, bench.recipe, after_epoch)
    keep(side)
    print(f"model of {side}: loss {losses[0]:.2f} to {losses[-1]:.2f}, {time.perf_counter() - start:.0f} s", flush=True)
    return folders


def score_everything(bench: Bench, models: dict[str, Path]) -> dict[str, Scored]:
    """Scores of every document by model; those of A's model with all that scores can need."""
    work, start = bench.work, time.perf_counter()
    canary_texts = {name: canary.text for name, canary in bench.traps.items()}
    documents = documents_file(work / "documents.jsonl", {**bench.texts("a", "b", "c"), **canary_texts})
    counted = documents_file(work / "b.jsonl", bench.texts("b"))
    command("freq", "build", counted, "--model", models["b"], "-o", work / "counts.npz", "--quiet")
    shots = {side: _shots(bench, side) for side in "ac"}
    options: dict[str, str | Path] = {
        "--scores": "all",
        "--inverse-temperatures": "0.5,1,2",
        "--reference": models["b"],
        "--frequencies": work / "counts.npz",
        "--shots": shots["c"],
        "--member-shots": shots["a"],
    }
    everything = [argument for option in options.items() for argument in option]
    scored = {"a": detect(documents, models["a"], work / "run-a", *everything)}
    for name in ("b", "untrained"):
        scored[name] = detect(documents, models[name], work / f"run-{name}", "--scores", "all")
    for name in models.keys() - scored.keys():
        scored[name] = detect(documents, models[name], work / f"run-{name}", "--scores", ",".join(DOSE_SCORES))
    print(f"scored {len(scored)} times, {time.perf_counter() - start:.0f} s", flush=True)
    return scored


def _shots(bench: Bench, side: str) -> Path:
    texts = getattr(bench.split, side)[:SHOTS]
    return documents_file(
        bench.work / f"shots-{side}.jsonl", {f"shot{place}": text for place, text in enumerate(texts)}
    )


def check_membership(bench: Bench, scored: dict[str, Scored]) -> None:
    """What has to follow for single documents."""
    findings, a, b, c = bench.findings, *(bench.ids(side) for side in "abc")
    texts = bench.texts("a", "b", "c")
    words_tell_nothing(findings, texts, a, b)
    blind = words_tell_nothing(findings, texts, a, c)
    found = scored["a"].evaluated(a, c)
    members_win(findings, found, (*ASSERTED, *ASSERTED_WITH_REFERENCE), "members of A against C")
    members_win(findings, scored["a"].evaluated(a, b), ASSERTED, "A's model, A against B")
    members_lose(findings, scored["b"].evaluated(a, b), ASSERTED, "B's model, A against B")
    all_at_chance(findings, scored["untrained"], a, b, "untrained model, A against B", 0.05)
    all_at_chance(findings, scored["b"], a, c, "B's model, A against C", TRAINED_ERROR)
    canaries_ordered(findings, scored["a"], bench.traps)
    by_dose = {0: "untrained", **{epochs: f"a-{epochs}" for epochs in DOSES}, bench.recipe.epochs: "a"}
    doses = {epochs: scored[name].evaluated(a, c) for epochs, name in by_dose.items() if name in scored}
    dose_rises(findings, doses, DOSE_SCORES)
    main_table(findings, blind, scored["a"], a, c)


def check_tests(bench: Bench, scored: dict[str, Scored]) -> None:
    """What has to follow for p-values and for whole sets."""
    findings, seed, a, c = bench.findings, bench.recipe.seed, bench.ids("a"), bench.ids("c")
    unread = [*a, *c]  # by B's model and by the one that has read nothing
    conformal_is_uniform(findings, scored["b"], unread, seed)
    for name in ("b", "untrained"):
        dataset_inference_keeps_its_level(findings, scored[name], unread, f"model {name}", seed)
    dataset_inference_finds(findings, scored["a"], a, c, "the set that was read")
    often = [name for name, canary in bench.traps.items() if canary.times_seen >= OFTEN]
    seldom = [name for name, canary in bench.traps.items() if canary.times_seen <= 1]
    dataset_inference_finds(findings, scored["a"], often, seldom, f"canaries seen {OFTEN} times or more")


def parse_options() -> argparse.Namespace:
    """What the command line and the environment ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default=os.environ.get("TRUTH_CORPUS", CORPORA[0]), help="examples or debian")
    parser.add_argument("--documents", type=int, help="of the pool, at most  [default: all; 1,500 of debian]")
    parser.add_argument("--epochs", type=int, help="[default: 10; 4 of debian]")
    parser.add_argument("--machine-texts", type=int, default=100, help="documents to take prompts from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="kept; otherwise a folder that is removed")
    parser.add_argument("--json", type=Path, help="checks and tables")
    options = parser.parse_args()
    if options.corpus not in CORPORA:  # argparse does not look at what the environment says
        parser.error(f"--corpus (or TRUTH_CORPUS) is {options.corpus!r}, expected one of {', '.join(CORPORA)}")
    if options.corpus == "debian":
        options.documents = options.documents or 1500
    options.epochs = options.epochs or (4 if options.corpus == "debian" else 10)
    return options


def main() -> int:
    """Run, print, tell whether all holds."""
    options, start = parse_options(), time.perf_counter()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        findings = run(options, work)
    if options.json is not None:
        options.json.write_text(json.dumps(findings.block(), indent=2) + "\n", encoding="utf-8")
    failed = findings.failed()
    print(f"{len(findings.checks) - len(failed)} of {len(findings.checks)} hold, {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""`xentrs dataset-inference`: held to the functions, a trained model found, what makes an answer wrong refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAINING_LINES, CommandResult, write_model
from trained_models import train_model
from xentrs.detect.dataset_tests import dataset_inference
from xentrs.detect.passes import opened_companions
from xentrs.detect.pipeline import Extras, score_run
from xentrs.models import load_model
from xentrs.runs.open_run import OpenRun

Command = Callable[..., CommandResult]
WORDS = TRAINING_LINES[0].split() + TRAINING_LINES[1].split()
pytestmark = pytest.mark.usefixtures("one_thread")


def texts_of(seed: int, count: int) -> list[str]:
    """Texts of one source."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, int(generator.integers(6, 12)))) for _ in range(count)]


SUSPECT, VALIDATION = texts_of(1, 24), texts_of(2, 30)


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def of_texts(path: Path, texts: Sequence[str]) -> Path:
    return write_records(path, [{"text": text, "id": str(place)} for place, text in enumerate(texts)])


def score(command: Command, corpus: Path, model: Path, run: Path, *options: object) -> Path:
    arguments = ("--model", model, "--dtype", "float32", "--threads", 1, "--quiet", "-o", run, *options)
    result = command("score", corpus, "--tokens", "detect", *arguments)
    assert result.code == 0, result.err
    return run


@pytest.fixture
def runs(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Both sets, scored alike; ids are the same in both, texts are not."""
    suspect, validation = (
        score(xentrs_command, of_texts(tmp_path / f"{name}.jsonl", texts), tiny_model, tmp_path / name)
        for name, texts in (("suspect", SUSPECT), ("validation", VALIDATION))
    )
    return suspect, validation


def features(run: Path, names: Sequence[str]) -> dict[str, Any]:
    opened = OpenRun(run)
    return score_run(opened, names, Extras(None, opened_companions(run))).values


def test_the_result_is_that_of_the_functions(xentrs_command: Command, runs: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    options = ("--splits", 3, "--permutations", 99, "--seed", 5, "--clip", 0.1, "--ridge", 0.5)
    result = xentrs_command("dataset-inference", *runs, *options, "-o", output)
    assert result.code == 0, result.err
    tables = [features(run, ["membership"]) for run in runs]
    expected = dataset_inference(*tables, splits=3, permutations=99, seed=5, clip=0.1, ridge=0.5)
    page = json.loads(output.read_text())
    for name, value in json.loads(json.dumps(expected.block())).items():
        assert page["result"][name] == value, name
    assert page["settings"] == {"splits": 3, "permutations": 99, "clip": 0.1, "ridge": 0.5, "seed": 5}
    assert [split["suspect_tested"] for split in page["result"]["splits"]] == [12] * 3
    assert page["protocol"] == OpenRun(runs[0]).protocol
    assert page["suspect"]["inputs"][0]["name"] == str(tmp_path / "suspect.jsonl")
    assert {"loss", "zlib", "min-k++"} <= set(page["result"]["features"])
    assert f"permutation p  {expected.permutation_p_value:.4g} (99 permutations, seed 5)" in result.out
    assert f"Welch p        {expected.welch_p_value:.4g}" in result.out
    assert "documents      24 suspect, 30 validation" in result.out
    assert "differ in nothing else" in result.out
    assert "does not show that the documents were not trained on" in result.out
    assert "left out dc-pdd: frequencies (--frequencies FILE)" in result.err
    assert page["result"]["unchecked"] is None
    assert "could not be looked for" not in result.err
    as_json = xentrs_command("dataset-inference", *runs, *options, "--json", "--quiet")
    assert (as_json.code, as_json.err) == (0, "")
    assert json.loads(as_json.out) == page
    one = xentrs_command("dataset-inference", *runs, "--scores", "loss, min-k:k=0.5", "--splits", 1, "--json")
    assert json.loads(one.out)["result"]["features"] == ["loss", "min-k:k=0.5"]


def test_a_model_that_was_trained_on_the_suspect_documents(
    xentrs_command: Command, tmp_path: Path, runs: tuple[Path, Path]
) -> None:
    """It is found, and the model before it was trained is not. With the sets swapped they differ as well; what is
    printed beside says which way.
    """
    folder = write_model(tmp_path / "trained")
    encoder = load_model(str(folder), dtype="float32").encoder
    train_model(folder, [entry.token_ids.tolist() for entry in encoder.encode(SUSPECT)], 200)
    trained = tuple(
        score(xentrs_command, tmp_path / f"{name}.jsonl", folder, tmp_path / f"trained-{name}")
        for name in ("suspect", "validation")
    )

    def infer(*given: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(xentrs_command("dataset-inference", *given, "--json").out)["result"]
        return found

    found, swapped, untrained = infer(*trained), infer(*reversed(trained)), infer(*runs)
    assert max(found["permutation_p_value"], found["welch_p_value"]) < 0.01
    assert {"loss", "zlib", "min-k"} <= set(found["higher_features"])
    assert swapped["permutation_p_value"] < 0.01
    assert "loss" not in swapped["higher_features"]
    assert min(untrained["permutation_p_value"], untrained["welch_p_value"]) > 0.05


def test_runs_of_other_protocols_are_refused(
    xentrs_command: Command, runs: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    suspect, _ = runs
    corpus, other_model = tmp_path / "validation.jsonl", write_model(tmp_path / "other", hidden_size=48)
    for name, model, options, message in (
        ("window", tiny_model, ("--window", 32), "window: 64 in"),
        ("prefix", tiny_model, ("--prefix", "bos"), "prefix: none in"),
        ("model", other_model, (), "model_sha256: "),
    ):
        run = score(xentrs_command, corpus, model, tmp_path / f"run-{name}", *options)
        result = xentrs_command("dataset-inference", suspect, run)
        assert (result.code, result.out) == (2, "")
        assert "have different protocols" in result.err
        assert message in result.err


def test_documents_of_both_sets_are_refused(
    xentrs_command: Command, runs: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    suspect, _ = runs
    mixed = write_records(
        tmp_path / "mixed.jsonl",
        [{"text": text, "id": f"v{place}"} for place, text in enumerate([*VALIDATION, SUSPECT[3], SUSPECT[7]])],
    )
    result = xentrs_command("dataset-inference", suspect, score(xentrs_command, mixed, tiny_model, tmp_path / "mixed"))
    assert (result.code, result.out) == (2, "")
    assert f"2 documents of {tmp_path / 'mixed'} stand in {suspect} too, the first as v30 and 3" in result.err
    assert xentrs_command("dataset-inference", suspect, suspect).code == 2


def test_documents_twice_in_a_set_are_refused(
    xentrs_command: Command, runs: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """Copies stand in the half that fits and in the half that is tested. Documents without a token are none."""
    suspect, _ = runs
    texts = [*VALIDATION, "", VALIDATION[4], VALIDATION[4], VALIDATION[1], ""]
    twice = score(xentrs_command, of_texts(tmp_path / "twice.jsonl", texts), tiny_model, tmp_path / "twice")
    for given in ((suspect, twice), (twice, suspect)):
        result = xentrs_command("dataset-inference", *given, "--scores", "loss")
        assert (result.code, result.out) == (2, "")
        assert f"3 documents of {twice} repeat another of the same set, the first 31 repeats 4: " in result.err
        assert "remove duplicates first" in result.err
    once = [*VALIDATION, "", ""]
    apart = score(xentrs_command, of_texts(tmp_path / "once.jsonl", once), tiny_model, tmp_path / "once")
    assert xentrs_command("dataset-inference", suspect, apart, "--scores", "loss").code == 0


def test_pairs_are_known_by_their_whole_text(
    xentrs_command: Command, runs: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """Not by the answer, which stands behind many questions, and not by ids, which a rewritten benchmark keeps."""

    def pairs(name: str, texts: Sequence[str], ids: str | None, *options: object) -> Path:
        records: list[dict[str, Any]] = [{"q": text, "a": " the river"} for text in texts]
        for place, record in enumerate(records if ids is not None else ()):
            record["id"] = f"{ids}{place}"
        keys = ("--context-key", "q", "--continuation-key", "a")
        corpus = write_records(tmp_path / f"{name}.jsonl", records)
        return score(xentrs_command, corpus, tiny_model, tmp_path / name, *keys, *options)

    def infer(*given: Path, as_json: bool = True) -> CommandResult:
        return xentrs_command("dataset-inference", *given, "--scores", "loss", *(["--json"] if as_json else []))

    suspect, rewritten = pairs("pairs", SUSPECT, "s"), pairs("rewritten", VALIDATION, "s")
    result = infer(suspect, rewritten)
    assert result.code == 0, result.err
    assert json.loads(result.out)["result"]["unchecked"] is None
    # Without ids they are named by file and line; a kept text and one that is read again are the same.
    for name, options in (("again", ()), ("kept", ("--keep-text",))):
        again = pairs(name, [*VALIDATION, SUSPECT[3]], None, *options)
        result = infer(suspect, again)
        assert (result.code, result.out) == (2, "")
        assert f"1 documents of {again} stand in {suspect} too" in result.err
    twice = pairs("twice", [*VALIDATION, VALIDATION[5]], "v")
    assert "1 documents of" in (result := infer(suspect, twice)).err
    assert "the first v30 repeats v5" in result.err
    # Where the text is gone nothing is refused, and that is said; the other set is still looked at.
    (tmp_path / "pairs.jsonl").unlink()
    result = infer(suspect, rewritten)
    assert result.code == 0, result.err
    unchecked = json.loads(result.out)["result"]["unchecked"]
    assert unchecked.startswith(f"{suspect}: the inputs cannot be read again")
    assert f"documents in both sets, or twice in one, could not be looked for: {unchecked}" in result.err
    assert "repeats v5" in infer(suspect, twice).err
    result = infer(suspect, runs[1], as_json=False)
    assert result.code == 2
    assert "holds pairs and" in result.err
    assert "texts: expected one kind of records" in result.err


def test_documents_without_a_score_are_counted_and_too_few_refused(
    xentrs_command: Command, runs: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    suspect, _ = runs
    texts = ["", *VALIDATION[:10], "a"]
    run = score(xentrs_command, of_texts(tmp_path / "short.jsonl", texts), tiny_model, tmp_path / "short")
    result = xentrs_command("dataset-inference", suspect, run, "--json", "--splits", 1)
    assert result.code == 0, result.err
    page = json.loads(result.out)["result"]
    assert (page["validation_documents"], page["validation_left_out"], page["suspect_left_out"]) == (10, 2, 0)
    assert page["left_out"] == {"suspect": [], "validation": ["0", "11"]}
    assert "left out 2 validation documents with a score that is not finite: 0, 11" in result.err
    few = score(xentrs_command, of_texts(tmp_path / "few.jsonl", texts[:10]), tiny_model, tmp_path / "few")
    result = xentrs_command("dataset-inference", suspect, few)
    assert (result.code, result.out) == (2, "")
    assert "validation has 10 documents, 9 of them with all features finite, expected at least 10" in result.err


def test_further_passes_count_where_both_have_them(
    xentrs_command: Command, runs: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    def detect(name: str, shots: str | None = None) -> Path:
        options = [] if shots is None else ["--shots", of_texts(tmp_path / f"shots-{shots}.jsonl", [shots])]
        arguments = ("--model", tiny_model, "--dtype", "float32", "--threads", 1, "--scores", "membership", *options)
        run = tmp_path / f"{name}-{shots}"
        result = xentrs_command("detect", tmp_path / f"{name}.jsonl", "-o", run, *arguments)
        assert result.code == 0, result.err
        return run

    suspect, validation = detect("suspect", "a bar"), detect("validation", "a bar")
    result = xentrs_command("dataset-inference", suspect, validation, "--json")
    assert result.code == 0, result.err
    assert {"lowercase", "recall"} <= set(json.loads(result.out)["result"]["features"])
    # Names of a group that one set cannot give are left out and said; a name asked for is an error.
    result = xentrs_command("dataset-inference", suspect, detect("validation"), "--json")
    assert result.code == 0, result.err
    page = json.loads(result.out)["result"]
    assert "lowercase" in page["features"]
    assert "recall" not in page["features"]
    assert page["unavailable"]["recall"] == "the validation documents lack nonmember_shots (--shots FILE)"
    assert "left out recall: the validation documents lack nonmember_shots (--shots FILE)" in result.err
    result = xentrs_command("dataset-inference", suspect, runs[1], "--scores", "recall")
    assert result.code == 2
    assert "score recall needs nonmember_shots: --shots FILE" in result.err
    result = xentrs_command("dataset-inference", suspect, detect("validation", "a town"))
    assert result.code == 2
    assert "have different protocols: shots_sha256: " in result.err


def test_reference_passes_of_two_kinds_are_refused(
    xentrs_command: Command, tiny_model: Path, tiny_bos_model: Path, tmp_path: Path
) -> None:
    """One reference model has the tokenizer of the model and one has not: both give ref-*, of different models."""
    same_tokenizer = write_model(tmp_path / "reference", hidden_size=48)

    def detect(name: str, texts: Sequence[str], reference: Path) -> Path:
        arguments = ("--model", tiny_model, "--dtype", "float32", "--threads", 1, "--scores", "loss,ref-ratio")
        corpus, run = of_texts(tmp_path / f"{name}.jsonl", texts), tmp_path / f"{name}-{reference.name}"
        result = xentrs_command("detect", corpus, "-o", run, *arguments, "--reference", reference)
        assert result.code == 0, result.err
        return run

    suspect, validation = detect("suspect", SUSPECT, tiny_bos_model), detect("validation", VALIDATION, same_tokenizer)
    passes = suspect / "companions" / "reference", validation / "companions" / "cross"
    for given, named in (((suspect, validation), passes), ((validation, suspect), passes[::-1])):
        result = xentrs_command("dataset-inference", *given, "--scores", "ref-ratio")
        assert (result.code, result.out) == (2, "")
        assert f"{named[0]} and {named[1]} are the reference passes: expected one kind" in result.err
    alike = detect("suspect", SUSPECT, same_tokenizer)
    assert xentrs_command("dataset-inference", alike, validation, "--scores", "ref-ratio").code == 0
    other = detect("validation", VALIDATION, write_model(tmp_path / "narrow", hidden_size=16))
    result = xentrs_command("dataset-inference", alike, other, "--scores", "ref-ratio")
    assert result.code == 2
    assert "have different protocols: model" in result.err


def test_columns_of_one_set_alone_are_said(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    """Both have scores at inverse temperatures, but at others."""
    suspect, validation = (
        score(
            xentrs_command,
            of_texts(tmp_path / f"{name}.jsonl", texts),
            tiny_model,
            tmp_path / name,
            "--inverse-temperatures",
            temperatures,
        )
        for name, texts, temperatures in (("suspect", SUSPECT, "0.5,1"), ("validation", VALIDATION, "1,2"))
    )
    result = xentrs_command("dataset-inference", suspect, validation, "--json")
    assert result.code == 0, result.err
    page = json.loads(result.out)["result"]
    assert "acmia-norm_beta_1" in page["features"]
    assert not [name for name in page["features"] if name.startswith(("acmia_", "acmia-deriv_"))]
    lacks = "the {} documents lack this column of the score"
    for name, side in (
        ("acmia_beta_0.5", "validation"),
        ("acmia_beta_2", "suspect"),
        ("acmia-deriv_beta_0.5_1", "validation"),
        ("acmia-deriv_beta_1_2", "suspect"),
        ("acmia-norm_beta_0.5", "validation"),
        ("acmia-norm_beta_2", "suspect"),
    ):
        assert page["unavailable"][name] == lacks.format(side)
    assert f"left out acmia_beta_0.5, acmia-deriv_beta_0.5_1, acmia-norm_beta_0.5: {lacks.format('validation')}" in (
        result.err
    )
    assert xentrs_command("dataset-inference", suspect, validation, "--scores", "acmia-norm").code == 0
    result = xentrs_command("dataset-inference", suspect, validation, "--scores", "loss,acmia")
    assert (result.code, result.out) == (2, "")
    assert "score acmia has no column that both sets give: " in result.err
    assert f"acmia_beta_2: {lacks.format('suspect')}" in result.err


def test_the_smallest_p_value_is_the_one_of_the_help(xentrs_command: Command, tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    near, far = (generator.normal(shift, 0.1, (40, 1)) for shift in (0.0, 9.0))
    assert dataset_inference(far, near, splits=1, permutations=99).permutation_p_value == 1 / 100
    assert dataset_inference(far, near, splits=11, permutations=99).permutation_p_value == 2 / 100
    shown = " ".join(xentrs_command("dataset-inference", "--help").out.replace("│", " ").split())
    assert "smallest p is 2 / (1 + N)" in shown


def test_usage(xentrs_command: Command, runs: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    suspect, validation = runs
    for arguments, message in (
        ((suspect, tmp_path / "gone"), "gone: no such folder"),
        ((suspect, tmp_path), "is not a RUN folder"),
        ((suspect, validation, "--scores", "min-q"), "there is no score 'min-q'"),
        ((suspect, validation, "--clip", 0.5), "clip = 0.5 is outside [0, 0.5)"),
        ((suspect, validation, "--frequencies", tmp_path / "gone.npz"), "gone.npz: no such file"),
        ((suspect, validation, "-o", tmp_path / "no" / "x.json"), "no such folder"),
        ((suspect,), "Missing argument"),
    ):
        result = xentrs_command("dataset-inference", *arguments)
        assert (result.code, result.out) == (2, ""), arguments
        assert message in result.err
    (validation / "summary.json").unlink()
    result = xentrs_command("dataset-inference", suspect, validation)
    assert result.code == 2
    assert "unfinished RUN" in result.err
    corpus = tmp_path / "validation.jsonl"
    basic = score(xentrs_command, corpus, tiny_model, tmp_path / "basic", "--tokens", "basic")
    result = xentrs_command("dataset-inference", suspect, basic)
    assert result.code == 0
    assert "left out renyi: the validation documents lack renyi_entropy_0.5 (--tokens detect)" in result.err
    none = score(xentrs_command, corpus, tiny_model, tmp_path / "none", "--tokens", "none")
    result = xentrs_command("dataset-inference", suspect, none)
    assert result.code == 2
    assert "has no column token_id: score with --tokens basic" in result.err

"""`xentrs detect`: scores held to plain arithmetic on the models' logits, evaluation to scikit-learn, refusals."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from conftest import CommandResult, write_model
from xentrs.models import load_model

Command = Callable[..., CommandResult]
TEXTS = [f"the {name} fox {number}" for number, name in enumerate(("quick", "Brown", "lazy", "Zürich", "old", "NEW"))]
RECORDS: list[dict[str, Any]] = [
    {"text": text, "id": f"d{place}", "label": place % 2} for place, text in enumerate(TEXTS * 2)
]
SHOTS, MEMBER_SHOTS = ["a river", "of towns"], ["a bar"]
pytestmark = pytest.mark.usefixtures("one_thread")


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def of_texts(path: Path, texts: list[str]) -> Path:
    return write_records(path, [{"text": text} for text in texts])


def log_probs(runner: Any, ids: list[int]) -> npt.NDArray[np.float64]:
    """Row i holds ln p of every token behind ids[i], from the runner's logits alone."""
    hidden = runner.hidden_states(np.array([ids], dtype=np.int64))
    logits = runner.logits(hidden.reshape(-1, hidden.shape[-1])).astype(np.float64)
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def mean_nll(runner: Any, ids: list[int], count: int) -> float:
    """Of the last `count` ids."""
    found = log_probs(runner, ids)
    return -float(np.mean([found[place - 1, ids[place]] for place in range(len(ids) - count, len(ids))]))


def scores_of(run: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(run / "scores.parquet").to_pydict()
    return columns


@pytest.fixture(scope="module")
def reference_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another body behind the same tokenizer."""
    return write_model(tmp_path_factory.mktemp("reference"), hidden_size=48)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_records(tmp_path / "corpus.jsonl", RECORDS)


def detect(command: Command, corpus: Path, model: Path, run: Path, *options: object) -> CommandResult:
    return command("detect", corpus, "--model", model, "--dtype", "float32", "-o", run, *options)


def test_every_pass_against_plain_arithmetic(
    xentrs_command: Command, corpus: Path, tiny_model: Path, tiny_runner: Any, reference_model: Path, tmp_path: Path
) -> None:
    run, reference = tmp_path / "run", load_model(str(reference_model), dtype="float32")
    shots = of_texts(tmp_path / "shots.jsonl", SHOTS), of_texts(tmp_path / "members.jsonl", MEMBER_SHOTS)
    names = "loss,lowercase,recall,con-recall,ref-difference,fast-detectgpt-cross,binoculars,binoculars-code"
    options = ("--scores", names, "--reference", reference_model, "--shots", shots[0], "--member-shots", shots[1])
    result = detect(xentrs_command, corpus, tiny_model, run, *options)
    assert result.code == 0, result.err
    table = scores_of(run)
    before, before_members = ("".join(f"{text}\n\n" for text in texts) for texts in (SHOTS, MEMBER_SHOTS))

    def encode(text: str) -> list[int]:
        ids: list[int] = tiny_runner.encoder.encode([text])[0].token_ids.tolist()
        return ids

    for place, record in enumerate(RECORDS[:4]):
        ids, lowered = encode(record["text"]), encode(record["text"].lower())
        count = len(ids) - 1
        plain, under_reference = mean_nll(tiny_runner, ids, count), mean_nll(reference, ids, count)
        after = mean_nll(tiny_runner, encode(before) + ids, count)
        after_members = mean_nll(tiny_runner, encode(before_members) + ids, count)
        p, q = np.exp(log_probs(reference, ids)[:-1]), log_probs(tiny_runner, ids)[:-1]
        cross = (-p * q).sum(axis=1)
        variance = (p * q**2).sum(axis=1) - cross**2
        expected = {
            "loss": -plain,
            "lowercase": mean_nll(tiny_runner, lowered, len(lowered) - 1) / plain,
            "recall": after / plain,
            "con-recall": (after - 0.5 * after_members) / plain,
            "ref-difference": under_reference - plain,
            "fast-detectgpt-cross": (cross.sum() - plain * count) / variance.sum() ** 0.5,
            "binoculars": -under_reference / cross.mean(),
            "binoculars-code": -plain / cross.mean(),
        }
        found = {name: table[name][place] for name in expected}
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4), record
    assert set(result.err.split()) >= {"lowercase", "nonmember_shots", "member_shots", "cross"}


def test_evaluation_and_the_run_without_a_model(
    xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from sklearn.metrics import roc_auc_score

    write_records(corpus, [*RECORDS, {"text": "", "id": "empty", "label": True}])
    run = tmp_path / "run"
    result = detect(xentrs_command, corpus, tiny_model, run, "--label-key", "label")
    assert result.code == 0, result.err
    page, table = json.loads((run / "evaluation.json").read_text()), scores_of(run)
    assert table["label"] == [bool(record["label"]) for record in RECORDS] + [True]
    for name, entry in page["evaluation"]["scores"].items():
        assert (entry["positives"], entry["negatives"], entry["nan_count"]) == (6, 6, 1)
        assert entry["auroc"] == pytest.approx(roc_auc_score(table["label"][:-1], table[name][:-1])), name
        assert page["against_blind"][name]["sentence"]
        assert page["decisions"]["scores"][name]["conformal"]["reference_count"] == 6
    assert table["loss"][-1] is None
    assert dict(table["reasons"][-1])["loss"] == "no_tokens"
    assert page["missing_scores"]["loss"] == {"count": 1, "reasons": {"no_tokens": 1}, "documents": ["empty"]}
    assert set(page["unavailable"]) >= {"dc-pdd", "recall", "binoculars", "acmia"}
    lines = result.out.splitlines()
    assert lines[0].split()[:2] == ["score", "AUROC"]
    assert any(line.startswith("words alone") for line in lines)
    assert page["blind_baseline"]["sentence"] in lines
    assert "each score: 1 documents without it (1 no_tokens): empty" in result.err

    before = {name: (run / name).read_bytes() for name in ("scores.parquet", "evaluation.json")}
    for again in (("detect", run, "--label-key", "label"), ("detect", run, "--label-key", "label", "--json")):
        result = xentrs_command(*again)
        assert result.code == 0, result.err
        assert {name: (run / name).read_bytes() for name in before} == before
    assert json.loads(result.out) == page
    assert xentrs_command("detect", run, "--scores", "loss").code == 0  # without labels
    assert not (run / "evaluation.json").exists()


def test_a_run_of_several_parts_and_a_second_call(
    xentrs_command: Command, corpus: Path, tiny_model: Path, reference_model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def scores(run: Path) -> dict[str, list[Any]]:
        names = "zlib,lowercase,min-k:k=0.5,acmia,binoculars"
        options = ("--scores", names, "--batch-tokens", "1", "--reference", reference_model)
        assert detect(xentrs_command, corpus, tiny_model, run, *options).code == 3
        return scores_of(run)

    write_records(corpus, [*RECORDS[:5], {"wrong": 1}, *RECORDS[5:], {"text": ""}, *RECORDS[:2]])
    whole = scores(tmp_path / "whole")
    assert sum(name.startswith("acmia_beta_") for name in whole) == 51
    from xentrs.corpus import settings

    resolve = settings.resolve_settings
    monkeypatch.setattr(
        "xentrs.corpus.resolve_settings", lambda *given, **options: resolve(*given, **options, part_tokens=40)
    )
    parts = scores(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("tokens-*.parquet"))) > 2
    assert parts == whole
    assert parts["document"] == [place for place in range(16) if place != 5]
    assert [place for place, reasons in enumerate(parts["reasons"]) if reasons] == [12]
    # One pass is gone, another was killed behind its second part: only these are made again.
    shutil.rmtree(tmp_path / "parts" / "companions" / "lowercase")
    cross = tmp_path / "parts" / "companions" / "cross"
    (cross / "summary.json").unlink()
    lines = (cross / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (cross / "manifest.jsonl").write_bytes(b"".join(lines[:3]))
    kept = [tmp_path / "parts" / "tokens-00000.parquet", cross / "tokens-00001.parquet"]
    times = [path.stat().st_mtime_ns for path in kept]
    assert scores(tmp_path / "parts") == whole
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert (cross / "manifest.jsonl").read_bytes() == b"".join(lines)


def test_words_that_give_the_label_away(
    xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    words = [{"text": f"{('old', 'new')[n % 2]} towns {n}", "label": ("human", "machine")[n % 2]} for n in range(40)]
    run = tmp_path / "run"
    options = ("--label-key", "label", "--scores", "entropy,rank")
    result = detect(xentrs_command, write_records(corpus, words), tiny_model, run, *options)
    assert result.code == 0, result.err
    page = json.loads((run / "evaluation.json").read_text())
    assert page["blind_baseline"]["evaluation"]["auroc"] == 1.0
    assert "so a score has to beat this" in result.out
    assert "0 of 2 scores beat the words alone" in result.out


def test_reference_of_another_tokenizer_or_vocabulary(
    xentrs_command: Command, corpus: Path, tiny_model: Path, tiny_bos_model: Path, tmp_path: Path
) -> None:
    wider = write_model(tmp_path / "wider", vocab_size=384)
    options = ("--scores", "binoculars", "--reference")
    for other, message in ((tiny_bos_model, "expected one tokenizer"), (wider, "320 tokens, reference")):
        result = detect(xentrs_command, corpus, tiny_model, tmp_path / "run", *options, other)
        assert (result.code, (tmp_path / "run").exists()) == (2, False)
        assert message in result.err
    assert "384" in result.err
    result = detect(xentrs_command, corpus, tiny_model, tmp_path / "run", "--scores", "all", "--reference", wider)
    assert result.code == 0
    assert "warning: no scores of two models' predictions" in result.err
    table = scores_of(tmp_path / "run")
    assert "ref-ratio" in table
    assert "binoculars" not in table


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{**record, "label": 1} for record in RECORDS], "12 documents of label 1 and 0 of label 0"),
        (RECORDS[:4], "4 documents, expected at least 5"),
        ([*RECORDS, {"text": "x", "label": "maybe"}], "corpus.jsonl:13: label 'maybe', expected one of 1, true"),
        ([{"text": text} for text in TEXTS], "0 documents, expected at least 5; 6 documents have no label"),
        ([*RECORDS[:3], {"text": "x"}, {"text": "y"}], "3 documents, expected at least 5; 2 documents have no label"),
        (
            [{**record, "label": 1} for record in RECORDS] + [{"text": "x", "label": None}],
            "12 documents of label 1 and 0 of label 0, expected both; 1 documents have no label",
        ),
    ],
)
def test_labels_are_checked_before_anything_is_scored(
    xentrs_command: Command, tmp_path: Path, records: list[dict[str, Any]], message: str
) -> None:
    corpus = write_records(tmp_path / "corpus.jsonl", records)
    result = detect(xentrs_command, corpus, tmp_path / "no-model", tmp_path / "run", "--label-key", "label")
    assert (result.code, (tmp_path / "run").exists()) == (2, False)
    assert message in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scores", "min-q"], "there is no score 'min-q'"),
        (["--scores", "min-k:k=2"], "expected a number in (0, 1]"),
        (["--scores", "dc-pdd"], "score dc-pdd needs frequencies: --frequencies FILE"),
        (["--scores", "recall"], "score recall needs nonmember_shots: --shots FILE"),
        (["--scores", "ref-ratio"], "score ref-ratio needs reference: --reference MODEL"),
        (["--scores", "loss", "--reference", "x"], "no score of --scores loss uses --reference"),
        (["--member-shots", "shots.jsonl"], "--member-shots needs --shots"),
        (["--shots", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--scores", "acmia-norm", "--inverse-temperatures", "0.5"], "needs 1 among --inverse-temperatures"),
        (["--frequencies", "missing.npz"], "missing.npz: no such file"),
    ],
)
def test_usage(xentrs_command: Command, corpus: Path, tmp_path: Path, options: list[str], message: str) -> None:
    result = detect(xentrs_command, corpus, tmp_path / "no-model", tmp_path / "run", *options)
    assert (result.code, (tmp_path / "run").exists()) == (2, False)
    assert message in result.err


def test_standard_input_keeps_its_texts(
    xentrs_command: Command, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    options = ("--stdin-format", "jsonl", "--scores", "zlib", "--label-key", "label")
    result = detect(xentrs_command, Path("-"), tiny_model, tmp_path / "run", *options)
    assert result.code == 0, result.err
    assert "Words alone" in result.out


def test_shots_among_the_documents(xentrs_command: Command, corpus: Path, tmp_path: Path) -> None:
    shots = of_texts(tmp_path / "shots.jsonl", ["a river", TEXTS[2] + "\n"])
    result = detect(xentrs_command, corpus, tmp_path / "no-model", tmp_path / "run", "--shots", shots)
    assert result.code == 2
    assert "corpus.jsonl:3: this text is a shot" in result.err


def test_shots_that_fill_the_window(xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    shots = of_texts(tmp_path / "shots.jsonl", ["a river of towns " * 20])
    result = detect(xentrs_command, corpus, tiny_model, tmp_path / "run", "--shots", shots)
    assert result.code == 2
    assert "the window 64: expected room for a document" in result.err


def test_what_a_run_lacks_is_named(xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert xentrs_command("score", corpus, "--model", tiny_model, "-o", run, "--quiet").code == 0
    for options, message in (
        (["--scores", "renyi"], "has no column renyi_entropy_0.5: score with --tokens detect"),
        (["--label-key", "label"], "has no column by_label: score with --by label"),
        (["--scores", "lowercase"], "score lowercase needs lowercase"),
        (["--scores", "acmia"], "score acmia needs tempered: --tokens detect --inverse-temperatures"),
        (["--model", "x"], "--model does not go with"),
        ([corpus], "is a RUN: it is taken alone"),
    ):
        result = xentrs_command("detect", run, *options)
        assert result.code == 2, options
        assert message in result.err
    corpus.write_text("gone")
    assert "score zlib needs zlib_byte_count" in xentrs_command("detect", run, "--scores", "zlib").err
    result = xentrs_command("detect", run)
    assert result.code == 0, result.err
    assert "no texts:" in result.err
    assert "left out zlib" in result.err

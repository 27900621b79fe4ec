"""`xentrs detect` over several RUNs, and over documents without a label."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TRAINING_LINES, CommandResult, write_model
from xentrs.detect.decisions import decide

Command = Callable[..., CommandResult]
WORDS = ("quick", "Brown", "lazy", "Zürich", "old", "NEW")
RECORDS: list[dict[str, Any]] = [
    {"text": f"the {WORDS[place % 6]} fox {place}", "id": f"d{place}", "label": place % 2} for place in range(23)
]
# Each document a batch of its own: its bits do not depend on its neighbours.
ALONE = ("--dtype", "float32", "--batch-tokens", "1")
pytestmark = pytest.mark.usefixtures("one_thread")


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def table_of(folder: Path, name: str = "scores.parquet") -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(folder / name).to_pydict()
    return columns


def page_of(folder: Path) -> dict[str, Any]:
    page: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return page


def without_places(page: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on where the tokens lie."""
    return {name: value for name, value in page.items() if name not in ("runs", "tables")}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_records(
        tmp_path / "corpus.jsonl", [*RECORDS[:9], {"wrong": 1}, *RECORDS[9:], {"text": "", "label": 1}]
    )


def test_shards_are_the_whole_bit_for_bit(
    xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    reference = write_model(tmp_path / "reference", hidden_size=48)
    shots = write_records(tmp_path / "shots.jsonl", [{"text": "a river"}])
    options = ("--model", tiny_model, *ALONE, "--label-key", "label", "--reference", reference, "--shots", shots)
    assert xentrs_command("detect", corpus, *options, "-o", tmp_path / "whole").code == 3
    shards = [tmp_path / f"shard-{number}" for number in (3, 1, 2)]
    for shard in shards:
        number = f"{shard.name[-1]}/3"
        assert xentrs_command("detect", corpus, *options, "--shard", number, "-o", shard).code in (0, 3)
    # A shard's own evaluation needs the rest.
    result = xentrs_command("detect", *shards, "--label-key", "label", "-o", tmp_path / "out" / "all")
    assert result.code == 0, result.err
    whole, joined = table_of(tmp_path / "whole"), table_of(tmp_path / "out" / "all")
    assert list(joined) == list(whole)
    assert {"lowercase", "recall", "binoculars", "zlib"} <= set(joined)
    assert joined == whole
    assert without_places(page_of(tmp_path / "out" / "all")) == without_places(page_of(tmp_path / "whole"))
    assert [entry["run"] for entry in page_of(tmp_path / "out" / "all")["runs"]] == list(map(str, shards))
    assert {entry["document_offset"] for entry in page_of(tmp_path / "out" / "all")["runs"]} == {0}

    shutil.rmtree(shards[1] / "companions" / "lowercase")
    result = xentrs_command("detect", *shards, "-o", tmp_path / "fewer")
    assert result.code == 0, result.err
    assert f"the pass lowercase is left out: {shards[1]} has none" in result.err
    assert "lowercase" not in table_of(tmp_path / "fewer")
    assert not (tmp_path / "fewer" / "evaluation.json").exists()


def test_shards_without_a_document(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    corpus = write_records(tmp_path / "corpus.jsonl", [RECORDS[0], {"wrong": 1}])
    shards = [tmp_path / f"shard-{number}" for number in (1, 2, 3)]
    for shard in shards:
        number = f"{shard.name[-1]}/3"
        xentrs_command("score", corpus, "--model", tiny_model, *ALONE, "--shard", number, "-o", shard, "--quiet")
    result = xentrs_command("detect", *shards, "--scores", "loss,zlib", "-o", tmp_path / "all")
    assert result.code == 0, result.err
    assert table_of(tmp_path / "all")["id"] == ["d0"]
    result = xentrs_command("detect", *shards[1:], "-o", tmp_path / "none")
    assert (result.code, "no document" in result.err) == (2, True)


def test_other_inputs_of_one_protocol(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    runs = []
    for name, records in (("b", RECORDS[:10]), ("a", RECORDS[10:])):
        corpus = write_records(tmp_path / f"{name}.jsonl", records)
        runs.append(tmp_path / name)
        options = ("--tokens", "detect", "--by", "label", "--quiet")
        assert xentrs_command("score", corpus, "--model", tiny_model, *ALONE, *options, "-o", runs[-1]).code == 0
    found = []
    for order in (runs, runs[::-1]):
        result = xentrs_command("detect", *order, "--label-key", "label", "-o", tmp_path / "all")
        assert result.code == 0, result.err
        found.append((table_of(tmp_path / "all"), without_places(page_of(tmp_path / "all"))))
    assert found[0] == found[1]
    table = found[0][0]
    assert table["document"] == list(range(23))
    offsets = {Path(run["run"]).name: run["document_offset"] for run in page_of(tmp_path / "all")["runs"]}
    assert offsets in ({"a": 0, "b": 13}, {"b": 0, "a": 10})  # whatever the order of the arguments
    expected = RECORDS if offsets["b"] == 0 else [*RECORDS[10:], *RECORDS[:10]]
    assert table["id"] == [record["id"] for record in expected]
    assert table["label"] == [bool(record["label"]) for record in expected]
    assert {Path(path).name for path in table["source"][offsets["b"] : offsets["b"] + 10]} == {"b.jsonl"}
    of_one = tmp_path / "of-one"
    assert xentrs_command("detect", runs[0], "-o", of_one).code == 0
    assert not (runs[0] / "scores.parquet").exists()
    assert table_of(of_one)["loss"] == table["loss"][offsets["b"] : offsets["b"] + 10]


def test_runs_that_do_not_go_together(xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    one, other, wide = (tmp_path / name for name in ("one", "other", "wide"))
    score = ("score", corpus, "--model", tiny_model, *ALONE, "--quiet")
    assert xentrs_command(*score, "--limit", 9, "-o", one).code == 0
    assert xentrs_command(*score, "--skip", 10, "--window", 32, "-o", other).code == 0
    assert xentrs_command(*score, "--skip", 10, "--tokens", "detect", "-o", wide).code == 0
    for arguments, message in (
        ((one, other, "-o", tmp_path / "out"), "have different protocols: window"),
        ((one, one, "-o", tmp_path / "out"), "hold the same documents"),
        ((one, wide), "several RUNs need -o OUT"),
        ((one, wide, "-o", one), "is a RUN; scores of RUNs go into one without -o"),
        ((one, corpus, "-o", tmp_path / "out"), f"and {corpus} is none"),
        ((one, wide, "--scores", "renyi", "-o", tmp_path / "out"), "has no column renyi_entropy_0.5"),
    ):
        result = xentrs_command("detect", *arguments)
        assert result.code == 2, arguments
        assert message in result.err
    assert not (tmp_path / "out").exists()
    result = xentrs_command("detect", one, wide, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert "left out" in result.err
    assert "renyi_0.5" not in table_of(tmp_path / "out")
    assert len(table_of(tmp_path / "out")["loss"]) == 24


def test_texts_and_pairs_are_not_one_set(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    texts = write_records(tmp_path / "texts.jsonl", RECORDS[:6])
    pairs = write_records(tmp_path / "pairs.jsonl", [{"q": "Who?", "text": record["text"]} for record in RECORDS[6:12]])
    runs = [tmp_path / "of-texts", tmp_path / "of-pairs"]
    keys: tuple[tuple[str, ...], ...] = ((), ("--context-key", "q", "--continuation-key", "text"))
    for corpus, run, of in zip((texts, pairs), runs, keys, strict=True):
        assert xentrs_command("score", corpus, "--model", tiny_model, *ALONE, *of, "-o", run, "--quiet").code == 0
    result = xentrs_command("detect", *runs, "-o", tmp_path / "out")
    assert result.code == 2
    assert f"{runs[0]} holds texts and {runs[1]} pairs: expected one kind of records" in result.err


def test_a_folder_for_scores_is_looked_at_first(
    xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run, page = tmp_path / "run", tmp_path / "evaluation.json"
    assert xentrs_command("score", corpus, "--model", tiny_model, *ALONE, "-o", run, "--quiet").code == 3
    page.write_text("of somebody else", encoding="utf-8")
    result = xentrs_command("detect", run, "-o", tmp_path)
    assert (result.code, "is not of xentrs detect, expected another folder" in result.err) == (2, True)
    assert page.read_text(encoding="utf-8") == "of somebody else"
    result = xentrs_command("detect", run, "-o", page)
    assert (result.code, "is no folder, expected one for scores" in result.err) == (2, True)


def test_passes_after_other_shots(xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    shards = []
    for number in (1, 2):
        shots = write_records(tmp_path / f"shots-{number}.jsonl", [{"text": f"a river {number}"}])
        shards.append(tmp_path / f"shard-{number}")
        options = ("--shard", f"{number}/2", "--shots", shots, "--scores", "recall", "--quiet")
        assert xentrs_command("detect", corpus, "--model", tiny_model, *ALONE, *options, "-o", shards[-1]).code in (
            0,
            3,
        )
    result = xentrs_command("detect", *shards, "-o", tmp_path / "out")
    assert result.code == 2
    assert "have different protocols: shots_sha256" in result.err


def unlabeled_records(of_label_1: int) -> list[dict[str, Any]]:
    """Known non-members, suspects of which some say nothing and some null, perhaps members; one without a token."""
    known = [{"text": f"the {WORDS[n % 6]} fox {n} " * 2, "id": f"known{n}", "label": "nonmember"} for n in range(30)]
    suspects: list[dict[str, Any]] = [
        {"text": text, "id": f"suspect{n}", **({"label": None} if n % 2 else {})}
        for n, text in enumerate(TRAINING_LINES)
    ]
    members = [{"text": f"of towns {n}", "id": f"member{n}", "label": "member"} for n in range(of_label_1)]
    return [*suspects, *members, {"text": "", "id": "empty"}, *known]


@pytest.mark.parametrize("of_label_1", [0, 7])
def test_suspects_and_known_nonmembers(
    xentrs_command: Command, tiny_model: Path, tmp_path: Path, of_label_1: int
) -> None:
    records = unlabeled_records(of_label_1)
    corpus, run = write_records(tmp_path / "corpus.jsonl", records), tmp_path / "run"
    options = ("--label-key", "label", "--scores", "loss,min-k,zlib")
    result = xentrs_command("detect", corpus, "--model", tiny_model, *ALONE, *options, "-o", run)
    assert result.code == 0, result.err
    table, page, decisions = table_of(run), page_of(run), table_of(run, "decisions.parquet")
    labels: list[bool | None] = [
        {"member": True, "nonmember": False}.get(record.get("label") or "") for record in records
    ]
    assert table["label"] == labels
    assert page["labels"] == {"label_1": of_label_1, "label_0": 30, "unlabeled": 4}
    assert decisions["id"] == ["suspect0", "suspect1", "suspect2", "empty"] * 3
    assert decisions["score"] == [name for name in ("loss", "min-k", "zlib") for _ in range(4)]
    for place, name in enumerate(("loss", "min-k", "zlib")):
        values = np.array([np.nan if value is None else value for value in table[name]])
        is_known = [label is False for label in labels]
        expected = decide(values[[label is None for label in labels]], values[is_known], q=0.05)
        rows = slice(4 * place, 4 * place + 4)
        assert decisions["p_value"][rows] == expected.conformal.block()["p_values"]
        assert decisions["adjusted_p_value"][rows] == expected.block()["adjusted"]
        assert decisions["decided"][rows] == expected.decided.tolist()
        summary = page["unlabeled"]["scores"][name]
        assert (summary["decided"], summary["nan_count"], summary["reference_count"]) == (expected.count, 1, 30)
        assert summary["decided_ids"] == [decisions["id"][rows][n] for n in np.flatnonzero(expected.decided)]
    assert (page["unlabeled"]["documents"], page["unlabeled"]["nonmembers"]) == (4, 30)
    assert "Documents without a label, decided at a false discovery rate of 0.05" in result.out
    assert "decisions.parquet, evaluation.json" in result.err
    if of_label_1:
        entry = page["evaluation"]["scores"]["loss"]
        assert (entry["positives"], entry["negatives"], page["evaluation"]["documents"]) == (7, 30, 37)
        assert "Of 7 documents of label 1" in result.out
    else:
        assert page["evaluation"] is None
        assert page["evaluation_reason"] == "30 documents of label 0 and none of label 1"
        assert "no evaluation: 30 documents of label 0 and none of label 1" in result.out
    # Without a model the same bytes; without labels neither evaluation nor decisions are left.
    before = {name: (run / name).read_bytes() for name in ("scores.parquet", "evaluation.json", "decisions.parquet")}
    assert xentrs_command("detect", run, *options).code == 0
    assert {name: (run / name).read_bytes() for name in before} == before
    assert xentrs_command("detect", run).code == 0
    assert not (run / "evaluation.json").exists()
    assert not (run / "decisions.parquet").exists()


def test_documents_without_the_score_of_others(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    """Known non-members that all lack a score decide nothing by it, and that is said; so does a reference too small."""
    known = [{"text": "" if n < 5 else "the fox", "id": f"known{n}", "label": 0} for n in range(5)]
    corpus = write_records(tmp_path / "corpus.jsonl", [*known, {"text": "of towns"}])
    options = ("--label-key", "label", "--scores", "loss")
    result = xentrs_command("detect", corpus, "--model", tiny_model, *ALONE, *options, "-o", tmp_path / "run")
    assert result.code == 0, result.err
    assert "loss: not decided: reference has 5 documents, none with a score" in result.out
    assert table_of(tmp_path / "run", "decisions.parquet")["id"] == []
    known = [{"text": f"the fox {n}", "label": 0} for n in range(5)]
    write_records(corpus, [*known, {"text": "of towns"}])
    result = xentrs_command("detect", corpus, "--model", tiny_model, *ALONE, *options, "-o", tmp_path / "small")
    assert result.code == 0, result.err
    assert "nothing can be decided at q = 0.05" in result.out


@pytest.mark.parametrize(
    ("members", "known", "suspects", "message"),
    [
        (0, 30, 1, "1 document without a label, expected at least 2"),
        (6, 1, 30, "1 document of label 0, expected at least 2"),
    ],
)
def test_too_few_for_the_words_alone(
    xentrs_command: Command, tiny_model: Path, tmp_path: Path, members: int, known: int, suspects: int, message: str
) -> None:
    """Documents without a label are not called those of label 1."""
    records: list[dict[str, Any]] = [{"text": f"the fox {n}", "label": 0} for n in range(known)]
    records += [{"text": f"a bar {n}", "label": 1} for n in range(members)]
    records += [{"text": f"of towns {n}"} for n in range(suspects)]
    corpus, run = write_records(tmp_path / "corpus.jsonl", records), tmp_path / "run"
    options = ("--label-key", "label", "--scores", "loss")
    result = xentrs_command("detect", corpus, "--model", tiny_model, *ALONE, *options, "-o", run)
    assert result.code == 0, result.err
    assert page_of(run)["unlabeled"]["blind_baseline_reason"] == message


def test_labels_of_a_run_that_do_not_do(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    corpus, run = write_records(tmp_path / "corpus.jsonl", RECORDS), tmp_path / "run"
    score = ("score", corpus, "--model", tiny_model, *ALONE, "--quiet", "--by", "id", "--by", "lable", "-o", run)
    assert xentrs_command(*score).code == 0
    for key, message in (
        ("id", "document d0: label 'd0', expected one of 1, true"),
        ("lable", "0 documents, expected at least 5; 23 documents have no label"),
    ):
        result = xentrs_command("detect", run, "--scores", "loss", "--label-key", key)
        assert (result.code, (run / "scores.parquet").exists()) == (2, False)
        assert message in result.err

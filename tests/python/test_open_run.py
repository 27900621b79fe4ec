"""RUN folders read again: tables, totals, texts; several as one; what is missing is named with what makes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CommandResult
from finished_runs import RECORDS, score_into, write_corpus
from xentrs.cli.exit_codes import run_mapped
from xentrs.corpus.json_text import without_nonfinite
from xentrs.corpus.reading import Reading
from xentrs.corpus.settings import Columns
from xentrs.errors import InputChangedError, ManifestMismatch, MissingColumn
from xentrs.runs.merging import merged_totals
from xentrs.runs.open_run import OpenRun

Command = Callable[..., CommandResult]
IDS = [record["id"] for record in RECORDS if "id" in record]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_runner: Any, corpus: Path) -> Path:
    return score_into(tmp_path_factory.mktemp("runs") / "whole", tiny_runner, corpus)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def plain(block: Any) -> Any:
    """As it stands in a JSON file."""
    return json.loads(json.dumps(without_nonfinite(block)))


def test_what_stands_in_a_run(whole: Path, corpus: Path) -> None:
    run = OpenRun(whole)
    summary = run.require_finished()
    assert run.protocol == summary["protocol"]
    assert [entry["name"] for entry in run.inputs] == [str(corpus)]
    assert len(run.parts) == summary["parts"] >= 3
    documents = list(run.documents(["document", "id"]))
    assert len(documents) == len(run.parts)
    assert [name for table in documents for name in table["id"].to_pylist()] == IDS
    assert documents[0].column_names == ["document", "id"]
    tokens = list(run.tokens(["document", "nll"]))
    assert sum(table.num_rows for table in tokens) == summary["totals"]["tokens"]
    assert {"by_lang", "scored_word_count"} <= set(run.document_columns)
    assert {"nll", "rank", "flags"} <= set(run.token_columns)


def test_totals_are_those_of_the_run(whole: Path) -> None:
    run = OpenRun(whole)
    totals, summary = run.totals(), run.require_finished()
    assert plain(totals.block()) == summary["totals"]
    assert plain(totals.best()) == summary["best_documents"]
    assert plain(totals.worst()) == summary["worst_documents"]


def test_shards_are_the_whole(tmp_path: Path, whole: Path, tiny_runner: Any, corpus: Path) -> None:
    shards = [
        OpenRun(
            score_into(tmp_path / f"s{shard}", tiny_runner, corpus, Reading(by=("lang",), shard=shard, shard_count=3))
        )
        for shard in range(3)
    ]
    expected = OpenRun(whole).totals()
    for order in (shards, shards[::-1]):
        totals = merged_totals(order)
        assert totals.block() == expected.block()
        assert (totals.best(), totals.worst()) == (expected.best(), expected.worst())


def test_runs_that_overlap_are_refused(tmp_path: Path, whole: Path, tiny_runner: Any, corpus: Path) -> None:
    def shard(number: int, count: int, **changes: Any) -> OpenRun:
        reading = Reading(by=("lang",), shard=number, shard_count=count, **changes)
        name = f"{number}-{count}-{len(list(tmp_path.iterdir()))}"
        return OpenRun(score_into(tmp_path / name, tiny_runner, corpus, reading))

    half, quarter, other_quarter = shard(0, 2), shard(2, 4), shard(1, 4)
    for runs in ([half, half], [OpenRun(whole), half], [half, quarter], [half, shard(0, 2, skip=2)]):
        with pytest.raises(ManifestMismatch, match="hold the same documents: they would count twice"):
            merged_totals(runs)
    assert merged_totals([half, other_quarter]).block()["documents"] == 7 + 4
    assert merged_totals([half, shard(0, 2, skip=1)]).block()["documents"] == 7 + 8
    first, rest = shard(0, 1, limit=5), shard(0, 1, skip=5)
    assert merged_totals([first, rest]).block() == OpenRun(whole).totals().block()


def test_an_input_that_stands_in_two_corpora_is_refused(tmp_path: Path, whole: Path, tiny_runner: Any) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    copy = folder / "copy.jsonl"
    shutil.copyfile(OpenRun(whole).inputs[0]["name"], copy)
    write_corpus(folder / "others.jsonl", [{"text": "Another town by the river.", "id": "o", "lang": "fr"}])
    both = OpenRun(score_into(tmp_path / "both", tiny_runner, folder))
    with pytest.raises(ManifestMismatch, match=r"both hold .*corpus\.jsonl, beside other inputs"):
        merged_totals([OpenRun(whole), both])
    renamed = OpenRun(score_into(tmp_path / "renamed", tiny_runner, copy))
    with pytest.raises(ManifestMismatch, match="hold the same documents"):
        merged_totals([OpenRun(whole), renamed])


def test_shards_that_read_other_fields_are_refused(tmp_path: Path, tiny_runner: Any, corpus: Path) -> None:
    runs = [
        OpenRun(score_into(tmp_path / key, tiny_runner, corpus, Reading(text_key=key, shard=shard, shard_count=2)))
        for shard, key in enumerate(("text", "lang"))
    ]
    with pytest.raises(ManifestMismatch, match="read the same inputs differently: text_key"):
        merged_totals(runs)


def test_corpora_of_their_own_do_not_share_groups(tmp_path: Path, whole: Path, tiny_runner: Any) -> None:
    others = write_corpus(tmp_path / "others.jsonl", [{"text": "Another town by the river.", "id": "o", "lang": "fr"}])
    other = OpenRun(score_into(tmp_path / "other", tiny_runner, others))
    one = merged_totals([OpenRun(whole), other]).block()
    assert one["confidence_interval"]["groups"] == one["scored_documents"] == 14
    assert merged_totals([other, OpenRun(whole)]).block() == one


def test_other_protocols_are_refused_with_the_difference(
    tmp_path: Path, whole: Path, tiny_runner: Any, corpus: Path, xentrs_command: Command
) -> None:
    other = score_into(tmp_path / "other", tiny_runner, corpus, batch_tokens=64)
    result = xentrs_command("summary", whole, other)
    assert result.code == 2
    expected = f"{whole} and {other} have different protocols: batch_tokens: 1 in {whole}, 64 in {other}"
    assert result.err == f"Error: {expected}\n"


def test_what_is_no_finished_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestMismatch, match="nowhere: no such folder"):
        OpenRun(tmp_path / "nowhere")
    with pytest.raises(ManifestMismatch, match=r"is not a RUN folder \(no manifest.jsonl\)"):
        OpenRun(tmp_path)
    (run / "summary.json").write_text("{")
    with pytest.raises(ManifestMismatch, match=r"summary\.json: damaged"):
        OpenRun(run).require_finished()
    (run / "summary.json").write_text('{"parts": 1}')
    with pytest.raises(ManifestMismatch, match=r"counts 1 parts, the manifest \d"):
        OpenRun(run).require_finished()
    (run / "summary.json").unlink()
    unfinished = OpenRun(run)
    assert unfinished.summary is None
    assert sum(table.num_rows for table in unfinished.documents()) == 15
    with pytest.raises(ManifestMismatch, match="unfinished RUN; the xentrs score command that began it goes on"):
        merged_totals([unfinished])
    manifest = (run / "manifest.jsonl").read_text()
    (run / "manifest.jsonl").write_text(manifest.replace('{"format":2', '{"format":1', 1))
    with pytest.raises(ManifestMismatch, match="RUN of format 1, expected 2: score again"):
        OpenRun(run)


def test_missing_and_damaged_tables_are_named(run: Path) -> None:
    (run / "documents-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestMismatch, match=r"documents-00001\.parquet: damaged"):
        list(OpenRun(run).documents())
    (run / "documents-00001.parquet").unlink()
    with pytest.raises(ManifestMismatch, match=r"documents-00001\.parquet: missing; xentrs verify"):
        list(OpenRun(run).documents())


@pytest.mark.parametrize(
    ("column", "option"),
    [
        ("margin", "--tokens detect"),
        ("sum_sq_prob", "--tokens detect"),
        ("log_prob_mean", "--tokens detect"),
        ("log_prob_variance", "--tokens detect"),
        ("renyi_entropy_0.5", "--tokens detect"),
        ("nll_beta_0.5", "--tokens detect --inverse-temperatures 0.5"),
        ("mean_beta_2", "--tokens detect --inverse-temperatures 2"),
        ("variance_beta_1.5", "--tokens detect --inverse-temperatures 1.5"),
        ("top_ids", "--tokens all"),
        ("top_log_probs", "--tokens all"),
        ("by_site", "--by site"),
        ("text", "--keep-text"),
        ("recipe_mean_nll", "--protocol hf-strided"),
    ],
)
def test_a_missing_column_is_named_with_its_option(whole: Path, column: str, option: str) -> None:
    run = OpenRun(whole)
    run.require_columns(["nll", "rank", "nll_sum", "by_lang"])
    with pytest.raises(MissingColumn) as caught:
        run.require_columns(["nll", column])
    assert str(caught.value) == f"{whole} has no column {column}: score with {option}"
    assert run_mapped(lambda: run.require_columns([column])) == 2


def test_a_column_that_no_option_makes(whole: Path) -> None:
    with pytest.raises(MissingColumn, match=r"has no column entropi; did you mean entropy\?"):
        OpenRun(whole).require_columns(["entropi"])
    with pytest.raises(MissingColumn, match=r"has no column xyzzy; there are bits_per_byte, .*word_count"):
        OpenRun(whole).require_columns(["xyzzy"])


def test_a_run_without_tokens(tmp_path: Path, whole: Path, tiny_runner: Any, corpus: Path) -> None:
    run = OpenRun(score_into(tmp_path / "run", tiny_runner, corpus, columns=Columns("none")))
    assert run.token_columns == ()
    assert list(run.tokens()) == []
    with pytest.raises(MissingColumn, match="has no column nll: score with --tokens basic"):
        run.require_columns(["nll"])
    assert run.totals().block() == OpenRun(whole).totals().block()
    assert plain(run.totals().block()) == run.require_finished()["totals"]


def test_an_empty_run_lacks_nothing(tmp_path: Path, tiny_runner: Any) -> None:
    run = OpenRun(score_into(tmp_path / "run", tiny_runner, write_corpus(tmp_path / "none.jsonl", [])))
    run.require_columns(["margin"])
    assert (run.parts, list(run.texts()), run.totals().block()["documents"]) == ([], [], 0)


def expected_texts() -> list[tuple[int, str]]:
    return [(number, record["text"]) for number, record in enumerate(RECORDS) if "text" in record]


def test_texts_are_read_again_from_the_inputs(whole: Path) -> None:
    assert list(OpenRun(whole).texts()) == expected_texts()


def test_texts_of_a_shard(tmp_path: Path, tiny_runner: Any, corpus: Path) -> None:
    reading = Reading(by=("lang",), shard=1, shard_count=2, skip=3)
    run = OpenRun(score_into(tmp_path / "run", tiny_runner, corpus, reading))
    assert list(run.texts()) == [entry for entry in expected_texts() if entry[0] % 2 == 0 and entry[0] >= 3]


def test_kept_texts_need_no_inputs(tmp_path: Path, tiny_runner: Any) -> None:
    corpus = write_corpus(tmp_path / "gone.jsonl")
    run = OpenRun(score_into(tmp_path / "run", tiny_runner, corpus, keep_text=True))
    corpus.unlink()
    assert list(run.texts()) == expected_texts()
    assert "text" not in run.require_finished()["best_documents"][0]


def test_inputs_that_changed_or_are_gone(tmp_path: Path, tiny_runner: Any) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    run = OpenRun(score_into(tmp_path / "run", tiny_runner, corpus))
    data = corpus.read_bytes()
    corpus.write_bytes(data.replace(b"lazy", b"hazy"))
    with pytest.raises(InputChangedError, match=r"corpus\.jsonl is not what was scored: its SHA-256 was [0-9a-f]{64}"):
        next(run.texts())
    corpus.unlink()
    with pytest.raises(InputChangedError, match=r"no such file; or score with --keep-text"):
        next(run.texts())
    run.inputs[0]["name"] = "-"
    with pytest.raises(InputChangedError, match="standard input cannot be read again: score with --keep-text"):
        next(run.texts())


def test_texts_of_pairs_are_context_and_continuation(tmp_path: Path, tiny_runner: Any) -> None:
    pairs = [{"c": "The quick brown", "k": " fox jumps"}, {"c": "In 1984 ", "k": "there were"}]
    corpus = write_corpus(tmp_path / "pairs.jsonl", pairs)
    run = OpenRun(score_into(tmp_path / "run", tiny_runner, corpus, Reading(context_key="c", continuation_key="k")))
    assert list(run.texts()) == [(0, "The quick brown fox jumps"), (1, "In 1984 there were")]
    kept = score_into(
        tmp_path / "kept", tiny_runner, corpus, Reading(context_key="c", continuation_key="k"), keep_text=True
    )
    assert list(OpenRun(kept).texts()) == list(run.texts())


def test_byte_ranges_point_into_the_texts(whole: Path) -> None:
    run = OpenRun(whole)
    texts = dict(run.texts())
    for table in run.tokens(["document", "byte_start", "byte_end"]):
        for number in np.unique(table["document"].to_numpy()).tolist():
            rows = table["document"].to_numpy() == number
            assert table["byte_end"].to_numpy()[rows].max() == len(texts[number].encode())

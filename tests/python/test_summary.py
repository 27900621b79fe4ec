"""`xentrs summary`: what people and programs read of one RUN and of several."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import CommandResult
from finished_runs import score_into, write_corpus, write_run
from test_aggregates import make
from test_open_run import corpus as corpus  # fixtures
from test_open_run import whole as whole
from xentrs.corpus.reading import Reading
from xentrs.runs.open_run import OpenRun

Command = Callable[..., CommandResult]


def test_summary_command(whole: Path, xentrs_command: Command) -> None:
    result = xentrs_command("summary", whole)
    assert (result.code, result.err) == (0, "")
    summary = OpenRun(whole).require_finished()
    totals = summary["totals"]
    low, high = totals["confidence_interval"]["bits_per_byte"]
    for line in (
        f"RUN          {whole}",
        "documents    15 (2 unscorable, 1 records quarantined, 0 empty lines skipped)",
        f"bits/byte    {totals['bits_per_byte']:.4f} over {totals['scored_bytes']:,} bytes of UTF-8",
        f"bits/char    {totals['bits_per_char']:.4f} over {totals['scored_chars']:,} characters",
        f"over {totals['scored_words']:,} words (split at whitespace)",
        f"{totals['bits_per_byte_over_documents']:.4f} bits per byte: means over documents, each counting the same",
        "interval     95%, percentile bootstrap over documents (1,000 resamples, seed 20250101)",
        f"  {low:.4f} to {high:.4f} bits per byte",
        "  by_lang  documents         tokens   nll/token    ppl/token  bits/byte",
        "  (none)           7",
        "best documents (bits per byte)",
        "window 32, stride 32",
    ):
        assert line in result.out, line


def test_summary_as_json_and_by_column(whole: Path, xentrs_command: Command) -> None:
    page = json.loads(xentrs_command("summary", whole, "--json").out)
    assert page == {"runs": [str(whole)], **OpenRun(whole).require_finished()}
    for column in ("lang", "by_lang"):
        shown = json.loads(xentrs_command("summary", whole, "--json", "--by", column).out)
        assert list(shown["totals"]["breakdowns"]) == ["by_lang"]
    assert json.loads(xentrs_command("summary", whole, "--json", "--by", "source").out)["totals"]["breakdowns"] == {}
    result = xentrs_command("summary", whole, "--by", "site")
    assert (result.code, result.err) == (2, f"Error: {whole} has no column by_site: score with --by site\n")


def test_summary_of_several_runs(
    tmp_path: Path, whole: Path, tiny_runner: Any, corpus: Path, xentrs_command: Command
) -> None:
    shards = [
        score_into(tmp_path / f"s{shard}", tiny_runner, corpus, Reading(by=("lang",), shard=shard, shard_count=2))
        for shard in range(2)
    ]
    page = json.loads(xentrs_command("summary", *shards, "--json").out)
    expected = OpenRun(whole).require_finished()
    assert page["runs"] == [str(shard) for shard in shards]
    for name in ("totals", "best_documents", "worst_documents", "protocol"):
        assert page[name] == expected[name]


def test_summary_of_nothing_scored(tmp_path: Path, tiny_runner: Any, xentrs_command: Command) -> None:
    corpus = write_corpus(tmp_path / "empty.jsonl", [{"text": ""}])
    run = score_into(tmp_path / "run", tiny_runner, corpus, Reading())
    result = xentrs_command("summary", run)
    assert result.code == 0
    assert "no figures   no_tokens" in result.out
    assert "interval     none: fewer_than_two_documents" in result.out


def test_many_values_are_cut_unless_asked_for(tmp_path: Path, xentrs_command: Command) -> None:
    values = [[1.0] * (1 + (number == 7)) for number in range(30)]
    run = write_run(tmp_path / "run", [make(values, by_x=[f"v{number:02d}" for number in range(30)])])
    lines = xentrs_command("summary", run).out.splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("  v")]
    assert shown == [f"v{number:02d}" for number in range(20)]
    assert "  and 10 more values with fewer tokens: --by by_x lists them" in lines
    result = xentrs_command("summary", run, "--by", "by_x")
    assert sum(line.startswith("  v") for line in result.out.splitlines()) == 30
    assert "more values" not in result.out


def test_figures_that_are_not_there_are_explained(tmp_path: Path, xentrs_command: Command) -> None:
    run = write_run(tmp_path / "run", [make([[1.0], [2.0]], scored_word_count=[0, 0])])
    result = xentrs_command("summary", run)
    assert "no nats_per_word: no_words" in result.out
    assert "per word     - nats, perplexity - over 0 words" in result.out


def test_inputs_without_a_hash_are_told_apart_by_name(tmp_path: Path, xentrs_command: Command) -> None:
    runs = [write_run(tmp_path / name, [make([[1.0], [2.0]])]) for name in "ab"]
    assert xentrs_command("summary", *runs).code == 0
    result = xentrs_command("summary", runs[0], runs[0])
    assert (result.code, "hold the same documents" in result.err) == (2, True)


def test_shards_of_one_input_under_two_paths(
    tmp_path: Path, whole: Path, tiny_runner: Any, corpus: Path, xentrs_command: Command
) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(corpus.read_bytes())
    readings = [Reading(by=("lang",), shard=shard, shard_count=2) for shard in range(2)]
    shards = [
        score_into(tmp_path / f"s{place}", tiny_runner, path, reading)
        for place, (path, reading) in enumerate(zip((corpus, copy), readings, strict=True))
    ]
    totals = json.loads(xentrs_command("summary", *shards, "--json").out)["totals"]
    expected = OpenRun(whole).require_finished()["totals"]
    assert totals["confidence_interval"] == expected["confidence_interval"]

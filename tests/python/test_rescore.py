"""Documents scored again: the same bits in the same batch, close in another, and what is off is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAINING_LINES, CommandResult, write_model
from finished_runs import score_into, write_corpus
from test_verify import run as run  # fixtures
from test_verify import whole as whole
from xentrs.corpus.reading import Reading
from xentrs.corpus.settings import Columns
from xentrs.runs import rescore
from xentrs.runs.open_run import OpenRun

Command = Callable[..., CommandResult]


def test_documents_scored_again_have_the_same_bits(xentrs_command: Command, whole: Path, tiny_model: Path) -> None:
    page = json.loads(xentrs_command("verify", whole, "--rescore", 99, "--json").out)
    totals = OpenRun(whole).require_finished()["totals"]
    comparison = page["rescore"]
    assert comparison["documents"] == totals["scored_documents"]
    assert comparison["tokens"] == comparison["equal_tokens"]
    assert (comparison["largest"], comparison["largest_at"], comparison["tolerance"]) == (0.0, None, 1e-3)
    result = xentrs_command("verify", whole, "--rescore", 4, "--seed", 3, "--model", tiny_model)
    assert result.code == 0
    assert result.out.startswith("scored again: 4 documents, ")


def test_the_seed_chooses_documents(whole: Path) -> None:
    run = OpenRun(whole)
    scored = set(range(16)) - {12, 13, 14}
    chosen = [tuple(rescore.choose_documents(run, 5, seed)) for seed in (0, 0, 1, 2)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) == 3
    assert all(len(numbers) == 5 and list(numbers) == sorted(numbers) for numbers in chosen)
    drawn = [number for seed in range(400) for number in rescore.choose_documents(run, 5, seed)]
    counts = np.bincount(drawn, minlength=16)
    assert set(np.flatnonzero(counts)) == scored
    # 400 draws of 5 in 13: 154 each, standard deviation 9.7.
    assert np.abs(counts[sorted(scored)] - 400 * 5 / 13).max() < 4.5 * 9.7


def test_scores_that_are_off_are_found(xentrs_command: Command, run: Path, tiny_runner: Any) -> None:
    stored = OpenRun(run)
    chosen = {0: "d0", 1: "d1"}
    real = rescore.scores_of(stored, tiny_runner, set(chosen))
    off = np.array(real[1].nll)
    off[3] += 0.002 * max(1.0, off[3])
    changed = {0: real[0], 1: replace(real[1], nll=off)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rescore, "scores_of", lambda *arguments: changed)
        comparison = rescore.compare(stored, tiny_runner, chosen)
        assert not comparison.passed
        assert comparison.largest == pytest.approx(0.002, rel=1e-9)
        assert comparison.equal_tokens == comparison.tokens - 1
        assert comparison.largest_at is not None
        assert comparison.largest_at.startswith("d1, token 3: ")
        changed[1] = replace(real[1], nll=np.full_like(off, np.nan))
        assert rescore.compare(stored, tiny_runner, chosen).largest == np.inf
        changed[1] = replace(real[1], token_ids=real[1].token_ids + 1)
        assert rescore.compare(stored, tiny_runner, chosen).other_tokens == ["d1"]
        assert not rescore.compare(stored, tiny_runner, chosen).passed


def test_another_batch_stays_within_the_tolerance(tmp_path: Path, whole: Path, tiny_model: Path) -> None:
    from xentrs.models import load_model

    for dtype in ("float32", "bfloat16"):
        runner: Any = load_model(str(tiny_model), dtype=dtype)
        runner.prepare()
        corpus = whole.parent / "corpus.jsonl"
        run = OpenRun(score_into(tmp_path / dtype, runner, corpus, batch_tokens=4096, part_tokens=4096))
        comparison = rescore.compare(run, runner, rescore.choose_documents(run, 3, 0))
        assert comparison.passed
        assert comparison.tolerance == rescore.TOLERANCES[dtype]


def test_pairs_are_scored_again_as_pairs(tmp_path: Path, tiny_runner: Any) -> None:
    pairs = [{"c": f"{TRAINING_LINES[number % 3]} ", "k": f"Then {number} more"} for number in range(4)]
    reading = Reading(context_key="c", continuation_key="k")
    run = OpenRun(score_into(tmp_path / "run", tiny_runner, write_corpus(tmp_path / "pairs.jsonl", pairs), reading))
    comparison = rescore.compare(run, tiny_runner, rescore.choose_documents(run, 4, 0))
    assert comparison.passed
    assert comparison.tokens == run.require_finished()["totals"]["tokens"]
    assert comparison.equal_tokens == comparison.tokens


def test_what_cannot_be_scored_again(xentrs_command: Command, tmp_path: Path, tiny_runner: Any, whole: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    run = score_into(tmp_path / "run", tiny_runner, corpus)
    other = write_model(tmp_path / "other", hidden_size=16)
    result = xentrs_command("verify", run, "--rescore", 1, "--model", other)
    assert result.code == 2
    assert f"Error: model of {other} is not that of {run}: " in result.err
    corpus.write_text("{}\n")
    result = xentrs_command("verify", run, "--rescore", 1)
    assert (result.code, "is not what was scored" in result.err) == (1, True)
    none = score_into(tmp_path / "none", tiny_runner, write_corpus(corpus), columns=Columns("none"))
    result = xentrs_command("verify", none, "--rescore", 1)
    assert (result.code, result.err) == (2, f"Error: {none} has no column nll: score with --tokens basic\n")
    empty = score_into(tmp_path / "empty", tiny_runner, write_corpus(tmp_path / "e.jsonl", [{"text": "a"}]))
    result = xentrs_command("verify", empty, "--rescore", 1)
    assert (result.code, f"{empty}: has no scored document to score again" in result.err) == (2, True)

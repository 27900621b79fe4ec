"""The levels of `--tokens`: which columns there are, each held to float64 from the same hidden states."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xentrs
from conftest import TRAINING_LINES, CommandResult
from xentrs.runs.open_run import OpenRun

Command = Callable[..., CommandResult]
TEXT = TRAINING_LINES[0]
BETAS = (0.0, 0.5, 2.0)
SCHEMA = (Path(__file__).parents[2] / "docs" / "schema.md").read_text()

pytestmark = pytest.mark.usefixtures("one_thread")


def log_probs_of(runner: Any, ids: Any) -> Any:
    """Float64 log-probabilities behind each id, and the logits."""
    hidden = runner.hidden_states(np.asarray(ids)[None])[0].double()
    logits = (hidden @ runner.head.weight.double().T).numpy()
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), logits


@pytest.mark.parametrize("has_head", [True, False])
def test_every_column_of_the_highest_level(tiny_runner: Any, has_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tiny_runner.encoder.encode([TEXT])[0].token_ids
    log_probs, logits = log_probs_of(tiny_runner, ids[:-1])
    if not has_head:
        monkeypatch.setattr(type(tiny_runner), "head", None)
    scorer = xentrs.Scorer(tiny_runner, tokens="all", inverse_temperatures=BETAS, top_k=3)
    details = scorer.score([TEXT])[0].tokens.details
    p, rows, targets = np.exp(log_probs), np.arange(len(ids) - 1), ids[1:]
    ordered = np.sort(logits, axis=1)
    expected = {
        "margin": ordered[:, -1] - ordered[:, -2],
        "sum_sq_prob": (p * p).sum(axis=1),
        "log_prob_mean": log_probs.mean(axis=1),
        "log_prob_variance": log_probs.var(axis=1),
        "renyi_entropy_0.5": 2 * np.log(np.sqrt(p).sum(axis=1)),
        "renyi_entropy_2": -np.log((p * p).sum(axis=1)),
        "top_log_probs": np.sort(log_probs, axis=1)[:, :-4:-1],
    }
    for beta in BETAS:
        tempered = beta * logits - np.logaddexp.reduce(beta * logits, axis=1, keepdims=True)
        mean = (np.exp(tempered) * logits).sum(axis=1)
        expected[f"nll_beta_{beta:g}"] = -tempered[rows, targets]
        expected[f"mean_beta_{beta:g}"] = mean
        expected[f"variance_beta_{beta:g}"] = (np.exp(tempered) * (logits - mean[:, None]) ** 2).sum(axis=1)
    assert set(details) == {*expected, "top_ids"}
    for name, values in expected.items():
        np.testing.assert_allclose(details[name][1:], values, rtol=2e-5, atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(log_probs[rows[:, None], details["top_ids"][1:]], expected["top_log_probs"])
    assert np.isnan(details["margin"][0])


@pytest.mark.parametrize("level", ["none", "basic", "detect", "all"])
def test_columns_of_a_level_are_those_of_the_schema(
    xentrs_command: Command, tmp_path: Path, tiny_model: Path, level: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    betas = ("--inverse-temperatures", "0.5") if level in ("detect", "all") else ()
    result = xentrs_command("score", text, "--model", tiny_model, "--tokens", level, *betas, "-o", tmp_path / "run")
    assert result.code == 0
    path = tmp_path / "run" / "tokens-00000.parquet"
    assert path.exists() == (level != "none")
    if level == "none":
        assert OpenRun(tmp_path / "run").totals().block()["scored_tokens"] > 0
        return
    known = documented_columns()
    levels = ("basic", "detect", "all")
    expected = {name.replace("_B", "_0.5") for name, of in known.items() if levels.index(of) <= levels.index(level)}
    assert set(pq.read_schema(path).names) == expected


def documented_columns() -> dict[str, str]:
    """Columns of the tokens table in docs/schema.md, with their level."""
    section = SCHEMA.split("## tokens")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| (basic|detect|all) \|", section, re.MULTILINE)
    return {name: level for names, level in rows for name in re.findall(r"`([^`]+)`", names)}


def test_document_columns_are_those_of_the_schema(xentrs_command: Command, tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "The quick brown fox", "lang": "en"}\n')
    options = ("--protocol", "hf-strided", "--by", "lang", "--keep-text")
    assert xentrs_command("score", path, "--model", tiny_model, *options, "-o", tmp_path / "run").code == 0
    section = SCHEMA.split("## documents")[1].split("\n## ")[0]
    names = [
        name for row in re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE) for name in re.findall("`(.*?)`", row)
    ]
    expected = {"by_lang" if name == "by_KEY" else name for name in names}
    table = pq.read_table(tmp_path / "run" / "documents-00000.parquet")
    assert set(table.column_names) == expected
    assert table["by_lang"].to_pylist() == ["en"]
    assert table["text"].to_pylist() == ["The quick brown fox"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--inverse-temperatures", "0.5"), "needs --tokens detect or all"),
        (("--tokens", "detect", "--inverse-temperatures", "0.5,warm"), "expected numbers with commas"),
        (("--tokens", "detect", "--inverse-temperatures", "0.5,0.5"), "expected different numbers"),
        (("--top-k", 3), "--top-k needs --tokens all"),
        (("--json", "--jsonl"), "exclude each other"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    xentrs_command: Command, tmp_path: Path, tiny_model: Path, options: tuple[object, ...], message: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    result = xentrs_command("score", path, "--model", tiny_model, *options)
    assert (result.code, message in result.err) == (2, True), result.err

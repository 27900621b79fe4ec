"""`xentrs audit` and `xentrs score --plan`: the same figures as the runs that they speak of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TRAINING_LINES, CommandResult

Command = Callable[..., CommandResult]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    texts = [" ".join(TRAINING_LINES * count) for count in (1, 2, 4)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def audit_of(command: Command, corpus: Path, model: Path, *options: object) -> dict[str, dict[str, object]]:
    result = command("audit", corpus, "--model", model, "--dtype", "float32", "--json", *options)
    assert result.code == 0, result.err
    page: dict[str, dict[str, object]] = json.loads(result.out)
    return page


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("xentrs default", ()),
        ("prefix eos", ("--prefix", "eos")),
        ("bos in every window", ("--prefix", "bos", "--prefix-every", "window")),
        ("half-window stride", ("--min-context", 32)),
        ("lm-eval", ("--protocol", "lm-eval")),
        ("hf-strided", ("--protocol", "hf-strided")),
        ("full", ("--protocol", "full")),
    ],
)
def test_lines_are_what_score_gives(
    xentrs_command: Command, corpus: Path, tiny_model: Path, name: str, options: tuple[object, ...]
) -> None:
    page = audit_of(xentrs_command, corpus, tiny_model)
    line = next(entry for entry in page["protocols"] if entry["name"] == name)
    score = xentrs_command("score", corpus, "--model", tiny_model, "--dtype", "float32", "--json", "--quiet", *options)
    totals = json.loads(score.out)["totals"]
    for figure in ("scored_tokens", "unscored_tokens"):
        assert line["totals"][figure] == totals[figure]
    assert line["totals"]["bits_per_byte"] == pytest.approx(totals["bits_per_byte"], rel=1e-6)
    first = page["protocols"][0]["totals"]["bits_per_byte"]
    assert line["bits_per_byte_change"] == pytest.approx(totals["bits_per_byte"] / first - 1, abs=1e-6)


def test_equal_protocols_are_named_and_not_computed_twice(
    xentrs_command: Command, corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xentrs.corpus import audit as audit_module

    calls = []
    real = audit_module.score_parts
    monkeypatch.setattr(audit_module, "score_parts", lambda *given: calls.append(given) or real(*given))
    lines = audit_of(xentrs_command, corpus, tiny_model)["protocols"]
    assert {line["name"]: line["same_as"] for line in lines}["prefix none"] == "xentrs default"
    assert len(calls) == sum(line["same_as"] is None for line in lines) < len(lines)


def test_findings_say_how_far_protocols_lie_apart(xentrs_command: Command, corpus: Path, tiny_model: Path) -> None:
    page = audit_of(xentrs_command, corpus, tiny_model)
    figures = [line["totals"]["perplexity_per_token"] for line in page["protocols"]]
    spread = max(figures) / min(figures) - 1
    assert f"{spread:.1%} apart by protocol alone" in page["findings"][0]
    text = xentrs_command("audit", corpus, "--model", tiny_model, "--dtype", "float32").out
    assert all(line["name"] in text for line in page["protocols"])
    assert "- xentrs default leaves 3 of" in text


def test_sample_is_the_first_documents(xentrs_command: Command, corpus: Path, tiny_model: Path) -> None:
    page = audit_of(xentrs_command, corpus, tiny_model, "--sample-tokens", 10)
    assert (page["documents"], page["is_whole"]) == (1, False)
    later = audit_of(xentrs_command, corpus, tiny_model, "--sample-tokens", 10, "--skip", 2)
    assert (later["documents"], later["is_whole"]) == (1, True)
    assert later["tokens"] > page["tokens"]


def test_nothing_to_audit(xentrs_command: Command, tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    result = xentrs_command("audit", path, "--model", tiny_model)
    assert (result.code, "no document" in result.err) == (2, True)


@pytest.mark.parametrize("options", [(), ("--window", 16), ("--prefix", "bos", "--tokens", "none"), ("--limit", 2)])
def test_plan_of_a_small_corpus_is_exact(
    xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    corpus.write_text(corpus.read_text() + ("" if "--limit" in options else "broken\n"))
    command = ("score", corpus, "--model", tiny_model, "--dtype", "float32", *options)
    planned = xentrs_command(*command, "--plan", "--json")
    assert planned.code == (0 if "--limit" in options else 3), planned.err
    plan = json.loads(planned.out)
    xentrs_command(*command, "-o", tmp_path / "run", "--quiet")
    totals = json.loads((tmp_path / "run" / "summary.json").read_text())["totals"]
    assert plan["is_exact"]
    assert (plan["documents"], plan["tokens"]) == (totals["documents"], totals["tokens"])
    assert plan["bad_records"] == totals["quarantined"]
    assert plan["text_bytes"] == totals["bytes"]
    window = 16 if "--window" in options else 64
    has_prefix = "--prefix" in options
    assert plan["windows"] >= math.ceil((plan["tokens"] - plan["documents"]) / window)
    assert plan["inputs"] == plan["tokens"] - (0 if has_prefix else plan["documents"])
    assert 0 < plan["calibrated_inputs"] <= plan["inputs"]
    assert plan["seconds"] == pytest.approx(plan["inputs"] / plan["inputs_per_second"])
    assert not (tmp_path / "other").exists()


def test_plan_scales_a_sample(
    xentrs_command: Command, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text(json.dumps({"text": TRAINING_LINES[0]}) * 1 + "\n")
    path.write_text(path.read_text() * 300)
    monkeypatch.setattr("xentrs.corpus.forecast.SAMPLE_BYTES", 1000)
    result = xentrs_command("score", path, "--model", tiny_model, "--dtype", "float32", "--plan", "--json")
    plan = json.loads(result.out)
    whole = json.loads(xentrs_command("score", path, "--model", tiny_model, "--json", "--quiet").out)["totals"]
    assert not plan["is_exact"]
    assert plan["documents"] == 300
    assert plan["tokens"] == whole["tokens"]  # all documents are the same, so the scale is exact


def test_plan_is_readable(xentrs_command: Command, corpus: Path, tiny_model: Path) -> None:
    result = xentrs_command("score", corpus, "--model", tiny_model, "--plan")
    assert [line.split()[0] for line in result.out.splitlines()] == [
        *("documents", "tokens", "speed", "time", "memory", "RUN"),
    ]

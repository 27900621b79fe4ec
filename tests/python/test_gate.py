"""The gate: each criterion on both sides of its limit, what cannot be computed, and what pipelines read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CommandResult
from finished_runs import PROTOCOL, write_run
from test_aggregates import make, totals_of
from xentrs.report.pipelines import junit_xml, verdict_markdown
from xentrs.runs.criteria import Limits, Verdict, judge

Command = Callable[..., CommandResult]
VALUES = [[1.0, 2.0], [3.0], []]  # mean 2.0, 3 tokens of 6 scored, 12 bytes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", [make(VALUES)], quarantined=2)


BITS = 6.0 / math.log(2) / 12


@pytest.mark.parametrize(
    ("option", "met", "not_met", "value"),
    [
        ("--max-bits-per-byte", math.nextafter(BITS, 9), math.nextafter(BITS, 0), BITS),
        ("--max-perplexity", 7.3891, 7.389, math.exp(2.0)),
        ("--max-mean-nll", 2, 1.999999, 2.0),
        ("--max-unscored", 0.5, 0.4999, 0.5),
        ("--max-quarantined", 2, 1, 2),
        ("--min-documents", 2, 3, 2),
    ],
)
def test_each_criterion(
    xentrs_command: Command, run: Path, option: str, met: float, not_met: float, value: float
) -> None:
    result = xentrs_command("gate", run, option, met, "--json")
    page = json.loads(result.out)
    assert (result.code, page["passed"], page["criteria"][0]["passed"]) == (0, True, True)
    assert page["criteria"][0]["name"] == option
    assert page["criteria"][0]["value"] == pytest.approx(value, rel=1e-15)
    assert page["criteria"][0]["limit"] == met
    assert result.err.endswith("gate passed: 1 criterion met\n")
    result = xentrs_command("gate", run, option, not_met)
    assert result.code == 4
    assert result.out.startswith("FAILED  ")
    assert f"({option})" in result.out
    assert result.out.endswith("gate failed: 1 of 1 criterion not met\n")
    assert result.err == ""


def test_one_criterion_that_fails_fails_the_gate(xentrs_command: Command, run: Path) -> None:
    result = xentrs_command("gate", run, "--max-mean-nll", 2, "--max-perplexity", 7, "--min-documents", 2)
    assert result.code == 4
    assert result.out == (
        "FAILED  perplexity_per_token = 7.38906, expected at most 7 (--max-perplexity); "
        "95 % interval 4.4817 to 20.0855\n"
        "ok      mean_nll = 2, expected at most 2 (--max-mean-nll); 95 % interval 1.5000 to 3.0000\n"
        "ok      scored_documents = 2, expected at least 2 (--min-documents)\n"
        "gate failed: 1 of 3 criteria not met\n"
    )


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([[]], ["--max-mean-nll", 1e9]),
        ([[]], ["--max-bits-per-byte", 1e9]),
        ([[1.0, math.nan]], ["--max-mean-nll", 1e9]),
        ([[1.0], [math.inf]], ["--max-perplexity", 1e9]),
        ([[800.0]], ["--max-perplexity", 1e300]),  # mean finite, perplexity not
    ],
)
def test_what_cannot_be_computed_does_not_pass(
    xentrs_command: Command, tmp_path: Path, values: list[list[float]], options: list[Any]
) -> None:
    result = xentrs_command("gate", write_run(tmp_path / "run", [make(values)]), *options, "--json")
    page = json.loads(result.out)
    assert (result.code, page["passed"], page["criteria"][0]["value"]) == (4, False, None)
    assert page["criteria"][0]["note"] == "cannot be computed: there is no finite value"


def test_a_run_without_tokens_has_no_unscored_share(xentrs_command: Command, tmp_path: Path) -> None:
    result = xentrs_command("gate", write_run(tmp_path / "run", []), "--max-unscored", 1)
    assert result.code == 4
    assert "unscored_fraction = -, expected at most 1 (--max-unscored); cannot be computed: no_tokens" in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no criterion given; there are --max-bits-per-byte, --max-perplexity, --max-mean-nll, --max-unscored, "),
        (["--max-increase", "1"], "--baseline and --max-increase go together"),
        (["--baseline", "x"], "--baseline and --max-increase go together"),
        (["--max-mean-nll", "1", "--json", "--markdown", "-"], "--json and --markdown - both want stdout"),
        (["--max-mean-nll", "1", "--github-summary"], "--github-summary: $GITHUB_STEP_SUMMARY is not set"),
        (["--max-mean-nll", "nan"], "'nan' is not a finite number."),
        (["--max-mean-nll", "inf"], "'inf' is not a finite number."),
        (["--max-unscored", "1.5"], "1.5 is not in the range 0<=x<=1"),
    ],
)
def test_calls_that_are_refused(
    xentrs_command: Command, run: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    result = xentrs_command("gate", run, *options)
    assert result.code == 2
    assert message in result.err
    assert result.out == ""


def test_an_unfinished_run_is_refused(xentrs_command: Command, run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", [make(VALUES)])
    (run / "summary.json").unlink()
    for arguments in ([run, "--max-mean-nll", 9], [other, "--baseline", run, "--max-increase", 1]):
        result = xentrs_command("gate", *arguments)
        assert result.code == 2
        assert result.err == f"Error: {run}: unfinished RUN; the xentrs score command that began it goes on with it\n"


def test_shards_are_judged_together(xentrs_command: Command, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{number}", [make([nll], number)]) for number, nll in enumerate(VALUES[:2])]
    page = json.loads(xentrs_command("gate", *runs, "--max-mean-nll", 2, "--min-documents", 2, "--json").out)
    assert [criterion["value"] for criterion in page["criteria"]] == [2.0, 2]
    assert page["runs"] == [str(path) for path in runs]


@pytest.fixture
def verdict() -> Verdict:
    table, nll = make(VALUES)
    limits = Limits(max_bits_per_byte=0.5, max_perplexity=1000, min_documents=1)
    return judge(limits, totals_of((table, nll)).block(), None, ["run|<b>\x1b[31m&`x`", "r2"], None)


def test_junit_xml_is_read_back(verdict: Verdict) -> None:
    suites = ElementTree.fromstring(junit_xml(verdict))
    assert suites.tag == "testsuites"
    suite = suites[0]
    assert suite.attrib == {"name": "xentrs gate", "tests": "3", "failures": "1", "errors": "0", "skipped": "0"}
    properties = [(entry.get("name"), entry.get("value")) for entry in suite.iter("property")]
    assert properties == [
        ("run", "run|<b>\\x1b[31m&`x`"),
        ("run", "r2"),
        ("verdict", "gate failed: 1 of 3 criteria not met"),
    ]
    cases = list(suite.iter("testcase"))
    assert [case.get("name") for case in cases] == ["--max-bits-per-byte", "--max-perplexity", "--min-documents"]
    assert {case.get("classname") for case in cases} == {"xentrs.gate"}
    failures = [case.find("failure") for case in cases]
    assert [failure is not None for failure in failures] == [True, False, False]
    assert failures[0] is not None
    expected = "bits_per_byte = 0.721348, expected at most 0.5 (--max-bits-per-byte); 95 % interval 0.5410 to 1.0820"
    assert failures[0].get("message") == failures[0].text == expected
    assert cases[2].findtext("system-out") == "scored_documents = 2, expected at least 1 (--min-documents)"


def test_markdown_is_this(verdict: Verdict) -> None:
    assert verdict_markdown(verdict) == (
        "### ❌ xentrs gate failed: 1 of 3 criteria not met\n"
        "\n"
        "- RUN: run\\|\\<b\\>\\\\x1b\\[31m\\&\\`x\\`, r2\n"
        "\n"
        "| | criterion | limit | found | note |\n"
        "|---|---|---:|---:|---|\n"
        "| ❌ | `--max-bits-per-byte` | 0.5 | 0.721348 | 95 % interval 0.5410 to 1.0820 |\n"
        "| ✅ | `--max-perplexity` | 1,000 | 7.38906 | 95 % interval 4.4817 to 20.0855 |\n"
        "| ✅ | `--min-documents` | 1 | 2 |  |\n"
    )


def test_files_for_pipelines(
    xentrs_command: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    junit, markdown, steps = tmp_path / "j.xml", tmp_path / "m.md", tmp_path / "steps.md"
    steps.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(steps))
    arguments = ["gate", run, "--max-mean-nll", 1, "--junit", junit]
    result = xentrs_command(*arguments, "--markdown", markdown, "--github-summary")
    assert result.code == 4
    text = markdown.read_text()
    assert text.startswith("### ❌ xentrs gate failed: 1 of 1 criterion not met\n")
    assert steps.read_text() == "before\n" + text
    assert ElementTree.parse(junit).getroot().get("failures") == "1"
    result = xentrs_command(*arguments, "--markdown", "-")
    assert (result.code, result.out) == (4, text)
    assert result.err.endswith("gate failed: 1 of 1 criterion not met\n")


def test_a_miss_by_little_is_seen(xentrs_command: Command, run: Path) -> None:
    result = xentrs_command("gate", run, "--max-bits-per-byte", 0.721348)
    assert (result.code, result.out.split(",")[0]) == (0, f"ok      bits_per_byte = {BITS}")
    result = xentrs_command("gate", run, "--max-bits-per-byte", 0.7213475)
    assert "bits_per_byte = 0.721348, expected at most 0.7213475 " in result.out
    assert result.code == 4


def test_infinity_is_no_value() -> None:
    block = totals_of(make([[1.0], [math.inf]])).block()
    (criterion,) = judge(Limits(max_mean_nll=1e9), block, None, ["r"], None).criteria
    assert (criterion.value, criterion.passed) == (None, False)
    assert criterion.note == "cannot be computed: there is no finite value"


def test_no_criterion_is_no_pass() -> None:
    assert not judge(Limits(), {}, None, [], None).passed


def test_verdict_and_exit_code_agree(xentrs_command: Command, tmp_path: Path) -> None:
    for number, mean in enumerate([0.5, 1.0, 1.5, math.nan]):
        run = write_run(tmp_path / f"r{number}", [make([[mean, mean]])])
        result = xentrs_command("gate", run, "--max-mean-nll", 1.0)
        passed = result.out.splitlines()[-1].startswith("gate passed")
        assert passed == (result.code == 0) == (mean <= 1.0)
        assert result.code in (0, 4)


def test_runs_of_other_protocols_are_not_one_corpus(xentrs_command: Command, run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", [make(VALUES)], protocol={**PROTOCOL, "window": 32})
    result = xentrs_command("gate", run, other, "--max-mean-nll", 9)
    assert result.code == 2
    assert f"have different protocols: window: 64 in {run}, 32 in {other}" in result.err


@pytest.mark.parametrize("command", ["gate", "verify", "summary"])
def test_help_loads_nothing_heavy(command: str) -> None:
    script = (
        "import sys\nfrom xentrs.cli import main\ncode = main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'pyarrow', 'jinja2'} & set(sys.modules)\nsys.exit(code)"
    )
    arguments = [sys.executable, "-c", script, command, "--help"]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert f"xentrs {command}" in result.stdout

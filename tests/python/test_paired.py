"""Two runs over the same documents: which belong together, the increase, its interval, and the gate on it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import CommandResult
from finished_runs import write_run
from test_aggregates import document, make, part, random_documents
from xentrs.runs.open_run import OpenRun
from xentrs.runs.paired import paired_increase

Command = Callable[..., CommandResult]


def paired_runs(
    tmp_path: Path, here: Sequence[Sequence[float]], there: Sequence[Sequence[float]]
) -> tuple[OpenRun, OpenRun]:
    runs = [write_run(tmp_path / name, [make(values)]) for name, values in (("here", here), ("there", there))]
    return OpenRun(runs[0]), OpenRun(runs[1])


def test_increase_over_a_baseline(tmp_path: Path) -> None:
    there = random_documents(50, seed=4)
    generator = np.random.default_rng(5)
    here = [[value * 1.02 + generator.normal(0, 0.01) for value in nll] for nll in there]
    run, baseline = paired_runs(tmp_path, here, there)
    increase = paired_increase([run], baseline)
    sums = np.array([[math.fsum(nll) for nll in values] for values in (here, there)])
    expected = 100 * (sums[0].sum() / sums[1].sum() - 1)
    assert increase.increase_percent == pytest.approx(expected, rel=1e-10)
    count = 4 * sum(map(len, there))
    assert increase.baseline_bits_per_byte == pytest.approx(sums[1].sum() / math.log(2) / count, rel=1e-14)
    drawn = np.random.default_rng(6).integers(50, size=(20_000, 50))
    resampled = 100 * (sums[0][drawn].sum(axis=1) / sums[1][drawn].sum(axis=1) - 1)
    limits = np.quantile(resampled, [0.025, 0.975])
    assert increase.interval is not None
    np.testing.assert_allclose(increase.interval, limits, rtol=0, atol=0.1 * (limits[1] - limits[0]))
    # Pairs: far narrower than the two runs' own intervals, which are some ten percent wide.
    assert increase.interval[1] - increase.interval[0] < 0.5


def test_the_order_of_documents_and_parts_does_not_matter(tmp_path: Path) -> None:
    there, here = random_documents(20, seed=7), random_documents(20, seed=8)
    here = [
        there_nll[:1] * len(there_nll) if len(a) != len(there_nll) else a
        for a, there_nll in zip(here, there, strict=True)
    ]
    run, baseline = paired_runs(tmp_path, here, there)
    rows = [document(number, nll) for number, nll in enumerate(here)]
    order = [*range(12, 20), *range(12)]
    parts = [
        part(*(rows[place] for place in places), nll=[here[place] for place in places])
        for places in (order[:5], order[5:6], order[6:])
    ]
    shuffled = OpenRun(write_run(tmp_path / "shuffled", parts))
    assert paired_increase([shuffled], baseline) == paired_increase([run], baseline)


def test_documents_without_a_partner_are_left_out_and_counted(tmp_path: Path) -> None:
    values: list[list[float]] = [[2.0], [4.0], [1.0], [], [8.0]]
    here = make(values, id=["a", "b", "c", "d", "e"])
    there = make([[1.0], [3.0], [5.0], [7.0], [9.0, 9.0]], id=["a", "b", "x", "d", "e"])
    run, baseline = (OpenRun(write_run(tmp_path / name, [table])) for name, table in (("h", here), ("t", there)))
    increase = paired_increase([run], baseline)
    assert (increase.documents, increase.only_here, increase.only_in_baseline, increase.changed) == (2, 1, 2, 1)
    assert increase.increase_percent == pytest.approx(50.0)
    assert increase.bits_per_byte == pytest.approx(6.0 / math.log(2) / 8)


def test_documents_of_one_id_are_paired_in_order(tmp_path: Path) -> None:
    here = make([[2.0], [30.0], [5.0]], id=["a", "a", "b"])
    there = make([[1.0], [30.0], [5.0]], id=["a", "a", "b"])
    run, baseline = (OpenRun(write_run(tmp_path / name, [table])) for name, table in (("h", here), ("t", there)))
    increase = paired_increase([run], baseline)
    assert (increase.documents, increase.only_here, increase.only_in_baseline) == (3, 0, 0)
    assert increase.increase_percent == pytest.approx(100 * (37 / 36 - 1))


@pytest.mark.parametrize(
    ("here", "there", "reason"),
    [
        ([[]], [[1.0]], "no_common_documents"),
        ([[math.inf], [1.0]], [[1.0], [1.0]], "not_finite"),
        ([[1.0], [1.0]], [[0.0], [0.0]], "baseline_is_zero"),
        ([[1.0]], [[2.0]], "fewer_than_two_documents"),
    ],
)
def test_an_increase_that_is_none_says_why(
    xentrs_command: Command, tmp_path: Path, here: list[list[float]], there: list[list[float]], reason: str
) -> None:
    run, baseline = paired_runs(tmp_path, here, there)
    increase = paired_increase([run], baseline)
    assert increase.reason == reason
    assert increase.interval is None
    result = xentrs_command("gate", run.path, "--baseline", baseline.path, "--max-increase", 1e9)
    assert result.code == (0 if reason == "fewer_than_two_documents" else 4)
    assert reason in result.out


def test_baseline_in_the_verdict(xentrs_command: Command, tmp_path: Path) -> None:
    run, baseline = paired_runs(tmp_path, [[1.01, 2.02], [3.03]], [[1.0, 2.0], [3.0]])
    result = xentrs_command("gate", run.path, "--baseline", baseline.path, "--max-increase", 0.5)
    assert result.code == 4
    assert result.out == (
        "FAILED  bits_per_byte_increase_percent = 1, expected at most 0.5 (--max-increase); "
        "0.7286 after 0.7213 bits per byte over 2 documents in both, 95 % interval +1.00 % to +1.00 %\n"
        "gate failed: 1 of 1 criterion not met\n"
    )
    page = json.loads(xentrs_command("gate", run.path, "--baseline", baseline.path, "--max-increase", 2, "--json").out)
    assert page["passed"] is True
    assert page["increase"]["increase_percent"] == pytest.approx(1.0)
    assert page["increase"]["method"] == "percentile bootstrap over paired documents"
    assert page["baseline"] == str(baseline.path)

"""`xentrs score --logits` and `--hidden`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xentrs
from safetensors.numpy import save_file
from stored_files import VOCAB, random_logits, random_targets, save


def test_the_command(tmp_path: Path, xentrs_command: Any) -> None:
    logits, targets = random_logits(2, 5), random_targets(2, 5)
    files = ("--logits", save(tmp_path / "a.npy", logits), "--targets", save(tmp_path / "t.npy", targets))
    result = xentrs_command("score", *files, "--shift", "1", "--json")
    assert result.code == 0, result.err
    assert "stored logits, float32, vocabulary 40, shift 1, kernel" in result.err
    assert "instruct" not in result.err, "no model is named"
    page = json.loads(result.out)
    expected = xentrs.row_stats(logits, targets, shift=1)
    assert page["totals"]["nll_sum"] == pytest.approx(float(np.nansum(np.asarray(expected.nll))), rel=1e-14)
    assert [row["id"] for row in page["documents"]] == [f"{files[1]}#0", f"{files[1]}#1"]
    run = tmp_path / "RUN"
    assert xentrs_command("score", *files, "-o", run, "--tokens", "none", "--quiet", "--threads", 1).code == 0
    assert "finished already" in xentrs_command("score", *files, "-o", run, "--tokens", "none").err
    assert xentrs_command("score", *files, "-o", run, "--tokens", "none", "--shift", 1).code == 2
    assert xentrs_command("gate", run, "--max-mean-nll", "100").code == 0
    assert xentrs_command("gate", run, "--max-mean-nll", "0.1").code == 4
    refused = xentrs_command("verify", run, "--rescore", 1)
    assert (refused.code, "made from stored tensors" in refused.err) == (2, True)
    assert "window None" not in xentrs_command("summary", run).err
    assert xentrs_command("score", *files, "--mmap").code == 0
    lines = xentrs_command("score", *files, "--jsonl").out.splitlines()
    assert [json.loads(line)["token_count"] for line in lines] == [4, 4]
    save_file(
        {"h": random_logits(3), "w": np.eye(5, VOCAB, dtype=np.float32), "t": np.arange(3)}, tmp_path / "s.safetensors"
    )
    file = tmp_path / "s.safetensors"
    parts = ("--hidden", f"{file}:h", "--head", f"{file}:w", "--targets", f"{file}:t")
    assert json.loads(xentrs_command("score", *parts, "--json").out)["totals"]["scored_tokens"] == 3


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "Missing argument 'INPUT...'"),
        (("--targets", "t.npy"), "--targets needs --logits or --hidden"),
        (("x.txt", "--shift", "1"), "--shift needs --logits or --hidden"),
        (("--logits", "a.npy"), "1 files of rows and 0 of targets"),
        (("--logits", "a.npy", "b.npy"), "--logits takes the place of INPUT: b.npy; say --logits again"),
        (("--logits", "a.npy", "--hidden", "b.npy"), "--logits and --hidden exclude each other"),
        (("--hidden", "a.npy", "--targets", "t.npy"), "--hidden needs --head"),
        (("--logits", "a.npy", "--head", "b.npy"), "--head and --head-bias go with --hidden"),
        (("--logits", "a.npy", "--targets", "none.npy"), "no such file"),
        (("--logits", "a.npy", "--targets", "wide.npy"), "targets[0] = 99 of wide.npy is outside [0, 40)"),
        (("--logits", "a.npy", "--targets", "t.npy", "--model", "m"), "--model does not go with --logits"),
        (("--logits", "a.npy", "--targets", "t.npy", "--prefix", "bos"), "--prefix does not go with --logits"),
        (("--logits", "a.npy", "--targets", "t.npy", "--window", "9"), "--window does not go with --logits"),
        (("--logits", "a.npy", "--targets", "t.npy", "--limit", "9"), "--limit does not go with --logits"),
        (("--logits", "a.npy", "--targets", "t.npy", "--dtype", "auto"), "--dtype does not go with --logits"),
        (("--logits", "a.npy", "--targets", "t.npy", "--keep-text"), "--keep-text does not go with --logits"),
        (("--logits", "a.npy", "--targets", "t.npy", "--plan"), "--plan does not go with --logits"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xentrs_command: Any, arguments: tuple[str, ...], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, array in (("a", random_logits(1)), ("t", np.zeros(1, int)), ("wide", np.full(1, 99))):
        np.save(f"{name}.npy", array)
    result = xentrs_command("score", *arguments)
    assert result.code == 2
    assert what in result.err


def test_no_model_package_is_loaded(tmp_path: Path) -> None:
    files = [save(tmp_path / "a.npy", random_logits(3)), save(tmp_path / "t.npy", np.arange(3))]
    program = "import sys, xentrs.cli\n"
    program += f"code = xentrs.cli.main(['score', '--logits', {files[0]!r}, '--targets', {files[1]!r}])\n"
    program += "assert code == 0\nassert not {'torch', 'transformers', 'pyarrow', 'safetensors'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)

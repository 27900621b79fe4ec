"""`xentrs order-test`: held to the functions; windows, pairs, bad records, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import CommandResult
from trained_models import ITEMS, train_on_items
from xentrs.detect.order_scoring import score_orders
from xentrs.models import load_model

Command = Callable[..., CommandResult]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A tiny model trained for some steps on items in their order, and these items."""
    return train_on_items(tmp_path_factory.mktemp("trained"))


def write_items(path: Path, items: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": item}) + "\n" for item in items))
    return path


def test_the_command(xentrs_command: Command, trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, items = trained
    benchmark, output = write_items(tmp_path / "bench.jsonl", items), tmp_path / "order.json"
    sizes = ("--shards", 5, "--shuffles", 20, "--threads", 1)
    arguments = ("order-test", benchmark, "--model", folder, "--dtype", "float32", *sizes)
    result = xentrs_command(*arguments, "-o", output)
    assert result.code == 0, result.err
    assert "40 in 5 shards, each in its order and 20 shuffles, separator '\\n\\n'" in result.out
    assert "does not show that the items were not trained on" in result.out
    page = json.loads(output.read_text())
    runner = load_model(str(folder), dtype="float32")
    scores = score_orders(runner, items, shards=5, shuffles=20)
    np.testing.assert_allclose(page["log_probs"], scores.log_probs, rtol=1e-6)
    assert page["test"]["permutation_p_value"] <= 0.01
    assert f"permutation p  {page['test']['permutation_p_value']:.4g} (9,999 permutations, seed 0)" in result.out
    assert page["protocol"]["window"] == 256
    assert (page["items"], page["separator"], page["separator_leads"]) == (40, "\n\n", True)
    as_json = xentrs_command(*arguments, "--json", "--quiet")
    assert (as_json.code, as_json.err) == (0, "")
    assert json.loads(as_json.out) == page


def test_tables_pairs_windows_and_bad_records(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pairs = {"question": [f"{item}?" for item in ITEMS[:12]], "answer": [*ITEMS[1:12], None]}
    pq.write_table(pa.table(pairs), tmp_path / "bench.parquet")
    keys = ("--context-key", "question", "--continuation-key", "answer", "--shards", 2, "--shuffles", 3)
    options = (*keys, "--threads", 1, "--window", 16, "--separator", r"\t|\n", "--permutations", 99, "--json")
    result = xentrs_command("order-test", tmp_path / "bench.parquet", "--model", tiny_model, *options)
    assert result.code == 3
    page = json.loads(result.out)
    assert (page["items"], page["separator"], page["windowed_shards"]) == (11, "\t|\n", 2)
    assert page["rejected"][0]["line"] == 12
    assert f"left out {tmp_path / 'bench.parquet'}:12: key 'answer' holds null" in result.err
    assert "2 of 2 shards are longer than the window of 16 and scored in windows" in result.err
    assert "with so few shards and shuffles no permutation p below 0.062 is possible" in result.err


def test_usage(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    benchmark = write_items(tmp_path / "bench.jsonl", ITEMS[:6])
    for options, message in (
        ((), "items has 6 entries for 50 shards, expected at least 100"),
        (("--shards", 3, "--separator", ""), "there is no prefix, expected one of them"),
        (("--shards", 3, "--protocol", "llama.cpp"), "does not score every token"),
        (("--shards", 1), "1 is not in the range x>=2"),
        (("--shards", 3, "-o", tmp_path / "no" / "x.json"), "no such folder"),
        (("--shards", 3, "-o", tmp_path), "is a folder, expected a file"),
    ):
        result = xentrs_command("order-test", benchmark, "--model", tiny_model, *options)
        assert result.code == 2, options
        assert message in result.err
        assert result.out == ""
    assert xentrs_command("order-test", tmp_path / "gone.jsonl", "--model", tiny_model).code == 2


@pytest.mark.parametrize("command", ["dataset-inference", "order-test", "select"])
def test_help_loads_nothing_heavy(command: str) -> None:
    script = (
        "import sys\nfrom xentrs.cli import main\ncode = main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'scipy', 'sklearn', 'lz4', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, command, "--help"], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr

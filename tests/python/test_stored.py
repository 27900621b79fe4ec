"""Stored logits and hidden states: the same figures as the functions give, in a RUN like any other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
import pytest
import xentrs
from safetensors.numpy import save_file
from stored_files import FLOATS, VOCAB, Silent, random_logits, random_targets, run, save
from xentrs.corpus import stored as stored_module
from xentrs.corpus.run import run_job
from xentrs.corpus.settings import Columns
from xentrs.corpus.stored import stored_job
from xentrs.corpus.tensor_files import open_tensor
from xentrs.errors import (
    FormatError,
    InputChangedError,
    ManifestMismatch,
)


def tokens_of(folder: Path) -> dict[str, list[Any]]:
    tables = [pq.read_table(path) for path in sorted(folder.glob("tokens-*.parquet"))]
    return {name: [value for table in tables for value in table[name].to_pylist()] for name in tables[0].column_names}


def run_folder(folder: Path, **options: Any) -> dict[str, list[Any]]:
    run_job(stored_job(**options), folder, Silent())
    return tokens_of(folder)


# .npy has no name for bfloat16.
STORED_AS = [(dtype, ending) for dtype in FLOATS for ending in (".npy", ".safetensors")]
STORED_AS.remove((ml_dtypes.bfloat16, ".npy"))


@pytest.mark.parametrize(("dtype", "ending"), STORED_AS, ids=lambda value: str(value).rpartition(".")[2].strip("'>"))
@pytest.mark.parametrize("shift", [0, 1])
def test_figures_are_those_of_row_stats(
    tmp_path: Path, dtype: Any, ending: str, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block by block, and as a whole."""
    monkeypatch.setattr(stored_module, "BLOCK_BYTES", 5 * VOCAB * np.dtype(dtype).itemsize)
    logits, targets = random_logits(13, dtype=dtype), random_targets(13)
    files = {"rows": [save(tmp_path / f"a{ending}", logits)], "targets": [save(tmp_path / f"t{ending}", targets)]}
    tokens = run_folder(tmp_path / "RUN", **files, shift=shift)
    expected = xentrs.row_stats(logits, targets, shift=shift)
    kept = targets[shift:] != -100
    for name in ("nll", "entropy", "varentropy", "rank", "ties", "flags"):
        np.testing.assert_array_equal(tokens[name], np.asarray(getattr(expected, name))[kept], err_msg=name)
    np.testing.assert_array_equal(tokens["top1_id"], np.asarray(expected.argmax)[kept])
    positions = np.flatnonzero(targets != -100)
    assert tokens["position"] == positions[positions >= shift].tolist()
    assert tokens["token_id"] == targets[tokens["position"]].tolist()
    assert set(tokens["byte_start"]) == set(tokens["byte_end"]) == {0}
    assert set(tokens["document"]) == {0}
    mapped = run_folder(tmp_path / "mapped", **files, shift=shift, is_mapped=True)
    assert mapped == tokens


def test_documents_of_three_axes(tmp_path: Path) -> None:
    logits, targets = random_logits(3, 6), random_targets(3, 6)
    targets[1] = -100
    result = run(tmp_path, logits, targets, shift=1)
    expected = xentrs.row_stats(logits, targets, shift=1)
    name = str(tmp_path / "a.npy")
    rows = result.documents
    assert [(row["document"], row["id"], row["source"]) for row in rows] == [
        (index, f"{name}#{index}", name) for index in range(3)
    ]
    assert [row["token_count"] for row in rows] == [4, 0, 4]
    assert [row["context_count"] for row in rows] == [2, 6, 2]
    assert [(row["status"], row["reason"]) for row in rows] == [
        ("scored", None),
        ("unscorable", "no_tokens"),
        ("scored", None),
    ]
    assert rows[2]["nll_sum"] == pytest.approx(float(np.nansum(np.asarray(expected.nll)[2])), rel=1e-14)
    for row in rows:
        assert row["bits_per_byte"] is None
        assert row["byte_count"] == row["char_count"] == row["word_count"] == row["dropped_context_count"] == 0
    totals = result.summary["totals"]
    assert totals["nll_sum"] == pytest.approx(float(np.nansum(np.asarray(expected.nll))), rel=1e-14)
    assert (totals["tokens"], totals["scored_tokens"], totals["unscored_tokens"]) == (8, 8, 0)
    assert totals["bits_per_byte"] is None


def test_several_files_are_one_run(tmp_path: Path) -> None:
    rows = [save(tmp_path / "a.npy", random_logits(4)), save(tmp_path / "b.safetensors", random_logits(2, 5))]
    rows.append(save(tmp_path / "empty.npy", random_logits(0, 5)))
    rows.append(save(tmp_path / "c.npy", random_logits(0)))
    targets = [save(tmp_path / "ta.npy", random_targets(4)), save(tmp_path / "tb.npy", random_targets(2, 5))]
    targets += [save(tmp_path / "te.npy", np.zeros((0, 5), int)), save(tmp_path / "tc.npy", np.zeros(0, int))]
    job = stored_job(rows, targets)
    result = run_job(job, None, Silent())
    assert [row["id"] for row in result.documents] == [rows[0], f"{rows[1]}#0", f"{rows[1]}#1", rows[3]]
    assert [row["document"] for row in result.documents] == [0, 1, 2, 3]
    assert result.documents[3]["reason"] == "no_tokens"
    protocol = result.summary["protocol"]
    assert (protocol["model"], protocol["dtype"], protocol["vocab_size"]) == ("stored logits", "float32", VOCAB)
    blocks = result.summary["inputs"]
    assert [block["name"] for block in blocks] == [*rows, *targets]
    assert all(len(block["sha256"]) == 64 for block in blocks)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_hidden_states_and_a_head(tmp_path: Path, dtype: Any) -> None:
    generator = np.random.default_rng(5)
    hidden = generator.normal(size=(2, 7, 16)).astype(dtype)
    weight, bias = generator.normal(size=(VOCAB, 16)).astype(dtype), generator.normal(size=VOCAB).astype(dtype)
    targets = random_targets(2, 7)
    file = tmp_path / "all.safetensors"
    save_file({"h": hidden, "model/head": weight, "b": bias, "t": targets}, file)
    tokens = run_folder(
        tmp_path / "RUN",
        rows=[f"{file}:h"],
        targets=[f"{file}:t"],
        head=f"{file}:model/head",
        head_bias=f"{file}:b",
    )
    expected = xentrs.linear_row_stats(hidden, weight, targets, bias=bias)
    np.testing.assert_array_equal(tokens["nll"], np.asarray(expected.nll)[targets != -100])
    summary = json.loads((tmp_path / "RUN/summary.json").read_bytes())
    assert (summary["protocol"]["model"], summary["protocol"]["isa"]) == ("stored hidden states", expected.isa)
    assert [block["name"] for block in summary["inputs"]] == [
        f"{file}:{name}" for name in ("h", "t", "model/head", "b")
    ]
    without = run_folder(tmp_path / "without", rows=[f"{file}:h"], targets=[f"{file}:t"], head=f"{file}:model/head")
    plain = xentrs.linear_row_stats(hidden, weight, targets)
    np.testing.assert_array_equal(without["nll"], np.asarray(plain.nll)[targets != -100])


def test_a_resumed_run_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts end with the document that fills the budget, across files."""
    defaults = stored_module.Settings.__init__.__defaults__
    names = ("protocol", "batch_tokens", "part_tokens")
    patched = list(defaults or ())
    patched[names.index("part_tokens")] = 10
    monkeypatch.setattr(stored_module.Settings.__init__, "__defaults__", tuple(patched))
    rows = [save(tmp_path / "a.npy", random_logits(5, 6)), save(tmp_path / "b.npy", random_logits(4))]
    targets = [save(tmp_path / "ta.npy", random_targets(5, 6)), save(tmp_path / "tb.npy", random_targets(4))]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_job(stored_job(rows, targets), whole, Silent())
    documents = [pq.read_table(path)["id"].to_pylist() for path in sorted(whole.glob("documents-*"))]
    assert [len(ids) for ids in documents] == [2, 2, 2], "the last of one file and the only one of the next"

    class Stopping(Silent):
        def part_finished(self, byte_position: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(stored_job(rows, targets), resumed, Stopping())
    result = run_job(stored_job(rows, targets), resumed, Silent())
    names_there = sorted(path.name for path in whole.iterdir() if path.name not in ("timings.json", ".lock"))
    for name in names_there:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    assert not result.already_finished
    assert run_job(stored_job(rows, targets), resumed, Silent()).already_finished
    with pytest.raises(ManifestMismatch, match=r"protocol\.shift: 0 in the RUN, 1 now"):
        run_job(stored_job(rows, targets, shift=1), resumed, Silent())


def test_special_rows_have_flags(tmp_path: Path) -> None:
    logits, targets = random_logits(4), np.array([1, 2, 3, 4])
    logits[0, 3], logits[1, 2], logits[2, 5] = np.nan, -np.inf, np.inf
    tokens = run_folder(
        tmp_path / "RUN", rows=[save(tmp_path / "a.npy", logits)], targets=[save(tmp_path / "t.npy", targets)]
    )
    flags = [xentrs.Flag(value) for value in tokens["flags"]]
    assert xentrs.Flag.NAN in flags[0]
    assert xentrs.Flag.TARGET_NEGINF in flags[1]
    assert xentrs.Flag.POSINF in flags[2]
    assert flags[3] == xentrs.Flag(0)
    assert np.isnan(tokens["nll"][0])
    assert tokens["nll"][1] == np.inf
    totals = json.loads((tmp_path / "RUN/summary.json").read_bytes())["totals"]
    assert totals["nan_count"] >= 1
    assert totals["mean_nll"] is None, "NaN is no JSON"


def test_without_tokens(tmp_path: Path) -> None:
    rows, targets = save(tmp_path / "a.npy", random_logits(6)), save(tmp_path / "t.npy", random_targets(6))
    run_job(stored_job([rows], [targets], columns=Columns("none")), tmp_path / "none", Silent())
    assert not list((tmp_path / "none").glob("tokens-*"))


def test_all_of_the_tokens(tmp_path: Path) -> None:
    files = {
        "rows": [save(tmp_path / "a.npy", random_logits(6))],
        "targets": [save(tmp_path / "t.npy", random_targets(6))],
    }
    tokens = run_folder(tmp_path / "all", **files, columns=Columns("all", (0.5,), 3))
    expected = xentrs.row_stats(random_logits(6), random_targets(6), top_k=3)
    assert tokens["top_ids"] == np.asarray(expected.top_ids)[random_targets(6) != -100].tolist()
    assert len(tokens["nll_beta_0.5"]) == 5


@pytest.mark.parametrize("dtype", [">f4", ">f2", ">f8"])
def test_big_endian_numbers(tmp_path: Path, dtype: str) -> None:
    logits, targets = random_logits(5).astype(dtype), random_targets(5).astype(">i4")
    result = run(tmp_path, logits, targets)
    expected = xentrs.row_stats(logits.astype(logits.dtype.newbyteorder("=")), targets.astype(int))
    assert result.summary["totals"]["nll_sum"] == pytest.approx(float(np.nansum(np.asarray(expected.nll))), rel=1e-14)


@pytest.mark.parametrize("is_mapped", [False, True])
def test_fortran_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_mapped: bool) -> None:
    monkeypatch.setattr(stored_module, "BLOCK_BYTES", 4 * VOCAB * 4)
    logits, targets = random_logits(11), random_targets(11)
    plain = run(tmp_path, logits, targets)
    fortran = run(tmp_path, np.asfortranarray(logits), targets, "f.npy", is_mapped=is_mapped)
    assert fortran.summary["totals"] == {
        **plain.summary["totals"],
        "breakdowns": fortran.summary["totals"]["breakdowns"],
    }
    with pytest.raises(FormatError, match=r"f3\.npy is in Fortran order with 3 axes: save np\.ascontiguousarray"):
        run(tmp_path, np.asfortranarray(random_logits(3, 4)), random_targets(3, 4), "f3.npy")
    weight = np.asfortranarray(np.random.default_rng(1).normal(size=(VOCAB, 8)).astype(np.float32))
    assert open_tensor(save(tmp_path / "w.npy", weight)).whole().tolist() == weight.tolist()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_targets_of_every_integer_type(tmp_path: Path, dtype: str) -> None:
    targets = np.arange(4).astype(dtype)
    result = run(tmp_path, random_logits(4), targets)
    assert result.summary["totals"]["scored_tokens"] == 4
    name = f"t-{dtype}.safetensors"
    assert open_tensor(save(tmp_path / name, targets)).whole().tolist() == [0, 1, 2, 3]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [cut, touch, Path.unlink])
@pytest.mark.parametrize("which", ["a.npy", "t.npy"])
def test_a_file_that_changes_after_hashing(tmp_path: Path, change: Callable[[Path], None], which: str) -> None:
    files = [save(tmp_path / "a.npy", random_logits(400)), save(tmp_path / "t.npy", random_targets(400))]
    job = stored_job(files[:1], files[1:])
    change(tmp_path / which)
    with pytest.raises(InputChangedError, match=which):
        run_job(job, None, Silent())


def test_blocks_of_rows_are_what_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more rows at once than a block has, and none whose targets are all ignored."""
    monkeypatch.setattr(stored_module, "BLOCK_BYTES", 8 * VOCAB * 4)
    targets = np.zeros(100, dtype=int)
    targets[16:40] = -100
    asked: list[tuple[int, int]] = []
    rows = stored_module.Tensor.rows

    def spy(self: Any, file: Any, first: int, count: int) -> Any:
        asked.append((first, count))
        return rows(self, file, first, count)

    monkeypatch.setattr(stored_module.Tensor, "rows", spy)
    run(tmp_path, random_logits(100), targets)
    assert asked == [(first, min(8, 100 - first)) for first in range(0, 100, 8) if not 16 <= first < 40]

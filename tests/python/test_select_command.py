"""`xentrs select`: held to the functions, fields kept, streams, refusals."""

from __future__ import annotations

import datetime
import gzip
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CommandResult
from xentrs.corpus import Reading, open_sources
from xentrs.corpus.run import Silent
from xentrs.detect import candidates as module
from xentrs.detect.candidates import Counted, align_records, best_of, read_targets
from xentrs.detect.compression import select_top, zip_fit_alignment
from xentrs.errors import ParamError

Command = Callable[..., CommandResult]


def sentence(seed: int, kind: int) -> str:
    """Words of one of two vocabularies."""
    words = np.random.default_rng(1000 + kind).integers(97, 123, size=(60, 6), dtype=np.uint8)
    chosen = np.random.default_rng(seed).integers(0, 60, 30)
    return " ".join(words[place].tobytes().decode() for place in chosen)


TARGETS = [sentence(seed, 0) for seed in range(3)]
TEXTS = [sentence(100 + place, 0 if place % 4 == 0 else 1) for place in range(20)]
RECORDS: list[dict[str, Any]] = [
    {"text": text, "id": f"c{place}", "meta": {"n": [place, None, 1.5]}, "name": "naïve"}
    for place, text in enumerate(TEXTS)
]


def write_records(path: Path, records: list[dict[str, Any]], key: str = "text") -> Path:
    path.write_text("".join(json.dumps(record | {key: record["text"]}) + "\n" for record in records))
    return path


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    return write_records(tmp_path / "candidates.jsonl", RECORDS)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_records(tmp_path / "target.jsonl", [{"text": text} for text in TARGETS])


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("method", ["gzip", "lz4", "zlib"])
def test_the_chosen_are_those_of_the_functions(
    xentrs_command: Command, candidates: Path, target: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_RECORDS", 3)
    values = zip_fit_alignment(TEXTS, TARGETS, method=method).values
    places = select_top(values, 5).tolist()
    result = xentrs_command("select", candidates, "--target", target, "-n", 5, "--method", method, "--threads", 2)
    assert result.code == 0, result.err
    assert lines(result.out) == [RECORDS[place] | {"alignment": values[place]} for place in places]
    assert set(places) == {0, 4, 8, 12, 16}
    assert f"20 candidates against 3 texts of the target by {method}: 5 written" in result.err
    scores = xentrs_command("select", candidates, "--target", target, "--scores-only", "--method", method, "--quiet")
    assert (scores.code, scores.err) == (0, "")
    assert lines(scores.out) == [
        {"document": place, "id": f"c{place}", "source": str(candidates), "line": place + 1, "alignment": value}
        for place, value in enumerate(values.tolist())
    ]


def test_fields_stay_byte_for_byte(xentrs_command: Command, target: Path, tmp_path: Path) -> None:
    records = [
        f'{{"big": 123456789012345678901234567890, "text": "{TARGETS[0]}", "x": 1.10e+5, "half": "\\ud800"  }}',
        '\t{ "text" : "other", "nested": {"a": "}"} }\t',
        "",
        f'{{"text": "caf\\u00e9 {TARGETS[1]}"}}',
    ]
    path = tmp_path / "raw.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(records).encode())
    packed = tmp_path / "raw.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for source in (path, packed):
        result = xentrs_command("select", source, "--target", target, "-n", 9, "--quiet")
        assert result.code == 0, result.err
        found = sorted(result.out.splitlines(), key=lambda line: [key in line for key in ("big", "nested", "caf")])
        assert len(found) == 3
        for line, record in zip(found, (records[3], records[1], records[0]), strict=True):
            before, _, alignment = line.rpartition(',"alignment":')
            assert before == record.rstrip().removesuffix("}").rstrip()
            assert 0.0 <= float(alignment.removesuffix("}")) <= 1.0


def test_every_format_gives_the_same_choice(
    xentrs_command: Command, candidates: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    day = datetime.date(2024, 5, 6)
    table = pa.table({"text": TEXTS, "day": [day] * 20, "data": [b"\xff"] * 20, "more": [{"a": [1, 2]}] * 20})
    pq.write_table(table, tmp_path / "candidates.parquet", row_group_size=6)
    folder = tmp_path / "texts"
    folder.mkdir()
    for place, text in enumerate(TEXTS):
        (folder / f"{place:02d}.txt").write_text(text)
    first = lines(xentrs_command("select", candidates, "--target", target, "-n", 4).out)
    rows = lines(xentrs_command("select", tmp_path / "candidates.parquet", "--target", target, "-n", 4).out)
    more = {"day": "2024-05-06", "data": "/w==", "more": {"a": [1, 2]}}
    assert rows == [{"text": e["text"], **more, "alignment": e["alignment"]} for e in first]
    files = lines(xentrs_command("select", folder, "--target", target, "-n", 4).out)
    assert files == [
        {"id": f"{folder}/{TEXTS.index(e['text']):02d}.txt", "text": e["text"], "alignment": e["alignment"]}
        for e in first
    ]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(candidates.read_bytes())))
    piped = xentrs_command("select", "-", "--stdin-format", "jsonl", "--target", target, "-n", 4)
    assert lines(piped.out) == first
    # Records of two inputs, in the order of how well they fit and not of where they stand.
    both = xentrs_command("select", tmp_path / "candidates.parquet", candidates, "--target", target, "-n", 8)
    assert [e["alignment"] for e in lines(both.out)] == [e["alignment"] for e in first for _ in range(2)]
    assert ["day" in e for e in lines(both.out)] == [True, False] * 4


def test_other_fields_keys_choice_and_a_file(
    xentrs_command: Command, candidates: Path, target: Path, tmp_path: Path
) -> None:
    wanted = write_records(tmp_path / "wanted.jsonl", [{"text": text} for text in TARGETS], "body")
    output = tmp_path / "chosen.jsonl"
    options = ("--target", wanted, "--target-text-key", "body", "--score-key", "fit", "--skip", 4, "--limit", 5)
    result = xentrs_command("select", candidates, *options, "-n", 9, "-o", output)
    assert (result.code, result.out) == (0, "")
    values = zip_fit_alignment(TEXTS[4:9], TARGETS).values
    expected = [RECORDS[4 + place] | {"fit": values[place]} for place in select_top(values, 9).tolist()]
    assert lines(output.read_text()) == expected
    assert "there are fewer than 9 candidates: all are written" in result.err
    assert f"5 written to {output}" in result.err


def test_bad_records_empty_ones_and_the_targets_own(xentrs_command: Command, target: Path, tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    path.write_text(f'{{"text": ""}}\n{{"wrong": 1}}\n{{"text": "{TARGETS[1]}"}}\n')
    result = xentrs_command("select", path, "--target", target, "-n", 1)
    assert result.code == 3
    assert [entry["text"] for entry in lines(result.out)] == [TARGETS[1]]
    assert f"left out {path}:2: key 'text' is missing" in result.err
    assert "warning: 1 candidates are texts of the target themselves" in result.err
    assert "1 candidates have no text: alignment 0" in result.err


def test_usage(xentrs_command: Command, candidates: Path, target: Path, tmp_path: Path) -> None:
    empty = write_records(tmp_path / "empty.jsonl", [{"text": "a"}, {"text": ""}])
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text("")
    taken = write_records(tmp_path / "taken.jsonl", [{"text": "a", "alignment": 1}])
    output = tmp_path / "out.jsonl"
    for arguments, message in (
        ((candidates, "--target", target), "select needs either -n N or --scores-only"),
        ((candidates, "--target", target, "-n", 2, "--scores-only"), "select needs either -n N or --scores-only"),
        ((candidates, "--target", empty, "-n", 2), "empty.jsonl:2: no text, expected one that candidates can resemble"),
        ((candidates, "--target", nothing, "-n", 2), "nothing.jsonl: no text"),
        ((candidates, "--target", target, "--target-text-key", "x", "-n", 2), "target.jsonl:1: key 'x' is missing"),
        ((candidates, "--target", target, "-n", 2, "--level", 0), "level = 0 is none of gzip's, expected 1 to 9"),
        ((taken, "--target", target, "-n", 2), "taken.jsonl:1: the record has a field 'alignment' already"),
        ((tmp_path / "gone.jsonl", "--target", target, "-n", 2), "gone.jsonl: no such file"),
        ((candidates, "-n", 2), "Missing option '--target'"),
    ):
        result = xentrs_command("select", *arguments, "-o", output)
        assert (result.code, output.exists()) == (2, False), arguments
        assert message in result.err
    assert not list(tmp_path.glob("*.tmp-*"))
    assert xentrs_command("select", candidates, "--target", target, "-n", 1, "-o", tmp_path / "no" / "x").code == 2


@pytest.mark.parametrize("name", ['"alignment"', '"\\u0061lignment"'])
def test_a_later_record_with_the_field_is_refused_before_any_is_compared(
    xentrs_command: Command, candidates: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    taken = tmp_path / "taken.jsonl"
    taken.write_text(f'{{"alignment": 1}}\n\n{{"text": "a alignment"}}\n{{"text": "b", {name}: 1}}\n')
    options = ("--target", target, "-n", 30, "--quiet")
    result = xentrs_command("select", candidates, taken, *options, "--limit", 22)
    assert (result.code, len(lines(result.out))) == (3, 21)  # the first is no candidate, the last not among ours
    nested = write_records(tmp_path / "nested.jsonl", [{"text": "c", "meta": {"alignment": 1}}])
    assert xentrs_command("select", nested, *options).code == 0
    assert xentrs_command("select", candidates, taken, *options, "--score-key", "fit").code == 3
    monkeypatch.setattr(module, "zip_fit_alignment", lambda *rest, **options: pytest.fail("compared"))
    result = xentrs_command("select", candidates, taken, *options)
    assert result.code == 2
    assert "taken.jsonl:4: the record has a field 'alignment' already" in result.err


def test_fields_of_tables_and_texts_are_looked_at(xentrs_command: Command, target: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": TEXTS, "fit": TEXTS}), tmp_path / "rows.parquet")
    text = tmp_path / "one.txt"
    text.write_text("a")
    for source, key, where in (
        (tmp_path / "rows.parquet", "fit", "rows.parquet:1"),
        (text, "text", "one.txt:1"),
        (text, "id", "one.txt:1"),
    ):
        result = xentrs_command("select", source, "--target", target, "-n", 1, "--score-key", key)
        assert result.code == 2
        assert f"{where}: the record has a field {key!r} already" in result.err


def test_values_that_python_has_no_type_for(xentrs_command: Command, target: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    nanoseconds = pa.array([1_714_953_600_000_000_001, None], pa.timestamp("ns"))
    columns = {
        "text": pa.array(TEXTS[:2]),
        "time": nanoseconds,
        "clock": pa.array([1, None], pa.time64("ns")),
        "day": pa.array([10**8, 0], pa.date32()),
        "nested": pa.StructArray.from_arrays([nanoseconds, pa.array([1, 2])], names=["time", "n"]),
        "list": pa.array([[1], [1000]], pa.list_(pa.timestamp("ns"))),
        "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.timestamp("ns"))),
        "packed": nanoseconds.dictionary_encode(),
        "data": pa.array([b"\xff", b""]),
        "bad": pa.Array.from_buffers(pa.string(), 2, pa.array([b"a\xff", b"b"]).buffers()),
    }
    pq.write_table(pa.table(columns), path)
    result = xentrs_command("select", path, "--target", target, "-n", 2, "--quiet")
    assert result.code == 0, result.err
    first, second = sorted(lines(result.out), key=lambda record: TEXTS.index(record["text"]))
    time = "2024-05-06T00:00:00.000000001"
    assert {key: value for key, value in first.items() if key not in ("text", "alignment", "day")} == {
        "time": time,
        "clock": "00:00:00.000000001",
        "nested": {"time": time, "n": 1},
        "list": ["1970-01-01T00:00:00.000000001"],
        "map": [["a", "1970-01-01T00:00:00.000000001"]],
        "packed": time,
        "data": "/w==",
        "bad": "a\\xff",
    }
    assert isinstance(first["day"], str)
    assert (second["time"], second["day"], second["list"]) == (None, "1970-01-01", ["1970-01-01T00:00:00.000001"])
    assert (second["nested"], second["map"]) == ({"time": None, "n": 2}, [])


def test_lz4_is_asked_for_only_where_it_is_used(
    xentrs_command: Command, candidates: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "lz4" else find(name, *rest))
    assert xentrs_command("select", candidates, "--target", target, "-n", 1).code == 0
    result = xentrs_command("select", candidates, "--target", target, "-n", 1, "--method", "lz4")
    assert result.code == 1
    assert "xentrs select needs lz4: pip install 'xentrs[detect,score]'" in result.err


def test_the_stream_holds_one_chunk(candidates: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_CHARACTERS", 500)
    held: list[int] = []
    align = zip_fit_alignment

    def spy(texts: list[str], *rest: Any, **options: Any) -> Any:
        held.append(len(texts))
        return align(texts, *rest, **options)

    monkeypatch.setattr(module, "zip_fit_alignment", spy)
    sources, _ = open_sources([str(candidates)])
    counted = Counted()
    stream = align_records(sources, Reading(), TARGETS, counted, Silent(), num_threads=1)
    next(stream)
    assert held == [3]
    best = best_of(stream, 2)
    assert sum(held) == counted.candidates == 20
    assert all(one.alignment >= other.alignment for one, other in itertools.pairwise(best))
    wrong, _ = open_sources([str(target)])
    with pytest.raises(ParamError, match=r"target .*: key 'body' is missing"):
        read_targets(wrong, Reading(text_key="body"))

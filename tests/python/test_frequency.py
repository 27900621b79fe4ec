"""Tables of token frequencies: counts, merging, smoothing, the file, the tokenizer that they are bound to."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xentrs.detect import TokenFrequencies
from xentrs.errors import DTypeError, FormatError, ParamError, TargetError

SHA = "ab" * 32
DOCUMENTS = st.lists(st.lists(st.integers(0, 6), max_size=9), max_size=8)


def table(documents: Any) -> TokenFrequencies:
    return TokenFrequencies.build(documents, vocab_size=7, tokenizer_sha256=SHA)


@given(DOCUMENTS)
def test_counts_are_occurrences(documents: list[list[int]]) -> None:
    held = table(documents)
    flat = [token for document in documents for token in document]
    assert held.counts.tolist() == [flat.count(token) for token in range(7)]
    assert held.counts.dtype == np.int64
    assert (held.document_count, held.token_count) == (len(documents), len(flat))


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_any_split_gives_the_same_table(one: Any, two: Any, three: Any) -> None:
    whole = table(one + two + three)
    left, right = table(one), table(three)
    right.merge_state(table(two))
    right.merge_state(left)
    assert right.counts.tolist() == whole.counts.tolist()
    assert right.document_count == whole.document_count


def test_smoothing() -> None:
    held = table([[0, 0, 0, 1]])
    assert held.frequencies().tolist() == [4 / 11, 2 / 11, *[1 / 11] * 5]
    assert math.fsum(held.frequencies()) == pytest.approx(1, rel=1e-15)
    assert held.surprisals([1, 6]).tolist() == pytest.approx([math.log(11 / 2), math.log(11)], rel=1e-15)
    assert table([]).frequencies([3]).tolist() == [1 / 7]


def test_counts_beyond_32_bits() -> None:
    held, other = table([[2]]), table([])
    other.counts[2] = 2**33
    held.merge_state(other)
    assert held.token_count == 2**33 + 1


@pytest.mark.parametrize(
    "ids", [np.array([1, 2], dtype=dtype) for dtype in ("uint8", "int32", "uint64")] + [[1, 2], (1, 2)]
)
def test_ids_of_any_integer_type(ids: Any) -> None:
    assert table([ids]).counts[1:3].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, 7], TargetError, r"token_ids\[1\] = 7 is outside \[0, 7\)"),
        ([-1], TargetError, r"token_ids\[0\] = -1 is outside"),
        ([0.5], DTypeError, "token ids are float64"),
        ([[1, 2]], DTypeError, r"of shape \(1, 2\)"),
    ],
)
def test_bad_ids_count_nothing(ids: Any, error: type[Exception], message: str) -> None:
    held = table([[1]])
    for use in (held.update, held.frequencies, held.surprisals):
        with pytest.raises(error, match=message):
            use(ids)
    assert (held.token_count, held.document_count) == (1, 1)


def test_another_tokenizer_or_vocabulary() -> None:
    held = table([])
    with pytest.raises(ParamError, match=f"token frequencies of tokenizer {SHA}, the tokens are of cd"):
        held.merge_state(TokenFrequencies(7, "cd"))
    with pytest.raises(ParamError, match="the tables have vocabularies of 7 and 8 tokens"):
        held.merge_state(TokenFrequencies(8, SHA))
    with pytest.raises(ParamError, match="the tokens are of an unknown one"):
        held.require_tokenizer(None)
    with pytest.raises(ParamError, match="tokenizer_sha256 is empty"):
        TokenFrequencies(7, "")
    with pytest.raises(ParamError, match="vocab_size = 0, expected at least 1"):
        TokenFrequencies(0, SHA)


def test_file_round_trip(tmp_path: Path) -> None:
    held = table([[1, 2, 2], []])
    held.save(tmp_path / "one.npz")
    held.save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    read = TokenFrequencies.load(tmp_path / "one.npz")
    assert read.counts.tolist() == held.counts.tolist()
    assert (read.tokenizer_sha256, read.document_count, read.vocab_size) == (SHA, 2, 7)
    read.update([3])  # what was read goes on counting
    assert read.token_count == 4
    assert not [path for path in tmp_path.iterdir() if ".tmp" in path.name]
    assert repr(read).startswith("TokenFrequencies(4 tokens, 3 documents, vocab_size=7, tokenizer abab")


def written(**changes: Any) -> bytes:
    """A file as `save` writes it, but for some entries."""
    header: dict[str, Any] = {"format": "xentrs-token-frequencies", "version": 1, "tokenizer_sha256": SHA}
    header |= {"vocab_size": 3, "document_count": 1, "token_count": 3}
    counts = changes.pop("counts", np.array([1, 2, 0]))
    text = json.dumps(header | changes).encode()
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(text, dtype=np.uint8), counts=counts)
    return buffer.getvalue()


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array([{}], dtype=object), counts=np.zeros(3))
    return buffer.getvalue()


def without_counts() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("other.npy", b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no table"),
        (b"text", "is no table"),
        (b"PK\x03\x04 torn", "is no table"),
        (written()[:-40], "is no table"),
        (pickled(), "is no table"),
        (without_counts(), "is no table"),
        (written(format="another"), "is no table"),
        (written(version=2), "table of version 2, expected 1"),
        (written(token_count=4), "damaged"),
        (written(vocab_size=4), "damaged"),
        (written(document_count=None), "damaged"),
        (written(tokenizer_sha256=3), "damaged"),
        (written(counts=np.array([1, 2, 0], dtype=np.int32)), "damaged"),
        (written(counts=np.array([-1, 2, 2])), "damaged"),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "table.npz").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        TokenFrequencies.load(tmp_path / "table.npz")


def test_a_sound_file_by_hand(tmp_path: Path) -> None:
    (tmp_path / "table.npz").write_bytes(written())
    assert TokenFrequencies.load(tmp_path / "table.npz").token_count == 3


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TokenFrequencies.load(tmp_path / "none.npz")

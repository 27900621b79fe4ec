"""Arrays in files: what is read, and what is wrong with a file."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from stored_files import random_logits, save
from xentrs.corpus.sources import InputError
from xentrs.corpus.tensor_files import open_tensor
from xentrs.errors import (
    DTypeError,
    FormatError,
    LimitError,
    TruncatedError,
)


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + header.encode() + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }\n"
BAD_NPY: list[tuple[bytes, type[Exception], str]] = [
    (b"", FormatError, "is no .npy file"),
    (b"\x93NUMP", FormatError, "is no .npy file"),
    (b"PK\x03\x04....", FormatError, "is an archive of arrays: save each as .npy"),
    (npy(GOOD, bytes(8), b"\x00\x00"), FormatError, "has version 0.0"),
    (npy(GOOD, bytes(8), b"\x04\x00"), FormatError, "has version 4.0"),
    (npy(GOOD)[:-9], TruncatedError, "ends in its header"),
    (b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little"), LimitError, "has a header of 2147483648 bytes"),
    (npy(GOOD, bytes(7)), TruncatedError, r"has \d+ bytes, expected \d+ for shape \(1, 2\) of float32"),
    (npy(GOOD, bytes(9)), FormatError, "has 1 bytes behind its array"),
    (npy("[1]\n"), FormatError, "has a damaged header"),
    (npy("{'descr': '<f4', 'shape': (1, 2)}\n", bytes(8)), FormatError, "has a damaged header"),
    (npy(GOOD.replace("}", "'x': 1}"), bytes(8)), FormatError, "has a damaged header"),
    (npy(GOOD.replace("}", "'shape': (1, 2)}"), bytes(8)), FormatError, "a key stands twice"),
    (npy(GOOD.replace("(1, 2)", "(-1, 2)"), bytes(8)), FormatError, r"has shape \(-1, 2\)"),
    (npy(GOOD.replace("(1, 2)", "(1.0, 2)"), bytes(8)), FormatError, "has a damaged header"),
    (npy(GOOD.replace("(1, 2)", "(True, 2)"), bytes(8)), FormatError, "has shape"),
    (npy(GOOD.replace("(1, 2)", f"({2**63}, {2**63})"), bytes(8)), TruncatedError, "has 7. bytes|has ... bytes"),
    (npy(GOOD.replace("<f4", "|O"), bytes(8)), FormatError, "holds Python objects; unpickling is refused"),
    (npy(GOOD.replace("'<f4'", "[('a', '<f4')]"), bytes(8)), FormatError, "holds records"),
    (npy(GOOD.replace("<f4", "nonsense"), bytes(8)), FormatError, "has a damaged header"),
    (npy("(" * 5000 + ")" * 5000 + "\n"), FormatError, "has a damaged header"),
    (npy("-" * 60000 + "1\n"), FormatError, "has a damaged header"),
    (npy(GOOD.replace("(1, 2)", "__import__('os').abort()")), FormatError, "has a damaged header"),
]


@pytest.mark.parametrize(("data", "error", "what"), BAD_NPY)
def test_a_damaged_npy_file(tmp_path: Path, data: bytes, error: type[Exception], what: str) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(error, match=rf"a\.npy.*({what})"):
        open_tensor(str(tmp_path / "a.npy"))


@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00", b"\x03\x00"])
def test_every_version_of_npy(tmp_path: Path, version: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(npy(GOOD, np.array([1, 2], np.float32).tobytes(), version))
    assert open_tensor(str(tmp_path / "a.npy")).whole().tolist() == [[1.0, 2.0]]


def test_npy_of_bfloat16_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DTypeError, match=r"\.npy has no name for bfloat16, save it as \.safetensors"):
        open_tensor(save(tmp_path / "a.npy", random_logits(2, dtype=ml_dtypes.bfloat16)))


def safetensors(header: str, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header.encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


ENTRY = '{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
BAD_SAFETENSORS = [
    b"",
    b"1234567",
    safetensors(ENTRY, bytes(8), 2**64 - 1),
    safetensors(ENTRY, bytes(8), 200_000_000),
    safetensors(ENTRY, bytes(8), 1000),
    safetensors(ENTRY, bytes(7)),
    safetensors(ENTRY, bytes(9)),
    safetensors("nonsense"),
    safetensors("[" * 10_000 + "]" * 10_000),
    safetensors(ENTRY.replace("[0,8]", "[8,0]"), bytes(8)),
    safetensors(ENTRY.replace("[2]", "[3]"), bytes(8)),
    safetensors(ENTRY.replace("[2]", f"[{2**62},{2**62}]"), bytes(8)),
    safetensors(ENTRY.replace("F32", "F31"), bytes(8)),
    safetensors(ENTRY.replace("[0,8]", "[4,12]"), bytes(12)),
]


@pytest.mark.parametrize("data", BAD_SAFETENSORS)
def test_a_damaged_safetensors_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match=r"a\.safetensors is no intact \.safetensors file"):
        open_tensor(str(tmp_path / "a.safetensors"))


def test_which_tensor(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    names = {"b": 2.0, "a": 1.0, "dir/../x:y": 3.0, "\u202econtrol\n": 4.0}
    save_file({name: np.full(1, value, np.float32) for name, value in names.items()}, file)
    for name, value in names.items():
        assert open_tensor(f"{file}:{name}").whole().tolist() == [value]
    with pytest.raises(InputError, match=r"holds 4 tensors; name one, as FILE\.safetensors:NAME: 'a', 'b'") as caught:
        open_tensor(str(file))
    assert "\u202e" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such tensor; there are 'a', 'b'"):
        open_tensor(f"{file}:c")
    save_file({}, file)
    with pytest.raises(InputError, match=r"holds 0 tensors; .*: none"):
        open_tensor(str(file))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("none.npy", "no such file"),
        ("none.safetensors:x", "no such file"),
        ("a.npz", r"unknown kind of file; expected \.npy or \.safetensors"),
        ("folder.npy", "Is a directory"),
    ],
)
def test_no_such_input(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=what):
        open_tensor(f"{tmp_path}/{name}")


def test_bfloat16_without_ml_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = save(tmp_path / "a.safetensors", random_logits(2, dtype=ml_dtypes.bfloat16))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(DTypeError, match="pip install ml_dtypes"):
        open_tensor(name)

"""Arrays in files, read a block at a time: .npy and .safetensors.

In: a name, `file.npy` or `file.safetensors`, for one of several tensors `file.safetensors:name`. Out: `Tensor`, whose
header is checked against the size of its file; numbers are read when they are asked for.

Blocks are read into memory of our own: where another process cuts a mapped file, reading it ends this one. `is_mapped`
asks for a mapping all the same. Nothing is unpickled.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from xentrs.corpus.sources import InputError, Source, file_source, printable_name
from xentrs.errors import DTypeError, FormatError, InputChangedError, LimitError, TruncatedError

_Array = npt.NDArray[Any]
_ENDING = ".safetensors"
_MAX_NPY_HEADER = 64 << 10
_SHOWN_NAMES = 8
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"} | {
    f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class Header:
    """What a file says of an array: `offset` is where its first number stands."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]  # as stored, byte order included
    offset: int
    is_fortran: bool = False

    @property
    def byte_count(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Tensor:
    """An array in a file that was hashed."""

    source: Source
    header: Header
    is_mapped: bool = False

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """In the byte order of this machine, as numbers come out."""
        native: np.dtype[Any] = self.header.dtype.newbyteorder("=")
        return native

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file, for `rows`.

        Raises:
            InputChangedError: it is not what was hashed.
        """
        with self.source.open() as file:
            yield file

    def rows(self, file: IO[bytes], first: int, count: int) -> _Array:
        """`count` rows from row `first` on, all axes but the last flattened: `(count, shape[-1])`."""
        width = self.shape[-1]
        if not self.header.is_fortran:
            return self._numbers(file, first * width, count * width).reshape(count, width)
        return self._rows_of_columns(file, first, count)

    def flat(self, file: IO[bytes], first: int, count: int) -> _Array:
        """`count` numbers from number `first` on, all axes flattened."""
        return self._numbers(file, first, count)

    def whole(self) -> _Array:
        """All of it."""
        with self.open() as file:
            numbers = self._numbers(file, 0, math.prod(self.shape))
        return numbers.reshape(self.shape, order="F" if self.header.is_fortran else "C")

    def _rows_of_columns(self, file: IO[bytes], first: int, count: int) -> _Array:
        """Column by column, so that memory stays that of the rows; unbuffered, as pieces are short and far apart."""
        height, width = self.shape
        rows = np.empty((count, width), dtype=self.header.dtype)
        for column in range(width):
            place = self.header.offset + (column * height + first) * rows.itemsize
            piece = os.pread(file.fileno(), count * rows.itemsize, place)
            if len(piece) != count * rows.itemsize:
                raise self._changed()
            rows[:, column] = np.frombuffer(piece, dtype=rows.dtype)
        return _native(rows)

    def _changed(self) -> InputChangedError:
        return InputChangedError(f"{self.name} changed during the run: it ends early")

    def _numbers(self, file: IO[bytes], first: int, count: int) -> _Array:
        """As they lie in the file."""
        if self.is_mapped:
            return _native(self._map[first : first + count])
        numbers = np.empty(count, dtype=self.header.dtype)
        file.seek(self.header.offset + first * numbers.itemsize)
        found = file.readinto(numbers.view(np.uint8)) if count else 0  # type: ignore[attr-defined]  # any binary file
        if found != numbers.nbytes:
            raise self._changed()
        return _native(numbers)

    @cached_property
    def _map(self) -> _Array:
        assert self.source.path is not None
        size = math.prod(self.shape)
        if size == 0:
            return np.empty(0, dtype=self.header.dtype)
        return np.memmap(self.source.path, self.header.dtype, "r", self.header.offset, (size,))


def _native(numbers: _Array) -> _Array:
    return numbers if numbers.dtype.isnative else numbers.astype(numbers.dtype.newbyteorder("="))


def open_tensor(name: str, is_mapped: bool = False) -> Tensor:
    """Check the header, then hash the file.

    Raises:
        InputError: there is no such file or tensor, or it is of an unknown kind.
        FormatError: the file is damaged, or holds what is no array of numbers; TruncatedError, LimitError.
        DTypeError: a type of numbers that cannot be read.
    """
    shown = printable_name(name)
    path, tensor = Path(name), None
    if not path.exists() and f"{_ENDING}:" in name:
        file, _, tensor = name.rpartition(f"{_ENDING}:")
        path = Path(file + _ENDING)
    if path.suffix not in (".npy", _ENDING):
        raise InputError(f"{shown}: unknown kind of file; expected .npy or .safetensors")
    try:
        with path.open("rb") as opened:
            size = opened.seek(0, io.SEEK_END)
            opened.seek(0)
            if path.suffix == ".npy":
                header = _npy_header(opened, shown, size)
            else:
                header = _safetensors_header(opened, path, shown, tensor)
    except FileNotFoundError:
        raise InputError(f"{shown}: no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, FormatError | InputError):
            raise
        raise InputError(f"{shown}: {getattr(error, 'strerror', None) or error}") from None
    return Tensor(file_source(path, shown, path.suffix[1:]), header, is_mapped)


def _npy_header(file: IO[bytes], name: str, size: int) -> Header:
    """NEP 1 and numpy/lib/format.py: magic, version, length, a dictionary as Python writes it."""
    magic = file.read(8)
    version = (magic[6], magic[7]) if len(magic) == 8 else (0, 0)
    if magic[:6] != b"\x93NUMPY":
        held = "an archive of arrays: save each as .npy" if magic[:2] == b"PK" else "no .npy file"
        raise FormatError(f"{name} is {held}")
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FormatError(f"{name} has version {version[0]}.{version[1]} of .npy, expected 1.0, 2.0 or 3.0")
    counted = file.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(counted, "little")
    if length > _MAX_NPY_HEADER:
        raise LimitError(f"{name} has a header of {length} bytes, expected at most {_MAX_NPY_HEADER}")
    text = file.read(length)
    if len(text) < length:
        raise TruncatedError(f"{name} ends in its header")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, is_fortran, dtype = read(io.BytesIO(counted + text), max_header_size=_MAX_NPY_HEADER)
    except Exception as error:  # a header is Python to its parser, and fails in as many ways
        raise FormatError(f"{name} has a damaged header: {' '.join(str(error).split())[:200]}") from None
    if any(text.count(key) > 1 for key in (b"'descr'", b"'fortran_order'", b"'shape'")):
        raise FormatError(f"{name} has a damaged header: a key stands twice")
    if any(isinstance(length, bool) or length < 0 for length in shape):
        raise FormatError(f"{name} has shape {shape}, expected lengths from 0 on")
    header = Header(tuple(shape), dtype, file.tell(), bool(is_fortran) and sum(length != 1 for length in shape) > 1)
    _check_npy(header, name, size)
    return header


def _check_npy(header: Header, name: str, size: int) -> None:
    dtype = header.dtype
    if dtype.hasobject:
        raise FormatError(f"{name} holds Python objects; unpickling is refused: save numbers")
    if dtype.names is not None or dtype.subdtype is not None:
        raise FormatError(f"{name} holds records {dtype}, expected one number per element")
    if dtype.kind == "V":
        raise DTypeError(f"{name} has dtype {dtype.str}: .npy has no name for bfloat16, save it as .safetensors")
    if header.is_fortran and len(header.shape) != 2:
        raise FormatError(f"{name} is in Fortran order with {len(header.shape)} axes: save np.ascontiguousarray of it")
    expected = header.offset + header.byte_count
    if size < expected:
        raise TruncatedError(f"{name} has {size} bytes, expected {expected} for shape {header.shape} of {dtype}")
    if size > expected:
        raise FormatError(f"{name} has {size - expected} bytes behind its array: one array per file is read")


def _safetensors_header(file: IO[bytes], path: Path, name: str, tensor: str | None) -> Header:
    """Checked by the library; the place of the numbers is read here, as the library hands them out of a mapping."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as checked:
            names = list(checked.keys())
    except SafetensorError as error:
        raise FormatError(f"{name} is no intact .safetensors file: {error}") from None
    chosen = _chosen(names, name, tensor)
    length = int.from_bytes(file.read(8), "little")
    entry: dict[str, Any] = json.loads(file.read(length))[chosen]
    if entry["dtype"] not in _DTYPES:
        raise DTypeError(f"{name} has dtype {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
    kind = _DTYPES[entry["dtype"]]
    dtype = _bfloat16(name) if kind == "bfloat16" else np.dtype(kind).newbyteorder("<")
    return Header(tuple(entry["shape"]), dtype, 8 + length + int(entry["data_offsets"][0]))


def _chosen(names: list[str], name: str, tensor: str | None) -> str:
    shown = ", ".join(map(repr, sorted(names)[:_SHOWN_NAMES])) + (", ..." if len(names) > _SHOWN_NAMES else "")
    if tensor is None:
        if len(names) != 1:
            raise InputError(f"{name} holds {len(names)} tensors; name one, as FILE{_ENDING}:NAME: {shown or 'none'}")
        return names[0]
    if tensor not in names:
        raise InputError(f"{name}: no such tensor; there are {shown or 'none'}")
    return tensor


def _bfloat16(name: str) -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        raise DTypeError(f"{name} holds bfloat16, which numpy knows through a package: pip install ml_dtypes") from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype

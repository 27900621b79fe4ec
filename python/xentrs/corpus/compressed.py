"""Compressed files as the bytes they hold.

In: an open .gz or .zst file. Out: a file to read and to skip forward in, as resuming needs it; it is never unpacked as
a whole, however much it holds. What is wrong with the file is an error that names it.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from typing import IO, Any

from xentrs.errors import FormatError, TruncatedError

COMPRESSIONS = (".gz", ".zst")
_PIECE_BYTES = 1 << 20
# Asked of the unpackers at once; what an error interrupts is lost. gzip returns what it has, pyarrow fills all it is
# asked for.
_GZIP_BYTES = 1 << 16
_ZSTANDARD_BYTES = 1 << 10


def unpack(file: IO[bytes], name: str, compression: str) -> IO[bytes]:
    """The content of `file`, whose compression is one of COMPRESSIONS; frames one after the other are one content.

    Raises, when read:
        TruncatedError: the file ends inside a frame.
        FormatError: it is not of that compression, or damaged.
    """
    return io.BufferedReader(_Unpacked(file, name, compression), _PIECE_BYTES)


class _Unpacked(io.RawIOBase):
    """The unpacked bytes; `seek` goes forward only, by reading."""

    def __init__(self, file: IO[bytes], name: str, compression: str) -> None:
        super().__init__()
        self._name, self._compression = name, compression
        self._next_piece = _gzip(file) if compression == ".gz" else _zstandard(file)
        self._piece = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Reads on to `offset`."""
        if whence == io.SEEK_CUR:
            offset += self._position
        if whence == io.SEEK_END or offset < self._position:
            raise io.UnsupportedOperation(f"{self._name} is compressed and read forward only")
        while self._position < offset and self.read(min(_PIECE_BYTES, offset - self._position)):
            pass
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Unpacks at most what fits; 0 at the end. Pieces are the same however they are read, so that a damaged file
        gives the same bytes before the error to every reader.
        """
        try:
            self._piece = self._piece or memoryview(self._next_piece())
        except EOFError as error:
            raise self._truncated() from error
        except (gzip.BadGzipFile, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the file itself
            if "Truncated" in str(error):
                raise self._truncated() from error
            raise FormatError(f"{self._name} is no intact {self._compression} file: {error}") from error
        count = min(len(buffer), len(self._piece))
        buffer[:count], self._piece = self._piece[:count], self._piece[count:]
        self._position += count
        return count

    def _truncated(self) -> TruncatedError:
        return TruncatedError(f"{self._name} ends in the middle of its {self._compression} data")


def _gzip(file: IO[bytes]) -> Callable[[], bytes]:
    content = gzip.GzipFile(fileobj=file, mode="rb")
    return lambda: content.read1(_GZIP_BYTES)


def _zstandard(file: IO[bytes]) -> Callable[[], bytes]:
    # Python's own module is of 3.14; pyarrow is a part of the extra `score` anyway.
    import pyarrow  # type: ignore[import-untyped]

    content = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    return lambda: content.read(_ZSTANDARD_BYTES)

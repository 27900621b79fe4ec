"""How often each token of a vocabulary occurs in a reference corpus: what DC-PDD calibrates with.

In: token ids of documents, from the tokenizer that the table is bound to by its SHA-256. Out: `TokenFrequencies`:
64-bit counts of occurrences, which add up over any split of a corpus, and smoothed frequencies; one .npz file on disk.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn, IntColumn, count_of
from xentrs.durable import write_atomic
from xentrs.errors import DTypeError, FormatError, ParamError, TargetError

FORMAT = "xentrs-token-frequencies"
FORMAT_VERSION = 1
_KEYS = ("tokenizer_sha256", "vocab_size", "document_count", "token_count")


class TokenFrequencies:
    """Counts of token ids over documents.

    Example:
        >>> from xentrs.detect import TokenFrequencies
        >>> table = TokenFrequencies.build([[0, 1, 1], [1]], vocab_size=3, tokenizer_sha256="5f0e")
        >>> table.counts.tolist(), table.document_count, table.token_count
        ([1, 3, 0], 2, 4)
    """

    def __init__(self, vocab_size: int, tokenizer_sha256: str) -> None:
        """An empty table.

        Raises:
            ParamError: `vocab_size` is below 1, or there is no hash.
        """
        self.vocab_size = count_of(vocab_size, "vocab_size")
        if not tokenizer_sha256:
            raise ParamError("tokenizer_sha256 is empty, expected the hash of the tokenizer that made the ids")
        self.tokenizer_sha256 = tokenizer_sha256
        self.document_count = 0
        self.counts: IntColumn = np.zeros(self.vocab_size, dtype=np.int64)
        """Occurrences of each id, not documents that hold it."""

    @classmethod
    def build(cls, documents: Iterable[Any], *, vocab_size: int, tokenizer_sha256: str) -> TokenFrequencies:
        """The table of encoded documents, each a list or array of token ids."""
        table = cls(vocab_size, tokenizer_sha256)
        for token_ids in documents:
            table.update(token_ids)
        return table

    @property
    def token_count(self) -> int:
        """Tokens counted."""
        return int(self.counts.sum())

    def update(self, token_ids: Any) -> None:
        """Count one document.

        Raises:
            DTypeError: the ids are no integers.
            TargetError: an id is outside the vocabulary; nothing of the document is counted.
        """
        ids = self._checked(token_ids)
        self.counts += np.bincount(ids, minlength=self.vocab_size)
        self.document_count += 1

    def merge_state(self, other: TokenFrequencies) -> None:
        """Add the counts of another table, in any order.

        Raises:
            ParamError: it is of another tokenizer or vocabulary.
        """
        self.require_tokenizer(other.tokenizer_sha256)
        if other.vocab_size != self.vocab_size:
            raise ParamError(f"the tables have vocabularies of {self.vocab_size} and {other.vocab_size} tokens")
        self.counts += other.counts
        self.document_count += other.document_count

    def require_tokenizer(self, tokenizer_sha256: str | None) -> None:
        """Check that token ids of this tokenizer mean what they mean here.

        Raises:
            ParamError: it is another one, or unknown.
        """
        if tokenizer_sha256 != self.tokenizer_sha256:
            came = "an unknown one" if tokenizer_sha256 is None else tokenizer_sha256
            raise ParamError(f"token frequencies of tokenizer {self.tokenizer_sha256}, the tokens are of {came}")

    def frequencies(self, token_ids: Any = None) -> FloatColumn:
        """Laplace's (count + 1) / (total + vocabulary), of these ids or of all.

        Raises:
            DTypeError, TargetError: as `update`.
        """
        counts = self.counts if token_ids is None else self.counts[self._checked(token_ids)]
        return (counts + 1).astype(np.float64) / float(self.token_count + self.vocab_size)

    def surprisals(self, token_ids: Any) -> FloatColumn:
        """ln(1 / frequency) of these ids, in nats."""
        return -np.log(self.frequencies(token_ids))

    def save(self, path: str | Path) -> None:
        """Write one .npz file, whole or not at all; the same counts give the same bytes."""
        path, buffer = Path(path), io.BytesIO()
        header = {"format": FORMAT, "version": FORMAT_VERSION, **{key: getattr(self, key) for key in _KEYS}}
        text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), dtype=np.uint8)
        np.savez_compressed(buffer, header=text, counts=self.counts)
        write_atomic(path.parent, path.name, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> TokenFrequencies:
        """Read what `save` wrote.

        Raises:
            FormatError: it is another kind of file, damaged, or of another version.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                header, counts = json.loads(file["header"].tobytes()), file["counts"]
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise FormatError(f"{path}: is no table of token frequencies ({error})") from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise FormatError(f"{path}: is no table of token frequencies")
        if header.get("version") != FORMAT_VERSION:
            raise FormatError(
                f"{path}: table of version {header.get('version')}, expected {FORMAT_VERSION}: build again"
            )
        return cls._restored(path, header, counts)

    @classmethod
    def _restored(cls, path: str | Path, header: dict[str, Any], counts: Any) -> TokenFrequencies:
        is_sound = (
            counts.dtype == np.int64
            and counts.shape == (header.get("vocab_size"),)
            and not (counts < 0).any()
            and int(counts.sum()) == header.get("token_count")
            and isinstance(header.get("document_count"), int)
            and isinstance(header.get("tokenizer_sha256"), str)
        )
        if not is_sound:
            raise FormatError(f"{path}: damaged: its counts are not those that its header tells of")
        table = cls(len(counts), header["tokenizer_sha256"])
        table.counts[:] = counts
        table.document_count = header["document_count"]
        return table

    def _checked(self, token_ids: Any) -> IntColumn:
        ids = np.asarray(token_ids)
        if ids.size == 0:
            return np.zeros(0, dtype=np.int64)
        if ids.dtype.kind not in "iu" or ids.ndim != 1:
            raise DTypeError(f"token ids are {ids.dtype} of shape {ids.shape}, expected integers along one axis")
        outside = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if len(outside):
            raise TargetError(f"token_ids[{outside[0]}] = {ids[outside[0]]} is outside [0, {self.vocab_size})")
        return ids.astype(np.int64)

    def __repr__(self) -> str:
        """Says totals; the counts are a field away."""
        return (
            f"TokenFrequencies({self.token_count} tokens, {self.document_count} documents, "
            f"vocab_size={self.vocab_size}, tokenizer {self.tokenizer_sha256[:12]})"
        )

"""A `Runner` of two methods as the corpus needs it: hidden states that are windows not yet run.

In: any object with `encode` and `logits`. Out: a `SplitRunner` without a head. `hidden_states` runs nothing: what it
returns remembers which rows of which windows are wanted, and `logits` runs the windows of one block of rows when their
turn comes, as many at once as fit `CALL_BYTES`. So a batch never holds more logits than one call gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xentrs.models.runner import EncodedText, IntArray, LinearHead, ModelError, ModelInfo, Runner

# Of logits in one call; a single window may be larger.
CALL_BYTES = 128 << 20
_PROBE_LENGTH = 6
_PROBE_TEXTS = ("a  1", "The end.\n\n\tNaïve ☃ 🙂", "x =  42\n    7", "<s></s>")
_DTYPES = ("float16", "bfloat16", "float32", "float64")


class LogitsRunner:
    """`SplitRunner` over a `Runner` of two methods."""

    def __init__(self, runner: Runner, name: str | None = None) -> None:
        """Take what `runner` says of itself, and the size of its vocabulary from a first call where it does not.

        Raises:
            ModelError: it lacks a method, or gives something else than logits.
        """
        self.runner = runner
        self._name = name or str(getattr(runner, "name", None) or type(runner).__name__)
        for method in ("encode", "logits"):
            if not callable(getattr(runner, method, None)):
                raise ModelError(f"runner {self._name} has no method {method}; it needs encode and logits")
        self.head: LinearHead | None = None
        self.shares_contexts = False
        self.max_batch_windows: int | None = None
        self.notices: list[str] = [str(notice) for notice in getattr(runner, "notices", ())]
        self._prepared = False
        self._vocab_size: int | None = getattr(runner, "vocab_size", None)
        probe = self.window_logits(np.zeros((1, 2), dtype=np.int64))
        self._vocab_size = probe.shape[-1]
        self.encoder = RunnerEncoder(runner, self._name)
        self.info = self._information(probe.dtype.name)

    def _information(self, dtype: str) -> ModelInfo:
        runner, given = self.runner, getattr(self.runner, "dtype", None)
        return ModelInfo(
            name=self._name,
            revision=getattr(runner, "revision", None),
            sha256=str(getattr(runner, "sha256", "unknown")),
            dtype=str(given or dtype),
            dtype_reason="as the runner says" if given else "of its logits",
            device=str(getattr(runner, "device", "cpu")),
            vocab_size=self._vocab_size or 0,
            max_length=getattr(runner, "max_length", None),
            note=getattr(runner, "note", None),
            libraries=dict(getattr(runner, "libraries", {})),
        )

    def prepare(self) -> None:
        """Two inputs that differ in their last token alone: what was predicted before it has to agree.

        Raises:
            ModelError: it does not, or a logit is NaN.
        """
        if self._prepared:
            return
        length = min(_PROBE_LENGTH, self.info.max_length or _PROBE_LENGTH)
        ids = np.tile(np.arange(length, dtype=np.int64), (2, 1)) % self.info.vocab_size
        ids[1, -1] = (ids[1, -1] + 1) % self.info.vocab_size
        logits = self.window_logits(ids)
        if np.isnan(logits).any():
            raise ModelError(f"runner {self._name}: logits are NaN for ids {ids[0].tolist()}")
        first, second = logits[:, :-1].astype(np.float64)
        finite = np.isfinite(first) & np.isfinite(second)
        largest = float(np.abs(first[finite]).max(initial=0.0))
        if (first[~finite] != second[~finite]).any() or (np.abs(first - second)[finite] > 1e-2 * largest).any():
            raise ModelError(f"runner {self._name}: a later token changes earlier predictions: not causal")
        self._prepared = True

    def hidden_states(self, input_ids: IntArray, shared_ids: IntArray | None = None) -> PendingRows:
        """`(batch, length)` ids to rows that are not computed yet."""
        assert shared_ids is None  # shares_contexts is False
        return PendingRows(_Windows(input_ids, self.window_logits, self.info.vocab_size), None)

    def logits(self, hidden_rows: PendingRows) -> npt.NDArray[Any]:
        """`(rows, vocab)` logits in the runner's own type, bfloat16 as float32."""
        return hidden_rows.compute()

    def window_logits(self, input_ids: IntArray) -> npt.NDArray[Any]:
        """One call of the runner, checked: `(windows, length, vocab)`."""
        logits = _numpy(self.runner.logits(input_ids), self._name)
        vocab = logits.shape[-1] if self._vocab_size is None and logits.ndim == 3 else self._vocab_size
        if logits.shape != (*input_ids.shape, vocab):
            expected = f"({input_ids.shape[0]}, {input_ids.shape[1]}, {vocab or 'vocab'})"
            raise ModelError(f"runner {self._name}: logits of shape {logits.shape}, expected {expected}")
        if logits.dtype.name not in _DTYPES:
            raise ModelError(f"runner {self._name}: logits are {logits.dtype}, expected {', '.join(_DTYPES)}")
        return logits

    def close(self) -> None:
        """Release what the runner holds, where it has a `close` of its own."""
        if callable(close := getattr(self.runner, "close", None)):
            close()


def _numpy(logits: Any, name: str) -> npt.NDArray[Any]:
    """The same memory; bfloat16, which numpy lacks, as float32, exactly."""
    if hasattr(logits, "detach"):
        if logits.device.type != "cpu":
            raise ModelError(f"runner {name}: logits are on {logits.device}, expected the CPU")
        logits = logits.detach()
        logits = (logits.float() if str(logits.dtype) == "torch.bfloat16" else logits).numpy()
    if not isinstance(logits, np.ndarray):
        raise ModelError(f"runner {name}: logits are a {type(logits).__name__}, expected an array of numpy or torch")
    return logits


class _Windows:
    """Windows of one batch; the logits of the last call are held."""

    def __init__(self, input_ids: IntArray, run: Callable[[IntArray], npt.NDArray[Any]], vocab_size: int) -> None:
        self.input_ids = input_ids
        self.vocab_size = vocab_size
        self._run = run
        self._count = max(1, CALL_BYTES // (4 * vocab_size * input_ids.shape[1]))
        self._first = 0
        self._held: npt.NDArray[Any] | None = None

    def logits(self, window: int) -> npt.NDArray[Any]:
        """`(length, vocab)` of one window, run together with those behind it."""
        if self._held is None or not self._first <= window < self._first + len(self._held):
            self._held = None  # before the next ones are made
            self._first = window
            self._held = self._run(self.input_ids[window : window + self._count])
        held: npt.NDArray[Any] = self._held[window - self._first]
        return held


class PendingRows:
    """Rows of logits that are computed when asked for; to be reshaped, indexed and handed on."""

    def __init__(self, windows: _Windows, index: IntArray | None) -> None:
        self._windows = windows
        self._index = index  # of rows, windows in order; None: all of them, by window

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the logits."""
        if self._index is None:
            return (*self._windows.input_ids.shape, self._windows.vocab_size)
        return (len(self._index), self._windows.vocab_size)

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, rows: int, columns: int) -> PendingRows:
        """All rows, one after the other: `(-1, vocab)` is the one shape there is."""
        assert (rows, columns) == (-1, self._windows.vocab_size)
        return PendingRows(self._windows, np.arange(self._windows.input_ids.size, dtype=np.int64))

    def __getitem__(self, rows: IntArray | slice) -> PendingRows:
        assert self._index is not None  # reshaped before
        return PendingRows(self._windows, self._index[rows])

    def compute(self) -> npt.NDArray[Any]:
        """`(rows, vocab)`; a copy unless they follow each other in one window."""
        assert self._index is not None
        length = self._windows.input_ids.shape[1]
        numbers, places = np.divmod(self._index, length)
        cuts = np.flatnonzero(np.diff(numbers)) + 1
        pieces = []
        for number, inside in zip(numbers[np.r_[0, cuts]], np.split(places, cuts), strict=True):
            logits = self._windows.logits(int(number))
            is_run = int(inside[-1]) - int(inside[0]) + 1 == len(inside)
            piece = logits[int(inside[0]) : int(inside[-1]) + 1] if is_run else logits[inside]
            # What is held is let go with the next call; a piece that waits for others must not keep it alive.
            pieces.append(piece if len(cuts) == 0 else piece.copy())
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class RunnerEncoder:
    """`TextEncoder` over the `encode` of a runner."""

    def __init__(self, runner: Runner, name: str) -> None:
        self._runner = runner
        self._name = name
        self.bos_id: int | None = getattr(runner, "bos_id", None)
        self.eos_id: int | None = getattr(runner, "eos_id", None)
        self.adds_bos = bool(getattr(runner, "adds_bos", False)) and self.bos_id is not None
        self.sha256 = str(getattr(runner, "tokenizer_sha256", None) or self._probe_sha256())
        has_template = callable(getattr(runner, "apply_chat_template", None))
        identity = getattr(runner, "chat_template_sha256", "unknown") if has_template else None
        self.chat_template_sha256: str | None = None if identity is None else str(identity)

    @property
    def special_ids(self) -> frozenset[int]:
        """Asked of the runner when needed, for it may be slow to tell."""
        return frozenset(int(token) for token in getattr(self._runner, "special_ids", ()))

    def _probe_sha256(self) -> str:
        digest = hashlib.sha256()
        for encoded in self.encode(_PROBE_TEXTS):
            digest.update(encoded.token_ids.tobytes() + b"\0")
        return digest.hexdigest()

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Each text by itself, whatever the runner gives for it, checked."""
        encoded = self._runner.encode(list(texts))
        if len(encoded) != len(texts):
            raise ModelError(f"runner {self._name}: encode gave {len(encoded)} results for {len(texts)} texts")
        return [self._checked(text, entry) for text, entry in zip(texts, encoded, strict=True)]

    def _checked(self, text: str, entry: EncodedText | Sequence[int]) -> EncodedText:
        byte_count = len(text.encode("utf-8"))
        if not isinstance(entry, EncodedText):
            ids = self._integers(entry, "ids")
            zeros = np.zeros(len(ids), dtype=np.int64)
            return EncodedText(ids, zeros, zeros, byte_count)
        ids = self._integers(entry.token_ids, "token_ids")
        start, end = self._integers(entry.byte_start, "byte_start"), self._integers(entry.byte_end, "byte_end")
        if not len(ids) == len(start) == len(end):
            raise ModelError(
                f"runner {self._name}: {len(ids)} ids with {len(start)} and {len(end)} ends of byte ranges"
            )
        if (start > end).any() or (end > byte_count).any():
            raise ModelError(f"runner {self._name}: a byte range is outside the text of {byte_count} bytes")
        return EncodedText(ids, start, end, byte_count)

    def _integers(self, values: Any, what: str) -> IntArray:
        array = np.asarray(values)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ModelError(f"runner {self._name}: {what} are {array.dtype} of shape {array.shape}, expected integers")
        if array.size and int(array.min()) < 0:
            raise ModelError(f"runner {self._name}: {what} contain {int(array.min())}")
        return np.ascontiguousarray(array, dtype=np.int64)

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], asks: bool) -> str:
        """By the runner's own template."""
        template = getattr(self._runner, "apply_chat_template", None)
        if not callable(template):
            raise ModelError(f"runner {self._name} has no apply_chat_template; chats need it")
        if not (ranges := self.encode(["a"])[0].byte_end).any() or len(ranges) == 0:
            raise ModelError(f"runner {self._name} gives no byte ranges of tokens; chats need them")
        return str(template(messages, asks))

"""What a back end has to offer so that a corpus can be scored with it.

In: nothing. Out: the protocols `Runner` (hidden states, and either a linear head or rows of logits) and
`TextEncoder`, and the plain data they exchange. No torch here: hidden states are opaque to the callers, who only
reshape, index and hand them on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from xentrs.errors import XentrsError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class ModelError(XentrsError, ValueError):
    """A model that is missing, incomplete, or not a causal language model."""


@dataclass(frozen=True)
class ModelInfo:
    """What a result says about the model it came from."""

    name: str
    revision: str | None  # the resolved commit; None for a folder
    sha256: str  # identity of configuration and weights, see identity.py
    dtype: str
    dtype_reason: str
    device: str
    vocab_size: int  # columns of the logits
    max_length: int | None  # positions the model was made for
    note: str | None = None
    libraries: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedText:
    """The tokens of one text; byte offsets are into its UTF-8.

    Pieces of one character share that character's range.
    """

    token_ids: IntArray
    byte_start: IntArray
    byte_end: IntArray
    byte_count: int


@dataclass(frozen=True, eq=False)
class LinearHead:
    """z = softcap(logit_scale * (hidden . weight + bias)), as `xentrs.linear_row_stats` takes it."""

    weight: Any  # (vocab, width), any array or PackedHead that it takes
    bias: Any = None  # (vocab,)
    logit_scale: float = 1.0
    softcap: float | None = None
    isa: str = ""  # what its products with this model's hidden states are made with


class TextEncoder(Protocol):
    """Texts to token ids, without special tokens."""

    @property
    def sha256(self) -> str: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer itself puts its BOS in front when asked for special tokens."""
        ...

    def encode(self, texts: Sequence[str]) -> list[EncodedText]: ...


class Runner(Protocol):
    """A causal model cut in two: the body, and the head that turns hidden states into logits.

    Where `head` is there the logits need never exist; `logits` is for back ends and models that have no such head.
    """

    @property
    def info(self) -> ModelInfo: ...
    @property
    def encoder(self) -> TextEncoder: ...
    @property
    def max_batch_windows(self) -> int | None:
        """Most windows one call of `hidden_states` may take; None: no limit."""
        ...

    @property
    def notices(self) -> Sequence[str]:
        """What a user should be told once, before scoring."""
        ...

    @property
    def head(self) -> LinearHead | None:
        """The head for `xentrs.linear_row_stats`, known after `prepare`; None: only `logits` gives them."""
        ...

    def prepare(self) -> None:
        """Check that the model is causal and its head understood; raises `ModelError`."""
        ...

    def hidden_states(self, input_ids: IntArray, attention_mask: IntArray | None = None) -> Any:
        """`(batch, length)` ids to `(batch, length, width)`, in the type that the head takes; without a mask, padding
        stands on the right.
        """
        ...

    def logits(self, hidden_rows: Any) -> FloatArray:
        """`(rows, width)` hidden states to `(rows, vocab)` float32 logits, softcap and scale applied."""
        ...

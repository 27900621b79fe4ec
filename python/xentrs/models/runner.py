"""What a back end has to offer so that a corpus can be scored with it.

In: nothing. Out: `Runner`, the public protocol of two methods; `SplitRunner` (hidden states, and either a linear head
or rows of logits) and `TextEncoder`, which the corpus works with, and the plain data they exchange. logits_runner.py
makes the second of the first. No torch here: hidden states are opaque to the callers, who only reshape, index and hand
them on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that mark ends, turns and the like."""
        ...

    @property
    def chat_template_sha256(self) -> str | None:
        """Of the chat template; None without one."""
        ...

    def encode(self, texts: Sequence[str]) -> list[EncodedText]: ...

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], asks: bool) -> str:
        """A chat as the model reads it; `asks`: with the prompt for the assistant's next turn behind it."""
        ...


@dataclass(frozen=True)
class ModelTokenizer:
    """What there is of a model when only its tokenizer is loaded."""

    encoder: TextEncoder
    vocab_size: int
    """Columns of the model's logits."""


class Runner(Protocol):
    """A back end of one's own: any object with these two methods. `xentrs.Scorer` takes it as its model, and a factory
    `(name, **options) -> Runner` can be registered as an entry point of the group `xentrs.runners`.

    More is read where it is there: `name` (default: the class's), `revision` (None), `vocab_size` (default: from the
    logits of a probe), `bos_id`, `eos_id` (None), `adds_bos` (False: whether the tokenizer puts BOS in front by
    itself), `special_ids` (empty; ids that end turns), `max_length` (None: no limit known), `sha256` ("unknown";
    identity of the weights), `tokenizer_sha256` (default: of the ids of some texts), `dtype` (default: of the logits),
    `device` ("cpu"), `note` (None), `libraries` ({}; versions by name), `apply_chat_template(messages, asks) -> str`
    with `chat_template_sha256` (without it chats cannot be scored), `close()`.

    Example:
        >>> import numpy as np, xentrs
        >>> class Uniform:
        ...     def encode(self, texts):
        ...         return [list(text.encode()) for text in texts]
        ...
        ...     def logits(self, input_ids):
        ...         return np.zeros((*input_ids.shape, 256), dtype=np.float32)
        >>> round(xentrs.Scorer(Uniform()).score(["to be scored"]).perplexity, 9)
        256.0
    """

    def encode(self, texts: Sequence[str]) -> Sequence[EncodedText | Sequence[int]]:
        """The tokens of each text, without special tokens. With plain ids byte ranges are 0, and figures per byte come
        from the text alone.
        """
        ...

    def logits(self, input_ids: IntArray) -> Any:
        """`(windows, length)` int64 ids to `(windows, length, vocab)` logits, row t of a window predicting its token
        t + 1: a numpy array or a torch tensor on the CPU, float16, bfloat16, float32 or float64. Padding, id 0, stands
        on the right, and what is predicted behind it is not looked at. Every call stands for itself.
        """
        ...


class SplitRunner(Protocol):
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
    def shares_contexts(self) -> bool:
        """Whether `hidden_states` takes `shared_ids`; known after `prepare`."""
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

    def hidden_states(self, input_ids: IntArray, shared_ids: IntArray | None = None) -> Any:
        """`(batch, length)` ids to `(batch, length, width)`, in the type that the head takes; padding stands on the
        right. `shared_ids` `(shared,)` stand before each row and are read once.
        """
        ...

    def logits(self, hidden_rows: Any) -> FloatArray:
        """`(rows, width)` hidden states to `(rows, vocab)` float32 logits, softcap and scale applied."""
        ...

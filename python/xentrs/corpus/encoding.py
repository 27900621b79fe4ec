"""Documents to tokens: which of them condition, which are to be scored, and how much text they stand for.

In: documents and an encoder. Out: `EncodedDocument` entries. A text is scored whole. Of a pair the continuation is:
context and continuation are encoded as one text, spaces at the end of the context belong to the continuation, and as
many tokens condition as the context alone has (the rule of the LM harness). Of a chat the turns of the assistant are:
what the template writes between the prompt for a turn and the special token that ends it, that token included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from xentrs.corpus.documents import Document
from xentrs.corpus.records import Message, RecordError
from xentrs.models import EncodedText, TextEncoder
from xentrs.models.runner import IntArray
from xentrs.models.tokenizer import byte_positions

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class TextSize:
    """How much text: UTF-8 bytes, characters (code points), words (runs without whitespace)."""

    byte_count: int
    char_count: int
    word_count: int


@dataclass(frozen=True, eq=False)
class EncodedDocument:
    """A document's place in the run and its tokens.

    `wanted` are the positions to be scored, ascending; all others only condition. `token_sizes` say what each wanted
    token adds to the text; pieces of one character count with the first of them.
    """

    number: int
    id: str
    source: str
    encoded: EncodedText
    wanted: IntArray
    size: TextSize
    token_sizes: tuple[IntArray, IntArray, IntArray]  # bytes, characters, beginnings of words
    is_chat: bool = False
    by: dict[str, str | None] = field(default_factory=dict)
    text: str | None = None  # what was encoded, where it is to be kept

    @cached_property
    def context_count(self) -> int:
        """Tokens that only condition."""
        return len(self.encoded.token_ids) - len(self.wanted)

    @cached_property
    def is_contiguous(self) -> bool:
        """Whether the wanted tokens, of which there are some, are a run."""
        return int(self.wanted[-1]) - int(self.wanted[0]) + 1 == len(self.wanted)

    @cached_property
    def shared_context(self) -> bytes | None:
        """A key that documents with the same context before their first wanted token share; None without one."""
        first = int(self.wanted[0]) if len(self.wanted) else 0
        return self.encoded.token_ids[:first].tobytes() if first and self.context_count == first else None


def encode_documents(
    documents: Sequence[Document], encoder: TextEncoder, keep_text: bool = False
) -> list[EncodedDocument | RecordError]:
    """Each document encoded, or why it cannot be."""
    prepared = [_prepare(document, encoder) for document in documents]
    texts = [entry.text for entry in prepared if isinstance(entry, _Prepared)]
    encoded = iter(encoder.encode(texts) if texts else [])
    contexts = [entry.text[: entry.context_length] for entry in prepared if isinstance(entry, _Prepared)]
    lengths = iter(_token_counts(contexts, encoder))
    return [
        entry if isinstance(entry, RecordError) else _encoded(entry, next(encoded), next(lengths), encoder, keep_text)
        for entry in prepared
    ]


@dataclass(frozen=True)
class _Prepared:
    """One text to encode, and which of its characters are to be scored."""

    document: Document
    text: str
    context_length: int = 0  # of a pair
    turns: tuple[tuple[int, int], ...] = ()  # of a chat: the assistant's


def _prepare(document: Document, encoder: TextEncoder) -> _Prepared | RecordError:
    fields = document.fields
    if fields.messages is not None:
        try:
            text, turns = render_chat(encoder, fields.messages)
        except RecordError as error:
            return error
        return _Prepared(document, text, turns=turns)
    context = (fields.context or "").rstrip()
    # Spaces at the end of the context go to the continuation: most tokenizers join them to the word behind.
    return _Prepared(document, (fields.context or "") + fields.text, len(context))


def render_chat(encoder: TextEncoder, messages: Sequence[Message]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A chat by the tokenizer's template, and where the assistant's turns stand in it.

    Raises:
        RecordError: the template refuses the chat, or writes earlier turns otherwise when later ones follow, so that no
            text holds all turns as the model would have seen them.
    """
    turns = []
    whole = _rendered(encoder, messages, False)
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            through = _rendered(encoder, messages[: place + 1], False)
            # Nothing asks for a first turn, and templates refuse an empty chat: its own text says where it begins.
            opening = through[: max(through.rfind(message["content"].strip()), 0)]
            before = _rendered(encoder, messages[:place], True) if place else opening
            if not (through.startswith(before) and whole.startswith(through)):
                raise RecordError("chat_template", f"the chat template rewrites turn {place} when others follow")
            turns.append((len(before), len(through)))
    return whole, tuple(turns)


def _rendered(encoder: TextEncoder, messages: Sequence[Message], asks: bool) -> str:
    try:
        text = encoder.apply_chat_template(messages, asks)
    except Exception as error:  # a template is a program of the model's author and raises what it likes
        raise RecordError("chat_template", f"the chat template refuses the messages: {error}") from None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # names, roles and calls are between the record and the template
        raise RecordError("lone_surrogate", "a lone surrogate in the messages") from None
    return text


def _token_counts(texts: Sequence[str], encoder: TextEncoder) -> list[int]:
    """Tokens of each text by itself; the same context is encoded once."""
    distinct = list(dict.fromkeys(text for text in texts if text))
    counts = {"": 0}
    counts.update(
        (text, len(encoded.token_ids)) for text, encoded in zip(distinct, encoder.encode(distinct), strict=True)
    )
    return [counts[text] for text in texts]


def _encoded(
    entry: _Prepared, encoded: EncodedText, context_count: int, encoder: TextEncoder, keep_text: bool
) -> EncodedDocument:
    document, count = entry.document, len(encoded.token_ids)
    if document.fields.messages is not None:
        wanted = _turn_positions(entry.turns, entry.text, encoded, encoder)
    else:
        wanted = np.arange(min(context_count, count), count, dtype=np.int64)
    sizes = token_sizes(entry.text, encoded, len((document.fields.context or "").encode("utf-8")))
    if document.fields.messages is not None:
        size = TextSize(*(int(values[wanted].sum()) for values in sizes))
    else:
        size = text_size(document.fields.text)
    return EncodedDocument(
        document.number,
        document.id,
        document.source,
        encoded,
        wanted,
        size,
        (sizes[0][wanted], sizes[1][wanted], sizes[2][wanted]),
        is_chat=document.fields.messages is not None,
        by=document.fields.by,
        text=entry.text if keep_text else None,
    )


def _turn_positions(
    turns: Sequence[tuple[int, int]], text: str, encoded: EncodedText, encoder: TextEncoder
) -> IntArray:
    """Tokens that begin inside a turn, to the first special one, which ends it; what the template writes behind that
    nobody has to predict.
    """
    places = byte_positions(text)
    positions: list[npt.NDArray[Any]] = [np.zeros(0, dtype=np.int64)]
    for start, end in turns:
        inside = (encoded.byte_start >= places[start]) & (encoded.byte_start < places[end])
        found = np.flatnonzero(inside)
        special = np.flatnonzero(np.isin(encoded.token_ids[found], list(encoder.special_ids)))
        positions.append(found[: int(special[0]) + 1] if len(special) else found)
    return np.concatenate(positions).astype(np.int64)


def text_size(text: str) -> TextSize:
    """Bytes, characters and words of a text."""
    return TextSize(len(text.encode("utf-8")), len(text), sum(1 for _ in _WORD.finditer(text)))


def token_sizes(text: str, encoded: EncodedText, first_byte: int = 0) -> tuple[IntArray, IntArray, IntArray]:
    """Bytes, characters and beginnings of words that each token adds to those before it, from `first_byte` on: of a
    pair the continuation alone, though its first token may begin in the context.
    """
    end = np.maximum.accumulate(np.maximum(encoded.byte_end, first_byte))
    start = np.minimum(np.maximum(encoded.byte_start, np.concatenate([[first_byte], end])[: len(end)]), end)
    places = byte_positions(text)
    words = np.zeros(len(text) + 1, dtype=np.int64)
    words[[match.start() + 1 for match in _WORD.finditer(text)]] = 1
    np.cumsum(words, out=words)
    first, last = np.searchsorted(places, start), np.searchsorted(places, end)
    return end - start, (last - first).astype(np.int64), words[last] - words[first]

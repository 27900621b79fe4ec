"""Texts to token ids with byte offsets, through a fast Hugging Face tokenizer.

In: a transformers tokenizer backed by the `tokenizers` library. Out: a `TextEncoder`. Special tokens are
never added here: the prefix of a document is the caller's choice, so a BOS can never come twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xentrs.models.runner import EncodedText, IntArray, ModelError


class FastTextEncoder:
    """`TextEncoder` over a fast tokenizer."""

    def __init__(self, tokenizer: Any, model_name: str, folder: Path) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"model {model_name}: its tokenizer has no fast version (tokenizer.json), offsets are needed"
            )
        self.tokenizer = tokenizer
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        self.sha256: str = self._sha256(folder)
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.special_ids = frozenset(int(token) for token in tokenizer.all_special_ids)
        self.adds_bos: bool = self._detect_bos()
        template = getattr(tokenizer, "chat_template", None)
        self.chat_template_sha256 = None if template is None else hashlib.sha256(str(template).encode()).hexdigest()

    def _sha256(self, folder: Path) -> str:
        """Of tokenizer.json where there is one, else of what the library made of the older files."""
        path = folder / "tokenizer.json"
        data = path.read_bytes() if path.is_file() else self._backend.to_str().encode()
        return hashlib.sha256(data).hexdigest()

    def _detect_bos(self) -> bool:
        with_special = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        without = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        return self.bos_id is not None and with_special[:1] == [self.bos_id] and without[:1] != [self.bos_id]

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encode each text by itself; no truncation, no special tokens."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [_encoded_text(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], asks: bool) -> str:
        """As text, by the tokenizer's own template; only an imported tokenizer's template ever runs, in a sandbox of
        jinja2.
        """
        text: str = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=asks
        )
        return text


def _encoded_text(text: str, encoding: Any) -> EncodedText:
    offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    byte_of_character = byte_positions(text)
    return EncodedText(
        token_ids=np.asarray(encoding.ids, dtype=np.int64),
        byte_start=byte_of_character[offsets[:, 0]],
        byte_end=byte_of_character[offsets[:, 1]],
        byte_count=int(byte_of_character[-1]),
    )


def byte_positions(text: str) -> IntArray:
    """Where each character of `text`, and its end, stands in the UTF-8: length `len(text) + 1`."""
    if text.isascii():
        return np.arange(len(text) + 1, dtype=np.int64)
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)
    positions = np.zeros(len(text) + 1, dtype=np.int64)
    np.cumsum(widths, out=positions[1:])
    return positions

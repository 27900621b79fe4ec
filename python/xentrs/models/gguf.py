"""GGUF files through llama-cpp-python, where the user has installed it: quantised products on the CPU.

In: the path of a file. Out: a `Runner` of two methods. It speaks the C interface of llama.cpp that the package hands
on: the logits that its `Llama` class returns are held for the whole context at once, and its log-probabilities are off
by one. The package is imported here and nowhere else, when a model is loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xentrs.models.identity import file_sha256
from xentrs.models.runner import EncodedText, FloatArray, IntArray, ModelError

INSTALL_COMMAND = "pip install 'xentrs[gguf]'"
# Of logits that llama.cpp holds after one step; a window takes several.
STEP_BYTES = 64 << 20
_MIN_CONTEXT = 512
_MAX_STEP = 512
_FLOAT32 = 0  # ggml's number of the type
_LOGGER = "llama-cpp-python"


def load_gguf_runner(
    name: str, *, revision: str | None = None, dtype: str = "auto", device: str = "cpu", num_threads: int | None = None
) -> GgufRunner:
    """The runner of the file `name`.

    Raises:
        ModelError: llama-cpp-python is not installed, the file is none, or an option does not go with it.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise ModelError(f"model {name}: no such file")
    for option, value, only in (
        ("--revision", revision, None),
        ("--dtype", dtype, "auto"),
        ("--device", device, "cpu"),
    ):
        if value != only:
            raise ModelError(f"model {name}: {option} {value} does not go with a GGUF file, which decides itself")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"model {name}: is not a GGUF file")
    try:
        library = importlib.import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared library does not load
        if isinstance(error, ModuleNotFoundError) and error.name == "llama_cpp":
            reason = f"GGUF files need llama-cpp-python (it is compiled when installed):\n  {INSTALL_COMMAND}"
        else:
            reason = f"llama-cpp-python is installed but cannot be imported: {error}"
        raise ModelError(f"model {name}: {reason}") from None
    import xentrs

    return GgufRunner(library, path, name, num_threads or xentrs.num_threads())


class GgufRunner:
    """`Runner` over llama.cpp: float32 logits of one window after the other, keys and values in float32."""

    device = "cpu"

    def __init__(self, library: Any, path: Path, name: str, num_threads: int) -> None:
        """Load the file.

        Raises:
            ModelError: llama.cpp cannot read it, or it is not a decoder with a tokenizer.
        """
        self.name = name
        self._library = library
        self._num_threads = num_threads
        self._context: Any = None
        self._context_length = 0
        with _quiet():
            library.llama_backend_init()
            self._model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        if not self._model:
            raise ModelError(f"model {name}: llama.cpp cannot load the file")
        self._vocab = library.llama_model_get_vocab(self._model)
        self.vocab_size = int(library.llama_vocab_n_tokens(self._vocab))
        if library.llama_model_has_encoder(self._model) or self.vocab_size == 0:
            raise ModelError(f"model {name}: is not a causal language model with a tokenizer")
        self.max_length = int(library.llama_model_n_ctx_train(self._model)) or None
        self.bos_id = _token(library.llama_vocab_bos(self._vocab))
        self.eos_id = _token(library.llama_vocab_eos(self._vocab))
        self.adds_bos = bool(library.llama_vocab_get_add_bos(self._vocab))
        self.sha256 = file_sha256(path)
        self.dtype = self._description()
        self.libraries = {"llama_cpp_python": str(library.__version__)}
        self._pieces: dict[int, bytes] = {}
        self._step = max(32, min(_MAX_STEP, STEP_BYTES // (4 * self.vocab_size)))

    def _description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        self._library.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(4096)
        self._library.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def notices(self) -> list[str]:
        """What a user should be told once."""
        if self._metadata("tokenizer.ggml.model") != "gpt2" or self._metadata("tokenizer.ggml.pre"):
            return []
        return [f"{self.name}: the file does not say how its tokenizer splits text; llama.cpp guesses"]

    @cached_property
    def tokenizer_sha256(self) -> str:
        """Of the tokenizer's kind and the text of every token."""
        digest = hashlib.sha256()
        for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
            digest.update(self._metadata(key).encode() + b"\0")
        for token in range(self.vocab_size):
            digest.update((self._library.llama_vocab_get_text(self._vocab, token) or b"") + b"\0")
        return digest.hexdigest()

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Control tokens and those that end a generation."""
        library = self._library
        return frozenset(
            token
            for token in range(self.vocab_size)
            if library.llama_vocab_is_control(self._vocab, token) or library.llama_vocab_is_eog(self._vocab, token)
        )

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Each text by itself; special tokens that stand in it as text count as such, as transformers has it."""
        return [self._encode(text.encode("utf-8")) for text in texts]

    def _encode(self, data: bytes) -> EncodedText:
        capacity = len(data) + 8  # no tokenizer makes more tokens than bytes, but for a space in front
        tokens = (ctypes.c_int32 * capacity)()
        count = self._library.llama_tokenize(self._vocab, data, len(data), tokens, capacity, False, True)
        if count < 0:
            raise ModelError(f"model {self.name}: llama.cpp cannot tokenise a text of {len(data)} bytes")
        ids = np.array(tokens[:count], dtype=np.int64)
        start, end = byte_ranges(data, [self._piece(token) for token in ids.tolist()])
        return EncodedText(ids, start, end, len(data))

    def _piece(self, token: int) -> bytes:
        """What a token stands for; of any length, which the package's own `detokenize` is not made for."""
        if token not in self._pieces:
            size = 64
            while True:
                buffer = ctypes.create_string_buffer(size)
                count = self._library.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
                if count >= 0:
                    break
                size = -count
            self._pieces[token] = buffer.raw[:count]
        return self._pieces[token]

    def logits(self, input_ids: IntArray) -> FloatArray:
        """`(windows, length)` ids to float32 `(windows, length, vocab)`, each window from an empty cache."""
        windows, length = input_ids.shape
        logits = np.empty((windows, length, self.vocab_size), dtype=np.float32)
        with _quiet():
            self._make_room(length)
            for window, ids in enumerate(input_ids):
                self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
                for first in range(0, length, self._step):
                    self._run(ids[first : first + self._step], first, logits[window, first : first + self._step])
        return logits

    def _make_room(self, length: int) -> None:
        """A context of at least `length`; a longer one takes the place of a shorter."""
        if self._context is not None and length <= self._context_length:
            return
        self._free_context()
        options = self._library.llama_context_default_params()
        self._context_length = max(length, _MIN_CONTEXT)
        options.n_ctx = self._context_length
        options.n_batch = options.n_ubatch = self._step
        options.n_threads = options.n_threads_batch = self._num_threads
        # Flash attention computes in float16 on the CPU: nll of a token off by up to 0.03, against 0.0001 without.
        options.flash_attn_type = self._library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.type_k = options.type_v = _FLOAT32
        self._context = self._library.llama_init_from_model(self._model, options)
        if not self._context:
            self._context = None
            raise ModelError(f"model {self.name}: llama.cpp gives no context of {self._context_length} tokens")

    def _run(self, ids: IntArray, first: int, out: FloatArray) -> None:
        library, count = self._library, len(ids)
        batch = library.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for place in range(count):
                batch.token[place] = int(ids[place])
                batch.pos[place] = first + place
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = 0
                batch.logits[place] = 1
            if (code := library.llama_decode(self._context, batch)) != 0:
                raise ModelError(f"model {self.name}: llama_decode gave {code}")
            for place in range(count):
                row = library.llama_get_logits_ith(self._context, place)
                if not row:
                    raise ModelError(f"model {self.name}: llama.cpp gives no logits")
                out[place] = np.ctypeslib.as_array(row, shape=(self.vocab_size,))
        finally:
            library.llama_batch_free(batch)

    @property
    def chat_template_sha256(self) -> str | None:
        """Of the file's template."""
        template = self._library.llama_model_chat_template(self._model, None)
        return None if template is None else hashlib.sha256(template).hexdigest()

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], asks: bool) -> str:
        """By the file's own template, in the sandbox of jinja2 that the package has."""
        template = self._library.llama_model_chat_template(self._model, None)
        if template is None:
            raise ModelError(f"model {self.name}: the file has no chat template")
        formats = importlib.import_module("llama_cpp.llama_chat_format")
        formatter = formats.Jinja2ChatFormatter(
            template.decode(), self._text(self.eos_id), self._text(self.bos_id), add_generation_prompt=asks
        )
        return str(formatter(messages=[dict(message) for message in messages]).prompt)

    def _text(self, token: int | None) -> str:
        text: bytes = b"" if token is None else self._library.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace")

    def _free_context(self) -> None:
        if self._context is not None:
            self._library.llama_free(self._context)
            self._context = None

    def close(self) -> None:
        """Free the model; nothing else may be called afterwards."""
        with _quiet():
            self._free_context()
            if self._model:
                self._library.llama_model_free(self._model)
                self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()


def byte_ranges(data: bytes, pieces: Sequence[bytes]) -> tuple[IntArray, IntArray]:
    """Where each piece stands in `data`, widened to whole characters; zeros where the pieces do not make up `data`. A
    space that some tokenizers put in front may stand before it.
    """
    joined = b"".join(pieces)
    if joined not in (data, b" " + data):
        zeros = np.zeros(len(pieces), dtype=np.int64)
        return zeros, zeros
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    starts = np.concatenate([[0], ends])[: len(ends)].astype(np.int64)
    shift = len(joined) - len(data)
    starts, ends = np.maximum(starts - shift, 0), np.maximum(ends - shift, 0)
    begins = (np.frombuffer(data + b"\0", dtype=np.uint8) & 0xC0) != 0x80
    places = np.arange(len(begins), dtype=np.int64)
    before = np.maximum.accumulate(np.where(begins, places, 0))
    behind = np.minimum.accumulate(np.where(begins, places, len(data))[::-1])[::-1]
    return before[starts], behind[ends]


def _token(token: int) -> int | None:
    return None if token < 0 else int(token)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on stderr: the package prints what is not below the level of its logger."""
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)

"""`Scorer`: texts, pairs and chats of Python in, their exact likelihoods under a language model out.

In: a model, by name or as a `Runner`, and the options of `xentrs score`. Out: scorer_results.py's data. It strings
together what the command does: the same parts, windows and batches, hence the same digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from xentrs.corpus.aggregates import Totals
from xentrs.corpus.columns import document_names
from xentrs.corpus.documents import ReadItems, Rejected
from xentrs.corpus.objects import read_objects
from xentrs.corpus.parts import Part, PartReader
from xentrs.corpus.reading import Reading
from xentrs.corpus.run import CorpusResult, Listener, Silent
from xentrs.corpus.run import score_corpus as score_sources
from xentrs.corpus.score import PartColumns, score_part
from xentrs.corpus.settings import Protocol, Settings, TokenLevel, protocol_block
from xentrs.corpus.sources import open_sources
from xentrs.errors import ParamError
from xentrs.models import DEFAULT_MODEL, ModelError, ModelInfo, Runner, SplitRunner
from xentrs.scorer_inputs import (
    OnBad,
    check_columns,
    check_early,
    corpus_reading,
    make_settings,
    open_model,
    refusal,
)
from xentrs.scorer_results import DocumentScore, PairScore, ScoreResult, document_scores

STREAM_PART_TOKENS = 16_384

_Score = TypeVar("_Score", bound=DocumentScore)


class Scorer:
    """A loaded model and a protocol: what conditions what. Options mean what those of `xentrs score` mean.

    `model` is an imported name, a folder, a Hub id, a .gguf file, or an object with the two methods of `Runner`.
    Nothing is printed; `notices` says what one should know. `num_threads` holds for our kernels and for the model;
    without it torch keeps the threads it has.

    Example:
        >>> import numpy as np, xentrs
        >>> class Uniform:
        ...     def encode(self, texts):
        ...         return [list(text.encode()) for text in texts]
        ...
        ...     def logits(self, input_ids):
        ...         return np.zeros((*input_ids.shape, 256), dtype=np.float32)
        >>> with xentrs.Scorer(Uniform()) as scorer:
        ...     result = scorer.score(["three", "texts", "here"])
        >>> result
        ScoreResult(documents=3, scored_count=11, perplexity=256, bits_per_byte=6.28571)
        >>> [round(document.mean_nll, 3) for document in result]
        [5.545, 5.545, 5.545]
    """

    def __init__(
        self,
        model: str | Path | Runner | SplitRunner = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "cpu",
        runner: str | None = None,
        protocol: Protocol | None = None,
        prefix: str | None = None,
        prefix_every: Literal["document", "window"] | None = None,
        window: int | None = None,
        stride: int | None = None,
        min_context: int | None = None,
        batch_tokens: int | None = None,
        tokens: TokenLevel = "basic",
        inverse_temperatures: Sequence[float] = (),
        top_k: int = 5,
        num_threads: int | None = None,
        text_key: str = "text",
        id_key: str = "id",
    ) -> None:
        """Load the model and check it.

        Raises:
            ModelError: the model is missing or not causal, or an option does not go with it.
            ParamError: a setting does not fit the model or the others.
        """
        columns = check_columns(tokens, inverse_temperatures, top_k)
        self._owns_runner = isinstance(model, str | Path)
        self._runner: SplitRunner | None = open_model(model, revision, dtype, device, runner, num_threads)
        try:
            self._runner.prepare()
            self._settings = make_settings(
                self._runner,
                protocol=protocol,
                prefix=prefix,
                prefix_every=prefix_every,
                window=window,
                stride=stride,
                min_context=min_context,
                batch_tokens=batch_tokens,
                columns=columns,
                reading=Reading(text_key=text_key, id_key=id_key),
                num_threads=num_threads,
            )
        except BaseException:
            self.close()
            raise
        info = self._runner.info
        note = [f"{info.name}: {info.note}"] if info.note else []
        self.notices: list[str] = [*note, *self._runner.notices]
        """What one should know: of the model, of inputs, of figures that are NaN."""

    @property
    def model_info(self) -> ModelInfo:
        """Name, identity, dtype, vocabulary and longest input of the model."""
        return self._open_runner().info

    @property
    def protocol(self) -> dict[str, Any]:
        """What decides the figures; it stands in every result, too."""
        return protocol_block(self._open_runner(), self._settings)

    def score(self, data: Any, *, on_bad: OnBad = "raise") -> ScoreResult:
        """Score all documents of `data` and keep their scores: texts or mappings with the key `text_key`, of a list, a
        data set of Hugging Face, a table of pyarrow, polars, pandas or duckdb.

        Raises:
            InputError: a record is no document, and `on_bad` is "raise"; of a sequence before anything is scored.
        """
        return self._score_all(data, self._settings.reading, "data", on_bad)

    def iter_scores(
        self, data: Any, *, on_bad: OnBad = "raise", part_tokens: int = STREAM_PART_TOKENS
    ) -> Iterator[DocumentScore]:
        """The scores of `data` in its order, in constant memory: `data` may be a generator without end. It is read as
        scores are asked for, about `part_tokens` tokens ahead; batches are made of these, so that the last digits of
        the model's own arithmetic can differ from those of `score`.

        Raises:
            InputError: a record is no document, and `on_bad` is "raise"; before those read with it are scored.
        """
        if part_tokens < 1:
            raise ParamError(f"part_tokens {part_tokens}: expected at least 1")
        settings = replace(self._settings, part_tokens=part_tokens)
        read = self._reader(data, settings.reading, "data")
        return self._stream(read, settings, DocumentScore, refusal(on_bad))

    def score_pairs(
        self, pairs: Iterable[tuple[str, str] | Mapping[str, Any]], *, on_bad: OnBad = "raise"
    ) -> list[PairScore]:
        """How likely each continuation is after its context: tuples of both, or mappings with the keys `context` and
        `continuation`. Both are encoded as one text; spaces at the end of the context belong to the continuation, as
        the LM harness has it. Pairs with the same context read it once where the model can.

        Raises:
            InputError: a record is no pair, and `on_bad` is "raise"; of a sequence before anything is scored.
        """
        reading = replace(self._settings.reading, context_key="context", continuation_key="continuation")
        read = self._reader(pairs, reading, "pairs")
        check_early(read, pairs, on_bad)
        settings = replace(self._settings, reading=reading)
        return list(self._stream(read, settings, PairScore, refusal(on_bad)))

    def score_chats(self, chats: Iterable[Any], *, on_bad: OnBad = "raise") -> ScoreResult:
        """How likely the assistant's turns are: each chat a list of `{"role": ..., "content": ...}`, or a mapping with
        such a list as `messages`. The model's own template writes the text.

        Raises:
            ModelError: the model has no chat template.
            InputError: a record is no chat, or the template refuses it, and `on_bad` is "raise".
        """
        if self._open_runner().encoder.chat_template_sha256 is None:
            raise ModelError(f"model {self.model_info.name} has no chat template")
        reading = replace(self._settings.reading, messages_key="messages")
        return self._score_all(chats, reading, "chats", on_bad)

    def score_corpus(
        self,
        inputs: str | Path | Sequence[str | Path],
        output: str | Path | None,
        *,
        keep_text: bool = False,
        context_key: str | None = None,
        continuation_key: str | None = None,
        messages_key: str | None = None,
        by: Sequence[str] = (),
        skip: int = 0,
        limit: int | None = None,
        shard: str | None = None,
        listener: Listener | None = None,
    ) -> CorpusResult:
        """Score files, folders or patterns into the RUN folder `output`, which is resumed where it stands: what
        `xentrs score INPUTS -o OUTPUT` writes. Bad records go to its quarantine. `shard` is "1/8", `listener` hears how
        far it is.

        Raises:
            InputError: an input is missing or of an unknown kind.
            ManifestMismatch: `output` holds another run, is in use, or is no RUN folder.
            InputChangedError: an input changed while it was read.
        """
        reading = corpus_reading(
            self._settings.reading,
            shard,
            context_key=context_key,
            continuation_key=continuation_key,
            messages_key=messages_key,
            by=tuple(by),
            skip=skip,
            limit=limit,
        )
        names = [inputs] if isinstance(inputs, str | Path) else inputs
        sources, warnings = open_sources([str(name) for name in names], reading=reading)
        self.notices += warnings
        settings = replace(self._settings, reading=reading, keep_text=keep_text)
        folder = None if output is None else Path(output)
        result = score_sources(self._open_runner(), sources, settings, folder, listener or Silent())
        self._mind_nan(result.summary["totals"]["nan_count"])
        return result

    def close(self) -> None:
        """Let go of the model, and free it where this scorer loaded it."""
        runner, self._runner = self._runner, None
        if self._owns_runner and callable(release := getattr(runner, "close", None)):
            release()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        """Says model and protocol."""
        if self._runner is None:
            return "Scorer(closed)"
        windowing = self._settings.windowing
        return (
            f"Scorer({self.model_info.name!r}, prefix={self._settings.prefix.resolved!r}, "
            f"window={windowing.window}, stride={windowing.stride})"
        )

    def _open_runner(self) -> SplitRunner:
        if self._runner is None:
            raise ParamError("this scorer is closed")
        return self._runner

    def _reader(self, data: Any, reading: Reading, name: str) -> ReadItems:
        self._open_runner()
        return read_objects(data, reading, name)

    def _score_all(self, data: Any, reading: Reading, name: str, on_bad: OnBad) -> ScoreResult:
        settings = replace(self._settings, reading=reading)
        read = self._reader(data, reading, name)
        check_early(read, data, on_bad)
        totals, documents, rejected = Totals(), list[DocumentScore](), list[Rejected]()
        table: dict[str, list[Any]] = {}
        for part, columns in self._parts(read, settings, refusal(on_bad, rejected)):
            totals.add(columns.documents, columns.nll, len(part.rejected), part.skipped_lines)
            documents.extend(document_scores(part, columns, settings.columns.level != "none", DocumentScore))
            for column, values in columns.documents.items():
                table.setdefault(column, []).extend(values)
        block = totals.block()
        self._mind_nan(block["nan_count"])
        protocol = protocol_block(self._open_runner(), settings)
        table = table or {column: [] for column in document_names(settings)}
        return ScoreResult(tuple(documents), block, protocol, tuple(rejected), table, settings)

    def _stream(
        self, read: ReadItems, settings: Settings, kind: type[_Score], refuse: Callable[[Rejected], object]
    ) -> Iterator[_Score]:
        for part, columns in self._parts(read, settings, refuse):
            yield from document_scores(part, columns, settings.columns.level != "none", kind)

    def _parts(
        self, read: ReadItems, settings: Settings, refuse: Callable[[Rejected], object]
    ) -> Iterator[tuple[Part, PartColumns]]:
        runner = self._open_runner()
        reader = PartReader(read, runner.encoder, runner.info.vocab_size, settings.part_tokens)
        while (part := reader.next_part()) is not None:
            for rejected in part.rejected:
                refuse(rejected)
            yield part, score_part(part, self._open_runner(), settings)

    def _mind_nan(self, nan_count: int) -> None:
        if nan_count:
            self.notices.append(f"{nan_count:,} tokens have a nll of NaN: the model gave logits that are NaN")

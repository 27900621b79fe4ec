"""What a run would take, before it is started.

In: a model, sources, settings. Out: `Forecast`. All records are read, as they are for the hashes anyway; tokens are
counted on a sample from the start and scaled by bytes of text. Speed, memory and size of the output are measured on a
few thousand tokens of the sample.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xentrs.corpus.batches import document_windows
from xentrs.corpus.documents import Cursor, Document, Rejected, read_items
from xentrs.corpus.encoding import EncodedDocument, encode_documents
from xentrs.corpus.parts import Part
from xentrs.corpus.score import score_part
from xentrs.corpus.settings import Settings
from xentrs.corpus.sources import Source
from xentrs.models import EncodedText, SplitRunner

SAMPLE_BYTES = 4 << 20
CALIBRATION_BATCHES = 2


@dataclass(frozen=True)
class Forecast:
    """Counts, sizes in bytes, times in seconds; `is_exact` where the sample was the whole corpus."""

    is_exact: bool
    documents: int
    bad_records: int
    text_bytes: int
    tokens: int
    windows: int
    inputs: int  # of all windows: contexts that are read again count again
    calibrated_inputs: int
    inputs_per_second: float
    seconds: float
    peak_memory_bytes: int
    output_bytes: int  # of a RUN folder


def forecast(runner: SplitRunner, sources: Sequence[Source], settings: Settings) -> Forecast:
    """Look through the sources and score a little of them."""
    sample: list[Document] = []
    sample_bytes = text_bytes = documents = bad_records = 0
    for item, _ in read_items(sources, Cursor(), settings.reading):
        if isinstance(item, Document):
            size = sum(len(text.encode("utf-8")) for text in item.fields.texts)
            documents += 1
            text_bytes += size
            if sample_bytes < SAMPLE_BYTES:
                sample.append(item)
                sample_bytes += size
        bad_records += isinstance(item, Rejected)
    encoded = [entry for entry in encode_documents(sample, runner.encoder) if isinstance(entry, EncodedDocument)]
    windows = [window for document in encoded for window in document_windows(document, settings)]
    inputs = sum(window.input_count for window in windows)
    calibrated, seconds, output_bytes = _calibrate(runner, encoded, settings)
    scale = text_bytes / sample_bytes if sample_bytes else 0.0
    rate = calibrated / seconds if seconds else 0.0
    token_count = sum(len(document.encoded.token_ids) for document in encoded)
    return Forecast(
        is_exact=len(sample) == documents,
        documents=documents,
        bad_records=bad_records + len(sample) - len(encoded),
        text_bytes=text_bytes,
        tokens=round(token_count * scale),
        windows=round(len(windows) * scale),
        inputs=round(inputs * scale),
        calibrated_inputs=calibrated,
        inputs_per_second=rate,
        seconds=inputs * scale / rate if rate else 0.0,
        peak_memory_bytes=_peak_memory_bytes(),
        output_bytes=round(output_bytes * token_count * scale),
    )


def _calibrate(
    runner: SplitRunner, documents: Sequence[EncodedDocument], settings: Settings
) -> tuple[int, float, float]:
    """Inputs scored, seconds they took, bytes of a RUN for each token."""
    budget = CALIBRATION_BATCHES * max(settings.batch_tokens, settings.windowing.window)
    chosen: list[EncodedDocument] = []
    taken = 0
    for document in documents:
        if taken >= budget:
            break
        chosen.append(_shortened(document, budget - taken))
        taken += len(chosen[-1].encoded.token_ids)
    inputs = sum(window.input_count for document in chosen for window in document_windows(document, settings))
    if inputs == 0:
        return 0, 0.0, 0.0
    part = Part(0, Cursor(), Cursor(), chosen, token_count=taken)
    # The first forward passes of a process are slower: weights are touched, kernels are chosen.
    score_part(replace(part, documents=[_shortened(chosen[0], 64)]), runner, settings)
    started = time.perf_counter()
    columns = score_part(part, runner, settings)
    seconds = time.perf_counter() - started
    from xentrs.corpus.tables import documents_parquet, tokens_parquet

    tokens = b"" if settings.columns.level == "none" else tokens_parquet(columns, settings)
    return inputs, seconds, (len(tokens) + len(documents_parquet(columns, settings))) / taken


def _shortened(document: EncodedDocument, count: int) -> EncodedDocument:
    """At most the first `count` tokens of a document."""
    tokens, wanted = document.encoded, document.wanted[document.wanted < count]
    encoded = EncodedText(tokens.token_ids[:count], tokens.byte_start[:count], tokens.byte_end[:count], 0)
    bytes_of, chars_of, words_of = (values[: len(wanted)] for values in document.token_sizes)
    return replace(document, encoded=encoded, wanted=np.asarray(wanted), token_sizes=(bytes_of, chars_of, words_of))


def _peak_memory_bytes() -> int:
    """Most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10

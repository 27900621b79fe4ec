"""Token counts of a corpus of any input format, in constant memory.

In: a tokenizer, sources. Out: `TokenFrequencies`, and records that could not be read.
"""

from __future__ import annotations

from collections.abc import Sequence

from xentrs.corpus.ahead import AheadReader
from xentrs.corpus.documents import Rejected, reader_of
from xentrs.corpus.parts import PartReader
from xentrs.corpus.reading import Reading
from xentrs.corpus.run import Listener
from xentrs.corpus.settings import PART_TOKENS
from xentrs.corpus.sources import Source
from xentrs.detect.frequency import TokenFrequencies
from xentrs.models import ModelTokenizer


def count_tokens(
    tokenizer: ModelTokenizer, sources: Sequence[Source], reading: Reading, listener: Listener
) -> tuple[TokenFrequencies, list[Rejected]]:
    """Every token of every document, contexts and templates included."""
    table = TokenFrequencies(tokenizer.vocab_size, tokenizer.encoder.sha256)
    rejected: list[Rejected] = []
    sizes = [source.byte_count for source in sources]
    reader = PartReader(reader_of(sources, reading), tokenizer.encoder, tokenizer.vocab_size, PART_TOKENS)
    with AheadReader(reader) as ahead:
        while (part := ahead.next_part()) is not None:
            for document in part.documents:
                table.update(document.encoded.token_ids)
            rejected += part.rejected
            listener.tokens_scored(part.token_count)
            listener.part_finished(part.end.byte_position(sizes))
    return table, rejected

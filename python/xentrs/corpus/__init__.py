"""The path of a corpus: documents in, windows, batches, scored rows out, journal and resume.

reading (which fields, which records) -> sources (which inputs) -> documents (records, quarantine) -> encoding (tokens,
and which of them are wanted) -> parts (a token budget each) -> windows -> batches -> score (rows through
`xentrs.row_stats`) -> columns -> tables -> journal (the RUN folder) -> totals; run.py strings them together.
"""

from __future__ import annotations

from xentrs.corpus.documents import Cursor, Document, Rejected
from xentrs.corpus.reading import Reading
from xentrs.corpus.run import CorpusResult, score_corpus
from xentrs.corpus.settings import Columns, Prefix, Settings, resolve_prefix, resolve_settings
from xentrs.corpus.sources import InputError, Source, open_sources
from xentrs.corpus.windows import Window, Windowing, plan_windows

__all__ = [
    "Columns",
    "CorpusResult",
    "Cursor",
    "Document",
    "InputError",
    "Prefix",
    "Reading",
    "Rejected",
    "Settings",
    "Source",
    "Window",
    "Windowing",
    "open_sources",
    "plan_windows",
    "resolve_prefix",
    "resolve_settings",
    "score_corpus",
]

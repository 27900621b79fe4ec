"""The path of a corpus: documents in, windows, batches, scored rows out, journal and resume.

sources (which inputs) -> documents (records, quarantine) -> parts (a token budget each) -> windows -> batches
-> score (rows through `xentrs.row_stats`) -> tables -> journal (the RUN folder) -> totals; run.py strings
them together.
"""

from __future__ import annotations

from xentrs.corpus.documents import Cursor, Document, Rejected
from xentrs.corpus.run import CorpusResult, score_corpus
from xentrs.corpus.settings import Prefix, Settings, resolve_prefix, resolve_settings
from xentrs.corpus.sources import InputError, Source, open_sources
from xentrs.corpus.windows import Window, plan_windows

__all__ = [
    "CorpusResult",
    "Cursor",
    "Document",
    "InputError",
    "Prefix",
    "Rejected",
    "Settings",
    "Source",
    "Window",
    "open_sources",
    "plan_windows",
    "resolve_prefix",
    "resolve_settings",
    "score_corpus",
]

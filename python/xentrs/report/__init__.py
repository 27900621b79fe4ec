"""Results for people: terminal tables, totals, progress.

In: plain data of `corpus`. Out: text on a stream.
"""

from __future__ import annotations

from xentrs.report.progress import Progress
from xentrs.report.terminal import document_table, extremes_text, protocol_text, totals_text

__all__ = ["Progress", "document_table", "extremes_text", "protocol_text", "totals_text"]

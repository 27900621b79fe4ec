"""Was this text in the training data, was it written by a machine, and how sure is that?

tokens (statistics of the scored tokens of documents) -> registry (the one table of scores) -> scoring (a value for each
document, larger for member or machine); likelihood, reference, selection, calibrated, tempered, machine, entropy_test
hold the formulas, segments the arithmetic over documents end to end. evaluation tells how well scores do; decisions,
baseline, dataset_tests (run_inference: from RUNs), benchmark_order (order_scoring: from a model) and compression
(candidates: of a corpus) are imported by their own names.

pipeline makes the scores of a RUN, joining of several, judgement and unlabeled say what labels tell, output writes it
down, and verification checks that it belongs to the tokens beside it.
"""

from __future__ import annotations

from xentrs.detect.definition import Parameter, Score
from xentrs.detect.evaluation import evaluate, paired_test
from xentrs.detect.frequency import TokenFrequencies
from xentrs.detect.registry import GROUPS, SCORES, choices, needs_of
from xentrs.detect.scoring import DocumentScores, score_document, score_documents
from xentrs.detect.tempered import ACMIA_INVERSE_TEMPERATURES
from xentrs.detect.tokens import DocumentTokens, Tempered, zlib_byte_counts

__all__ = [
    "ACMIA_INVERSE_TEMPERATURES",
    "GROUPS",
    "SCORES",
    "DocumentScores",
    "DocumentTokens",
    "Parameter",
    "Score",
    "Tempered",
    "TokenFrequencies",
    "choices",
    "evaluate",
    "needs_of",
    "paired_test",
    "score_document",
    "score_documents",
    "zlib_byte_counts",
]

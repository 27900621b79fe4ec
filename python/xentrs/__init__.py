"""xentrs: how likely is this text? Exact, streaming statistics of language-model logits at the speed of memory."""

from xentrs._xentrs import __version__, available_isas, isa, num_threads
from xentrs.errors import (
    DTypeError,
    FormatError,
    InputChangedError,
    InternalError,
    IsaError,
    LimitError,
    ManifestMismatch,
    NonFiniteError,
    NotNormalizedError,
    ParamError,
    ShapeError,
    TargetError,
    TruncatedError,
    XentrsError,
)
from xentrs.functional import cross_entropy, entropy, kl_divergence, logsumexp, perplexity, row_stats
from xentrs.metrics import Perplexity, RowStatsState
from xentrs.results import Flag, PerplexityResult, RowStats

numerics_version = 1
"""Raised by a release that changes a digit of any result."""

__all__ = [
    "DTypeError",
    "Flag",
    "FormatError",
    "InputChangedError",
    "InternalError",
    "IsaError",
    "LimitError",
    "ManifestMismatch",
    "NonFiniteError",
    "NotNormalizedError",
    "ParamError",
    "Perplexity",
    "PerplexityResult",
    "RowStats",
    "RowStatsState",
    "ShapeError",
    "TargetError",
    "TruncatedError",
    "XentrsError",
    "__version__",
    "available_isas",
    "cross_entropy",
    "entropy",
    "isa",
    "kl_divergence",
    "logsumexp",
    "num_threads",
    "numerics_version",
    "perplexity",
    "row_stats",
]

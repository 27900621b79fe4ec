"""xentrs: how likely is this text? Exact, streaming statistics of language-model logits at the speed of memory."""

from typing import TYPE_CHECKING, Any

from xentrs._xentrs import __version__, available_isas, isa, num_threads
from xentrs.dispatch import backend
from xentrs.divergences import divergences, js_divergence, kl_divergence, top_k_kl_divergence
from xentrs.errors import (
    DTypeError,
    FormatError,
    InputChangedError,
    InternalError,
    IsaError,
    LimitError,
    ManifestMismatch,
    MissingColumn,
    NonFiniteError,
    NotNormalizedError,
    ParamError,
    ShapeError,
    TargetError,
    TruncatedError,
    XentrsError,
)
from xentrs.functional import cross_entropy, entropy, logsumexp, perplexity, row_stats, soft_cross_entropy
from xentrs.heads import PackedHead
from xentrs.linear import (
    linear_cross_entropy,
    linear_expected_embedding,
    linear_kl_divergence,
    linear_row_stats,
    linear_target_logits,
)
from xentrs.linear_pairs import linear_divergences
from xentrs.metrics import Perplexity, RowStatsState
from xentrs.results import Divergences, Flag, LogProbMoments, PerplexityResult, RowStats, TemperatureGrid
from xentrs.tempered import log_prob_moments, renyi_entropy, temperature_grid

if TYPE_CHECKING:
    from xentrs.models import EncodedText, ModelError, Runner
    from xentrs.scorer import Scorer
    from xentrs.scorer_results import DocumentScore, PairScore, ScoreResult, TokenScores

numerics_version = 1
"""Raised by a release that changes a digit of any result."""

__all__ = [
    "DTypeError",
    "Divergences",
    "DocumentScore",
    "EncodedText",
    "Flag",
    "FormatError",
    "InputChangedError",
    "InternalError",
    "IsaError",
    "LimitError",
    "LogProbMoments",
    "ManifestMismatch",
    "MissingColumn",
    "ModelError",
    "NonFiniteError",
    "NotNormalizedError",
    "PackedHead",
    "PairScore",
    "ParamError",
    "Perplexity",
    "PerplexityResult",
    "RowStats",
    "RowStatsState",
    "Runner",
    "ScoreResult",
    "Scorer",
    "ShapeError",
    "TargetError",
    "TemperatureGrid",
    "TokenScores",
    "TruncatedError",
    "XentrsError",
    "__version__",
    "available_isas",
    "backend",
    "cross_entropy",
    "divergences",
    "entropy",
    "isa",
    "js_divergence",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_divergences",
    "linear_expected_embedding",
    "linear_kl_divergence",
    "linear_row_stats",
    "linear_target_logits",
    "log_prob_moments",
    "logsumexp",
    "num_threads",
    "numerics_version",
    "perplexity",
    "renyi_entropy",
    "row_stats",
    "soft_cross_entropy",
    "temperature_grid",
    "top_k_kl_divergence",
]

# Loaded when first asked for: the functions on logits need nothing of them.
_LAZY = {
    "DocumentScore": "xentrs.scorer_results",
    "EncodedText": "xentrs.models",
    "ModelError": "xentrs.models",
    "PairScore": "xentrs.scorer_results",
    "Runner": "xentrs.models",
    "ScoreResult": "xentrs.scorer_results",
    "Scorer": "xentrs.scorer",
    "TokenScores": "xentrs.scorer_results",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

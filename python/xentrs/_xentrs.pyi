"""The extension module; `xentrs.functional` and `xentrs.metrics` document what users call."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

__all__ = [
    "PackedHead",
    "Perplexity",
    "RowStatsState",
    "__version__",
    "available_isas",
    "divergences",
    "entropy_gradient",
    "head_isa",
    "isa",
    "js_divergence",
    "js_gradients",
    "kl_divergence",
    "kl_gradients",
    "linear_divergences",
    "linear_expected_embedding",
    "linear_gradients",
    "linear_joint_row_stats",
    "linear_kl_divergence",
    "linear_kl_gradients",
    "linear_loss",
    "linear_row_stats",
    "linear_target_logits",
    "logsumexp_gradient",
    "loss",
    "loss_gradient",
    "num_threads",
    "panic_for_tests",
    "read_probe",
    "renyi_entropy",
    "row_stats",
    "soft_cross_entropy",
    "temperature_grid",
    "tile_probe",
    "top_k_kl_divergence",
]

__version__: str

_Ids = NDArray[np.int64] | NDArray[np.uint64]
_Floats = NDArray[np.float64]
_Flags = NDArray[np.uint8]

def row_stats(
    logits: NDArray[Any],
    element: str,
    targets: _Ids | None,
    *,
    all: bool,
    ignore_index: int,
    temperature: float,
    softcap: float | None,
    top_k: int,
    vocab_size: int | None,
    strict: bool,
    num_threads: int | None,
    tempered: dict[str, Any] | None = None,
) -> dict[str, Any]: ...
def linear_row_stats(
    side: dict[str, Any],
    targets: _Ids | None,
    settings: dict[str, Any],
    *,
    all: bool,
    top_k: int,
    strict: bool,
    tempered: dict[str, Any] | None = None,
) -> dict[str, Any]: ...
def linear_loss(
    side: dict[str, Any],
    targets: _Ids,
    settings: dict[str, Any],
    *,
    label_smoothing: float,
    z_loss: float,
    class_weights: _Floats | None,
) -> dict[str, Any]: ...
def linear_gradients(
    side: dict[str, Any],
    targets: _Ids,
    settings: dict[str, Any],
    likelihoods: _Floats,
    upstream: _Floats,
    *,
    label_smoothing: float,
    z_loss: float,
    wanted: tuple[bool, bool, bool],
    filter_eps: float | None,
    orders_vocabulary: bool,
) -> list[NDArray[Any] | None]: ...
def linear_target_logits(side: dict[str, Any], targets: _Ids, *, num_threads: int | None) -> _Floats: ...
def tile_probe(element: str, num_threads: int | None) -> float: ...
def linear_expected_embedding(side: dict[str, Any], *, temperature: float, num_threads: int | None) -> _Floats: ...
def linear_kl_divergence(
    p: dict[str, Any],
    q: dict[str, Any],
    *,
    temperature: float,
    num_threads: int | None,
) -> tuple[_Floats, _Flags, _Floats]: ...
def linear_divergences(
    p: dict[str, Any],
    q: dict[str, Any],
    *,
    temperature: float,
    num_threads: int | None,
) -> dict[str, Any]: ...
def linear_joint_row_stats(
    p: dict[str, Any],
    q: dict[str, Any],
    targets: _Ids,
    settings: dict[str, Any],
    *,
    top_k: int,
    tempered: dict[str, Any] | None,
) -> list[dict[str, Any]]: ...
def kl_divergence(
    p_logits: NDArray[Any],
    q_logits: NDArray[Any],
    element: str,
    *,
    temperature: float,
    log_probs: bool,
    num_threads: int | None,
) -> tuple[_Floats, _Flags, _Floats]: ...
def js_divergence(
    p_logits: NDArray[Any],
    q_logits: NDArray[Any],
    element: str,
    *,
    temperature: float,
    num_threads: int | None,
) -> tuple[_Floats, _Flags, _Floats]: ...
def divergences(
    p_logits: NDArray[Any],
    q_logits: NDArray[Any],
    element: str,
    *,
    temperature: float,
    num_threads: int | None,
) -> dict[str, Any]: ...
def top_k_kl_divergence(
    p_ids: _Ids,
    p_log_probs: _Floats,
    k: int,
    q_logits: NDArray[Any],
    element: str,
    settings: dict[str, Any],
) -> tuple[_Floats, _Flags]: ...
def loss(
    logits: NDArray[Any],
    element: str,
    targets: _Ids,
    settings: dict[str, Any],
    *,
    label_smoothing: float,
    z_loss: float,
    weight: _Floats | None,
) -> dict[str, Any]: ...
def soft_cross_entropy(
    logits: NDArray[Any],
    element: str,
    target_ids: _Ids,
    target_probs: _Floats,
    settings: dict[str, Any],
    *,
    normalize: bool,
) -> dict[str, Any]: ...
def temperature_grid(
    logits: NDArray[Any],
    element: str,
    targets: _Ids | None,
    inverse_temperatures: list[float],
    settings: dict[str, Any],
) -> dict[str, Any]: ...
def renyi_entropy(
    logits: NDArray[Any], element: str, orders: list[float], settings: dict[str, Any]
) -> tuple[_Floats, _Flags]: ...
def loss_gradient(
    logits: NDArray[Any],
    element: str,
    targets: _Ids,
    settings: dict[str, Any],
    likelihoods: _Floats,
    upstream: _Floats,
    out: NDArray[Any],
    *,
    label_smoothing: float,
    z_loss: float,
    weight: _Floats | None,
) -> None: ...
def logsumexp_gradient(
    logits: NDArray[Any],
    element: str,
    settings: dict[str, Any],
    likelihoods: _Floats,
    upstream: _Floats,
    out: NDArray[Any],
) -> None: ...
def entropy_gradient(
    logits: NDArray[Any],
    element: str,
    settings: dict[str, Any],
    likelihoods: _Floats,
    entropy: _Floats,
    upstream: _Floats,
    out: NDArray[Any],
) -> None: ...
def kl_gradients(
    p_logits: NDArray[Any],
    q_logits: NDArray[Any],
    element: str,
    values: _Floats,
    scales: _Floats,
    upstream: _Floats,
    p_out: NDArray[Any] | None,
    q_out: NDArray[Any] | None,
    *,
    temperature: float,
    num_threads: int | None,
) -> None: ...
def js_gradients(
    p_logits: NDArray[Any],
    q_logits: NDArray[Any],
    element: str,
    scales: _Floats,
    upstream: _Floats,
    p_out: NDArray[Any] | None,
    q_out: NDArray[Any] | None,
    *,
    temperature: float,
    num_threads: int | None,
) -> None: ...
def linear_kl_gradients(
    p: dict[str, Any],
    q: dict[str, Any],
    values: _Floats,
    scales: _Floats,
    upstream: _Floats,
    *,
    temperature: float,
    num_threads: int | None,
    wanted: Sequence[bool],
) -> list[NDArray[Any] | None]: ...
def read_probe(logits: NDArray[Any], element: str, *, num_threads: int | None) -> float: ...
def head_isa() -> str: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def num_threads() -> int: ...
def panic_for_tests() -> None: ...

@final
class RowStatsState:
    def update_linear(self, shard: dict[str, Any], start_column: int, *, num_threads: int | None) -> None: ...
    def __new__(
        cls,
        rows: int,
        vocab: int,
        targets: _Ids | None,
        target_logits: _Floats | None,
        *,
        is_double: bool,
        ignore_index: int,
        temperature: float,
        top_k: int,
    ) -> Self: ...
    @property
    def is_double(self) -> bool: ...
    def update(self, logits: NDArray[Any], element: str, start_column: int, *, num_threads: int | None) -> None: ...
    def merge_state(self, other: RowStatsState) -> None: ...
    def compute(self) -> dict[str, Any]: ...
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def from_bytes(bytes: bytes, is_double: bool) -> RowStatsState: ...

@final
class Perplexity:
    def __new__(cls) -> Self: ...
    def update(
        self,
        logits: NDArray[Any],
        element: str,
        targets: _Ids,
        *,
        ignore_index: int,
        num_threads: int | None,
    ) -> None: ...
    def update_nll(self, nll: _Floats, token_count: int) -> None: ...
    def merge_state(self, other: Perplexity) -> None: ...
    def compute(self) -> dict[str, Any]: ...
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def from_bytes(bytes: bytes) -> Perplexity: ...

@final
class PackedHead:
    def __new__(cls, weight: NDArray[Any], element: str) -> Self: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def element(self) -> str: ...
    @property
    def byte_count(self) -> int: ...

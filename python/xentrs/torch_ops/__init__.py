"""The engine for tensors that the kernels of the extension do not reach: torch operations, on any device.

The functions are those of `_xentrs`, with tensors for numpy arrays: logits of any strides, flat ids and float64 lists
on the same device, flat results there. Elementwise work is float32 for 16- and 32-bit input and float64 for float64,
every sum of a row float64, divergences of two arrays float64 throughout. Special values, flags and errors are those of
the extension; the last bits depend on the device and on the version of torch. `num_threads` is checked and left to
torch.

A call works on blocks of the rows, and of the columns where a row is long: beyond inputs and results it holds no more
than `blocks.BLOCK_BYTES`, and no operation sees 2^31 numbers.
"""

from xentrs.torch_ops.blocks import place
from xentrs.torch_ops.gradients import (
    entropy_gradient,
    js_gradients,
    kl_gradients,
    logsumexp_gradient,
    loss_gradient,
)
from xentrs.torch_ops.head_gradients import linear_gradients, linear_kl_gradients
from xentrs.torch_ops.jensen import js_divergence, top_k_kl_divergence
from xentrs.torch_ops.linear import (
    linear_divergences,
    linear_expected_embedding,
    linear_joint_row_stats,
    linear_kl_divergence,
    linear_loss,
    linear_loss_only,
    linear_row_stats,
    linear_target_logits,
)
from xentrs.torch_ops.losses import loss, soft_cross_entropy
from xentrs.torch_ops.pairs import divergences, kl_divergence
from xentrs.torch_ops.rows import counted_nll, row_stats
from xentrs.torch_ops.tempered import renyi_entropy, temperature_grid

__all__ = [
    "counted_nll",
    "divergences",
    "entropy_gradient",
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
    "linear_loss_only",
    "linear_row_stats",
    "linear_target_logits",
    "logsumexp_gradient",
    "loss",
    "loss_gradient",
    "place",
    "renyi_entropy",
    "row_stats",
    "soft_cross_entropy",
    "temperature_grid",
    "top_k_kl_divergence",
]

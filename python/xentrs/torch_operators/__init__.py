"""The functions of tensors as operators of torch, with gradients. Imported only after the caller has imported torch.

`define.py` makes operators; the other files have one for each function, named after what they take. Importing this
package registers all of them, which a process that loads an exported program needs.
"""

from xentrs.torch_operators import heads, pairs, rows, statistics

__all__ = ["heads", "pairs", "rows", "statistics"]

"""Random permutations and numbers that are the same bits everywhere.

In: a seed. Out: arrays of draws. numpy promises the raw stream of PCG64, but not what the methods of a `Generator` make
of it (NEP 19), so all of it is made here from raw 64-bit words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xentrs.detect.checked_inputs import FloatColumn, IntColumn, count_of


class Draws:
    """A stream of draws; `stream` tells uses of one seed apart."""

    def __init__(self, seed: int, stream: int = 0) -> None:
        """Start at the beginning of the stream.

        Raises:
            DTypeError, ParamError: the seed is no integer of at least 0.
        """
        self._generator = np.random.PCG64(np.random.SeedSequence([count_of(seed, "seed", 0), stream]))

    def permutations(self, count: int, length: int) -> npt.NDArray[np.intp]:
        """Permutations of `range(length)`, each equally likely, `(count, length)`: the order of random words, of which
        two are equal with probability length^2 / 2^65.
        """
        words = self._generator.random_raw(count * length).reshape(count, length)
        return np.argsort(words, axis=1, kind="stable")

    def integers(self, count: int, end: int) -> IntColumn:
        """Integers in `[0, end)`: the upper halves of the words, scaled; off from uniform by less than end / 2^32."""
        words = self._generator.random_raw(count) >> np.uint64(32)
        integers: IntColumn = (words * np.uint64(end) >> np.uint64(32)).astype(np.int64)
        return integers

    def uniforms(self, count: int) -> FloatColumn:
        """Numbers in (0, 1], multiples of 2^-53."""
        upper = (self._generator.random_raw(count) >> np.uint64(11)) + np.uint64(1)
        uniforms: FloatColumn = upper.astype(np.float64) * 2.0**-53
        return uniforms

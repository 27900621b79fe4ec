"""Golden rows: the statistics of 2,000 rows to 50 digits, of which `rows.csv` keeps 25.

    python tests/golden/make.py            # writes rows.csv (half a minute)
    python tests/golden/make.py --check    # computes a sample again and compares

The recipe. A row follows from its number alone, by whole numbers only, so that Python here and Rust in
`tests/golden.rs` make the same bits. Every logit is q * 2^unit with |q| < 2^bits, bits being those of the significand:
so each is exact in the row's dtype. Divisions round down, x >> n too.

- `next()` is splitmix64, whose state starts at number * 2^32; `below(n)` is `next() % n`. Draws are made in the order
  in which they are written here, columns in ascending order.
- dtype = DTYPES[number % 4]; kind = KINDS[number / 4 % 10]; vocab = VOCABS[number / 40 % 20], past the list's end
  2 + below(2^(1 + below(12))).
- `wave()` is (next() >> (65 - bits)) + (next() >> (65 - bits)) - 2^(bits - 1), at least -2^(bits - 1) and below
  2^(bits - 1). `width` is below(18) - 10 where it is drawn; then unit = width + 1 - bits: waves between -2^width and
  2^width.
- The kinds draw, each row what comes before the colon, then each column what follows it:
  spread: width: wave.
  constant: width, q = wave: q.
  peak, unit 8 - bits: column = below(vocab), p = (40 + below(31)) * 2^(bits - 8): wave >> 6; then p replaces the
      column's q. So the peak is 40 to 70 and the others lie around 0, between -2 and 2.
  tie: width, a = below(vocab), b = (a + 1 + below(max(vocab - 1, 1))) mod vocab: wave; then 2^(bits - 1), which is
      above all waves, replaces q of columns a and b.
  offset, unit and offset by dtype: sign = below(2): offset * 2^-unit + below(16 * 2^-unit), negated if sign is 1.
  masked: width 3, column = below(vocab), odds = (2, 8, 64)[below(3)]: q = wave, m = below(odds); minus infinity
      if m is not 0 and this is not the column kept.
  tail: nothing: q = -(next() >> (64 - bits)), unit = below(17) - 3 - bits. Down to -8192.
  odd: width, q = wave, other = wave, column = below(vocab): q, but other in the column.
  steps, unit -3: low = 64 + below(192): -low * below(2). Two levels, 8 to 32 apart.
  geometric: nothing: q = next() >> (64 - bits), unit = below(18) - 12 - bits, negated if below(2) is 1.
- target: mode = below(3). 0: first column of the largest logit. 1: below(vocab), or the next column (cyclic) that is
  not minus infinity. 2: first column of the smallest logit that is not minus infinity.
- checksum: 0xcbf29ce484222325, then for each column c = (checksum ^ bits of the float64) * 0x100000001b3 modulo 2^64
  and checksum = c ^ (c >> 32), as narrow dtypes leave the lower bits empty.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mpmath import mp, mpf, nstr

ROWS: Final = 2_000
CSV: Final = Path(__file__).with_name("rows.csv")
DTYPES: Final = ("float32", "float64", "float16", "bfloat16")
BITS: Final = (24, 53, 11, 8)
OFFSETS: Final = ((10_000, -10), (1_000_000, -33), (700, -1), (160, 0))
"""By dtype, the offset and the unit of the kind `offset`: the dtype's own distance between neighbours there."""
KINDS: Final = ("spread", "constant", "peak", "tie", "offset", "masked", "tail", "odd", "steps", "geometric")
VOCABS: Final = (1, 2, 3, 15, 16, 17, 31, 33, 255, 256, 257, 1000, 4095, 4096, 4097)
QUANTITIES: Final = ("lse", "nll", "entropy", "varentropy", "sum_sq_prob", "max_log_prob")
HEADER: Final = ("row", "dtype", "vocab", "kind", "target", "checksum", *QUANTITIES)
DIGITS_KEPT: Final = 25
# Ten more than the 50 that are promised, for the rounding of sums over 4,097 columns.
mp.dps = 60

WORD: Final = (1 << 64) - 1
Column = tuple[int, int] | None
"""q and unit of one logit; None is minus infinity."""


@dataclass(frozen=True)
class GoldenRow:
    """What the recipe gives for a number."""

    dtype: str
    kind: str
    logits: list[float]
    target: int


class Recipe:
    """The draws of one row, in the order of the recipe."""

    def __init__(self, number: int) -> None:
        self.state = number << 32
        self.number = number
        self.bits = BITS[number % 4]

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & WORD
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
        z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
        return z ^ z >> 31

    def below(self, limit: int) -> int:
        return self.next() % limit

    def wave(self) -> int:
        return (self.next() >> (65 - self.bits)) + (self.next() >> (65 - self.bits)) - (1 << (self.bits - 1))

    def unit_of_width(self) -> int:
        return self.below(18) - 10 + 1 - self.bits

    def vocab(self) -> int:
        place = self.number // 40 % 20
        return VOCABS[place] if place < len(VOCABS) else 2 + self.below(1 << (1 + self.below(12)))

    def spread(self, vocab: int) -> Iterator[Column]:
        unit = self.unit_of_width()
        return ((self.wave(), unit) for _ in range(vocab))

    def constant(self, vocab: int) -> Iterator[Column]:
        unit, q = self.unit_of_width(), self.wave()
        return ((q, unit) for _ in range(vocab))

    def peak(self, vocab: int) -> Iterator[Column]:
        column, peak = self.below(vocab), (40 + self.below(31)) << (self.bits - 8)
        waves = (self.wave() >> 6 for _ in range(vocab))
        return ((peak if i == column else q, 8 - self.bits) for i, q in enumerate(waves))

    def tie(self, vocab: int) -> Iterator[Column]:
        unit, first = self.unit_of_width(), self.below(vocab)
        second = (first + 1 + self.below(max(vocab - 1, 1))) % vocab
        waves = (self.wave() for _ in range(vocab))
        return ((1 << (self.bits - 1) if i in (first, second) else q, unit) for i, q in enumerate(waves))

    def offset(self, vocab: int) -> Iterator[Column]:
        offset, unit = OFFSETS[self.number % 4]
        sign = 1 - 2 * self.below(2)
        return ((sign * ((offset << -unit) + self.below(16 << -unit)), unit) for _ in range(vocab))

    def masked(self, vocab: int) -> Iterator[Column]:
        kept, odds = self.below(vocab), (2, 8, 64)[self.below(3)]
        draws = ((self.wave(), self.below(odds)) for _ in range(vocab))
        return ((q, 4 - self.bits) if mask == 0 or i == kept else None for i, (q, mask) in enumerate(draws))

    def tail(self, vocab: int) -> Iterator[Column]:
        return ((-(self.next() >> (64 - self.bits)), self.below(17) - 3 - self.bits) for _ in range(vocab))

    def odd(self, vocab: int) -> Iterator[Column]:
        unit, q, other, column = self.unit_of_width(), self.wave(), self.wave(), self.below(vocab)
        return ((other if i == column else q, unit) for i in range(vocab))

    def steps(self, vocab: int) -> Iterator[Column]:
        low = 64 + self.below(192)
        return ((-low * self.below(2), -3) for _ in range(vocab))

    def geometric(self, vocab: int) -> Iterator[Column]:
        for _ in range(vocab):
            q, unit = self.next() >> (64 - self.bits), self.below(18) - 12 - self.bits
            yield (-q if self.below(2) == 1 else q), unit

    def target(self, logits: Sequence[float]) -> int:
        mode = self.below(3)
        if mode == 0:
            return logits.index(max(logits))
        if mode == 1:
            column = self.below(len(logits))
            while logits[column] == -math.inf:
                column = (column + 1) % len(logits)
            return column
        return logits.index(min(logit for logit in logits if logit > -math.inf))


def golden_row(number: int) -> GoldenRow:
    """Makes the row of a number.

    Args:
        number: from 0 to 1,999.

    Returns:
        The row; its logits are exact in its dtype.
    """
    recipe = Recipe(number)
    kind = KINDS[number // 4 % 10]
    columns: Iterator[Column] = getattr(recipe, kind)(recipe.vocab())
    # A zero has no sign here: -0 is 0 as a whole number.
    logits = [-math.inf if column is None else math.ldexp(*column) for column in columns]
    return GoldenRow(DTYPES[number % 4], kind, logits, recipe.target(logits))


def checksum(logits: Sequence[float]) -> str:
    """The recipe's checksum of a row, in 16 hexadecimal digits."""
    value = 0xCBF29CE484222325
    for bits in struct.unpack(f"<{len(logits)}Q", struct.pack(f"<{len(logits)}d", *logits)):
        value = (value ^ bits) * 0x100000001B3 & WORD
        value ^= value >> 32
    return f"{value:016x}"


def statistics(logits: Sequence[float], target: int) -> dict[str, Any]:
    """Computes the quantities of a row by their definition, with 60 digits.

    Args:
        logits: one row; minus infinity is probability 0.
        target: a column whose logit is not minus infinity.

    Returns:
        An mpf for each of `QUANTITIES`.
    """
    largest = mpf(max(logits))
    counts = Counter(logit for logit in logits if logit > -math.inf)
    # The gap to the largest, how often, e to its negative: once for each different logit.
    terms = [(gap, count, mp.exp(-gap)) for logit, count in counts.items() for gap in [largest - mpf(logit)]]
    # One of the largest is left out of the sum, so that ln(1 + rest) keeps the digits of a small rest.
    rest = mp.fsum((count - (gap == 0)) * weight for gap, count, weight in terms)
    mass, log_mass = 1 + rest, mp.log1p(rest)
    mean = mp.fsum(count * gap * weight for gap, count, weight in terms) / mass
    return {
        "lse": largest + log_mass,
        "nll": (largest - mpf(logits[target])) + log_mass,
        "entropy": log_mass + mean,
        "varentropy": mp.fsum(count * (gap - mean) ** 2 * weight for gap, count, weight in terms) / mass,
        "sum_sq_prob": mp.fsum(count * weight**2 for _, count, weight in terms) / mass**2,
        "max_log_prob": -log_mass,
    }


def golden_line(number: int) -> list[str]:
    """The fields of a row's line in the CSV, as `HEADER` names them."""
    row = golden_row(number)
    values = statistics(row.logits, row.target)
    place = [str(number), row.dtype, str(len(row.logits)), row.kind, str(row.target), checksum(row.logits)]
    return place + [nstr(values[name], DIGITS_KEPT) for name in QUANTITIES]


def check(numbers: Sequence[int]) -> list[int]:
    """Computes rows again.

    Returns:
        The numbers of those whose line in the CSV differs.
    """
    with CSV.open(newline="") as file:
        lines = list(csv.reader(file))[1:]
    return [number for number in numbers if lines[number] != golden_line(number)]


def main() -> int:
    """Writes or checks the CSV."""
    parser = argparse.ArgumentParser(description="Golden rows: writes rows.csv.")
    parser.add_argument("--check", action="store_true", help="compute every 37th row again and compare")
    if parser.parse_args().check:
        numbers = range(0, ROWS, 37)
        different = check(numbers)
        print(f"{len(numbers) - len(different)} of {len(numbers)} rows agree; different: {different}")
        return int(bool(different))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(golden_line(number) for number in range(ROWS))
    CSV.write_bytes(text.getvalue().encode())
    print(f"{CSV.name}: {ROWS} rows, {CSV.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

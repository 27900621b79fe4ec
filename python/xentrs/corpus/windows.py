"""How a document is cut into windows, so that every token is predicted exactly once.

In: the length of a document's sequence (prefix token, if any, then its tokens), window and stride. Out:
`Window` entries.

Let s[0..m) be the sequence. A window of `window` inputs s[start .. start+input_count) predicts the tokens one
further, s[start+1 .. start+input_count]. Window 0 starts at 0 and all its predictions count. Window w starts
at w * stride; only predictions that no earlier window made count, the last `stride` of a full window, so its
first counted prediction sees `window - stride` tokens of context besides its own input. With stride = window
this is the rolling rule of the LM harness: the first prediction of a later window sees the last token of the
window before, and no more. s[0] is never predicted: it is the prefix, which conditions and is not scored, or
without one the document's first token, which stays unscored.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Inputs `start .. start + input_count` of a sequence; predictions before `scored_from` do not count."""

    start: int
    input_count: int
    scored_from: int

    @property
    def scored_count(self) -> int:
        return self.input_count - self.scored_from


def plan_windows(sequence_length: int, window: int, stride: int) -> list[Window]:
    """Windows whose counted predictions are s[1] ... s[sequence_length - 1], each once and in order."""
    if not 1 <= stride <= window:
        raise ValueError(f"stride = {stride} is outside [1, window = {window}]")
    input_total = sequence_length - 1  # the last token is only ever a target
    windows: list[Window] = []
    predicted = 0
    start = 0
    while predicted < input_total:
        end = min(start + window, input_total)
        windows.append(Window(start, end - start, predicted - start))
        predicted = end
        start += stride
    assert sum(entry.scored_count for entry in windows) == max(input_total, 0)
    return windows

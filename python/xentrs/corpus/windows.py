"""How a document is cut into windows, so that no token is predicted twice and it is known which are not.

In: how many tokens a document has, and the rule. Out: `Window` entries.

A window has at most `window` inputs: the prefix token, where it stands there, and a run of tokens; each input predicts
the token behind it. What an earlier window predicted counts there only. The rules:

- `rolling`: window k starts k * stride further; only the last `stride` predictions of a full window are new, each with
  `window - stride` tokens of context besides its own input. The prefix stands before the document or, with
  `prefix_every = "window"`, before every window.
- `backfilled`: the same, but the last window is moved back until it is full (LM harness, get_rolling_token_windows and
  make_disjoint_window, with stride = window).
- `inside`: a window holds the tokens it predicts, so it has one input less, and no window predicts its own first token
  (the transformers recipe, docs/source/en/perplexity.md). Without a prefix.
- `halves`: windows do not overlap, only predictions from the middle of a window on count, tokens behind the last full
  window are left out, documents shorter than two windows too; the prefix stands in the place of a window's first token
  (llama.cpp, tools/perplexity).

Without a prefix a document's first token is never predicted. A document of which only some tokens are wanted (a pair, a
chat) has windows for these: where they fit into one window with what stands before, it ends with the document and
reaches back as far as it can; windows that predict nothing wanted are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Rule = Literal["rolling", "backfilled", "inside", "halves"]


@dataclass(frozen=True)
class Window:
    """Inputs: the prefix if `prefixed`, then tokens from `start` on, `input_count` in all. Input j predicts token
    `first_target + j`; predictions before `scored_from` do not count.
    """

    start: int
    input_count: int
    scored_from: int = 0
    prefixed: bool = False

    @property
    def scored_count(self) -> int:
        return self.input_count - self.scored_from

    @property
    def first_target(self) -> int:
        return self.start + (not self.prefixed)

    def scoring_from(self, prediction: int) -> Window:
        """The same window, of which at most the predictions from that one on count."""
        return self if prediction <= self.scored_from else replace(self, scored_from=prediction)

    @property
    def end(self) -> int:
        """Behind the last token that is predicted."""
        return self.first_target + self.input_count


@dataclass(frozen=True)
class Windowing:
    """The rule and its sizes; the part of a protocol that says what conditions what."""

    window: int
    stride: int
    rule: Rule = "rolling"
    prefix_every: Literal["document", "window"] = "document"

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"stride = {self.stride} is outside [1, window = {self.window}]")


def plan_windows(token_count: int, windowing: Windowing, has_prefix: bool, first_wanted: int = 0) -> list[Window]:
    """Windows of a document, in order; `first_wanted`: nothing before that token has to be predicted."""
    if windowing.rule == "halves":
        return list(_halves(token_count, windowing.window, has_prefix))
    if windowing.rule == "inside":
        return list(_inside(token_count, windowing))
    if has_prefix and windowing.prefix_every == "window":
        planned = list(_each_prefixed(token_count, windowing))
    else:
        planned = list(_overlapping(token_count, windowing, int(has_prefix)))
    if first_wanted and len(planned) > 1 and token_count - first_wanted <= windowing.window:
        prefixed = has_prefix and windowing.prefix_every == "window"
        last = Window(token_count - windowing.window - (not prefixed), windowing.window, prefixed=prefixed)
        return [replace(last, scored_from=first_wanted - last.first_target)]
    return [entry for entry in planned if entry.end > first_wanted]


def _overlapping(token_count: int, windowing: Windowing, prefix_count: int) -> Iterator[Window]:
    """`rolling` and `backfilled`: over the prefix, if any, and the tokens as one sequence."""
    input_total = token_count + prefix_count - 1  # the last token is only ever a target
    predicted = start = 0
    while predicted < input_total:
        end = min(start + windowing.window, input_total)
        if windowing.rule == "backfilled":
            start = max(end - windowing.window, 0)
        prefixed = start == 0 and prefix_count > 0
        yield Window(max(start - prefix_count, 0), end - start, predicted - start, prefixed)
        predicted = end
        start += windowing.stride


def _each_prefixed(token_count: int, windowing: Windowing) -> Iterator[Window]:
    predicted = start = 0
    while predicted < token_count:
        end = min(start + windowing.window, token_count)
        yield Window(start, end - start, predicted - start, True)
        predicted = end
        start += windowing.stride


def _inside(token_count: int, windowing: Windowing) -> Iterator[Window]:
    covered = start = 0
    while covered < token_count:
        end = min(start + windowing.window, token_count)
        scored_from = max(covered - start - 1, 0)
        if end - start > 1 and scored_from < end - start - 1:
            yield Window(start, end - start - 1, scored_from)
        covered = end
        start += windowing.stride


def _halves(token_count: int, window: int, has_prefix: bool) -> Iterator[Window]:
    sequence_length = token_count + has_prefix
    if sequence_length < 2 * window:
        return
    for number in range(sequence_length // window):
        # With a prefix the sequence begins with it, so the second place of a window holds token number * window.
        yield Window(number * window, window - 1, window // 2, has_prefix)

"""Log-probabilities for the order test, from items and a model.

In: items in their published order, as texts or token ids, a runner. Out: `OrderScores`: the log-probability of each
shard in each order. Orders are documents of the ordinary path: many in a batch, a shard longer than the window in
windows, one part in memory.

Every order counts the same tokens. A text that is tokenised as a whole has other tokens where items meet, so that
orders would differ in what they count. Here each item and the separator are tokenised by themselves and their ids put
one behind the other. Where no prefix stands before a shard, a separator does, which only conditions: else the first
token of whichever item comes first would have no score.

The orders of a shard are scored in an order drawn at random: what rounding does by the place in a batch then favours no
order, and the permutation test stays exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xentrs.corpus.ahead import AheadReader
from xentrs.corpus.documents import Cursor, Rejected, reader_of
from xentrs.corpus.encoding import EncodedDocument, TextSize
from xentrs.corpus.parts import Part, PartReader
from xentrs.corpus.run import Listener, Silent
from xentrs.corpus.score import score_part
from xentrs.corpus.settings import PART_TOKENS, Columns, Settings, resolve_settings
from xentrs.corpus.sources import Source
from xentrs.detect.benchmark_order import shard_orders
from xentrs.detect.checked_inputs import FloatColumn, IntColumn
from xentrs.detect.random_draws import Draws
from xentrs.errors import DTypeError, ParamError
from xentrs.models import EncodedText, Runner, SplitRunner, as_split_runner

SEPARATOR = "\n\n"
_SCORING_ORDER = 5  # stream
_RULES = ("rolling", "backfilled")  # those that score every token of a document


@dataclass(frozen=True, eq=False)
class OrderPlan:
    """What is to be scored: plain data."""

    items: tuple[IntColumn, ...]
    """Token ids of each item, in the published order."""
    separator: IntColumn
    """Token ids between two items."""
    shards: int
    shuffles: int
    seed: int
    leads: bool
    """Whether a separator stands before each shard, which only conditions."""

    @property
    def token_count(self) -> int:
        """Tokens that are scored, those of all orders."""
        separators = (len(self.items) - self.shards) * len(self.separator)
        return (1 + self.shuffles) * (sum(map(len, self.items)) + separators)

    @property
    def empty_items(self) -> int:
        """Items without a token."""
        return sum(len(item) == 0 for item in self.items)


@dataclass(frozen=True, eq=False)
class OrderScores:
    """What `order_test` takes, and how it came about."""

    log_probs: FloatColumn
    """`(shards, 1 + shuffles)`, the published order first, in nats."""
    token_counts: tuple[int, ...]
    """Tokens that each order of a shard counts."""
    windowed_shards: int
    """Shards longer than the window: an item there does not see all that stands before it."""

    def block(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {"log_probs": self.log_probs.tolist(), "token_counts": list(self.token_counts)}

    def __repr__(self) -> str:
        """Says sizes."""
        shards, orders = self.log_probs.shape
        return f"OrderScores({shards} shards in {orders} orders, {sum(self.token_counts):,} tokens in each)"


def score_orders(
    runner: Runner | SplitRunner,
    items: Sequence[str | Any],
    *,
    separator: str | Any = SEPARATOR,
    shards: int = 50,
    shuffles: int = 50,
    seed: int = 0,
    settings: Settings | None = None,
    listener: Listener | None = None,
) -> OrderScores:
    """Score the published order of `items` and shuffles of each shard.

    Items and separator are texts or token ids. `settings` are those of `resolve_settings`; without them the defaults
    of `xentrs score`.

    Raises:
        ParamError: fewer than two items for each shard; neither a separator nor a prefix; a protocol that does not
            score every token; an id outside the vocabulary.
        ModelError: the runner is none.

    >>> class Uniform:
    ...     def encode(self, texts):
    ...         return [list(text.encode()) for text in texts]
    ...
    ...     def logits(self, input_ids):
    ...         return np.zeros((*input_ids.shape, 256), dtype=np.float32)
    >>> scores = score_orders(Uniform(), ["one", "two", "three", "four"], shards=2, shuffles=3)
    >>> scores
    OrderScores(2 shards in 4 orders, 19 tokens in each)
    >>> round(float(scores.log_probs[0, 0] / np.log(256)), 6)
    -8.0
    """
    split = as_split_runner(runner)
    split.prepare()
    settings = resolve_settings(split) if settings is None else settings
    plan = plan_orders(split, items, settings, separator=separator, shards=shards, shuffles=shuffles, seed=seed)
    return run_orders(plan, split, settings, Silent() if listener is None else listener)


def read_items_ids(
    runner: SplitRunner, sources: Sequence[Source], settings: Settings
) -> tuple[list[IntColumn], list[Rejected]]:
    """The tokens of every record in order: a text, a pair with its context, a chat as the template writes it; and
    records that could not be read.
    """
    items: list[IntColumn] = []
    rejected: list[Rejected] = []
    reader = PartReader(reader_of(sources, settings.reading), runner.encoder, runner.info.vocab_size, PART_TOKENS)
    with AheadReader(reader) as ahead:
        while (part := ahead.next_part()) is not None:
            items += [document.encoded.token_ids for document in part.documents]
            rejected += part.rejected
    return items, rejected


def plan_orders(
    runner: SplitRunner,
    items: Sequence[str | Any],
    settings: Settings,
    *,
    separator: str | Any = SEPARATOR,
    shards: int = 50,
    shuffles: int = 50,
    seed: int = 0,
) -> OrderPlan:
    """Tokenise, and check everything before anything is scored; arguments and errors are those of `score_orders`."""
    shard_orders(len(items), shards=shards, shuffles=shuffles, seed=seed)
    *item_ids, separator_ids = _token_ids([*items, separator], runner)
    has_prefix = settings.prefix.token_id is not None
    if not has_prefix and len(separator_ids) == 0:
        raise ParamError(
            "the separator has no tokens and there is no prefix, expected one of them: without either the first token "
            "of an order has no score, and orders count different tokens"
        )
    if settings.windowing.rule not in _RULES:
        raise ParamError(f"protocol {settings.protocol} does not score every token: orders would count different ones")
    return OrderPlan(tuple(item_ids), separator_ids, shards, shuffles, seed, leads=not has_prefix)


def run_orders(plan: OrderPlan, runner: SplitRunner, settings: Settings, listener: Listener) -> OrderScores:
    """Score all orders of a plan."""
    settings = replace(settings, columns=Columns("none"), keep_text=False)
    log_probs = np.empty((plan.shards, 1 + plan.shuffles))
    token_counts = np.zeros(plan.shards, dtype=np.int64)
    windowed: set[int] = set()
    done = 0
    for part in _parts(plan, settings.part_tokens):
        listener.part_started(done, part.row_count, part.row_count)
        found = score_part(part, runner, settings, listener.tokens_scored).documents
        for document, nll_sum, scored_count in zip(
            part.documents, found["nll_sum"], found["scored_count"], strict=True
        ):
            assert scored_count == len(document.wanted), "the rules checked before score every token"
            row, column = divmod(document.number, 1 + plan.shuffles)
            log_probs[row, column] = -nll_sum
            token_counts[row] = scored_count
            if len(document.encoded.token_ids) - plan.leads > settings.windowing.window:
                windowed.add(row)
        done += part.row_count
        listener.part_finished(done)
    return OrderScores(log_probs, tuple(token_counts.tolist()), len(windowed))


def _parts(plan: OrderPlan, part_tokens: int) -> Iterator[Part]:
    """All orders as documents, in parts of so many tokens or one order."""
    number, waiting = 0, Part(0, Cursor(), Cursor())
    for document in _documents(plan):
        waiting.documents.append(document)
        waiting.token_count += len(document.encoded.token_ids)
        if waiting.token_count >= part_tokens:
            yield waiting
            number += 1
            waiting = Part(number, Cursor(), Cursor())
    if waiting.documents:
        yield waiting


def _documents(plan: OrderPlan) -> Iterator[EncodedDocument]:
    """`number` is shard * (1 + shuffles) + order."""
    columns = 1 + plan.shuffles
    draws = Draws(plan.seed, _SCORING_ORDER)
    shards = shard_orders(len(plan.items), shards=plan.shards, shuffles=plan.shuffles, seed=plan.seed)
    for row, orders in enumerate(shards):
        for column in draws.permutations(1, columns)[0].tolist():
            yield _document(plan, row * columns + column, orders[column].tolist())


def _document(plan: OrderPlan, number: int, order: Sequence[int]) -> EncodedDocument:
    separator = plan.separator
    pieces = [piece for place in order for piece in (separator, plan.items[place])]
    ids = np.concatenate(pieces if plan.leads else pieces[1:])
    lead = len(separator) if plan.leads else 0
    wanted = np.arange(lead, len(ids), dtype=np.int64)
    zeros = np.zeros(len(ids), dtype=np.int64)
    sizes = (zeros[lead:],) * 3
    return EncodedDocument(number, str(number), "", EncodedText(ids, zeros, zeros, 0), wanted, TextSize(0, 0, 0), sizes)


def _token_ids(items: Sequence[Any], runner: SplitRunner) -> list[IntColumn]:
    """Texts encoded, each by itself; ids checked."""
    encoded = iter(runner.encoder.encode([item for item in items if isinstance(item, str)]))
    found = [next(encoded).token_ids if isinstance(item, str) else np.asarray(item) for item in items]
    for place, ids in enumerate(found):
        name = "separator" if place == len(items) - 1 else f"items[{place}]"
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise DTypeError(f"{name} is {ids.dtype} of shape {ids.shape}, expected a text or token ids")
        wrong = ids[(ids < 0) | (ids >= runner.info.vocab_size)] if ids.size else ids
        if len(wrong):
            raise ParamError(f"{name} has the id {wrong[0]}, outside [0, {runner.info.vocab_size})")
    return [np.ascontiguousarray(ids, dtype=np.int64) for ids in found]

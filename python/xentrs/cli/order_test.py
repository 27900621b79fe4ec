"""`xentrs order-test`: was a benchmark in the training data, in the order in which it was published?

In: a benchmark and a model. Out: p-values and what they prove on stdout, or one JSON object; the same in a file.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import rich_click as click

from xentrs.cli.exit_codes import DONE, QUARANTINED
from xentrs.cli.extras import require, require_model
from xentrs.cli.results import check_output_file, say_rejected, show_page
from xentrs.cli.score import DEFAULT_MODEL_LINE, prepare
from xentrs.cli.score_options import (
    POSITIVE,
    ModelOptions,
    ProtocolOptions,
    make_reading,
    model_options,
    open_inputs,
    protocol_options,
    record_options,
    take,
    take_records,
)

MEANING = (
    "A small p-value says that the model prefers the published order to shuffles of it. That is evidence of training "
    "on the benchmark in this order if the items could stand in any order as well: none sorted by topic or date, none "
    "that refer to others.",
    "A large p-value does not show that the items were not trained on: they may have been seen scattered or shuffled.",
)
_TELLING = 0.01


@dataclass(frozen=True)
class OrderOptions:
    """How the test is made, and where its result goes."""

    shards: int
    shuffles: int
    permutations: int
    seed: int
    separator: str
    output: str | None
    as_json: bool
    quiet: bool


@click.command(name="order-test")
@click.argument("inputs", nargs=-1, required=True, metavar="BENCHMARK...")
@click.option("--shards", type=click.IntRange(min=2), default=50, show_default=True, help="Runs of items, one test.")
@click.option("--shuffles", type=POSITIVE, default=50, show_default=True, help="Of each shard, besides its order.")
@click.option("--permutations", type=POSITIVE, default=9999, show_default=True, help="The smallest p is 1 / (1 + N).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of shuffles and permutations.")
@click.option(
    "--separator", default=r"\n\n", show_default=True, metavar="TEXT", help=r"Between two items; \n and \t are known."
)
@click.option("-o", "--output", metavar="FILE", help="Write the result with all log-probabilities as JSON, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--quiet", is_flag=True, help="Nothing on stderr but errors.")
@model_options
@record_options
@protocol_options
def order_test_command(inputs: tuple[str, ...], **options: Any) -> int:
    """Is the published order of a benchmark more likely than shuffles of it?

    BENCHMARK is read as INPUT of `xentrs score`; its records, in their order, are the items. docs/detection.md says
    what the test needs and proves.
    """
    order, model, protocol = (take(kind, options) for kind in (OrderOptions, ModelOptions, ProtocolOptions))
    reading = take_records(options)
    require_model("order-test", model.model, model.runner)
    require("order-test", ("scipy",))
    check_output_file(order.output)
    from xentrs.corpus.settings import Columns
    from xentrs.detect.order_scoring import plan_orders, read_items_ids, run_orders
    from xentrs.report import Progress

    sources = open_inputs(inputs, reading, make_reading(reading))
    if model.model is None:
        click.echo(DEFAULT_MODEL_LINE, err=True)
    runner, settings = prepare(model, reading, protocol, order.quiet, Columns("none"), False)
    items, rejected = read_items_ids(runner, sources, settings)
    say_rejected(rejected)
    separator = order.separator.replace(r"\n", "\n").replace(r"\t", "\t")
    numbers = {"shards": order.shards, "shuffles": order.shuffles, "seed": order.seed}
    plan = plan_orders(runner, items, settings, separator=separator, **numbers)
    with Progress(plan.token_count, sys.stderr, order.quiet) as progress:
        scores = run_orders(plan, runner, settings, progress)
    page = _page(runner, sources, settings, separator, plan, scores, order) | {"rejected": list(map(vars, rejected))}
    lines = [*_lines(page), *MEANING]
    show_page(page, lines, [] if order.quiet else _notes(page), order.output, order.as_json)
    return QUARANTINED if rejected else DONE


def _page(
    runner: Any, sources: Any, settings: Any, separator: str, plan: Any, scores: Any, options: OrderOptions
) -> dict[str, Any]:
    from xentrs.corpus.settings import protocol_block
    from xentrs.detect.benchmark_order import order_test

    test = order_test(scores.log_probs, permutations=options.permutations, seed=options.seed)
    return {
        "inputs": [source.block() for source in sources],
        "reading": settings.reading.block(),
        "protocol": protocol_block(runner, settings),
        "separator": separator,
        "separator_leads": plan.leads,
        "items": len(plan.items),
        "empty_items": plan.empty_items,
        "tokens": plan.token_count,
        "test": test.block(),
        "meaning": " ".join(MEANING),
        **scores.block(),
    }


def _lines(page: dict[str, Any]) -> list[str]:
    test = page["test"]
    t = "no t: all shards have the same difference" if test["t"] is None else f"t = {test['t']:.4g}"
    return [
        f"items          {page['items']:,} in {test['shards']:,} shards, each in its order and {test['shuffles']:,} "
        f"shuffles, separator {page['separator']!r}",
        f"difference     {test['mean_difference']:+.4g} nats for the published order, mean over the shards",
        f"permutation p  {test['permutation_p_value']:.4g} ({test['permutations']:,} permutations, seed "
        f"{test['seed']})",
        f"t-test p       {test['t_p_value']:.4g} ({t})",
    ]


def _notes(page: dict[str, Any]) -> list[str]:
    window, shards = page["protocol"]["window"], page["test"]["shards"]
    notes = []
    if page["windowed_shards"]:
        notes.append(
            f"{page['windowed_shards']:,} of {shards:,} shards are longer than the window of {window} and scored in "
            "windows: an order shows inside windows only; more --shards are shorter"
        )
    smallest = (1 + page["test"]["shuffles"]) ** -shards
    if smallest > _TELLING:
        notes.append(f"with so few shards and shuffles no permutation p below {smallest:.2g} is possible")
    if page["empty_items"]:
        notes.append(f"{page['empty_items']:,} items have no tokens")
    return notes

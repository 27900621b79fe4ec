"""`xentrs verify`: is a RUN whole, and do its figures follow from its tokens and, with --rescore, from its inputs?

In: a RUN folder, with what `xentrs detect` has left in it. Out: findings on stdout, as lines or one JSON object; exit
code 0 without one, else 1.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from xentrs.cli.exit_codes import DONE, FAILED, USAGE, CommandError
from xentrs.cli.extras import require, require_model

if TYPE_CHECKING:
    from xentrs.runs.open_run import OpenRun
    from xentrs.runs.rescore import Comparison


@click.command(name="verify")
@click.argument("run", metavar="RUN")
@click.option("--rescore", type=click.IntRange(min=1), metavar="K", help="Score K random documents again.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses them.")
@click.option("--model", metavar="NAME", help="Where the model lies now.  [default: as when the RUN was made]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def verify_command(run: str, rescore: int | None, seed: int, model: str | None, as_json: bool) -> int:
    """Check a RUN: files, hashes, counts, sums, totals; the same of its passes in companions/, and whether scores and
    evaluation of `xentrs detect` are of these tokens.

    --rescore scores documents again from the inputs. On the same machine and in the same batch the bits are the same;
    else nll may be off by 1e-3 (relative, absolute below 1 nat; a float16 body 2e-2, bfloat16 1e-1), as the model's
    body adds up in another order for another batch.
    """
    require("verify", ("pyarrow",))
    from xentrs.corpus.json_text import dump_page
    from xentrs.detect.verification import verify_detection
    from xentrs.runs.verification import verify_run

    findings, parts = verify_run(Path(run))
    found, passes = verify_detection(Path(run))
    findings += found
    # Scores of a RUN that is not what was written prove nothing.
    comparison = _rescored(Path(run), rescore, seed, model) if rescore is not None and not findings else None
    passed = not findings and (comparison is None or comparison.passed)
    if as_json:
        page: dict[str, Any] = {"passed": passed, "parts": parts, "passes": passes}
        page["findings"] = [asdict(found) for found in findings]
        page["rescore"] = None if comparison is None else {"passed": comparison.passed, **asdict(comparison)}
        click.echo(dump_page(page).decode("utf-8"), nl=False)
    else:
        lines = [f"{found.file}: {found.message}" for found in findings]
        lines += [] if comparison is None else _comparison_lines(comparison)
        verdict = f"{run}: {parts:,} parts verified" if passed else f"{run}: not verified"
        also = "".join(f", {count:,} of {name}" for name, count in passes.items()) if passed else ""
        click.echo("\n".join(_printable([*lines, verdict + also])))
    return DONE if passed else FAILED


def _printable(lines: list[str]) -> list[str]:
    from xentrs.report.terminal import printable

    return [printable(line) for line in lines]


def _rescored(path: Path, count: int, seed: int, model: str | None) -> Comparison:
    from xentrs.runs.open_run import OpenRun
    from xentrs.runs.rescore import choose_documents, compare

    run = OpenRun(path)
    if run.protocol["model_sha256"] is None:
        raise CommandError(f"{path}: was made from stored tensors, there is no model to score it again with", USAGE)
    run.require_columns(["nll"])
    chosen = choose_documents(run, count, seed)
    if not chosen:
        raise CommandError(f"{path}: has no scored document to score again", USAGE)
    require_model("verify --rescore", model or run.protocol["model"], run.protocol.get("runner"))
    return compare(run, _runner(run, model), chosen)


def _runner(run: OpenRun, model: str | None) -> Any:
    """The model of the RUN, loaded and checked to be it."""
    from xentrs.cli.score_options import ModelOptions, load_runner

    protocol = run.protocol
    name = model or protocol["model"]
    revision = protocol["model_revision"] if model is None else None
    options = ModelOptions(name, revision, protocol["dtype"], protocol["device"], protocol.get("runner"), None)
    runner = load_runner(options)
    for what, found in (("model", runner.info.sha256), ("tokenizer", runner.encoder.sha256)):
        if (expected := protocol[f"{what}_sha256"]) != found:
            raise CommandError(f"{what} of {name} is not that of {run.path}: {found}, expected {expected}", USAGE)
    return runner


def _comparison_lines(comparison: Comparison) -> list[str]:
    lines = [f"{identifier}: has other tokens now" for identifier in comparison.other_tokens]
    lines.append(
        f"scored again: {comparison.documents:,} documents, {comparison.tokens:,} tokens, "
        f"{comparison.equal_tokens:,} with equal bits"
    )
    if comparison.largest_at is None:
        return lines
    relation = "within" if comparison.largest <= comparison.tolerance else "beyond"
    return [
        *lines,
        f"largest difference {comparison.largest:.3g}, {relation} the tolerance {comparison.tolerance:g}: "
        f"{comparison.largest_at}",
    ]

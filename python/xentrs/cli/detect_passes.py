"""What `xentrs detect` has to run before it can make scores: the model, and what scores need besides.

In: what the user typed. Out: the folder of a finished RUN, its companions, an exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xentrs.cli.exit_codes import DONE, QUARANTINED, USAGE, CommandError
from xentrs.cli.extras import require_model
from xentrs.cli.score import DEFAULT_MODEL_LINE, prepare
from xentrs.cli.score_options import (
    ModelOptions,
    ProtocolOptions,
    ReadingOptions,
    load_runner,
    make_reading,
    open_inputs,
    parse_numbers,
)

if TYPE_CHECKING:
    from xentrs.cli.detect import DetectOptions

_Given = tuple[ModelOptions, ReadingOptions, ProtocolOptions]


def make_run(
    inputs: Iterable[str], options: DetectOptions, given: _Given, names: list[str], frequencies: Any
) -> tuple[Path, dict[str, Any], int]:
    """Check everything that can be checked before, then score."""
    from xentrs.detect.passes import Passes, run_passes
    from xentrs.detect.pipeline import wanted_needs
    from xentrs.detect.records import check_records, read_shots, shots_text

    model, reading, protocol = given
    require_model("detect", model.model, model.runner)
    if options.output is None:
        raise CommandError("detect needs -o RUN: a folder for tokens and scores", USAGE)
    _check_shots(options, reading)
    _require_options(options, names)
    named, grouped = wanted_needs(names)
    columns = _columns(options, named)
    reading = _with_label(reading, options.label_key)
    known = make_reading(reading)
    sources = open_inputs(inputs, reading, known)
    shots = [_shots(path, reading, read_shots) for path in (options.shots, options.member_shots)]
    check_records(sources, known, options.label_key, [text for texts in shots for text in texts or ()])
    if model.model is None:
        click.echo(DEFAULT_MODEL_LINE, err=True)
    # Texts of a pipe and of chats are not to be had again.
    keep_text = options.keep_text or reading.messages_key is not None or any(source.name == "-" for source in sources)
    runner, settings = prepare(model, reading, protocol, options.quiet, columns, keep_text)
    if frequencies is not None:
        frequencies.require_tokenizer(runner.encoder.sha256)
    reference, reference_settings = _reference(options, given, runner, settings, named)
    before = [None if texts is None else shots_text(texts) for texts in shots]
    passes = Passes("lowercase" in named | grouped, before[0], before[1], reference, reference_settings)

    folder = Path(options.output)
    result, companions = run_passes(runner, sources, settings, folder, passes, _listening(options.quiet))
    return folder, companions, _exit_code(result.summary["totals"], folder)


def _listening(quiet: bool) -> Callable[[str, Any], AbstractContextManager[Any]]:
    """What shows how far a pass is."""
    from xentrs.report import Progress

    @contextmanager
    def listening(name: str, job: Any) -> Iterator[Any]:
        if not quiet:
            click.echo(f"pass: {name}", err=True)
        with Progress(sum(job.byte_counts), sys.stderr, quiet) as progress:
            yield progress

    return listening


def _require_options(options: DetectOptions, names: list[str]) -> None:
    """What scores asked for by name need; the rest a pass gives."""
    from xentrs.detect.pipeline import CROSS, require_needs

    held = {"zlib_byte_count", "lowercase", "tempered"}
    given = {"frequencies": "frequencies", "shots": "nonmember_shots", "member_shots": "member_shots"}
    held |= {need for option, need in given.items() if getattr(options, option) is not None}
    require_needs(names, held | ({"reference", *CROSS} if options.reference is not None else set()))


def _columns(options: DetectOptions, named: set[str]) -> Any:
    from xentrs.corpus.settings import Columns
    from xentrs.detect import ACMIA_INVERSE_TEMPERATURES

    if options.inverse_temperatures is None:
        return Columns("detect", ACMIA_INVERSE_TEMPERATURES if "tempered" in named else ())
    temperatures = parse_numbers(options.inverse_temperatures, "--inverse-temperatures")
    if "mean_beta_1" in named and 1.0 not in temperatures:
        raise CommandError("score acmia-norm needs 1 among --inverse-temperatures", USAGE)
    return Columns("detect", temperatures)


def _with_label(reading: ReadingOptions, label_key: str | None) -> ReadingOptions:
    """The label is carried like any field to group by."""
    if label_key is None or label_key in reading.by:
        return reading
    return replace(reading, by=(*reading.by, label_key))


def _check_shots(options: DetectOptions, reading: ReadingOptions) -> None:
    if options.member_shots is not None and options.shots is None:
        raise CommandError("--member-shots needs --shots: con-recall compares both", USAGE)
    if options.shots is not None and reading.messages_key is not None:
        raise CommandError("--shots does not go with --messages-key: nothing stands before a chat's template", USAGE)


def _shots(path: str | None, reading: ReadingOptions, read_shots: Any) -> list[str] | None:
    if path is None:
        return None
    from xentrs.corpus.reading import Reading

    known = Reading(text_key=reading.text_key, id_key=reading.id_key)
    texts: list[str] = read_shots(open_inputs([path], reading, known), known)
    return texts


def _reference(options: DetectOptions, given: _Given, runner: Any, settings: Any, named: set[str]) -> tuple[Any, Any]:
    """The reference model, and settings of its own where the two have no windows and vocabulary in common."""
    if options.reference is None:
        return None, None
    from xentrs.corpus import resolve_settings
    from xentrs.detect.cross import require_one_vocabulary, require_window
    from xentrs.errors import ParamError

    model, _, protocol = given
    reference = load_runner(replace(model, model=options.reference, revision=None))
    try:
        require_one_vocabulary(runner, reference)
        require_window(reference, settings)
    except ParamError as error:
        if "cross_entropy" in named:
            raise
        click.echo(f"warning: no scores of two models' predictions: {error}", err=True)
        return reference, resolve_settings(
            reference, **vars(protocol), reading=settings.reading, num_threads=model.threads
        )
    return reference, None


def _exit_code(totals: dict[str, Any], folder: Path) -> int:
    if not totals["quarantined"]:
        return DONE
    click.echo(f"{totals['quarantined']:,} records are in quarantine: {folder}/quarantine.jsonl", err=True)
    return QUARANTINED

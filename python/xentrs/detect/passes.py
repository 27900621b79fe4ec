"""Everything that has to be scored before scores of detection can be made: the RUN, and further passes over its texts.

In: a prepared model, sources, settings, which passes. Out: RUN folders: the RUN itself, companions below it; opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xentrs.corpus.run import CorpusResult, Job, Listener, run_job, text_job
from xentrs.corpus.settings import Settings
from xentrs.corpus.sources import Source
from xentrs.detect.companions import (
    NAMES,
    companion_folder,
    companion_settings,
    lowercase_job,
    reference_job,
    shots_job,
)
from xentrs.detect.cross import CrossPass
from xentrs.models import SplitRunner
from xentrs.runs.open_run import OpenRun

Listening = Callable[[str, Job], AbstractContextManager[Listener]]
"""Who hears how far the pass of this name is."""


@dataclass(frozen=True)
class Passes:
    """Which passes besides the first."""

    lowercase: bool = False
    shots: str | None = None
    """The text before every document: no members."""
    member_shots: str | None = None
    reference: SplitRunner | None = None
    reference_settings: Settings | None = None
    """None: both models over the same windows, which gives cross-entropy besides."""


def run_passes(
    model: SplitRunner,
    sources: Sequence[Source],
    settings: Settings,
    folder: Path,
    passes: Passes,
    listening: Listening,
) -> tuple[CorpusResult, dict[str, OpenRun]]:
    """Score everything into `folder`, each pass resumed where it stands.

    Raises:
        ParamError: shots leave no room in a window; two models do not go together.
        ManifestMismatch, InputChangedError: as `xentrs.corpus.run.score_corpus`.
    """
    main = text_job(model, sources, settings)
    jobs = dict(_jobs(model, sources, companion_settings(settings), passes))  # refused before anything is scored
    cross = _cross(model, sources, settings, folder, passes)
    with listening("documents", main) as listener, nullcontext(main) if cross is None else cross.beside(main) as job:
        result = run_job(job, folder, listener)
    for name, job in jobs.items():
        with listening(name, job) as listener:
            run_job(job, companion_folder(folder, name), listener)
    opened = {name: OpenRun(companion_folder(folder, name)) for name in jobs}
    if cross is not None:
        with listening("cross", main) as listener:
            cross.write(listener)
        opened["cross"] = OpenRun(companion_folder(folder, "cross"))
    return result, opened


def _cross(
    model: SplitRunner, sources: Sequence[Source], settings: Settings, folder: Path, passes: Passes
) -> CrossPass | None:
    if passes.reference is None or passes.reference_settings is not None:
        return None
    return CrossPass(model, passes.reference, sources, settings, companion_folder(folder, "cross"))


def opened_companions(folder: Path) -> dict[str, OpenRun]:
    """The finished passes that stand below a RUN."""
    paths = {name: companion_folder(folder, name) for name in (*NAMES, "cross")}
    found = {name: OpenRun(path) for name, path in paths.items() if path.is_dir()}
    return {name: run for name, run in found.items() if run.summary is not None}


def _jobs(
    model: SplitRunner, sources: Sequence[Source], settings: Settings, passes: Passes
) -> Iterator[tuple[str, Job]]:
    if passes.lowercase:
        yield "lowercase", lowercase_job(model, sources, settings)
    if passes.shots is not None:
        yield "nonmember_shots", shots_job(model, sources, settings, passes.shots)
    if passes.member_shots is not None:
        yield "member_shots", shots_job(model, sources, settings, passes.member_shots)
    if passes.reference is not None and passes.reference_settings is not None:
        reference: Any = companion_settings(passes.reference_settings)
        yield "reference", reference_job(passes.reference, sources, reference)

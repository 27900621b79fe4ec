"""Every score of a document is its own: whatever the batch, the order, the threads; and whatever the rows hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from conftest import TRAINING_LINES, write_model
from detect_documents import INF, VOCAB, document, frequencies, tokens_of
from detect_reference import Passage
from xentrs.corpus import open_sources, resolve_settings
from xentrs.corpus.run import Silent
from xentrs.corpus.settings import Columns
from xentrs.detect import SCORES, DocumentTokens, TokenFrequencies, score_documents
from xentrs.detect.joining import score_runs
from xentrs.detect.output import scores_table
from xentrs.detect.passes import Passes, run_passes
from xentrs.detect.pipeline import ScoredDocuments
from xentrs.detect.scoring import NAN_STATISTICS, NO_COMPANION_TOKENS, NO_TOKENS, UNDEFINED
from xentrs.models import ModelInfo, load_model
from xentrs.models.runner import LinearHead
from xentrs.runs.open_run import OpenRun

WIDTH = 16
REASONS = {NO_TOKENS, NAN_STATISTICS, NO_COMPANION_TOKENS, UNDEFINED}
LINE = " ".join(TRAINING_LINES)
# Lengths from nothing to some sixty tokens, none like its neighbour's.
TEXTS = [LINE[place : place + place * 37 % 61] for place in range(64)]
pytestmark = pytest.mark.usefixtures("one_thread")


class FixedRunner:
    """A `SplitRunner` whose hidden state is a row of a table, chosen by the token alone: the bits cannot depend on the
    batch. `reference` has other tables; without a `head` logits are looked up, too.
    """

    def __init__(self, encoder: Any, batch: int, *, has_head: bool, reference: bool = False) -> None:
        generator = np.random.default_rng(20250105 + reference)
        self.encoder = encoder
        self.max_batch_windows = batch
        self.shares_contexts = False
        self.notices: list[str] = []
        self.info = ModelInfo("fixed", None, "0", "float32", "as asked", "cpu", 320, 64)
        self.table = generator.normal(size=(320, WIDTH)).astype(np.float32)
        self.table[:, 0] = np.arange(320) / 1024  # by which `logits` knows the row again, exactly
        weight = generator.normal(size=(320, WIDTH)).astype(np.float32)
        self.rows = self.table @ weight.T
        self.head = LinearHead(weight, isa="fixed") if has_head else None
        self.windows: list[int] = []

    def prepare(self) -> None: ...

    def hidden_states(self, input_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        self.windows.append(len(input_ids))
        return self.table[input_ids]

    def logits(self, hidden_rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self.rows[np.rint(hidden_rows[:, 0] * 1024).astype(np.int64)]


@contextmanager
def silent(name: str, job: Any) -> Iterator[Silent]:
    yield Silent()


def score(
    folder: Path, model: Any, reference: Any, texts: Sequence[tuple[int, str]], threads: int = 1, **options: Any
) -> ScoredDocuments:
    """All passes over these texts, and all scores."""
    folder.mkdir()
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text, "id": f"d{number}"}) + "\n" for number, text in texts))
    sources, _ = open_sources([str(corpus)])
    options = {"batch_tokens": 1 << 20, **options}
    settings = resolve_settings(model, columns=Columns("detect", (0.5, 1.0, 2.0)), num_threads=threads, **options)
    passes = Passes(lowercase=True, shots="a river\n\n", member_shots="a bar of towns\n\n", reference=reference)
    _, companions = run_passes(model, sources, settings, folder / "run", passes, silent)
    table = TokenFrequencies(320, model.encoder.sha256)
    table.counts += np.arange(320) % 7
    found, _ = score_runs([(OpenRun(folder / "run"), companions)], ["all"], table)
    assert found.unavailable == {}
    assert found.no_texts_reason is None
    return found


def by_id(found: ScoredDocuments) -> dict[str, dict[str, Any]]:
    """Bits of every score, and its reason where it is NaN."""
    reasons = {column: held for column, held in found.reasons.items() if held}
    return {
        identifier: {
            "bits": {column: values[place].tobytes() for column, values in found.values.items()},
            "reasons": {column: held[place] for column, held in reasons.items() if place in held},
        }
        for place, identifier in enumerate(found.ids)
    }


@pytest.mark.parametrize("has_head", [True, False], ids=["head", "logits"])
def test_the_same_bits_in_any_batch_and_order_and_on_any_threads(
    tiny_runner: Any, tmp_path: Path, has_head: bool
) -> None:
    texts = list(enumerate(TEXTS))
    shuffled = [texts[place] for place in np.random.default_rng(20250106).permutation(len(texts))]
    found = {}
    for batch, order, threads in ((1, texts, 1), (7, texts, 2), (64, texts, 1), (7, shuffled, 1), (64, shuffled, 2)):
        models = [
            FixedRunner(tiny_runner.encoder, batch, has_head=has_head, reference=reference)
            for reference in (False, True)
        ]
        case = f"{batch}-{'shuffled' if order is shuffled else 'ordered'}-{threads}"
        found[case] = score(tmp_path / case, *models, order, threads)
        assert max(models[0].windows) == min(batch, 62)  # after shots documents of one token are scored, too
    first, *others = found.values()
    assert {column.split("_")[0] for column in first.values} == set(SCORES)
    for case, other in found.items():
        assert by_id(other) == by_id(first), case
    for other in others[:2]:  # in the same order the table is the same, reasons and all
        assert scores_table(other).drop(["source"]).equals(scores_table(first).drop(["source"]))
    # What the files hold is what was compared: NaN is null there, with its reason.
    table = scores_table(first)
    for column, values in first.values.items():
        assert np.array_equal(table[column].is_null().to_numpy(), np.isnan(values))
    assert {reason for row in table["reasons"].to_pylist() for _, reason in row} == {NO_TOKENS}


def test_a_float32_body_alone_and_among_63_others(tiny_runner: Any, tmp_path: Path) -> None:
    """Padding and neighbours move the body's last bits, and with them scores by as little. A rank can only move where
    two logits are that close; then scores of ranks may move by what it moved, and no further.
    """
    reference = load_model(str(write_model(tmp_path / "reference", hidden_size=48)), dtype="float32")
    texts = list(enumerate(TEXTS))
    alone = score(tmp_path / "alone", tiny_runner, reference, texts, batch_tokens=1)
    among = score(tmp_path / "among", tiny_runner, reference, texts)
    assert {column: set(held) for column, held in alone.reasons.items()} == {
        column: set(held) for column, held in among.reasons.items()
    }
    moved = rank_moves(tmp_path)
    tokens = sum(len(held) for held in moved.values())
    count = sum(int((held > 0).sum()) for held in moved.values())
    assert count <= 0.01 * tokens, f"{count} of {tokens} ranks moved"
    mean_move = np.array([moved[number].mean() if number in moved else 0.0 for number in alone.numbers])
    for column, values in alone.values.items():
        other, score_name = among.values[column], column.split("_")[0]
        if "rank" in SCORES[score_name].needs:
            # |ln r - ln s| <= |r - s|, and a share of ranks changes by at most the share that moved.
            slack = np.where(mean_move > 0, mean_move * np.maximum(1.0, np.abs(values)), 0.0)
            is_within = np.abs(other - values) <= 2e-6 + 1e-5 * np.abs(values) + slack
            assert (is_within | np.isnan(values)).all(), f"{column}, {count} of {tokens} ranks moved"
        else:
            np.testing.assert_allclose(other, values, rtol=1e-5, atol=2e-6, err_msg=column)


def rank_moves(folder: Path) -> dict[int, npt.NDArray[np.float64]]:
    """By document, how far the rank of each scored token is from that in the other RUN."""
    columns = ["document", "rank"]
    alone, among = (
        pa.concat_tables(OpenRun(folder / name / "run").tokens(columns)).drop_null() for name in ("alone", "among")
    )
    numbers = alone["document"].to_numpy()
    moves = np.abs(alone["rank"].to_numpy().astype(np.float64) - among["rank"].to_numpy())
    return {int(number): moves[numbers == number] for number in np.unique(numbers)}


def test_a_model_that_gives_nan_and_impossible_tokens(tiny_runner: Any, tmp_path: Path) -> None:
    """One id after which everything is NaN, another one that is never predicted: only documents with these lack scores
    or have infinite ones.
    """
    models = [FixedRunner(tiny_runner.encoder, 64, has_head=False, reference=reference) for reference in (False, True)]
    ids = [entry.token_ids for entry in tiny_runner.encoder.encode(TEXTS)]
    of_all, counts = np.unique(np.concatenate(ids), return_counts=True)
    poison, never = of_all[np.argsort(counts)[-8:-6]].tolist()
    for model in models:
        model.rows[:, never] = -INF
        model.rows[poison] = np.nan
    found = score(tmp_path / "run", *models, list(enumerate(TEXTS)))
    is_poisoned = np.array([poison in held[:-1] for held in ids])
    is_impossible = np.array([never in held[1:] for held in ids]) & ~is_poisoned
    assert is_poisoned.any()
    assert is_impossible.any()
    has_tokens = np.array([len(held) > 1 for held in ids])
    for column, values in found.values.items():
        assert set(found.reasons[column]) == set(np.flatnonzero(np.isnan(values)).tolist())
        for place in np.flatnonzero(is_poisoned):
            assert found.reasons[column][int(place)] == NAN_STATISTICS, column
        assert set(found.reasons[column].values()) <= REASONS
        if column in ("loss", "perplexity", "min-k", "zlib"):
            assert np.isneginf(values[is_impossible]).all(), column
    ranked = found.values["rank"][has_tokens & ~is_poisoned]
    assert np.isfinite(ranked).all()


KINDS: dict[str, tuple[float | None, float | None]] = {
    # kind: logit of the target, and of every third other id; None: as it was
    "finite": (None, None),
    "target impossible": (-INF, None),
    "others impossible": (None, -INF),
    "target certain": (3.0e38, None),
    "target infinite": (INF, None),
    "others infinite": (None, INF),
    "target nan": (np.nan, None),
    "others nan": (None, np.nan),
    "huge": (-3.0e38, 3.0e38),
}
NAN_KINDS = ("target infinite", "others infinite", "target nan", "others nan", "all impossible")
"""Rows whose statistics are NaN."""


def spoiled(one: Passage, kind: str) -> None:
    """Every second row, from the last one on, in place; whole rows of one value and one-hot ones besides."""
    rows, targets = one.logits, one.targets
    for row in range(len(targets) - 1, -1, -2):
        if kind == "all impossible":
            rows[row] = -INF
        elif kind == "one-hot on the target":
            rows[row] = np.where(np.arange(VOCAB) == targets[row], 1.0, -INF)
        elif kind == "one-hot elsewhere":
            rows[row] = np.where(np.arange(VOCAB) == (targets[row] + 1) % VOCAB, 1.0, -INF)
        elif kind == "uniform":
            rows[row] = 0.5
        else:
            of_target, of_others = KINDS[kind]
            others = np.setdiff1d(np.arange(0, VOCAB, 3), targets[row])
            rows[row, others] = rows[row, others] if of_others is None else of_others
            rows[row, targets[row]] = rows[row, targets[row]] if of_target is None else of_target


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("where", ["model", "reference", "lowercase", "nonmember_shots", "member_shots", "everywhere"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_score_is_defined_or_says_why_not(where: str, dtype: Any) -> None:
    """Documents of 0 to 6 tokens with rows of every kind, under the model and in each of its passes."""
    kinds = (*KINDS, "all impossible", "one-hot on the target", "one-hot elsewhere", "uniform")
    generator = np.random.default_rng(20250107)
    documents, of_kind = [], []
    for kind in kinds:
        for length in range(7):
            one = document(generator, length, special=False, dtype=dtype)
            passes = [one, one.reference, one.lowercase, one.nonmember_shots, one.member_shots]
            names = ["model", "reference", "lowercase", "nonmember_shots", "member_shots"]
            for held, name in zip(passes, names, strict=True):
                if where in (name, "everywhere"):
                    spoiled(held, kind)
            documents.append(one)
            of_kind.append(kind)
    scores = score_documents(tokens_of(documents))
    assert {column.split("_")[0] for column in scores.values} == set(SCORES)
    assert scores.unavailable == {}
    for column, values in scores.values.items():
        places = np.flatnonzero(np.isnan(values)).tolist()
        assert set(scores.reasons[column]) == set(places), column
        assert set(scores.reasons[column].values()) <= REASONS
        for place, reason in scores.reasons[column].items():
            assert (reason == NO_TOKENS) == (len(documents[place]) == 0), (column, of_kind[place])
            # What is finite has every score, however short it is.
            assert reason == NO_TOKENS or of_kind[place] not in ("finite", "uniform"), (column, reason)
        is_nan_kind = np.array([kind in NAN_KINDS for kind in of_kind])
        has_tokens = np.array([len(one) > 0 for one in documents])
        if where in ("model", "everywhere"):
            # A statistic that is not known makes no score that looks known.
            assert np.isnan(values[is_nan_kind & has_tokens]).all(), column


def test_documents_without_companion_tokens() -> None:
    """In lower case, after shots and under the reference a document may have no token; its other scores stay."""
    tokens = tokens_of([document(np.random.default_rng(20250108), 5, special=False)])
    nothing = DocumentTokens(np.zeros(0), np.array([0, 0]))
    for name in ("lowercase", "reference", "nonmember_shots", "member_shots"):
        scores = score_documents(replace(tokens, **{name: nothing}))
        for column, values in scores.values.items():
            needs_it = name in SCORES[column.split("_")[0]].needs
            assert np.isnan(values[0]) == needs_it, column
            assert scores.reasons[column] == ({0: NO_COMPANION_TOKENS} if needs_it else {}), column


def test_frequencies_of_ids_that_never_occur() -> None:
    """Laplace's rule leaves none without a frequency."""
    tokens = tokens_of([document(np.random.default_rng(20250109), 5, special=False)])
    values = score_documents(replace(tokens, frequencies=frequencies([0] * VOCAB)), "dc-pdd").values["dc-pdd"]
    assert np.isfinite(values).all()

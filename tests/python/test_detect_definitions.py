"""Every score against its definition from full logits, and against values worked out by hand."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
import xentrs as xe
from detect_documents import document, tokens_of, wide
from detect_reference import DEFINITIONS, Passage
from hypothesis import given, settings
from hypothesis import strategies as st
from xentrs.detect import SCORES, DocumentTokens, score_document, score_documents, zlib_byte_counts

LENGTHS = (*range(7), 7, 23, 41)
INF, NAN = math.inf, math.nan
PARAMETERS = (
    *("min-k:k=0.05", "min-k:k=1", "min-k++:k=0.5", "min-k++:k=1", "minkpp-unweighted:k=0.7", "dc-pdd:clip=0.3"),
    *("surp:k=1", "surp:max_entropy=0.5", "gap-k:window=1", "gap-k:window=5:k=0.5", "renyi:k=1", "con-recall:gamma=1"),
    *("con-recall:gamma=0", "entropy-test-bound:rho=3", "cross-entropy-test-bound:rho=1000"),
)
pytestmark = pytest.mark.filterwarnings("error")


def defined(request: str, one: Passage) -> dict[str, float]:
    """The definition's values by column."""
    name, *given_parameters = request.split(":")
    parameters = {key: float(value) for key, _, value in (entry.partition("=") for entry in given_parameters)}
    if "window" in parameters:
        parameters["window"] = int(parameters["window"])
    found = DEFINITIONS[name](one, **parameters)
    labelled = found.items() if isinstance(found, dict) else [("", found)]
    return {f"{request}_{label}" if label else request: value for label, value in labelled}


def compare(request: str, documents: list[Passage], tolerance: float) -> None:
    scores = score_documents(tokens_of(documents), [request])
    expected = [defined(request, wide(one)) for one in documents]
    assert set(scores.values) == set(expected[0])
    for column, values in scores.values.items():
        truth = np.array([values[column] for values in expected])
        np.testing.assert_allclose(values, truth, rtol=tolerance, atol=tolerance, err_msg=column)
        assert set(scores.reasons[column]) == set(np.flatnonzero(np.isnan(truth)).tolist())


def test_every_score_has_a_definition() -> None:
    assert list(DEFINITIONS) == list(SCORES)


@pytest.mark.parametrize("request_text", [*SCORES, *PARAMETERS])
@pytest.mark.parametrize("special", [False, True], ids=["finite", "special"])
def test_float64(request_text: str, special: bool) -> None:
    generator = np.random.default_rng(20250101)
    documents = [document(generator, length, special=special) for length in LENGTHS * 3]
    compare(request_text, documents, 1e-12)


@pytest.mark.parametrize("request_text", [*SCORES, *PARAMETERS])
def test_float32(request_text: str) -> None:
    generator = np.random.default_rng(20250102)
    documents = [document(generator, length, special=True, dtype=np.float32) for length in LENGTHS * 3]
    compare(request_text, documents, 1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_any_seed(seed: int, lengths: list[int]) -> None:
    generator = np.random.default_rng(seed)
    documents = [document(generator, length, special=True) for length in lengths]
    for request_text in SCORES:
        compare(request_text, documents, 1e-11)


def one(**columns: Any) -> DocumentTokens:
    return DocumentTokens(**{name: np.array(values, dtype=np.float64) for name, values in columns.items()})


def test_by_hand_selection() -> None:
    tokens = one(nll=[1, 4, 2, 8, 3], entropy=[1, 2, 5, 6, 1], varentropy=[4, 1, 1, 4, 1])
    scores = score_document(
        tokens, "loss, perplexity, min-k, min-k:k=0.5, min-k++, min-k++:k=1, surp, surp:max_entropy=inf"
    )
    assert scores["loss"] == -3.6
    assert scores["perplexity"] == -math.exp(3.6)
    assert scores["min-k"] == -8
    assert scores["min-k:k=0.5"] == -6
    assert scores["min-k++"] == -2  # w = 0, -2, 3, -1, -2
    assert scores["min-k++:k=1"] == pytest.approx(-0.4)
    assert scores["surp"] == -4  # of the two lowest, -8 and -4, neither has an entropy below 2: the more certain one
    assert scores["surp:max_entropy=inf"] == -6


def test_by_hand_machine() -> None:
    tokens = one(nll=[1, 3], entropy=[2, 3], varentropy=[1, 3], rank=[1, 11])
    scores = score_document(tokens, "machine")
    assert scores["rank"] == -6
    assert scores["log-rank"] == pytest.approx(-math.log(11) / 2)
    assert scores["lrr"] == pytest.approx(4 / math.log(11))
    assert [scores[f"gltr_top{top}"] for top in (10, 100, 1000)] == [0.5, 1, 1]
    assert scores["fast-detectgpt"] == 0.5
    assert scores["entropy-test"] == -0.5
    assert scores["entropy-test-normal"] == pytest.approx(math.erfc(0.5 / math.sqrt(2)))
    spread = 100 + (1 + 2 * 4) / 3
    assert scores["entropy-test-bound"] == 1.0
    assert math.sqrt(spread / 100) * math.exp(-1 / (2 * spread)) > 1


def test_by_hand_two_models() -> None:
    reference = one(nll=[2, 4])
    tokens = DocumentTokens(np.array([1.0, 2]), reference=reference, cross_entropy=[4.0, 8], cross_varentropy=[9.0, 16])
    scores = score_document(tokens)
    assert scores["ref-difference"] == 1.5
    assert scores["ref-ratio"] == -0.5
    assert scores["binoculars"] == -0.5
    assert scores["binoculars-code"] == -0.25
    assert scores["fast-detectgpt-cross"] == 9 / 5
    assert scores["cross-entropy-test"] == -9 / 5


def test_by_hand_gap() -> None:
    tokens = one(nll=[1, 3, 5, 7], top1_log_prob=[-1, -1, -1, -1], varentropy=[1, 4, 1, 4], rank=[1, 2, 3, 4])
    scores = score_document(tokens, "gap-k, gap-k:window=2, gap-k:window=5")  # gaps 0, -1, -4, -3
    assert scores["gap-k"] == pytest.approx(-8 / 3)
    assert scores["gap-k:window=2"] == -3.5
    assert scores["gap-k:window=5"] == -4  # shorter than the window: not averaged
    # A token of rank 1 has no gap, though two roundings of one log-probability may differ.
    rounded = one(nll=[0.7], top1_log_prob=[-0.7 + 1e-15], varentropy=[1e-32], rank=[1])
    assert score_document(rounded, "gap-k") == {"gap-k": 0.0}


def test_by_hand_shots() -> None:
    tokens = DocumentTokens(
        np.array([2.0, 4]),
        nonmember_shots=one(nll=[100, 3, 6]),
        member_shots=one(nll=[100, 1, 2]),
        lowercase=one(nll=[9]),
    )
    scores = score_document(tokens)
    assert scores["recall"] == 1.5  # the token that only the prefix gives a score does not count
    assert scores["con-recall"] == (4.5 - 0.75) / 3
    assert scores["lowercase"] == 3.0


@pytest.mark.parametrize("text", ["", "a", "naïve café " * 50, "東京 ☃🙂"])
def test_zlib_counts_are_those_of_python(text: str) -> None:
    assert zlib_byte_counts([text]).tolist() == [len(zlib.compress(text.encode("utf-8")))]
    assert score_document(one(nll=[3.0], zlib_byte_count=zlib_byte_counts([text])), "zlib")["zlib"] == -3.0 / len(
        zlib.compress(text.encode())
    )


def test_peaked_rows_keep_their_accuracy() -> None:
    """1 - p down to 1e-40: the standardised token at b is bounded by sqrt((1 - p) / p), not lost in rounding."""
    logits = np.zeros((6, 8))
    logits[:, 2] = (1.0, 10.0, 37.0, 50.0, 80.0, 90.0)
    one_each = [Passage(logits[[row]], [2], inverse_temperatures=(0.5, 1.0, 2.0)) for row in range(6)]
    for held in one_each:
        held.reference = held.lowercase = held.nonmember_shots = held.member_shots = Passage(held.logits, [2])
        held.counts = [1] * 8
        compare("acmia-norm", [held], 1e-7)


def test_exponential_inequality() -> None:
    """exp(x - x^2/6) <= 1 + x + x^2/3, what the bound of the tests stands on."""
    x = np.concatenate([np.linspace(-60, 60, 1_200_001), np.geomspace(1e-3, 1, 10_001), -np.geomspace(1e-3, 1, 10_001)])
    assert (np.exp(x - x**2 / 6) <= (1 + x + x**2 / 3) * (1 + 4e-16)).all()


def test_type_one_error_of_the_tests() -> None:
    """Texts that the model itself draws: the bound rejects at most its level, the normal p-value about its level."""
    generator = np.random.default_rng(20250103)
    documents, tokens, vocab = 1500, 60, 30
    logits = generator.normal(size=(documents * tokens, vocab)) * 2
    drawn = np.argmax(logits + generator.gumbel(size=logits.shape), axis=1)
    stats = xe.row_stats(logits, drawn)
    held = DocumentTokens(
        stats.nll, np.arange(documents + 1) * tokens, entropy=stats.entropy, varentropy=stats.varentropy
    )
    values = score_documents(held, "entropy-test-normal,entropy-test-bound,entropy-test-bound:rho=10").values
    for level in (0.2, 0.05, 0.01):
        slack = 4 * math.sqrt(level * (1 - level) / documents)
        assert abs((values["entropy-test-normal"] <= level).mean() - level) <= slack + 0.1 * level
        for column in ("entropy-test-bound", "entropy-test-bound:rho=10"):
            assert (values[column] <= level).mean() <= level + slack
    # Another temperature is noticed.
    hot = xe.row_stats(logits, np.argmax(logits / 2 + generator.gumbel(size=logits.shape), axis=1))
    other = DocumentTokens(hot.nll, held.offsets, entropy=hot.entropy, varentropy=hot.varentropy)
    assert (score_documents(other, "entropy-test-bound").values["entropy-test-bound"] < 0.01).mean() > 0.9

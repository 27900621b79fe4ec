"""The table of scores, directions, what is not defined, and scores of many documents at once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detect_documents import INF, TOKENIZER, VOCAB, columns, document, frequencies, passage, tokens_of
from detect_reference import Passage
from hypothesis import given, settings
from hypothesis import strategies as st
from xentrs.detect import (
    ACMIA_INVERSE_TEMPERATURES,
    GROUPS,
    SCORES,
    DocumentScores,
    DocumentTokens,
    choices,
    needs_of,
    score_document,
    score_documents,
)
from xentrs.detect.documentation import markdown
from xentrs.errors import DTypeError, MissingColumn, ParamError, ShapeError

ISSUE_8 = (
    *("loss", "perplexity", "zlib", "lowercase", "ref-difference", "ref-ratio", "min-k", "min-k++"),
    *("minkpp-unweighted", "dc-pdd", "surp", "gap-k", "renyi", "acmia", "recall", "con-recall"),
    *("entropy", "rank", "log-rank", "lrr", "gltr", "fast-detectgpt", "binoculars", "binoculars-code"),
    *("entropy-test", "cross-entropy-test"),
)
NAN = float("nan")
pytestmark = pytest.mark.filterwarnings("error")


def test_every_score_of_the_issue_is_there() -> None:
    assert set(ISSUE_8) <= set(SCORES)
    assert choices() == (*GROUPS, *SCORES)
    assert [score.name for score in SCORES.values()] == list(SCORES)


@pytest.mark.parametrize("score", SCORES.values(), ids=list(SCORES))
def test_rows_are_complete(score: Any) -> None:
    assert score.formula
    assert score.source
    assert score.needs
    assert score.mode_of is None or SCORES[score.mode_of].mode_of is None
    for parameter in score.parameters:
        assert parameter.checked(parameter.default) == parameter.default
    # It needs all that it says, and no more than that.
    tokens = tokens_of([document(np.random.default_rng(1), 8, special=False)])
    for need in score.needs:
        empty: Any = {"tempered": {}} if need in ("tempered", "mean_beta_1") else {need: None}
        if need.startswith("renyi_entropy_"):
            empty = {"renyi_entropy": {}}
        if need != "nll":
            with pytest.raises(MissingColumn, match=f"^score {score.name.replace('+', '.')} needs .*{need}"):
                score_documents(replace(tokens, **empty), [score.name])


def test_documentation_is_made_of_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "detection-scores.md"
    assert page.read_text() == markdown(), "python -m xentrs.detect.documentation > docs/detection-scores.md"


def test_docstrings() -> None:
    import doctest

    from xentrs.detect import frequency, scoring

    for module in (scoring, frequency):
        failed, tried = doctest.testmod(module)
        assert (failed, tried > 0) == (0, True)


def test_import_stays_light() -> None:
    code = "import sys, xentrs.detect; print([m for m in ('torch', 'pyarrow', 'scipy', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def with_targets(generator: np.random.Generator, likely: bool) -> Passage:
    """The same rows; targets the best ids, or ids that are hardly possible."""
    logits = np.random.default_rng(7).normal(size=(40, VOCAB)) * 2
    order = np.argsort(-logits, axis=1)
    picked = generator.integers(0, 4, 40) if likely else generator.integers(20, VOCAB, 40)
    return Passage(logits, [int(target) for target in order[np.arange(40), picked]])


def pair(name: str) -> tuple[Passage, Passage]:
    """A member and another document; or one by a machine and one by a human."""
    generator = np.random.default_rng(11)
    found = (with_targets(generator, likely=True), with_targets(generator, likely=False))
    mild = passage(generator, 40, special=False)
    for one in found:
        # Same reference, lower case and shots for both: the member loses more against its own likelihood.
        one.reference = Passage(np.random.default_rng(8).normal(size=(40, VOCAB)), one.targets)
        one.lowercase = one.nonmember_shots = one.member_shots = mild
        one.text, one.counts, one.inverse_temperatures = "some text", [10] * VOCAB, (0.5, 1.0, 2.0)
    if name == "renyi":  # members are predicted with certainty
        found[0].logits = found[0].logits * 4
    if name == "surp":  # what is predicted with certainty can surprise
        found[0].logits = found[1].logits = found[0].logits * 3
    if name == "entropy":
        found[1].logits = found[1].logits * 4
    if name == "con-recall":  # after other members, a member is as likely as before, and another text not
        found[0].member_shots, found[1].member_shots = found
    if name.startswith(("entropy-test", "cross-entropy-test", "fast-detectgpt-cross", "binoculars")):
        # Two models that agree nearly; the machine's text is drawn from the one that is asked about, the other is not.
        found[1].logits = found[0].logits
        for one in found:
            one.reference.logits = one.logits + np.random.default_rng(8).normal(size=one.logits.shape) / 3
        source = (found[0] if name.startswith("entropy") else found[0].reference).logits
        found[0].targets[:] = np.argmax(source + generator.gumbel(size=source.shape), axis=1).tolist()
        found[1].targets[:] = source.argmin(axis=1).tolist()
    return found


@pytest.mark.parametrize("name", SCORES)
def test_larger_is_member_or_machine(name: str) -> None:
    values = score_documents(tokens_of(pair(name)), [name]).values
    for column, (member, other) in values.items():
        if not column.startswith(("gltr_top100", "gltr_top1000")):  # the vocabulary has 60 ids
            assert member > other, column


def test_variants_are_other_statistics() -> None:
    values = score_documents(tokens_of([document(np.random.default_rng(5), 30, special=False)])).values
    for score in SCORES.values():
        if score.mode_of is not None:
            mine = [values[column] for column in values if column.split("_")[0] == score.name]
            plain = [values[column] for column in values if column.split("_")[0] == score.mode_of]
            assert mine
            assert not set(np.concatenate(mine).tolist()) & set(np.concatenate(plain).tolist())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(0, 9), min_size=2, max_size=6))
def test_alone_and_among_others_the_same_bits(seed: int, lengths: list[int]) -> None:
    generator = np.random.default_rng(seed)
    documents = [document(generator, length, special=True) for length in lengths]
    together = score_documents(tokens_of(documents))
    for place, one in enumerate(documents):
        for column, value in score_document(tokens_of([one])).items():
            np.testing.assert_array_equal(together.values[column][place], value, err_msg=column)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.floats(0.01, 1), tokens=st.integers(1, 30))
def test_properties(seed: int, k: float, tokens: int) -> None:
    """A share rises with k to the whole; the order of tokens does not matter to what is no window."""
    generator = np.random.default_rng(seed)
    held = document(generator, tokens, special=False)
    scores = score_document(tokens_of([held]), f"loss, min-k:k={k}, min-k:k=1, min-k++:k={k}, renyi:k={k}")
    assert scores[f"min-k:k={k}"] <= scores["min-k:k=1"] + 1e-12
    assert scores["min-k:k=1"] == pytest.approx(scores["loss"], rel=1e-14)
    order = generator.permutation(tokens)
    shuffled = replace(held, logits=held.logits[order], targets=[held.targets[place] for place in order])
    shuffled.reference = Passage(held.reference.logits[order], shuffled.targets)
    for column, value in score_document(tokens_of([shuffled]), list(scores)[:4]).items():
        assert value == pytest.approx(scores[column], rel=1e-12)


def reasons(scores: DocumentScores, column: str) -> list[str | None]:
    return [scores.reasons[column].get(place) for place in range(len(scores.values[column]))]


def test_reasons() -> None:
    tokens = DocumentTokens(
        np.array([1.0, NAN, 2.0, INF]),
        np.array([0, 0, 1, 2, 3, 4]),
        reference=DocumentTokens(np.array([1.0, 1.0, INF]), np.array([0, 0, 1, 2, 2, 3])),
    )
    scores = score_documents(tokens)
    assert reasons(scores, "loss") == ["no_tokens", None, "nan_statistics", None, None]
    assert reasons(scores, "ref-difference") == [
        *("no_tokens", None, "nan_statistics", "no_companion_tokens", "undefined")
    ]
    assert np.isnan(scores.values["ref-difference"]).tolist() == [True, False, True, True, True]
    assert scores.unavailable["min-k++"] == "entropy, varentropy"


def test_a_reference_that_is_nan() -> None:
    tokens = DocumentTokens(np.array([1.0]), reference=DocumentTokens(np.array([NAN])))
    assert score_documents(tokens, "ref-ratio").reasons == {"ref-ratio": {0: "nan_statistics"}}


def test_a_token_that_the_model_forbids_and_the_reference_does_not() -> None:
    """CE(p, q) is infinite and its variance not defined."""
    tokens = DocumentTokens(
        np.array([1.0]), reference=DocumentTokens(np.array([1.0])), cross_entropy=[INF], cross_varentropy=[NAN]
    )
    scores = score_documents(tokens, "binoculars, binoculars-code, fast-detectgpt-cross")
    assert scores.values["binoculars"].tolist() == [0.0]
    assert scores.reasons["fast-detectgpt-cross"] == {0: "nan_statistics"}


def test_no_documents() -> None:
    scores = score_documents(DocumentTokens(np.zeros(0), np.array([0])))
    assert scores.values["loss"].shape == (0,)


def test_columns_of_a_tokens_table() -> None:
    """Rows without a score are left out, wherever they are, and documents of them alone are empty."""
    one = passage(np.random.default_rng(3), 5, special=False)
    table = {name: np.asarray(values, dtype=np.float64) for name, values in columns(one).items()}
    for name in table:
        table[name][[0, 4]] = NAN
    flags = np.zeros(5, dtype=np.uint8)
    flags[[0, 4]] = 16
    tokens = DocumentTokens.from_columns(
        {**table, "flags": flags, "document": np.arange(5), "top_ids": np.zeros((5, 3))}, [4, 0, 1]
    )
    assert tokens.offsets.tolist() == [0, 3, 3, 3]
    assert tokens.token_counts.tolist() == [3, 0, 0]
    assert tokens.rank.tolist() == table["rank"][1:4].tolist()
    assert reasons(score_documents(tokens, "min-k++"), "min-k++") == [None, "no_tokens", "no_tokens"]
    assert list(tokens.tempered) == sorted(tokens.tempered)


def test_the_published_grid_by_the_names_of_the_table() -> None:
    from xentrs.corpus.columns import tempered_name

    one = passage(np.random.default_rng(4), 6, special=False)
    named = columns(one, ACMIA_INVERSE_TEMPERATURES)
    exact = [f"{what}_beta_{beta!r}" for beta in ACMIA_INVERSE_TEMPERATURES for what in ("nll", "mean", "variance")]
    short = [tempered_name(what, beta) for beta in ACMIA_INVERSE_TEMPERATURES for what in ("nll", "mean", "variance")]
    tokens = DocumentTokens.from_columns(named | {new: named.pop(old) for old, new in zip(exact, short, strict=True)})
    scores = score_documents(tokens, "acmia, acmia-norm, acmia-deriv").values
    assert len(tokens.tempered) == 52
    assert [sum(column.startswith(f"{name}_beta") for column in scores) for name in ("acmia", "acmia-norm")] == [51, 51]
    assert sum(column.startswith("acmia-deriv_beta") for column in scores) == 51


def test_requests() -> None:
    tokens = DocumentTokens(np.array([1.0, 2.0]))
    assert list(score_documents(tokens, "min-k, min-k:k=0.5").values) == ["min-k", "min-k:k=0.5"]
    assert list(score_documents(tokens, ["loss", "membership", "loss"]).values) == ["loss", "perplexity", "min-k"]
    assert needs_of("zlib,min-k++") == ("nll", "zlib_byte_count", "entropy", "varentropy")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("los", "there is no score 'los'; there are loss, perplexity"),
        ("", "there is no score ''"),
        ("loss:k=1", "score loss has no parameter 'k'; it takes none"),
        ("gap-k:k=1:width=2", "score gap-k has no parameter 'width'; it takes k, window"),
        ("min-k:k=0", r"k = 0, expected a number in \(0, 1\]"),
        ("min-k:k=1.5", r"k = 1.5, expected a number in \(0, 1\]"),
        ("min-k:k=nan", "k = nan, expected"),
        ("min-k:k=much", "min-k:k = 'much', expected a number"),
        ("gap-k:window=2.5", r"window = 2.5, expected an integer in \[1, inf\)"),
        ("con-recall:gamma=-1", r"gamma = -1, expected a number in \[0, inf\)"),
    ],
)
def test_bad_requests(names: str, message: str) -> None:
    with pytest.raises(ParamError, match=message):
        score_documents(DocumentTokens(np.array([1.0])), names)


def test_bad_tokens() -> None:
    nll = np.array([1.0, 2.0])
    with pytest.raises(ShapeError, match="entropy has 1 values and nll 2"):
        DocumentTokens(nll, entropy=[1.0])
    for offsets in ([0, 1], [1, 2], [0, 2, 1, 2], [], [0.0, 2.0]):
        with pytest.raises(ShapeError, match="offsets do not rise from 0 to 2"):
            DocumentTokens(nll, np.array(offsets))
    with pytest.raises(ShapeError, match="reference has 1 documents, expected 2"):
        DocumentTokens(nll, np.array([0, 1, 2]), reference=DocumentTokens(nll))
    with pytest.raises(ParamError, match="rank holds 0"):
        DocumentTokens(nll, rank=[1, 0])
    with pytest.raises(DTypeError, match=r"token_id holds 0\.5, expected integers"):
        DocumentTokens(nll, token_id=[0.5, 1])
    with pytest.raises(DTypeError, match="token_id holds nan"):
        DocumentTokens(nll, token_id=[NAN, 1])
    with pytest.raises(ParamError, match="tokens hold 2 documents, expected 1"):
        score_document(DocumentTokens(nll, np.array([0, 1, 2])), "loss")


@pytest.mark.parametrize("sha256", [None, "0" * 64])
def test_frequencies_of_another_tokenizer(sha256: str | None) -> None:
    with pytest.raises(ParamError, match=f"token frequencies of tokenizer {TOKENIZER}, the tokens are of"):
        DocumentTokens(np.array([1.0]), frequencies=frequencies([1, 2]), tokenizer_sha256=sha256)


def test_torch_tensors_are_columns_too() -> None:
    import torch

    tokens = DocumentTokens(torch.tensor([1.0, 3.0], dtype=torch.float64), rank=torch.tensor([1, 2]))
    assert score_document(tokens, "loss, rank") == {"loss": -2.0, "rank": -1.5}

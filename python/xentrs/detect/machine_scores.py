"""The table of scores of machine-written text. `registry` tells how to read it.

In: nothing. Out: `MACHINE_SCORES`. Of two models p is the reference model (it samples, it observes), q the model (it
scores, it performs).
"""

from __future__ import annotations

from xentrs.detect import entropy_test, machine
from xentrs.detect.definition import Parameter, Score

_RHO = Parameter("rho", 100, "nats squared; the bound is sharpest where variance is near it")
_CURVATURE = "Bao et al. 2023, arXiv 2310.05130 (Fast-DetectGPT)"
_TEST = "the setting of arXiv 2501.02406"
_FORMULA = "min(1, sqrt((rho + W) / rho) exp(-S^2 / (2 (rho + W)))), S = sum x, W = (sum x^2 + 2 sum Var x) / 3."
_BOUND = "Delyon 2009, Robbins 1970, Ville 1939: see xentrs/detect/entropy_test.py"

MACHINE_SCORES = (
    Score(
        name="entropy",
        task="machine",
        published="higher",
        formula="mean H",
        source="Mitchell et al. 2023, arXiv 2301.11305 (baseline)",
        needs=("entropy",),
        compute=machine.mean_entropy,
        note="Which way it points depends on the data; the source takes higher for machine.",
    ),
    Score(
        name="rank",
        task="machine",
        published="lower",
        formula="mean r",
        source="Mitchell et al. 2023, arXiv 2301.11305 (baseline)",
        needs=("rank",),
        compute=machine.mean_rank,
        note="1 + number of larger logits; published code breaks ties as its sort does.",
    ),
    Score(
        name="log-rank",
        task="machine",
        published="lower",
        formula="mean ln r",
        source="Mitchell et al. 2023, arXiv 2301.11305 (baseline)",
        needs=("rank",),
        compute=machine.mean_log_rank,
    ),
    Score(
        name="lrr",
        task="machine",
        published="higher",
        formula="mean nll / mean ln r",
        source="Su et al. 2023, arXiv 2306.05540 (LRR)",
        needs=("nll", "rank"),
        compute=machine.log_likelihood_log_rank_ratio,
        note="Infinite where every token has rank 1.",
    ),
    Score(
        name="gltr",
        task="machine",
        published="higher",
        formula="fraction of r <= 10, 100, 1000",
        source="Gehrmann et al. 2019, arXiv 1906.04043 (GLTR)",
        needs=("rank",),
        compute=machine.gltr,
        note="The published buckets are the differences; added up, all point the same way.",
    ),
    Score(
        name="fast-detectgpt",
        task="machine",
        published="higher",
        formula="sum(l + H) / sqrt(sum v)",
        source=_CURVATURE + ", analytic, one model",
        needs=("nll", "entropy", "varentropy"),
        compute=machine.fast_detect_gpt,
        note="0 / 0 is 0.",
    ),
    Score(
        name="fast-detectgpt-cross",
        task="machine",
        published="higher",
        formula="sum(l_q - E_p l_q) / sqrt(sum Var_p l_q)",
        source=_CURVATURE + ", analytic, two models",
        needs=("nll", "cross_entropy", "cross_varentropy"),
        compute=machine.fast_detect_gpt_cross,
        mode_of="fast-detectgpt",
        note=(
            "p samples (the reference model), q scores (the model). Vocabularies have to be the same; "
            "published code cuts the larger one."
        ),
    ),
    Score(
        name="binoculars",
        task="machine",
        published="lower",
        formula="mean nll_p / mean CE(p, q)",
        source="Hans et al. 2024, arXiv 2401.12070",
        needs=("nll", "reference", "cross_entropy"),
        compute=machine.binoculars,
        note=(
            "p observes (the reference model), q performs (the model). Both means over scored tokens; the "
            "code's second one has a position more."
        ),
    ),
    Score(
        name="binoculars-code",
        task="machine",
        published="lower",
        formula="mean nll_q / mean CE(p, q)",
        source="code of arXiv 2401.12070",
        needs=("nll", "cross_entropy"),
        compute=machine.binoculars_code,
        mode_of="binoculars",
        note="The performer's likelihood above, as the code has it.",
    ),
    Score(
        name="entropy-test",
        task="machine",
        published="lower",
        formula="abs(sum(nll - H)) / sqrt(sum v)",
        source=_TEST,
        needs=("nll", "entropy", "varentropy"),
        compute=entropy_test.entropy_z,
        note="The model itself draws texts near 0. 0 / 0 is 0.",
    ),
    Score(
        name="entropy-test-normal",
        task="machine",
        published="higher",
        formula="p-value of `entropy-test`, normal limit",
        source=_TEST,
        needs=("nll", "entropy", "varentropy"),
        compute=entropy_test.entropy_normal,
        mode_of="entropy-test",
        note="Of the hypothesis that the model drew the text at temperature 1; holds for long texts only.",
    ),
    Score(
        name="entropy-test-bound",
        task="machine",
        published="higher",
        formula="p-value of `entropy-test`, bound for every length",
        source=_BOUND,
        needs=("nll", "entropy", "varentropy"),
        compute=entropy_test.entropy_bound,
        parameters=(_RHO,),
        mode_of="entropy-test",
        note="Of the same hypothesis: " + _FORMULA,
    ),
    Score(
        name="cross-entropy-test",
        task="machine",
        published="lower",
        formula="abs(sum(nll - CE(p, q))) / sqrt(sum Var_p(ln q))",
        source=_TEST,
        needs=("nll", "cross_entropy", "cross_varentropy"),
        compute=entropy_test.cross_entropy_z,
        note="The reference model p draws texts near 0. 0 / 0 is 0.",
    ),
    Score(
        name="cross-entropy-test-normal",
        task="machine",
        published="higher",
        formula="p-value of `cross-entropy-test`, normal limit",
        source=_TEST,
        needs=("nll", "cross_entropy", "cross_varentropy"),
        compute=entropy_test.cross_entropy_normal,
        mode_of="cross-entropy-test",
        note="Of the hypothesis that the reference model drew the text at temperature 1; holds for long texts only.",
    ),
    Score(
        name="cross-entropy-test-bound",
        task="machine",
        published="higher",
        formula="p-value of `cross-entropy-test`, bound for every length",
        source=_BOUND,
        needs=("nll", "cross_entropy", "cross_varentropy"),
        compute=entropy_test.cross_entropy_bound,
        parameters=(_RHO,),
        mode_of="cross-entropy-test",
        note="Of the same hypothesis: " + _FORMULA,
    ),
)

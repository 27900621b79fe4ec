"""The works that are compared: for each the call of xentrs, those of its peers, and the float64 truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import xentrs as xe
from measure import Tool, Work
from scipy.special import logsumexp as scipy_logsumexp  # type: ignore[import-untyped]
from xentrs import _xentrs

CHECKED_ROWS = 4
ONE_ROW_VOCAB = 256_000
# Half of the last place of an nll near 16, twice: torch rounds both the sum and the result to the storage type.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.13, "float16": 0.02}
FLOAT32_TOLERANCE = TOLERANCE["float32"]


@dataclass(frozen=True)
class Case:
    """One input: logits of one dtype and shape with a target for each row."""

    dtype: str
    logits: torch.Tensor
    targets: torch.Tensor
    threads: int

    def expected(self) -> dict[str, torch.Tensor]:
        """Computes the first rows in float64."""
        logits, targets = self.logits[:CHECKED_ROWS].double(), self.targets[:CHECKED_ROWS]
        nll = F.cross_entropy(logits, targets, reduction="none")
        return {"nll": nll, "lse": torch.logsumexp(logits, -1), "score": min_k_plus_plus(logits, targets)}

    def tool(self, name: str, call: Callable[[], Any], **more: Any) -> Tool:
        """Makes a tool that reads all logits once, unless `more` says otherwise."""
        return Tool(name, call, **{"rows": len(self.logits), "bytes_read": self.logits.nbytes, **more})

    def work(self, name: str, tools: list[Tool]) -> Work:
        """Makes a work on this input, with both probes in front."""
        rows, vocab = self.logits.shape
        return Work(name, self.dtype, rows, vocab, [*self.probes(), *tools])

    def probes(self) -> list[Tool]:
        """The two plain reads of the logits."""
        logits, threads = self.logits, self.threads
        return [
            self.tool("xentrs read probe", lambda: read_probe(logits, threads), is_probe=True),
            self.tool("torch x.sum()", logits.sum, is_probe=True),
        ]


def make_logits(rows: int, vocab: int, dtype: str, seed: int) -> torch.Tensor:
    """Draws normal logits of standard deviation 3, by blocks of rows so that no float32 copy of the whole is made."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.empty(rows, vocab, dtype=getattr(torch, dtype))
    for block in torch.split(logits, 16):
        block.copy_(torch.randn(block.shape, generator=generator).mul_(3.0))
    return logits


def make_case(rows: int, vocab: int, dtype: str, threads: int) -> Case:
    """Draws an input; the seed is fixed."""
    targets = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(1))
    return Case(dtype, make_logits(rows, vocab, dtype, seed=0), targets, threads)


def read_probe(logits: torch.Tensor, threads: int) -> float:
    """Reads the logits and does next to nothing with them."""
    array = logits.view(torch.int16) if logits.dtype == torch.bfloat16 else logits
    return _xentrs.read_probe(array.numpy(), str(logits.dtype).removeprefix("torch."), num_threads=threads)


def float32_safe_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The usual care for half precision: convert everything, then take the targets."""
    return -F.log_softmax(logits.float(), -1).gather(-1, targets[:, None]).squeeze(-1)


def min_k_plus_plus(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The score (ln p(target) - mu) / sigma of arXiv 2404.02936, mu and sigma^2 the mean and the variance of ln p."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    p, log_p = F.softmax(logits, -1), F.log_softmax(logits, -1)
    token_log_p = log_p.gather(-1, targets[:, None]).squeeze(-1)
    mu = (p * log_p).sum(-1)
    sigma = (p * log_p.square()).sum(-1) - mu.square()
    return (token_log_p - mu) / sigma.sqrt()


def torch_kl(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """KL(p||q) by torch's own function, in float32 at least."""
    p_logits, q_logits = (x if x.dtype == torch.float64 else x.float() for x in (p_logits, q_logits))
    log_p, log_q = F.log_softmax(p_logits, -1), F.log_softmax(q_logits, -1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


def torch_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The nll of each row, in the logits' own dtype."""
    return F.cross_entropy(logits, targets, reduction="none")


def compiled(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Compiles for the one shape that is measured."""
    return torch.compile(call, dynamic=False)


def score_of(stats: Any) -> torch.Tensor:
    """The Min-K%++ score out of the row statistics: mu is minus the entropy, sigma^2 the varentropy."""
    score: torch.Tensor = (stats.log_prob + stats.entropy) / stats.varentropy.sqrt()
    return score


def nll(case: Case) -> Work:
    """Lse and nll, against torch eager, compiled and float32-safe, and scipy on an eighth of the rows."""
    x, t, expected = case.logits, case.targets, case.expected()
    exact: dict[str, Any] = {"answer": torch.Tensor.double, "expected": expected["nll"], "tolerance": FLOAT32_TOLERANCE}
    rounded = {**exact, "tolerance": TOLERANCE[case.dtype]}
    compiled_nll, compiled_safe = compiled(torch_nll), compiled(float32_safe_nll)
    tools = [
        case.tool(
            "xe.cross_entropy", lambda: xe.cross_entropy(x, t, reduction="none", num_threads=case.threads), **exact
        ),
        case.tool("torch cross_entropy", lambda: torch_nll(x, t), **rounded),
        case.tool("torch.compile cross_entropy", lambda: compiled_nll(x, t), **rounded, may_fail=True),
    ]
    if case.dtype != "float32":
        tools += [
            case.tool("torch log_softmax(x.float())", lambda: float32_safe_nll(x, t), **exact),
            case.tool("torch.compile log_softmax(x.float())", lambda: compiled_safe(x, t), **exact, may_fail=True),
        ]
    else:
        part = x[: max(len(x) // 8, CHECKED_ROWS)].numpy()
        lse: dict[str, Any] = {**exact, "answer": torch.from_numpy, "expected": expected["lse"]}
        fewer = {"rows": len(part), "bytes_read": part.nbytes}
        tools.append(case.tool("scipy logsumexp", lambda: scipy_logsumexp(part, axis=-1), **lse, **fewer))
    return case.work("nll", tools)


def lse(case: Case) -> Work:
    """Log-sum-exp alone, against torch's."""
    x, expected = case.logits, {"answer": torch.Tensor.double, "expected": case.expected()["lse"]}
    tolerance = TOLERANCE[case.dtype]
    ours = case.tool(
        "xe.logsumexp", lambda: xe.logsumexp(x, num_threads=case.threads), **expected, tolerance=FLOAT32_TOLERANCE
    )
    peer = case.tool("torch.logsumexp", lambda: torch.logsumexp(x, -1), **expected, tolerance=tolerance)
    return case.work("lse", [ours, peer])


def all_statistics(case: Case) -> Work:
    """All statistics, against the usual Min-K%++ formula (in float32 also for half precision)."""
    x, t = case.logits, case.targets
    exact: dict[str, Any] = {"expected": case.expected()["score"], "tolerance": 10 * FLOAT32_TOLERANCE}
    peer: dict[str, Any] = {**exact, "answer": torch.Tensor.double}
    formula = compiled(min_k_plus_plus)
    return case.work(
        "all",
        [
            case.tool("xe.row_stats", lambda: xe.row_stats(x, t, num_threads=case.threads), **exact, answer=score_of),
            case.tool("torch Min-K%++ formula", lambda: min_k_plus_plus(x, t), **peer),
            case.tool("torch.compile Min-K%++ formula", lambda: formula(x, t), **peer, may_fail=True),
        ],
    )


def top_k(case: Case) -> Work:
    """All statistics and the 20 largest, against the same without them and against the formula and torch.topk."""
    x, t, threads = case.logits, case.targets, case.threads
    exact: dict[str, Any] = {"expected": case.expected()["score"], "tolerance": 10 * FLOAT32_TOLERANCE}
    log_p = F.log_softmax(x[:CHECKED_ROWS].double(), -1).topk(20).values
    top: dict[str, Any] = {"expected": log_p, "tolerance": FLOAT32_TOLERANCE}
    return case.work(
        "topk",
        [
            case.tool(
                "xe.row_stats top_k=20",
                lambda: xe.row_stats(x, t, top_k=20, num_threads=threads),
                answer=lambda stats: stats.top_log_probs,
                **top,
            ),
            case.tool(
                "xe.row_stats top_k=0", lambda: xe.row_stats(x, t, num_threads=threads), answer=score_of, **exact
            ),
            case.tool(
                "torch formula + topk",
                lambda: (min_k_plus_plus(x, t), x.topk(20)),
                answer=lambda pair: pair[0],
                **exact,
            ),
        ],
    )


def kl(case: Case) -> Work:
    """KL of two inputs, against torch's function (in float32 also for half precision); bytes are those of both."""
    p = case.logits
    q = make_logits(len(p), p.shape[-1], case.dtype, seed=2)
    truth = torch_kl(p[:CHECKED_ROWS].double(), q[:CHECKED_ROWS].double())
    more: dict[str, Any] = {
        "answer": torch.Tensor.double,
        "expected": truth,
        "tolerance": 10 * FLOAT32_TOLERANCE,
        "bytes_read": 2 * p.nbytes,
    }
    compiled_kl = compiled(torch_kl)
    return case.work(
        "kl",
        [
            case.tool("xe.kl_divergence", lambda: xe.kl_divergence(p, q, num_threads=case.threads), **more),
            case.tool("torch kl_div", lambda: torch_kl(p, q), **more),
            case.tool("torch.compile kl_div", lambda: compiled_kl(p, q), **more, may_fail=True),
        ],
    )


def one_row(case: Case) -> Work:
    """One row a call, each call another row so that none is in the cache."""
    rows, threads = list(case.logits), case.threads
    exact: dict[str, Any] = {
        "answer": torch.stack,
        "expected": case.expected()["lse"],
        "tolerance": FLOAT32_TOLERANCE,
    }
    tools = [
        case.tool("xentrs read probe", lambda: [read_probe(row, threads) for row in rows], is_probe=True),
        case.tool("torch x.sum()", lambda: [row.sum() for row in rows], is_probe=True),
        case.tool("xe.logsumexp", lambda: [xe.logsumexp(row, num_threads=threads) for row in rows], **exact),
        case.tool("torch.logsumexp", lambda: [torch.logsumexp(row, -1) for row in rows], **exact),
    ]
    return Work("one-row", case.dtype, 1, case.logits.shape[-1], tools, calls=len(rows))


WORKS: dict[str, Callable[[Case], Work]] = {
    "nll": nll,
    "lse": lse,
    "all": all_statistics,
    "topk": top_k,
    "kl": kl,
}

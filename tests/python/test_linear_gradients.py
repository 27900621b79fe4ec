"""Gradients of `linear_cross_entropy` against torch in float64 of the same stored numbers, and the expected embedding.

Longer than other files: one set of helpers serves gradient, filter, second derivative and training, and what each
gradient is allowed is derived beside the test that grants it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pytest
import reference as ref
import torch
import xentrs as xe
from test_bindings_torch import TORCH
from torch import Tensor
from torch.nn import functional
from xentrs.linear import check_filter

SEED: Final = 20_250_302
F64: Final = torch.float64
PAIRS: Final = [(hidden, weight) for hidden in TORCH for weight in TORCH]
PAIR = pytest.mark.parametrize("names", PAIRS, ids=["-".join(names) for names in PAIRS])
SOME_PAIRS = pytest.mark.parametrize(
    "names", [*((name, name) for name in TORCH), ("bfloat16", "float32"), ("float16", "bfloat16")], ids="-".join
)
EVERY: Final[dict[str, Any]] = {"logit_scale": -1.5, "softcap": 5.0, "temperature": 0.7}
Gradients = list[Any]


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """Torch's threads spin: on a busy machine tiny products take ten times as long with them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(seed: int, *shape: int, dtype: torch.dtype = F64, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng([SEED, seed]).normal(0.0, scale, shape)).to(dtype)


def draw_targets(vocab: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([SEED, vocab]).integers(0, vocab, shape))


def problem(rows: int, width: int, vocab: int, names: tuple[str, str] = ("float64", "float64")) -> list[Tensor]:
    """Hidden states, weights, bias and targets; logits at a standard deviation of about 2, as heads have them."""
    hidden = draw(1, rows, width, dtype=TORCH[names[0]])
    weight = draw(2, vocab, width, dtype=TORCH[names[1]], scale=2 / width**0.5)
    return [hidden, weight, draw(3, vocab, dtype=TORCH[names[1]]), draw_targets(vocab, rows)]


def logits_of(hidden: Tensor, weight: Tensor, bias: Any = None, vocab_size: int | None = None, **settings: Any) -> Any:
    product = hidden.double() @ weight[:vocab_size].double().T + (0 if bias is None else bias[:vocab_size].double())
    scaled, softcap = settings.get("logit_scale", 1.0) * product, settings.get("softcap")
    return (scaled if softcap is None else softcap * torch.tanh(scaled / softcap)) / settings.get("temperature", 1.0)


def by_torch(hidden: Tensor, weight: Tensor, targets: Tensor, *, shift: int = 0, **options: Any) -> Tensor:
    """The definition, in float64: torch's cross-entropy plus z_loss * lse^2 of each counted row."""
    ignored, z_loss, reduction = (
        options.pop(*option) for option in (("ignore_index", -100), ("z_loss", 0), ("reduction", "mean"))
    )
    settled: dict[str, Any] = {"ignore_index": ignored, "label_smoothing": options.pop("label_smoothing", 0.0)}
    logits = logits_of(hidden[..., : hidden.shape[-2] - shift, :], weight, **options)
    ids = targets[..., shift:]
    nll = functional.cross_entropy(logits.flatten(0, -2), ids.flatten(), reduction="none", **settled).reshape(ids.shape)
    rows = torch.where(ids == ignored, 0.0, nll + z_loss * logits.logsumexp(-1) ** 2)
    reduced: dict[str, Tensor] = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / (ids != ignored).sum()}
    return reduced[reduction]


def in_16_bits(hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor) -> Tensor:
    """What torch users write."""
    return functional.cross_entropy(functional.linear(hidden, weight, bias).float(), targets, reduction="sum")


def gradients(loss: Callable[..., Any], given: list[Any], upstream: Tensor | None = None, **options: Any) -> Gradients:
    """Of hidden states, weights and bias."""
    leaves = [None if value is None else value.detach().clone().requires_grad_() for value in given[:3]]
    value = loss(leaves[0], leaves[1], given[3], bias=leaves[2], **options)
    value.backward(None if upstream is None else upstream.to(value.dtype))
    return [None if leaf is None else leaf.grad for leaf in leaves]


def distance(got: Tensor, wanted: Tensor) -> float:
    """Relative, of the norms."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def as_numpy(tensor: Tensor) -> Any:
    """As a numpy array of the same bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ref.DTYPES["bfloat16"])
    return tensor.numpy()


def wide(given: list[Any]) -> list[Any]:
    return [*(None if value is None else value.double() for value in given[:3]), given[3]]


def assert_same_bits(got: Gradients, wanted: Gradients) -> None:
    assert all(torch.equal(left, right) for left, right in zip(got, wanted, strict=True))


CASES: Final[dict[str, tuple[tuple[int, ...], int, dict[str, Any]]]] = {
    "none": ((2, 5), 37, {"reduction": "none"}),
    "sum": ((3, 7), 64, {"reduction": "sum"}),
    "mean": ((2, 7), 65, {}),
    "smoothed": ((2, 7), 37, {"label_smoothing": 0.1, "z_loss": 1e-2}),
    "settings": ((2, 7), 65, EVERY),
    "everything": ((2, 3, 3), 65, {**EVERY, "shift": 1, "label_smoothing": 0.3, "z_loss": 0.1, "vocab_size": 50}),
    "ignored": ((5, 7), 37, {"ignore_index": 3}),
    "shift": ((2, 3, 3), 37, {"shift": 1, "reduction": "none"}),
    "padded": ((3, 3), 65, {"vocab_size": 37, "label_smoothing": 0.1}),
    "ordered": ((3, 3), 65, {"order_vocabulary": True, **EVERY}),
    "ordered-padded": ((3, 3), 65, {"order_vocabulary": True, "vocab_size": 37, "label_smoothing": 0.1}),
    "width-1": ((3, 1), 37, {}),
    "width-33": ((2, 33), 17, {"z_loss": 0.1}),
    "one-row": ((1, 7), 64, {}),
    "rows-33": ((33, 2), 37, {}),
    "vocab-1": ((3, 2), 1, {"z_loss": 0.1}),
    "vocab-513": ((2, 2), 513, {}),
    "vocab-513-ordered": ((2, 2), 513, {"order_vocabulary": True, "label_smoothing": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
def test_gradcheck_in_float64(case: str) -> None:
    """Central differences of 1e-6 are off by 1e-12 third derivatives and by 1e-15 / 1e-6 of the loss (about 4)."""
    shape, vocab, options = CASES[case]
    targets = draw_targets(options.get("vocab_size", vocab), *shape[:-1])
    if "ignore_index" in options:
        targets[1::3] = options["ignore_index"]
    given = [
        draw(1, *shape),
        draw(2, vocab, shape[-1]),
        None if case in ("sum", "shift", "one-row", "vocab-513", "vocab-513-ordered") else draw(3, vocab),
    ]
    leaves = [value.requires_grad_() for value in given if value is not None]

    def loss(hidden: Tensor, weight: Tensor, bias: Any = None) -> Any:
        return xe.linear_cross_entropy(hidden, weight, targets, bias=bias, num_threads=1, **options)

    if case != "vocab-513-ordered":  # half a second
        assert torch.autograd.gradcheck(loss, leaves, atol=2e-8, rtol=1e-6)
    # And by the formula, where only the rounding of either remains.
    plain = {name: value for name, value in options.items() if name != "order_vocabulary"}
    upstream = draw(4, *loss(*leaves).shape)
    for got, wanted in zip(
        gradients(xe.linear_cross_entropy, [*given, targets], upstream, **options),
        gradients(by_torch, [*given, targets], upstream, **plain),
        strict=True,
    ):
        assert got is None or (got - wanted).norm() <= 1e-13 * (1 + wanted.norm())


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        *((shape, (name, name)) for shape in ((300, 100, 5000), (1, 100, 5000)) for name in TORCH if name != "float64"),
        *((shape, names) for shape in ((130, 33, 1030), (1, 33, 1030), (33, 1, 513)) for names in PAIRS),
    ],
    ids=str,
)
def test_against_torch_in_float64(shape: tuple[int, int, int], names: tuple[str, str]) -> None:
    """The norm of many errors. A rounding is off by 0.4 u at one standard deviation, a chain of n, whose sums grow to
    their last, by 0.4 u sqrt(n / 2) of that. In float32, logits of size 2 from D = 100 products: 6 u; e^d: 2 u;
    V = 5000 additions: 20 u; together 28 u = 1.7e-6.
    A gradient in 16 bits rounds once more: 2^-9 or 2^-11, and 2^-25 where float16 has no smaller number. bfloat16 tiles
    take derivatives of 8 bits, as torch does, but logits that are never rounded: so no further off than torch, where
    there are more than 33 numbers to compare.
    """
    given = problem(*shape, names)
    got = gradients(xe.linear_cross_entropy, given, reduction="sum")
    wanted = gradients(by_torch, wide(given), reduction="sum")
    if names[0] == names[1] and names[0] in ("bfloat16", "float16") and shape[1] > 1:
        rival = gradients(in_16_bits, given)
        for which, ours, theirs, right in zip(("hidden", "weight", "bias"), got, rival, wanted, strict=True):
            assert distance(ours, right) <= distance(theirs, right), (which, distance(ours, right))
    for which, like, ours, right in zip(("hidden", "weight", "bias"), given, got, wanted, strict=False):
        assert (ours.dtype, ours.shape) == (like.dtype, like.shape)
        rounds = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-11}.get(ours.dtype, 0.0)
        computed = 1e-13 if "float64" in names else 2e-6
        if names == ("bfloat16", "bfloat16"):
            computed = 2.0**-9
        floor = 2.0**-25 * ours.numel() ** 0.5 if ours.dtype == torch.float16 else 0.0
        if ours.dtype == torch.float32 and "float64" in names:
            computed = ref.UNIT_F32
        off = float((ours.double() - right).norm())
        assert off <= (computed + rounds) * float(right.norm()) + floor, (which, off / float(right.norm()))


@SOME_PAIRS
@pytest.mark.parametrize("ordered", [False, True], ids=["as-stored", "ordered"])
def test_every_setting_in_every_type(ordered: bool, names: tuple[str, str]) -> None:
    """As above; scale, cap and temperature double what a logit is off by, and the slope of the cap 1 - c^2 adds 2 u."""
    given = problem(70, 33, 1100, names)
    given[3] %= 1030
    given[3][::5] = 7
    options: dict[str, Any] = {**EVERY, "label_smoothing": 0.1, "z_loss": 1e-3, "ignore_index": 7, "vocab_size": 1030}
    got = gradients(xe.linear_cross_entropy, given, torch.tensor(1024.0), order_vocabulary=ordered, **options)
    wanted = gradients(by_torch, wide(given), torch.tensor(1024.0), **options)
    for ours, right in zip(got, wanted, strict=True):
        rounds = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-11, torch.float32: ref.UNIT_F32}.get(ours.dtype, 0.0)
        computed = 2.0**-9 if names == ("bfloat16", "bfloat16") else 1e-13 if "float64" in names else 4e-6
        assert distance(ours, right) <= computed + rounds


@SOME_PAIRS
@pytest.mark.rust_only("bits of the products")
def test_views_and_transposed_weights(names: tuple[str, str]) -> None:
    """Gradients arrive in the leaves behind strided views, in their dtypes and shapes."""
    hidden, columns = draw(1, 2, 10, 9, dtype=TORCH[names[0]]), draw(2, 9, 37, dtype=TORCH[names[1]])
    biases, targets = draw(3, 2, 37, dtype=TORCH[names[1]]), draw_targets(37, 2, 5)

    def viewed(loss: Callable[..., Any]) -> Callable[..., Any]:
        return lambda h, w, t, bias: loss((2 * h)[:, ::2].flip(0), w.T, t, bias=bias[1], reduction="sum")

    got = gradients(viewed(xe.linear_cross_entropy), [hidden, columns, biases, targets])
    flat = [(2 * hidden)[:, ::2].flip(0), columns.T, biases[1], targets]
    plain = gradients(xe.linear_cross_entropy, [value.contiguous() for value in flat], reduction="sum")
    back = torch.zeros_like(hidden)
    back[:, ::2] = 2 * plain[0].flip(0)
    assert_same_bits(got, [back, plain[1].T, torch.stack([torch.zeros_like(plain[2]), plain[2]])])


@SOME_PAIRS
def test_only_what_requires_grad_gets_a_gradient(names: tuple[str, str]) -> None:
    given = problem(40, 9, 130, names)
    full = gradients(xe.linear_cross_entropy, given)
    for wanted in ((True, False, False), (False, True, False), (False, False, True), (True, False, True)):
        leaves: list[Any] = [value.clone().requires_grad_(needs) for value, needs in zip(given, wanted, strict=False)]
        xe.linear_cross_entropy(leaves[0], leaves[1], given[3], bias=leaves[2]).backward()
        for leaf, needs, whole in zip(leaves, wanted, full, strict=True):
            assert torch.equal(leaf.grad, whole) if needs else leaf.grad is None
    heads, biases = [xe.PackedHead(given[1]), as_numpy(given[1])], as_numpy(given[2])
    for head in heads:
        hidden: Any = given[0].clone().requires_grad_()
        xe.linear_cross_entropy(hidden, head, given[3], bias=biases).backward()
        assert torch.equal(hidden.grad, full[0])
    frozen = xe.linear_cross_entropy(given[0], given[1], given[3], bias=given[2])
    assert not frozen.requires_grad
    with torch.no_grad():
        assert not xe.linear_cross_entropy(leaves[0], given[1], given[3]).requires_grad


def test_numpy_hidden_states_with_a_head_that_requires_grad() -> None:
    """A result without a graph must not look like a loss that trains the head."""
    hidden, weight, bias, targets = problem(4, 3, 9)
    for head, biases in ((weight.clone().requires_grad_(), bias), (weight, bias.clone().requires_grad_())):
        with pytest.raises(xe.DTypeError, match="requires grad"):
            xe.linear_cross_entropy(hidden.numpy(), head, targets, bias=biases)


@SOME_PAIRS
@pytest.mark.parametrize("which", ["hidden", "weight", "bias"])
@pytest.mark.parametrize("shape", [(0, 3, 5), (3, 0, 5)], ids=["no-rows", "no-width"])
def test_empty_axes(shape: tuple[int, int, int], which: str, names: tuple[str, str]) -> None:
    """Without rows there is nothing to learn; without width all logits are the bias."""
    rows, width, vocab = shape
    hidden, weight = draw(1, rows, width, dtype=TORCH[names[0]]), draw(2, vocab, width, dtype=TORCH[names[1]])
    given: dict[str, Any] = {"hidden": hidden, "weight": weight, "bias": draw(3, vocab)}
    leaf: Any = given[which].requires_grad_()
    xe.linear_cross_entropy(targets=draw_targets(vocab, rows), reduction="sum", **given).backward()
    assert leaf.grad.shape == leaf.shape
    if rows and which == "bias":
        wanted = rows * given["bias"].detach().softmax(-1) - torch.bincount(draw_targets(vocab, rows), minlength=vocab)
        assert distance(leaf.grad, wanted) <= 1e-6
    else:
        assert not leaf.grad.any()


@pytest.mark.parametrize("bias", ["float32", "bfloat16", "float64"])
def test_a_bias_of_another_type(bias: str) -> None:
    given = problem(40, 9, 130, ("float32", "float32"))
    given[2] = given[2].to(TORCH[bias])
    got = gradients(xe.linear_cross_entropy, given)
    assert got[2].dtype == TORCH[bias]
    rounds = 2.0**-9 if bias == "bfloat16" else 0.0
    for ours, right in zip(got, gradients(by_torch, wide(given)), strict=True):
        assert distance(ours, right) <= 2e-6 + (rounds if ours is got[2] else 0.0)


@SOME_PAIRS
def test_ignored_rows_and_upstream(names: tuple[str, str]) -> None:
    hidden, weight, bias, targets = problem(40, 9, 130, names)
    given = [hidden, weight, bias, torch.full_like(targets, -100)]
    hidden[:] = math.nan  # never read
    for reduction in ("none", "sum", "mean"):
        upstream = draw(5, 40) if reduction == "none" else None
        found = gradients(xe.linear_cross_entropy, given, upstream, reduction=reduction)
        assert not any(gradient.any() for gradient in found)
    assert xe.linear_cross_entropy(given[0], given[1], given[3]).isnan()
    given = problem(40, 9, 130, names)
    given[3][::3] = -100
    upstream = draw(5, 40)
    upstream[0] = math.nan  # of an ignored row
    rows = gradients(xe.linear_cross_entropy, given, upstream, reduction="none")
    right = gradients(by_torch, wide(given), torch.where(given[3] == -100, 0.0, upstream), reduction="none")
    rounds = {"float64": 1e-13, "float32": 2e-6, "float16": 2.0**-10, "bfloat16": 2.0**-8}[names[0]]
    rounds = max(rounds, 2.0**-8 if "bfloat16" in names else 0.0)
    assert not rows[0][::3].any()
    for ours, wanted in zip(rows, right, strict=True):
        assert distance(ours, wanted) <= rounds
    # Times a power of two: the same bits, but where float16 has fewer of them.
    one = gradients(xe.linear_cross_entropy, given, reduction="sum")
    four = gradients(xe.linear_cross_entropy, given, torch.tensor(4.0), reduction="sum")
    for ours, wanted in zip(four, one, strict=True):
        assert torch.equal(ours, 4 * wanted) or (ours.dtype == torch.float16 and distance(ours, 4 * wanted) < 2.0**-11)
    for ours, wanted in zip(gradients(lambda *a, **k: 3 * xe.linear_cross_entropy(*a, **k), given), one, strict=True):
        assert distance(ours, wanted.double() * 3 / int((given[3] != -100).sum())) <= 2 * rounds


@SOME_PAIRS
@pytest.mark.rust_only("bits of the products")
def test_same_bits(names: tuple[str, str]) -> None:
    """Over threads and runs; a row's gradient also alone."""
    given = problem(300, 33, 1100, names)
    choices: list[dict[str, Any]] = [{}, {"order_vocabulary": True, "filter_eps": "auto"}]
    for options in choices:
        first = gradients(xe.linear_cross_entropy, given, num_threads=1, **options)
        for threads in (1, 2, 3, 5, None):
            assert_same_bits(gradients(xe.linear_cross_entropy, given, num_threads=threads, **options), first)
    batch = gradients(xe.linear_cross_entropy, given, reduction="sum")[0]
    for row in (0, 131, 299):
        alone = [given[0][row : row + 1], *given[1:3], given[3][row : row + 1]]
        assert torch.equal(gradients(xe.linear_cross_entropy, alone, reduction="sum")[0][0], batch[row])
    leaf = given[0].clone().requires_grad_()
    loss = xe.linear_cross_entropy(leaf, given[1], given[3], bias=given[2], reduction="sum")
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(loss, leaf, retain_graph=True)[0], batch)


def peaked(rows: int, width: int, vocab: int, names: tuple[str, str] = ("float64", "float64")) -> list[Tensor]:
    """Most ids are rare, in a random order: probabilities fall by e^-16 over the vocabulary."""
    hidden, weight, _, targets = problem(rows, width, vocab, names)
    order = np.random.default_rng([SEED, 6]).permutation(vocab)
    bias = torch.from_numpy(np.linspace(0, -16, vocab)[np.argsort(order)]).to(TORCH[names[1]])
    likely = torch.from_numpy(order[: max(1, vocab // 16)].copy())
    return [hidden, weight, bias, likely[targets % len(likely)]]


@pytest.mark.parametrize("ordered", [False, True], ids=["as-stored", "ordered"])
@pytest.mark.parametrize("rows", [40, 700, 1500])
@pytest.mark.rust_only("the filter")
def test_filter_leaves_out_blocks(rows: int, ordered: bool) -> None:
    """A plain loop in float64: an eighth of the counted rows, but 32 to 128 in whole 32s, times 64 columns."""
    hidden, weight, bias, targets = given = peaked(rows, 5, 1000)
    targets[::7] = -100
    counted = (targets != -100).nonzero()[:, 0]
    block = -(-min(max(len(counted) // 4, 32), 128) // 32) * 32
    derivatives = logits_of(hidden, weight, bias)[counted].softmax(-1)
    derivatives[torch.arange(len(counted)), targets[counted]] -= 1
    columns = torch.arange(1000)
    if ordered:
        columns = logits_of(hidden[counted].mean(0, keepdim=True), weight, bias)[0].argsort(descending=True)
    eps, blocks, left_out = 3e-4, 0, 0
    for first in range(0, len(counted), block):
        for group in (columns[start : start + 64] for start in range(0, 1000, 64)):
            part = derivatives[first : first + block, group]
            is_small = bool((part.abs() < eps).all())
            derivatives[first : first + block, group] = part * (not is_small)
            blocks, left_out = blocks + 1, left_out + is_small
    assert left_out > blocks / 4 if ordered else left_out < blocks / 8, (left_out, blocks)
    right = [torch.zeros_like(hidden), derivatives.T @ hidden[counted], derivatives.sum(0)]
    right[0][counted] = derivatives @ weight
    got = gradients(xe.linear_cross_entropy, given, reduction="sum", filter_eps=eps, order_vocabulary=ordered)
    for ours, wanted in zip(got, right, strict=True):
        assert distance(ours, wanted) <= 1e-12
    assert not ordered or (got[1][columns[-64:]] == 0).all()


@SOME_PAIRS
@pytest.mark.rust_only("the filter")
def test_filter_of_the_paper(names: tuple[str, str]) -> None:
    """None and 0 leave out nothing; "auto" changes little, with and without order; 1 leaves out all that is below 1."""
    given = peaked(300, 33, 1100, names)
    exact = gradients(xe.linear_cross_entropy, given, reduction="sum")
    assert_same_bits(gradients(xe.linear_cross_entropy, given, reduction="sum", filter_eps=0.0), exact)
    eps = torch.finfo(TORCH[names[0]]).eps / 32
    assert check_filter("auto", names[0]) == eps
    for ordered in (False, True):
        options: dict[str, Any] = {"reduction": "sum", "order_vocabulary": ordered}
        auto = gradients(xe.linear_cross_entropy, given, filter_eps="auto", **options)
        assert_same_bits(auto, gradients(xe.linear_cross_entropy, given, filter_eps=eps, **options))
        unfiltered = gradients(xe.linear_cross_entropy, given, **options)
        for ours, wanted in zip(auto, unfiltered, strict=True):
            assert distance(ours, wanted) < 1e-2
        if ordered and names[0] == "bfloat16":
            assert (auto[1] == 0).all(1).sum() > (unfiltered[1] == 0).all(1).sum() + 63
        assert not any(g.any() for g in gradients(xe.linear_cross_entropy, given, filter_eps=1.0, **options))
    # A hopeless target's derivative is -1: it keeps its 64 columns and no others.
    given[2][70] = -2000
    given[3][5] = 70
    kept = gradients(xe.linear_cross_entropy, given, reduction="sum", filter_eps=1.0)
    assert torch.equal(kept[1].any(1).nonzero()[:, 0], torch.arange(64, 128))


@pytest.mark.parametrize("eps", ["x", "", -1, -1e-9, 2, math.nan, math.inf])
def test_bad_filters(eps: Any) -> None:
    hidden, weight, _, targets = problem(2, 3, 5)
    for given in (hidden, hidden.numpy()):
        with pytest.raises(xe.ParamError, match=r"filter_eps = .*expected None, 'auto' or a number from 0 to 1"):
            xe.linear_cross_entropy(given, weight, targets, filter_eps=eps)


@SOME_PAIRS
def test_second_derivatives_raise(names: tuple[str, str]) -> None:
    """Clearly, however the first is used; the first itself is right with create_graph=True."""
    given = problem(4, 3, 9, names)
    hidden, weight, bias = leaves = [value.requires_grad_() for value in given[:3]]
    uses: list[Callable[[Any], Tensor]] = [
        lambda g: g[0].sum(), lambda g: (g[0] * hidden).sum(), lambda g: (g[1] * weight).sum(), lambda g: g[2].norm()
    ]  # fmt: skip
    for use in uses:
        loss = xe.linear_cross_entropy(hidden, weight, given[3], bias=bias, reduction="sum")
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        assert_same_bits(list(first), gradients(xe.linear_cross_entropy, given, reduction="sum"))
        for leaf in leaves:
            with pytest.raises(RuntimeError, match="second derivative"):
                torch.autograd.grad(use(first), leaf, retain_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            (loss + use(first)).backward()
    frozen = xe.linear_cross_entropy(hidden, weight.detach(), given[3])
    gradient: Any = torch.autograd.grad(frozen, hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.pow(2).sum().backward()


def test_changes_between_forward_and_backward_raise() -> None:
    for which in range(3):
        for requires in (True, False):
            given: list[Any] = problem(4, 3, 9)
            given[0 if which else 1].requires_grad_()
            given[which].requires_grad_(requires)
            loss = xe.linear_cross_entropy(given[0], given[1], given[3], bias=given[2])
            with torch.no_grad():
                given[which].add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
    given = problem(4, 3, 9)
    right = gradients(xe.linear_cross_entropy, given)[0]
    given[0].requires_grad_()
    loss = xe.linear_cross_entropy(given[0], given[1], given[3], bias=given[2])
    given[3].zero_()  # targets are copied
    loss.backward()
    leaf: Any = given[0]
    assert torch.equal(leaf.grad, right)


@pytest.mark.parametrize("which", ["hidden", "weight", "bias"])
def test_another_device_raises(which: str) -> None:
    *leaves, targets = problem(4, 3, 9)
    given: dict[str, Any] = dict(zip(("hidden", "weight", "bias"), leaves, strict=True))
    for requires in (True, False):
        given[which] = given[which].detach().to("meta").requires_grad_(requires)
        with pytest.raises(xe.DTypeError, match="meta"):
            xe.linear_cross_entropy(targets=targets, **given)


@SOME_PAIRS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.rust_only("bits of the products")
def test_nan_stays_in_its_row(bad: float, names: tuple[str, str]) -> None:
    """Its derivatives are NaN for every column, so all of the weights' gradient is."""
    given = problem(40, 9, 130, names)
    clean = gradients(xe.linear_cross_entropy, given, reduction="sum")
    given[0][7, 2] = bad
    choices: list[dict[str, Any]] = [{}, {"filter_eps": 1e-9}]
    for options in choices:
        hidden, weight, bias = gradients(xe.linear_cross_entropy, given, reduction="sum", **options)
        assert hidden[7].isnan().all()
        others = torch.arange(40) != 7
        assert torch.equal(hidden[others], clean[0][others])
        assert weight.isnan().all()
        assert bias.isnan().all()
    given[3][7] = -100  # an ignored row is not read
    without = [value[others] if value.shape[0] == 40 else value for value in given]
    ignored = gradients(xe.linear_cross_entropy, given, reduction="sum")
    assert torch.equal(ignored[0][others], clean[0][others])
    assert_same_bits(ignored[1:], gradients(xe.linear_cross_entropy, without, reduction="sum")[1:])


@SOME_PAIRS
def test_impossible_ids_and_padding(names: tuple[str, str]) -> None:
    """A bias of -inf makes a probability of 0 and no gradient; padding rows may hold anything and get 0."""
    given = problem(40, 9, 130, names)
    given[3] %= 60
    given[2][60:70] = -math.inf
    given[1][100:] = math.nan
    got = gradients(xe.linear_cross_entropy, given, reduction="sum", vocab_size=100)
    for gradient in got:
        assert gradient.isfinite().all()
    for gradient in got[1:]:
        assert not gradient[60:70].any()
        assert not gradient[100:].any()
    kept = [*range(60), *range(70, 100)]
    small = gradients(by_torch, wide([given[0], given[1][kept], given[2][kept], given[3]]), reduction="sum")
    for ours, right in zip([got[0], got[1][kept], got[2][kept]], small, strict=True):
        assert distance(ours, right) <= 2.0**-7


@pytest.mark.parametrize("names", [(name, name) for name in TORCH], ids="-".join)
def test_derivative_next_to_certainty(names: tuple[str, str]) -> None:
    """Logits are exact; e^-d is off by u (2 + d), with a cap or temperature by the rounding of z, u (2 + |z| + d)."""
    gap, unit = (21.0, ref.UNIT_F64) if names[0] == "float64" else (17.0, ref.UNIT_F32)
    hidden, weight = torch.ones(1, 1, dtype=TORCH[names[0]]), torch.zeros(3, 1, dtype=TORCH[names[0]])
    weight[1] = gap
    choices: list[dict[str, Any]] = [{}, {"temperature": 1.25}, {"softcap": 50.0}]
    for options in choices:
        logits = logits_of(hidden, weight, **options)[0].numpy()
        nll = ref.nll(logits, 1)
        slope = 1 - (logits[1] / options.get("softcap", math.inf)) ** 2
        slope /= options.get("temperature", 1.0)
        bias = torch.zeros(3, dtype=F64)
        got = gradients(xe.linear_cross_entropy, [hidden, weight, bias, torch.tensor([1])], **options)
        right, allowed = math.expm1(-nll) * slope, unit * (8 + (4 if options else 2) * gap)
        assert -3e-6 < right < -1e-10
        assert abs(float(got[2][1]) / right - 1) <= allowed, (options, float(got[2][1]), right)
        rounds = {"float16": 2.0**-25 / abs(right), "bfloat16": 2.0**-8}.get(names[0], 0.0)
        assert abs(float(got[1][1, 0]) / right - 1) <= allowed + rounds
        assert got[1].shape == (3, 1)


@PAIR
@pytest.mark.parametrize("options", [{}, {**EVERY, "vocab_size": 1030}], ids=["plain", "settings"])
@pytest.mark.parametrize("shape", [(40, 33, 1100), (1, 1, 1100), (2, 100, 3000), (2, 7, 1)], ids=str)
def test_expected_embedding(
    shape: tuple[int, int, int], options: dict[str, Any], names: tuple[str, str], engine: str
) -> None:
    """Logits off by m move the mean by at most m sum p |w - mean| <= 2 m sum p |w|. m is u sqrt(D) of the sum of the
    products' sizes, 8 u of |z| for settings, exp, argument; sums of 512 weights round at random, u sqrt(512) of
    sum p |w|; two bfloat16 leave out 2^-17 of a weight.
    """
    hidden, weight, bias, _ = problem(*shape, names)
    options = options | {"bias": bias} if options else options
    if "vocab_size" in options:
        options["vocab_size"] = min(options["vocab_size"], shape[2])
    got = xe.linear_expected_embedding(hidden, weight, **options)
    logits, kept = logits_of(hidden, weight, **options), weight[: options.get("vocab_size")].double()
    wanted, size = logits.softmax(-1) @ kept, logits.softmax(-1) @ kept.abs()
    unit = 4 * ref.UNIT_F64 if "float64" in names else ref.UNIT_F32
    factor = 1.5 / 0.7 if options else 1.0
    lengths = factor * (hidden.double().abs() @ kept.abs().T + (bias.double().abs().max() if options else 0.0)).amax(-1)
    moved = unit * (2 * (shape[1] ** 0.5 + 8) * (1 + lengths) + 512**0.5)
    moved += 2.0**-17 if names == ("bfloat16", "bfloat16") else 0.0
    assert (got.dtype, got.shape) == (F64, hidden.shape)
    assert ((got - wanted).abs() <= moved[:, None] * size).all()
    if engine != "kernels":  # which promise bits
        return
    for threads in (1, 3):
        assert torch.equal(xe.linear_expected_embedding(hidden, weight, num_threads=threads, **options), got)
    assert torch.equal(xe.linear_expected_embedding(hidden[-1:], weight, **options)[0], got[-1])
    if shape[2] == 1 and "float64" not in names:
        assert torch.equal(got, weight.double().expand(hidden.shape))


def test_expected_embedding_is_the_gradient_of_logsumexp() -> None:
    weight = problem(6, 33, 1100)[1]
    hidden: Any = draw(1, 2, 3, 33).requires_grad_()
    (hidden @ weight.T).logsumexp(-1).sum().backward()
    got = xe.linear_expected_embedding(hidden.detach(), weight)
    assert got.shape == hidden.shape
    assert distance(got, hidden.grad) <= 1e-14
    assert np.array_equal(xe.linear_expected_embedding(hidden.detach().numpy(), xe.PackedHead(weight)), got.numpy())


def test_training_follows_torch() -> None:
    """20 steps of a head in float32: the losses stay within 1e-5 of torch's."""
    hidden, weight, bias, targets = problem(200, 16, 300, ("float32", "float32"))
    curves: list[list[float]] = []
    for loss_of in (
        lambda w, b: xe.linear_cross_entropy(hidden, w, targets, bias=b, label_smoothing=0.1),
        lambda w, b: functional.cross_entropy(functional.linear(hidden, w, b), targets, label_smoothing=0.1),
    ):
        leaves = [value.clone().requires_grad_() for value in (weight, bias)]
        curve = []
        for _ in range(20):
            loss = loss_of(*leaves)
            curve.append(float(loss.detach()))
            with torch.no_grad():
                for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
                    leaf -= 20.0 * gradient
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert curves[0][-1] < curves[0][0] - 0.5

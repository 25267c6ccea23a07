"""The loss is exact: against float64 autograd on the whole batch, however the batch is split, streamed and rounded."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracles import Answer, Batch, error, oracle
from ranks import SpawnRanks, rank_starter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.losses import Diagnostics, contrastive_loss

LOSSES = ("infonce", "infonce_ce", "infonce_matched", "dcl", "flatnce", "siglip")
TAU = 0.125
"""A power of two, so that it is the same number in every dtype."""

BARS = {torch.float64: 1e-12, torch.float32: 2e-6 * max(1, 0.2 / TAU), torch.bfloat16: 2**-8}
"""Norm-relative error of a gradient. bfloat16: inputs are exact, the result is rounded to 8 bits."""

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"symmetric": True},
    {"symmetric": True, "same_side": True, "margin": 0.1},
    {"symmetric": True, "hard": 3, "hard_negative_weight": 2.5},
    {"symmetric": True, "ids": True},
    {"pool": 4, "ids": True, "hard": 2, "hard_negative_weight": 0.5},
    {"pool": 5, "same_side": True, "margin": 0.2, "ids": True},
)


Exchange = Literal["gather", "ring"]


@dataclass(frozen=True)
class How:
    """How a case is computed: never changes the answer."""

    counts: tuple[int, ...]
    exchange: Exchange = "gather"
    tile: int | None = None
    dtype: torch.dtype = torch.float64


def batch(
    b: int, *, width: int = 8, hard: int = 0, ids: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64,
    temperature: float = TAU, **options: Any,
) -> Batch:  # fmt: skip
    """Unit rows that `dtype` can hold, keys near their queries; ids repeat, far apart in the batch too."""
    g = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)

    q = unit(b, width)
    k = F.normalize(q + 0.7 * unit(b, width), dim=-1)
    n = unit(b, hard, width).to(dtype).double() if hard else None
    labels = torch.randint(0, max(2, b // 2), (b,), generator=g) * 2**40 if ids else None
    if options.get("name") == "siglip":
        options.setdefault("bias", -1.5)
    return Batch(q.to(dtype).double(), k.to(dtype).double(), n, labels, temperature, options)


def variant(name: str, number: int) -> dict[str, Any]:
    options = {"name": name, **VARIANTS[number % len(VARIANTS)]}
    if name == "siglip":
        options.pop("same_side", None)
    return options


def rows_of(case: Batch, rows: slice | Tensor) -> Batch:
    """Some pairs of a batch, in this order."""
    given = {part: getattr(case, part) for part in ("queries", "keys", "hard", "ids", "key_ids", "negative_ids")}
    cut: Any = {part: x if x is None else x[rows] for part, x in given.items()}
    return dataclasses.replace(case, **cut)


def answer(case: Batch, how: How, rank: int = 0, group: dist.ProcessGroup | None = None) -> Answer:
    """What one rank computes from its rows of the batch."""
    mine = slice(sum(how.counts[:rank]), sum(how.counts[: rank + 1]))
    cut = rows_of(case, mine)
    q, k, n = cut.leaves(how.dtype)
    options = dict(case.options)
    bias = torch.tensor(options.pop("bias", 0.0), dtype=torch.float64, requires_grad=True)
    if options["name"] == "siglip":
        options["bias"] = bias
    tau = torch.tensor(case.temperature, dtype=torch.float64, requires_grad=True)
    loss, _ = contrastive_loss(
        q, k, temperature=tau, hard_negatives=n, pair_ids=cut.ids, key_ids=cut.key_ids, negative_ids=cut.negative_ids,
        group=group, tile=how.tile, exchange=how.exchange, **options,
    )  # fmt: skip
    loss.backward()
    assert q.grad is not None
    assert k.grad is not None
    return Answer(float(loss.detach()), q.grad, k.grad, None if n is None else n.grad, tau.grad, bias.grad)


def answers(cases: Sequence[tuple[Batch, How]], rank: int) -> list[Answer]:
    return [answer(case, how, rank, dist.group.WORLD) for case, how in cases]


def joined(parts: Sequence[Answer]) -> Answer:
    """The whole batch's answer: rows below one another, parameters' gradients summed."""

    def over_ranks(name: str, join: Any) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else join(found)

    assert len({part.loss for part in parts}) == 1, "the loss is the same number on every rank"
    rows = [over_ranks(name, torch.cat) for name in ("queries", "keys", "hard")]
    totals = [over_ranks(name, lambda found: torch.stack(found).sum(0)) for name in ("temperature", "bias")]
    return Answer(parts[0].loss, *rows, *totals)


def check(found: Answer, expected: Answer, bar: float, temperature: float = TAU) -> None:
    """The temperature's gradient is a sum over all pairs that may cancel to next to nothing: its error is measured
    against what it is summed from, -q.dq / temperature row by row."""
    assert found.loss == pytest.approx(expected.loss, rel=min(bar, 1e-6), abs=1e-12 if bar <= 1e-12 else 1e-6)
    mine = found.gradients()
    for name, gradient in expected.gradients().items():
        size = gradient.norm()
        if name == "temperature":
            size = torch.maximum(size, expected.queries.norm() / temperature)
        assert float((mine[name].double() - gradient).norm()) <= bar * float(size or 1.0), f"gradient of {name}"


@contextmanager
def noted(text: str) -> Iterator[None]:
    """Say which case failed."""
    try:
        yield
    except AssertionError as failure:
        failure.add_note(text)
        raise


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These batches are too small to share, and ranks are processes already."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def whole(case: Batch, **how: Any) -> Answer:
    """The case in this process."""
    return answer(case, How((len(case.queries),), **how))


# The whole batch, however it is cut


@pytest.mark.parametrize("name", LOSSES)
def test_one_process_matches_the_oracle_in_every_form_tile_and_dtype(name: str) -> None:
    """Mutant checks: no margin on the positive, a hard negative's weight on everybody's, ids masking in one direction
    only, a tile's last column dropped: each fails this."""
    for (number, tile), dtype in itertools.product(enumerate([None, 1, 5, 64] * 2), BARS):
        case = batch(13, seed=number, dtype=dtype, **variant(name, number))
        check(whole(case, tile=tile, dtype=dtype), oracle(case), BARS[dtype])


@pytest.mark.parametrize("world", [2, 3])
def test_every_split_exchange_tile_and_dtype_gives_the_whole_batchs_gradient(
    spawn_ranks: SpawnRanks, world: int
) -> None:
    """Mutant checks: leaving out other ranks' anchors in backward, a rank's start taken as rank * b, the mean of the
    ranks' means, weights of the own rows used for visiting ones: each fails this."""
    splits: list[tuple[int, ...]] = [(6, 7), (13, 0)] if world == 2 else [(4, 0, 9), (5, 4, 4)]
    cases: list[tuple[Batch, How]] = []
    exchanges: tuple[Exchange, ...] = ("gather", "ring")
    tiles: tuple[int | None, ...] = (None, 5)
    for number, (name, exchange, tile, dtype) in enumerate(itertools.product(LOSSES, exchanges, tiles, BARS)):
        case = batch(13, seed=number, dtype=dtype, **variant(name, number // 2 + world))
        cases.append((case, How(splits[number // 3 % len(splits)], exchange, tile, dtype)))
    parts = spawn_ranks(world, partial(answers, cases))
    for (case, how), *ranks in zip(cases, *parts, strict=True):
        with noted(f"{case.options}, {how}"):
            check(joined(ranks), oracle(case), BARS[how.dtype])


@settings(deadline=None, max_examples=5, phases=[Phase.generate])  # shrinking starts processes
@given(data=st.data())
def test_any_shape_on_any_ranks_matches_the_oracle(data: st.DataObject, ranks: SpawnRanks) -> None:
    """Shapes are drawn: rows per rank from 0 to 5, width, tile, pool, hard negatives."""
    world = data.draw(st.integers(2, 3))
    cases: list[tuple[Batch, How]] = []
    for _ in range(12):
        counts = data.draw(st.lists(st.integers(0, 5), min_size=world, max_size=world).filter(any))
        name = data.draw(st.sampled_from([n for n in LOSSES if n != "infonce_ce"]))  # which cancels in float64 too
        form = variant(name, data.draw(st.integers(0, 6)))
        form |= {"pool": data.draw(st.none() | st.integers(1, 9)), "hard": data.draw(st.integers(0, 3))}
        case = batch(sum(counts), width=data.draw(st.integers(3, 9)), seed=data.draw(st.integers(0, 99)), **form)
        exchange: Exchange = data.draw(st.sampled_from(("gather", "ring")))
        cases.append((case, How(tuple(counts), exchange, data.draw(st.sampled_from([None, 1, 2, 7])))))
    for (case, how), *parts in zip(cases, *ranks(world, partial(answers, cases)), strict=True):
        with noted(f"{case}, {how}"):
            check(joined(parts), oracle(case), 1e-12)


@pytest.fixture(scope="module")
def ranks(forkserver: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnRanks]:
    """`spawn_ranks` for all examples of a hypothesis test."""
    with rank_starter(forkserver, tmp_path_factory.mktemp("ranks")) as start:
        yield start


@pytest.mark.parametrize("tau", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("name", ["infonce", "flatnce", "siglip"])
def test_float32_keeps_its_bar_at_sharp_and_flat_temperatures(name: str, tau: float) -> None:
    case = batch(64, width=64, dtype=torch.float32, name=name, symmetric=True, temperature=tau)
    check(whole(case, dtype=torch.float32), oracle(case), 2e-6 * max(1, 0.2 / tau), temperature=tau)


# Identities of NUMERICS


def test_flatnces_gradient_is_dcls_and_not_infonces() -> None:
    """Mutant check: the positive left inside flatnce's logsumexp (its weights those of infonce) fails this."""
    for number in range(len(VARIANTS)):
        flat, dcl, infonce = (
            whole(batch(13, seed=number, **variant(name, number))).gradients() for name in ("flatnce", "dcl", "infonce")
        )
        for name, gradient in flat.items():
            assert torch.equal(gradient, dcl[name])
            assert name == "bias" or error(gradient, infonce[name]) > 0.05


def test_flatnces_value_is_infonces() -> None:
    flat, infonce = (whole(batch(13, name=name)).loss for name in ("flatnce", "infonce"))
    assert flat == infonce


def test_matched_has_infonces_direction_and_flatnces_norm() -> None:
    for symmetric in (False, True):
        case = batch(13, hard=2, symmetric=symmetric, name="infonce_matched")
        ours, infonce, flat = (
            torch.cat([g.flatten() for g in (a.queries, a.keys, a.hard) if g is not None])
            for a in (whole(dataclasses.replace(case, options={**case.options, "name": n}))
                      for n in ("infonce_matched", "infonce", "flatnce"))
        )  # fmt: skip
        assert F.cosine_similarity(ours, infonce, dim=0) == pytest.approx(1, abs=1e-12)
        assert F.cosine_similarity(ours, flat, dim=0) < 0.99, "the directions differ, so this test is not vacuous"
        assert ours.norm() == pytest.approx(float(flat.norm()), rel=1e-12)


def solved(margin: float, *, b: int = 33, width: int = 64) -> Batch:
    """Pairs whose positive logit is `margin` above 32 negatives' on average, exactly in float32."""
    g = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(width, width, generator=g, dtype=torch.float64)).Q[:b]
    q = F.normalize(directions + 0.02 * torch.randn(b, width, generator=g, dtype=torch.float64), dim=1).float().double()
    k = F.normalize(directions + 0.02 * torch.randn(b, width, generator=g, dtype=torch.float64), dim=1).float().double()
    return Batch(q, k, None, None, 1 / 32 * 20 / margin * 1.6, {"name": "infonce"})


def test_infonce_does_not_cancel_where_cross_entropy_does() -> None:
    """Margin 20, 32 negatives, float32: ours within 1e-6, the textbook's positives mostly lost.

    Mutant check: 1 - p in place of sigmoid(v) fails this.
    """
    case = solved(20)
    expected = oracle(case)
    textbook = whole(dataclasses.replace(case, options={"name": "infonce_ce"}), dtype=torch.float32)
    ours = whole(case, dtype=torch.float32)
    for name in ("queries", "keys"):
        assert error(ours.gradients()[name], expected.gradients()[name]) < 1e-6
        assert error(textbook.gradients()[name], expected.gradients()[name]) > 0.1


def test_infonce_ce_is_what_torchs_cross_entropy_computes() -> None:
    """In float32 at margin 20, where the two ways differ: the share of positives without gradient is the same."""
    case = solved(20)
    q, k, _ = case.leaves(torch.float32)
    F.cross_entropy(q @ k.T / case.temperature, torch.arange(len(q))).backward()
    ours = whole(dataclasses.replace(case, options={"name": "infonce_ce"}), dtype=torch.float32)
    assert q.grad is not None
    expected = oracle(case).queries
    assert error(ours.queries, expected) == pytest.approx(error(q.grad, expected), rel=0.5)
    close = batch(33, dtype=torch.float32, name="infonce_ce")
    q, k, _ = close.leaves(torch.float32)
    F.cross_entropy(q @ k.T / TAU, torch.arange(33)).backward()
    assert q.grad is not None
    assert error(whole(close, dtype=torch.float32).queries, q.grad) < 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_overflows_at_scale_100(name: str) -> None:
    """bfloat16 rows of norm 100 and temperature 0.01: logits of a million. Gradients, loss and diagnostics finite."""
    for number, dtype in itertools.product(range(len(VARIANTS)), BARS):
        case = batch(12, dtype=dtype, temperature=0.01, **variant(name, number))
        scaled = dataclasses.replace(case, queries=case.queries * 100, keys=case.keys * 100)
        for one in (case, scaled):
            found = whole(one, dtype=dtype)
            assert math.isfinite(found.loss)
            assert all(bool(g.isfinite().all()) for g in found.gradients().values()), one.options


def test_a_batch_that_underflows_still_has_a_matched_direction() -> None:
    """Every 1 - p is 0 in float32, but infonce's direction is known."""
    found = whole(dataclasses.replace(solved(400), options={"name": "infonce_matched"}), dtype=torch.float32)
    flat = whole(dataclasses.replace(solved(400), options={"name": "flatnce"}), dtype=torch.float32)
    norm = [torch.cat([a.queries, a.keys]).norm() for a in (found, flat)]
    assert float(norm[0]) == pytest.approx(float(norm[1]), rel=1e-5)


# Symmetries


@settings(deadline=None, max_examples=20)
@given(number=st.integers(0, 3), name=st.sampled_from(LOSSES), seed=st.integers(0, 99))
def test_order_of_the_pairs_does_not_matter(number: int, name: str, seed: int) -> None:
    case = batch(9, seed=seed, **{**variant(name, number), "hard": 2, "ids": True})
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert case.hard is not None
    assert case.ids is not None
    shuffled = dataclasses.replace(
        case, queries=case.queries[order], keys=case.keys[order], hard=case.hard[order], ids=case.ids[order]
    )
    first, second = whole(case), whole(shuffled)
    assert second.loss == pytest.approx(first.loss, rel=1e-12)
    assert error(second.queries, first.queries[order]) < 1e-12
    assert error(second.keys, first.keys[order]) < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_a_symmetric_loss_does_not_know_queries_from_keys(name: str) -> None:
    case = batch(11, name=name, symmetric=True, ids=True)
    ours, swapped = whole(case), whole(dataclasses.replace(case, queries=case.keys, keys=case.queries))
    assert ours.loss == pytest.approx(swapped.loss, rel=1e-13)
    assert error(ours.queries, swapped.keys) < 1e-12
    one_way = whole(dataclasses.replace(case, options={**case.options, "symmetric": False}))
    assert name == "siglip" or error(one_way.queries, swapped.keys) > 0.01, "not vacuous"


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "siglip"])
def test_a_constant_added_to_a_row_of_logits_changes_nothing(name: str) -> None:
    """One more coordinate, c_i in the query and 1 in every key, adds c_i to all similarities of a row."""
    case = batch(9, name=name)
    added = torch.linspace(-3, 3, 9, dtype=torch.float64)[:, None]
    moved = dataclasses.replace(
        case, queries=torch.cat([case.queries, added], 1), keys=torch.cat([case.keys, torch.ones_like(added)], 1)
    )
    first, second = whole(case), whole(moved)
    assert second.loss == pytest.approx(first.loss, rel=1e-12)
    if name != "infonce_matched":  # whose scale does see the new coordinate
        assert error(second.queries[:, :-1], first.queries) < 1e-11


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("flatnce", "infonce_matched")])
def test_temperature_and_bias_gradients_are_the_slopes_of_the_loss(name: str) -> None:
    """By central differences. Mutant check: the log weight of hard negatives left in the slope fails this."""
    case = batch(9, name=name, hard=2, hard_negative_weight=3.0, margin=0.1, symmetric=True)
    found, step = whole(case), 1e-5

    def loss(**change: Any) -> float:
        return whole(dataclasses.replace(case, **change)).loss

    slope = (loss(temperature=TAU + step) - loss(temperature=TAU - step)) / (2 * step)
    assert float(found.gradients()["temperature"]) == pytest.approx(slope, rel=1e-7)
    if name == "siglip":
        up, down = (loss(options={**case.options, "bias": -1.5 + s}) for s in (step, -step))
        assert float(found.gradients()["bias"]) == pytest.approx((up - down) / (2 * step), rel=1e-7)


# What is masked


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "siglip"])
def test_rows_without_negatives_contribute_nothing_and_count(name: str) -> None:
    """Mutant check: dividing by the rows that have negatives fails this."""
    alone = whole(batch(1, name=name, symmetric=True))
    assert alone.loss == 0
    assert all(float(g.norm()) == 0 for g in alone.gradients().values())
    case = batch(5, name=name, pool=4)  # the fifth is alone in its pool
    four = Batch(case.queries[:4], case.keys[:4], None, None, TAU, {"name": name})
    assert whole(case).loss == pytest.approx(whole(four).loss * 4 / 5, rel=1e-12)
    assert float(whole(case).queries[4].norm()) == 0


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "siglip"])
def test_duplicates_masked_have_exactly_zero_gradient(name: str) -> None:
    """All of one content: whatever the features, nothing pushes. Mutant check: masking after exp fails this."""
    case = dataclasses.replace(batch(6, name=name, symmetric=True, same_side=True), ids=torch.full((6,), 7))
    found = whole(case)
    assert found.loss == 0
    assert float(found.queries.abs().max()) == float(found.keys.abs().max()) == 0


# How it is called


@pytest.mark.parametrize("name", ["infonce", "infonce_matched"])
def test_the_gradient_follows_what_is_done_with_the_loss(name: str) -> None:
    """Scaled, in a larger graph, twice over a retained graph. Mutant check: ignoring grad_output fails this."""
    case = batch(9, name=name)
    expected = oracle(case)
    q, k, _ = case.leaves(torch.float64)
    tau = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    loss, _ = contrastive_loss(q, k, temperature=tau, name=name)
    (-3 * loss + 1).backward(retain_graph=True)
    assert q.grad is not None
    assert tau.grad is not None
    assert error(q.grad, -3 * expected.queries) < 1e-12
    assert error(tau.grad, -3 * expected.gradients()["temperature"]) < 1e-12
    loss.backward()
    assert error(q.grad, -2 * expected.queries) < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_only_what_needs_a_gradient_gets_one(name: str) -> None:
    case = batch(9, hard=2, name=name)
    expected = oracle(case)
    for which in range(3):
        leaves = [None if x is None else x.detach() for x in case.leaves(torch.float64)]
        q, k, n = leaves
        chosen = leaves[which]
        assert q is not None
        assert k is not None
        assert chosen is not None
        chosen.requires_grad_()
        bias = case.options.get("bias", 0.0)
        loss, _ = contrastive_loss(q, k, hard_negatives=n, temperature=TAU, name=name, bias=bias)
        loss.backward()
        assert [x is not None and x.grad is not None for x in leaves] == [which == place for place in range(3)]
        assert chosen.grad is not None
        assert error(chosen.grad, list(expected.gradients().values())[which]) < 1e-12
    with torch.no_grad():
        loss, _ = contrastive_loss(*case.leaves(torch.float64)[:2], temperature=TAU)
    assert not loss.requires_grad


@pytest.mark.filterwarnings("ignore")  # torch.compile looks at things that warn when looked at
def test_autocast_and_compile_around_it_change_nothing() -> None:
    """Mutant check: without switching autocast off, similarities are bfloat16 and this fails."""
    case = batch(16, dtype=torch.float32, name="infonce", symmetric=True)

    def step(q: Tensor, k: Tensor) -> Tensor:
        return contrastive_loss(q, k, temperature=TAU, symmetric=True)[0] * 2

    gradients = []
    for function in (step, torch.compile(step, backend="eager")):
        for half in (False, True):
            q, k, _ = case.leaves(torch.float32)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                loss = function(q, k)
                loss.backward()
            assert loss.dtype == torch.float32
            gradients.append(q.grad)
    assert all(g is not None and torch.equal(g, gradients[0]) for g in gradients if gradients[0] is not None)


def test_diagnostics_are_what_they_say() -> None:
    case = batch(12, name="dcl", ids=True, symmetric=True)
    assert case.ids is not None
    s = case.queries @ case.keys.T
    others = case.ids[:, None] != case.ids[None, :]
    v = torch.stack([(m / TAU).masked_fill(~others, -torch.inf).logsumexp(1) - s.diagonal() / TAU for m in (s, s.T)])
    shares = torch.stack([(m / TAU).masked_fill(~others, -torch.inf).softmax(1) for m in (s, s.T)])
    squares = torch.cdist(case.queries, case.keys).square()
    _, found = contrastive_loss(
        case.queries, case.keys, temperature=TAU, pair_ids=case.ids, name="dcl", symmetric=True, tile=5
    )
    expected: dict[str, Any] = {
        "positive_probability": torch.sigmoid(-v).mean(),
        "effective_sample_size": (1 / shares.square().sum(2)).mean(),
        "saturated_fraction": (torch.sigmoid(v) < 6e-6).double().mean(),
        "alignment": squares.diagonal().mean(),
        "uniformity": squares[others].mul(-2).exp().mean().log(),
        "duplicates_masked": float((~others).sum() - 12),
        "infonce": F.softplus(v).mean(),
        "without_negatives": float((~others.any(1)).double().mean()),
    }
    assert dataclasses.asdict(found) == pytest.approx({name: float(x) for name, x in expected.items()}, rel=1e-9)
    assert found.duplicates_masked > 0, "not vacuous"


def test_diagnostics_of_solved_pairs_say_so() -> None:
    case = solved(40)
    _, found = contrastive_loss(case.queries.float(), case.keys.float(), temperature=case.temperature)
    assert found.saturated_fraction == 1
    assert found.positive_probability == pytest.approx(1)


def diagnose(
    cases: Sequence[tuple[Batch, How]], rank: int, group: dist.ProcessGroup | None = None
) -> list[Diagnostics]:
    group, found = dist.group.WORLD if group is None else group, []
    for case, how in cases:
        mine = slice(sum(how.counts[:rank]), sum(how.counts[: rank + 1]))
        ids = None if case.ids is None else case.ids[mine]
        found.append(
            contrastive_loss(case.queries[mine], case.keys[mine], pair_ids=ids, group=group, exchange=how.exchange,
                             tile=how.tile, **case.options)[1]
        )  # fmt: skip
    return found


def test_diagnostics_are_the_whole_batchs_on_every_rank(spawn_ranks: SpawnRanks) -> None:
    case = batch(12, ids=True, name="siglip", pool=5, symmetric=True)
    cases = [(case, How((5, 7), exchange, tile)) for exchange in ("gather", "ring") for tile in (None, 3)]
    expected = contrastive_loss(case.queries, case.keys, pair_ids=case.ids, **case.options)[1]
    for found in itertools.chain(*spawn_ranks(2, partial(diagnose, cases))):
        assert dataclasses.asdict(found) == pytest.approx(dataclasses.asdict(expected), rel=1e-12)


# Cost


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returned."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return out


@pytest.mark.parametrize("name", LOSSES)
def test_no_tensor_grows_with_rows_times_columns(name: str) -> None:
    """256 x 256 logits in tiles of 16: nothing larger than a few numbers for every row. Mutant check: a tile of all
    columns fails this."""
    case = batch(256, width=4, name=name, symmetric=True, ids=True)
    with Largest() as seen:  # type: ignore[no-untyped-call]
        whole(case, tile=16)
    assert seen.bytes <= 256 * 14 * 8 < 256 * 16 * 8


def largest_in_ring(case: Batch, rank: int) -> tuple[int, int]:
    sizes = []
    for exchange in ("ring", "gather"):
        with Largest() as seen:  # type: ignore[no-untyped-call]
            answer(case, How((40, 40, 40, 40), exchange), rank, dist.group.WORLD)
        sizes.append(seen.bytes)
    return sizes[0], sizes[1]


def test_the_ring_never_holds_everybodys_rows(spawn_ranks: SpawnRanks) -> None:
    """Four ranks: the largest tensor is one rank's rows; gathered, it is four ranks' (so the instrument sees it)."""
    for in_ring, gathered in spawn_ranks(4, partial(largest_in_ring, batch(160, width=64, name="infonce"))):
        assert in_ring == 40 * 64 * 8
        assert gathered >= 160 * 2 * 64 * 8


def collectives_of_a_step(name: str, rank: int) -> dict[str, list[str]]:
    """Names of the torch.distributed calls of a forward and backward pass, in order."""
    counted: dict[str, list[str]] = {}
    calls = ("all_gather_single", "all_reduce", "broadcast", "batch_isend_irecv", "all_gather", "reduce_scatter_single")
    case = batch(9, name=name, hard=2, ids=True, symmetric=True)
    exchanges: tuple[Exchange, ...] = ("gather", "ring")
    for exchange in exchanges:
        seen = counted[exchange] = []

        def counting(call: str, seen: list[str] = seen) -> Any:
            real = getattr(dist, call)

            def counter(*args: Any, **kwargs: Any) -> Any:
                seen.append(call)
                return real(*args, **kwargs)

            return counter

        with pytest.MonkeyPatch.context() as patch:
            for call in calls:
                patch.setattr(dist, call, counting(call))
            answer(case, How((5, 4), exchange, 3), rank, dist.group.WORLD)
    return counted


@pytest.mark.parametrize("name", ["infonce", "infonce_matched"])
def test_collectives_of_a_step_are_the_documented_ones(spawn_ranks: SpawnRanks, name: str) -> None:
    """Header, features, row sums; whatever the tile, the hard negatives and the ids."""
    matching = ["all_reduce"] if name == "infonce_matched" else []
    for counted in spawn_ranks(2, partial(collectives_of_a_step, name)):
        assert counted["gather"] == ["all_gather_single"] * 3 + matching
        assert counted["ring"] == [
            "all_gather_single", "batch_isend_irecv", "all_gather_single", "batch_isend_irecv", *matching
        ]  # fmt: skip


MEMORY = """
import resource, torch
torch.set_num_threads(2)
from jobs.losses import contrastive_loss
def run(B, D=256):
    q, k = (torch.randn(B, D).div_(D**0.5).requires_grad_() for _ in "qk")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    contrastive_loss(q, k, temperature=0.05)[0].backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 - 2 * B * D * 4 / 2**20
run(64)
print(run(16384))
"""


@pytest.mark.soak
@pytest.mark.slow
def test_memory_beyond_inputs_and_gradients_stays_under_64_mb_at_16384_pairs() -> None:
    """Peak resident memory of a process, less the gradients. The logits would be 1024 MiB."""
    out = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True, timeout=280)
    assert float(out.stdout) < 64


# Refusals


def refusal(kind: str, rank: int) -> str:
    """What rank `rank` is told when rank 1 differs in `kind`."""
    odd = rank == 1
    q, k = torch.ones(2, 4), torch.ones(2, 4)
    options: dict[str, Any] = {"temperature": 0.1}
    if kind == "width" and odd:
        q, k = torch.ones(2, 5), torch.ones(2, 5)
    elif kind == "dtype" and odd:
        q, k = q.double(), k.double()
    elif kind == "hard" and odd:
        options["hard_negatives"] = torch.ones(2, 3, 4)
    elif kind == "ids" and odd:
        options["pair_ids"] = torch.arange(2)
    elif kind == "invalid" and odd:
        k = torch.ones(3, 4)
    elif odd:
        name, value = kind.split("=")
        options[name] = {"symmetric": True, "name": "dcl", "exchange": "ring"}.get(name) or float(value)
    try:
        contrastive_loss(q, k, group=dist.group.WORLD, **options)
    except ValueError as refused:
        return str(refused)
    return "accepted"


def refusals(kinds: Sequence[str], rank: int) -> list[str]:
    return [refusal(kind, rank) for kind in kinds]


def test_ranks_that_disagree_are_all_told_who_has_what(spawn_ranks: SpawnRanks) -> None:
    """Mutant check: leaving a field out of the header hangs or accepts, and fails this."""
    expected = {
        "width": "width D is 4 on rank 0, 5 on rank 1",
        "dtype": "dtype is torch.float32 on rank 0, torch.float64 on rank 1",
        "hard": "hard negatives H is 0 on rank 0, 3 on rank 1",
        "ids": "pair_ids given is False on rank 0, True on rank 1",
        "temperature=0.2": "temperature is 0.1 on rank 0, 0.2 on rank 1",
        "margin=0.5": "margin is 0.0 on rank 0, 0.5 on rank 1",
        "hard_negative_weight=2": "hard_negative_weight is 1.0 on rank 0, 2.0 on rank 1",
        "symmetric=": "symmetric is False on rank 0, True on rank 1",
        "name=": "name is 'infonce' on rank 0, 'dcl' on rank 1",
        "exchange=": "exchange is 'gather' on rank 0, 'ring' on rank 1",
    }
    first, second = spawn_ranks(2, partial(refusals, list(expected)))
    assert first == second
    for message, fragment in zip(first, expected.values(), strict=True):
        assert message == f"ranks disagree: {fragment}; every rank must pass the same"


def test_a_rank_with_wrong_arguments_stops_the_others_too(spawn_ranks: SpawnRanks) -> None:
    first, second = spawn_ranks(2, partial(refusal, "invalid"))
    assert first == "rank 1 refused its arguments, see its own message"
    assert second.startswith("rank 1: keys must be like queries, [2, 4] torch.float32 on cpu, not [3, 4]")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "infonse"}, "did you mean 'infonce'"),
        ({"exchange": "rings"}, "did you mean 'ring'"),
        ({"temperature": 0.0}, "temperature must be finite and above 0"),
        ({"temperature": torch.ones(1)}, "temperature must be a number or a 0-d tensor, not \\[1\\]"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"bias": 1.0}, "bias is siglip's only"),
        ({"margin": float("inf")}, "bias and margin must be finite"),
        ({"name": "siglip", "same_side": True}, "same_side is not defined for name='siglip'"),
        ({"hard_negatives": torch.ones(3, 4)}, "hard_negatives must be \\[3, H, 4\\]"),
        ({"hard_negatives": torch.ones(3, 2, 5)}, "hard_negatives must be \\[3, H, 4\\]"),
        ({"hard_negative_weight": 0.0}, "hard_negative_weight must be finite and above 0"),
        ({"pair_ids": torch.ones(3)}, "pair_ids must be int64 \\[3\\]"),
        ({"pair_ids": torch.arange(4)}, "pair_ids must be int64 \\[3\\]"),
        ({"tile": 0}, "tile must be a whole number above 0"),
        ({"pool": 2.0}, "pool must be a whole number above 0"),
        ({"keys": torch.ones(3, 4, dtype=torch.float64)}, "keys must be like queries"),
        ({"queries": torch.ones(3, 4, dtype=torch.int64)}, "queries must be floating point"),
        ({"queries": torch.ones(12)}, "queries must be floating point \\[b, D\\]"),
        ({"queries": torch.ones(0, 4), "keys": torch.ones(0, 4)}, "no rank has a pair"),
    ],
)
def test_wrong_arguments_are_refused_with_what_would_do(options: dict[str, Any], told: str) -> None:
    given = {"queries": torch.ones(3, 4), "keys": torch.ones(3, 4), **options}
    with pytest.raises(ValueError, match=told):
        contrastive_loss(given.pop("queries"), given.pop("keys"), **given)


# Somebody else's code


def test_sentence_transformers_losses_agree() -> None:
    """Where they are exact: one process; ranking loss with hard negatives, its same-side form, its symmetric form."""
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    case = batch(11, hard=2)
    forms: list[tuple[Any, dict[str, Any], bool]] = [
        (losses.MultipleNegativesRankingLoss(None, scale=8.0), {}, True),
        (losses.MultipleNegativesRankingLoss(None, scale=8.0, directions=("query_to_doc", "query_to_query")),
         {"same_side": True}, True),
        (losses.MultipleNegativesRankingLoss(None, scale=8.0, directions=("query_to_doc", "doc_to_query"),
                                             partition_mode="per_direction"), {"symmetric": True}, False),
    ]  # fmt: skip
    for theirs, options, takes_hard in forms:
        q, k, n = case.leaves(torch.float64)
        assert n is not None
        columns = [q, k, *(n.unbind(1) if takes_hard else ())]
        value = theirs.compute_loss_from_embeddings(columns, None)
        value.backward()
        expected = [x.grad for x in (q, k, n)]
        q2, k2, n2 = case.leaves(torch.float64)
        unit = [F.normalize(x, dim=-1) for x in (q2, k2, n2) if x is not None]  # cosine has its own gradient
        loss, _ = contrastive_loss(
            unit[0], unit[1], hard_negatives=unit[2] if takes_hard else None, temperature=TAU, **options
        )
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(value.detach()), rel=1e-12)
        for x, gradient in zip((q2, k2, n2), expected, strict=True):
            if gradient is not None:
                assert x is not None
                assert x.grad is not None
                assert error(x.grad, gradient) < 1e-12

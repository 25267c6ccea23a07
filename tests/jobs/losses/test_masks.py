"""Pairs that share a text are not negatives of each other: against a comparison of every text with every other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracles import Batch, error, oracle
from ranks import SpawnRanks, rank_starter
from test_losses import BARS, LOSSES, Exchange, How, answers, batch, check, joined, noted, rows_of, whole

from jobs.losses import contrastive_loss

FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"symmetric": True},
    {"same_side": True, "margin": 0.1},
    {"symmetric": True, "same_side": True, "hard": 1},
    {"symmetric": True, "hard": 3, "hard_negative_weight": 2.5},
    {"pool": 4, "hard": 2, "hard_negative_weight": 0.5},
    {"pool": 5, "symmetric": True, "same_side": True},
)
GIVEN = (("ids", "key_ids", "negative_ids"), ("ids", "key_ids"), ("ids", "negative_ids"), ("key_ids", "negative_ids"),
         ("key_ids",))  # fmt: skip
"""Which of the ids a case has."""


def texts(case: Batch, *, kinds: int, seed: int = 0, given: Sequence[str] = GIVEN[0]) -> Batch:
    """The case with ids drawn from `kinds` texts for anchors, keys and hard negatives alike, so that they coincide."""
    g = torch.Generator().manual_seed(seed)
    b, hard = len(case.queries), 0 if case.hard is None else case.hard.shape[1]
    drawn: Any = {name: torch.randint(0, kinds, shape, generator=g) * 2**40 - 2**41
             for name, shape in (("ids", (b,)), ("key_ids", (b,)), ("negative_ids", (b, hard)))}  # fmt: skip
    return dataclasses.replace(case, **{n: x for n, x in drawn.items() if n in given and (n != "negative_ids" or hard)})


def form(name: str, number: int) -> dict[str, Any]:
    options = {"name": name, **FORMS[number % len(FORMS)]}
    if name == "siglip":
        options.pop("same_side", None)
    return options


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ranks(forkserver: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnRanks]:
    """`spawn_ranks` for all examples of a hypothesis test."""
    with rank_starter(forkserver, tmp_path_factory.mktemp("ranks")) as start:
        yield start


# Exactness


@pytest.mark.parametrize("name", LOSSES)
def test_one_process_matches_the_oracle_whichever_ids_it_is_given(name: str) -> None:
    """Mutant checks: keys compared with keys alone, masking in one direction only, hard negatives of equal anchors
    masked, the own hard negatives left in, a sparse tile's columns counted from the block's start: each fails this."""
    for number, (which, present) in enumerate(itertools.product(range(len(FORMS)), GIVEN)):
        kinds, tile = (5, 40)[number % 2], (None, 1, 4)[number % 3]
        case = texts(batch(13, seed=number, **form(name, which)), kinds=kinds, seed=number, given=present)
        with noted(f"{case.options}, {present}, {kinds} texts, tile {tile}"):
            check(whole(case, tile=tile), oracle(case), 1e-12 if name != "infonce_ce" else 1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_few_coincidences_in_many_rows_are_found_in_every_tile(name: str) -> None:
    """A large batch, in which most tiles have nothing to mask. Mutant check: looking at the first tile only fails."""
    for number, kinds in enumerate((60, 2000)):
        case = texts(batch(180, seed=number, **form(name, number + 3)), kinds=kinds, seed=number)
        for tile in (None, 64):
            with noted(f"{kinds} texts, tile {tile}"):
                check(whole(case, tile=tile), oracle(case), 1e-11)


@pytest.mark.parametrize("world", [2, 3])
def test_every_split_exchange_and_tile_masks_the_same(spawn_ranks: SpawnRanks, world: int) -> None:
    """Mutant checks: ids of keys left out of what travels, hard negatives' ids read in another order: each fails."""
    splits: list[tuple[int, ...]] = [(6, 7), (13, 0)] if world == 2 else [(4, 0, 9), (5, 4, 4)]
    cases: list[tuple[Batch, How]] = []
    exchanges: tuple[Exchange, ...] = ("gather", "ring")
    for number, (name, exchange, dtype) in enumerate(itertools.product(LOSSES, exchanges, BARS)):
        case = batch(13, seed=number, dtype=dtype, **form(name, number // 2 + world))
        case = texts(case, kinds=9, seed=number, given=GIVEN[number % len(GIVEN)])
        cases.append((case, How(splits[number // 3 % len(splits)], exchange, (None, 5)[number % 2], dtype)))
    for (case, how), *parts in zip(cases, *spawn_ranks(world, partial(answers, cases)), strict=True):
        with noted(f"{case.options}, {how}"):
            check(joined(parts), oracle(case), BARS[how.dtype])


def test_ids_of_a_single_pair_arrive_wherever_they_lie_among_the_features(spawn_ranks: SpawnRanks) -> None:
    """A rank with one pair sends (2 + hard) * width features before its ids: an odd number of fp32, or no multiple of
    four of bf16, is no place of an int64. Mutant check: a view of what was received raises."""
    cases = []
    for number, (width, hard, dtype) in enumerate(
        itertools.product((5, 6, 7), (0, 1), (torch.float64, torch.float32, torch.bfloat16))
    ):
        for split in ((1, 2), (2, 1), (1, 1)):
            case = texts(batch(sum(split), width=width, seed=number, dtype=dtype, name="infonce", hard=hard),
                         kinds=2, seed=number)  # fmt: skip
            cases.append((case, How(split, "gather", None, dtype)))
    for (case, how), *parts in zip(cases, *spawn_ranks(2, partial(answers, cases)), strict=True):
        with noted(f"{case.options}, {how}"):
            check(joined(parts), oracle(case), BARS.get(how.dtype, 3e-2))


@settings(deadline=None, max_examples=5, phases=[Phase.generate])  # shrinking starts processes
@given(data=st.data())
def test_any_coincidences_on_any_ranks_match_the_oracle(data: st.DataObject, ranks: SpawnRanks) -> None:
    world = data.draw(st.integers(2, 3))
    cases: list[tuple[Batch, How]] = []
    for _ in range(12):
        counts = data.draw(st.lists(st.integers(0, 5), min_size=world, max_size=world).filter(any))
        name = data.draw(st.sampled_from([n for n in LOSSES if n != "infonce_ce"]))  # which cancels in float64 too
        options = form(name, data.draw(st.integers(0, 6)))
        options |= {"pool": data.draw(st.none() | st.integers(1, 9)), "hard": data.draw(st.integers(0, 3))}
        case = batch(sum(counts), width=data.draw(st.integers(3, 9)), seed=data.draw(st.integers(0, 99)), **options)
        kinds, present = data.draw(st.integers(1, 12)), data.draw(st.sampled_from(GIVEN))
        case = texts(case, kinds=kinds, seed=data.draw(st.integers(0, 99)), given=present)
        exchange: Exchange = data.draw(st.sampled_from(("gather", "ring")))
        cases.append((case, How(tuple(counts), exchange, data.draw(st.sampled_from([None, 1, 2, 7])))))
    for (case, how), *parts in zip(cases, *ranks(world, partial(answers, cases)), strict=True):
        with noted(f"{case}, {how}"):
            check(joined(parts), oracle(case), 1e-12)


# What the rule says


def gradients_of_first_anchor(anchors: Sequence[int], keys: Sequence[int], hard: Sequence[int] = ()) -> list[list[str]]:
    """Which candidates the first anchor pushes away, by what their gradient is when it alone is asked."""
    b, h = len(anchors), len(hard) // max(len(anchors), 1)
    case = batch(b, hard=h, name="infonce")
    q, k, n = case.leaves(torch.float64)
    q = q.detach()
    q[1:] = 0  # the others push nothing
    contrastive_loss(q, k, hard_negatives=n, temperature=0.125, pair_ids=torch.tensor(anchors),
                     key_ids=torch.tensor(keys), negative_ids=torch.tensor(hard).view(b, h) if h else None,
                     )[0].backward()  # fmt: skip
    found = [[f"key {j}" for j in range(1, b) if k.grad is not None and float(k.grad[j].norm()) > 0]]
    if n is not None and n.grad is not None:
        found.append([f"hard {j}" for j in range(b * h) if float(n.grad.view(b * h, -1)[j].norm()) > 0])
    return found


def test_a_candidate_is_no_negative_when_it_or_its_anchor_says_what_the_pair_says() -> None:
    """The first pair is (1, 2). Of the others: its own anchor again; its own positive again; its anchor as a positive;
    its positive as an anchor; and one that shares nothing."""
    assert gradients_of_first_anchor([1, 1, 3, 4, 2, 8], [2, 5, 2, 1, 6, 9]) == [["key 5"]]


def test_a_hard_negative_is_none_when_it_says_what_the_pair_says_but_its_own_anchor_does_not_count() -> None:
    """The first pair is (1, 2), its own hard negatives are its anchor and another text. The second pair has the same
    anchor, and hard negatives that are the first's positive and another text: that one is a negative of both."""
    hard = [1, 7, 2, 8, 1, 2, 9, 10]
    assert gradients_of_first_anchor([1, 1, 5, 6], [2, 3, 11, 12], hard) == [
        ["key 2", "key 3"], ["hard 1", "hard 3", "hard 6", "hard 7"]
    ]  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(number=st.integers(0, 6), name=st.sampled_from(LOSSES), seed=st.integers(0, 99), kinds=st.integers(1, 20))
def test_order_of_the_pairs_and_names_of_the_texts_do_not_matter(number: int, name: str, seed: int, kinds: int) -> None:
    options = {key: value for key, value in form(name, number).items() if key != "pool"}
    case = texts(batch(9, seed=seed, **options), kinds=kinds, seed=seed)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    renamed: Any = {n: x * 3 + 1 for n in GIVEN[0] if (x := getattr(case, n)) is not None}
    first, second = whole(case), whole(rows_of(dataclasses.replace(case, **renamed), order))
    assert second.loss == pytest.approx(first.loss, rel=1e-12, abs=1e-15)
    assert error(second.queries, first.queries[order]) < 1e-12
    assert error(second.keys, first.keys[order]) < 1e-12


@settings(deadline=None, max_examples=15)
@given(number=st.integers(0, 6), name=st.sampled_from(LOSSES), b=st.integers(1, 200), seed=st.integers(0, 99))
def test_ids_that_all_differ_are_no_ids(number: int, name: str, b: int, seed: int) -> None:
    """Bit for bit."""
    case = batch(b, seed=seed, **form(name, number))
    hard = 0 if case.hard is None else case.hard.shape[1]
    numbers = torch.randperm(b * (2 + hard)) - b
    named = dataclasses.replace(
        case, ids=numbers[:b], key_ids=numbers[b : 2 * b], negative_ids=numbers[2 * b :].view(b, hard) if hard else None
    )
    first, second = whole(case), whole(named)
    assert first.loss == second.loss
    assert all(torch.equal(first.gradients()[n], x) for n, x in second.gradients().items())


@pytest.mark.parametrize("name", LOSSES)
def test_keys_that_say_what_their_anchors_say_add_nothing_to_pair_ids(name: str) -> None:
    """Bit for bit, as two views of one sentence."""
    for number in range(len(FORMS)):
        case = dataclasses.replace(batch(150, ids=True, **form(name, number)))
        first, second = whole(case), whole(dataclasses.replace(case, key_ids=case.ids))
        assert first.loss == second.loss
        assert all(torch.equal(first.gradients()[n], x) for n, x in second.gradients().items())


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "siglip"])
@pytest.mark.parametrize("shared", ["ids", "key_ids"])
def test_where_every_pair_shares_a_text_nothing_pushes(name: str, shared: str) -> None:
    """Mutant check: masking after exp fails this."""
    case = batch(150, hard=2, name=name, symmetric=True, same_side=True)
    case = dataclasses.replace(
        case, ids=torch.arange(150), key_ids=torch.arange(150) + 500, negative_ids=torch.full((150, 2), 7)
    )
    alike: Any = {shared: torch.full((150,), 7)}
    found = whole(dataclasses.replace(case, **alike))
    assert found.loss == 0
    assert all(x is None or float(x.abs().max()) == 0 for x in (found.queries, found.keys, found.hard))


def test_a_batch_about_one_passage_no_longer_pushes_it_from_itself() -> None:
    """Eight questions about one passage and eight others: a symmetric loss gives that passage's copies no push among
    themselves. Without the ids of keys it does."""
    case = batch(16, name="infonce", symmetric=True)
    keys = torch.where(torch.arange(16) < 8, 0, torch.arange(16) + 100)
    masked = dataclasses.replace(case, ids=torch.arange(16) + 1000, key_ids=keys)
    for one, duplicates in ((masked, 8 * 7), (dataclasses.replace(masked, key_ids=None), 0)):
        check(whole(one), oracle(one), 1e-12)
        _, told = contrastive_loss(one.queries, one.keys, pair_ids=one.ids, key_ids=one.key_ids, symmetric=True)
        assert told.duplicates_masked == duplicates


# Diagnostics and refusals


def test_all_masked_candidates_of_the_queries_are_counted() -> None:
    for number in range(len(FORMS)):
        case = texts(batch(150, seed=number, **form("infonce", number)), kinds=50, seed=number)
        options = dict(case.options)
        _, found = contrastive_loss(case.queries, case.keys, hard_negatives=case.hard, pair_ids=case.ids,
                                    key_ids=case.key_ids, negative_ids=case.negative_ids, **options)  # fmt: skip
        pool = options.get("pool") or 150
        mates = torch.arange(150)[:, None] // pool == torch.arange(150) // pool
        keys = int((mates & ~case.others()).sum()) - 150
        hard = 0
        if case.hard is not None:
            hard = int((mates.repeat_interleave(case.hard.shape[1], 1) & ~case.strange()).sum())
        assert found.duplicates_masked == keys + hard
        assert keys > 0
        assert case.hard is None or hard > 0


@pytest.mark.parametrize("name", ["infonce", "dcl", "flatnce", "siglip", "infonce_ce"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_anchors_without_a_negative_are_counted(name: str, symmetric: bool) -> None:
    """Of three pools of four, one repeats a single pair and one is of three pairs; hard negatives are negatives. Mutant
    check: the anchors that have lost any."""
    case = batch(12, name=name)
    ids = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7])
    how: dict[str, Any] = {"name": name, "pair_ids": ids, "pool": 4, "symmetric": symmetric, "tile": 3}
    _, found = contrastive_loss(case.queries, case.keys, **how)
    assert found.without_negatives == pytest.approx(4 / 12)
    _, alone = contrastive_loss(case.queries, case.keys, name=name, pool=4, symmetric=symmetric)
    assert alone.without_negatives == 0
    if name in ("infonce", "dcl"):
        hard = torch.nn.functional.normalize(torch.randn(12, 2, case.queries.shape[1], dtype=torch.float64), dim=-1)
        _, more = contrastive_loss(case.queries, case.keys, hard_negatives=hard, **how)
        assert more.without_negatives == pytest.approx(2 / 12 if symmetric else 0), "in one direction alone"


def test_memory_stays_that_of_tiles_where_everything_coincides() -> None:
    from test_losses import Largest

    case = texts(batch(256, width=4, hard=1, name="infonce", symmetric=True), kinds=1)
    with Largest() as seen:  # type: ignore[no-untyped-call]
        whole(case, tile=16)
    assert seen.bytes <= 256 * 16 * 8


def refused(kind: str, rank: int) -> str:
    """What rank `rank` is told when only rank 1 passes ids of `kind`."""
    options: dict[str, Any] = {"pair_ids": torch.arange(2), "hard_negatives": torch.ones(2, 3, 4)}
    if rank == 1:
        options[kind] = torch.zeros(2, 3, dtype=torch.int64) if kind == "negative_ids" else torch.arange(2)
    try:
        contrastive_loss(torch.ones(2, 4), torch.ones(2, 4), group=dist.group.WORLD, **options)
    except ValueError as error:
        return str(error)
    return "accepted"


def refusals(rank: int) -> list[str]:
    return [refused(kind, rank) for kind in ("key_ids", "negative_ids")]


def test_ranks_that_disagree_about_ids_are_told(spawn_ranks: SpawnRanks) -> None:
    for found in spawn_ranks(2, refusals):
        assert found == [
            f"ranks disagree: {kind} given is False on rank 0, True on rank 1; every rank must pass the same"
            for kind in ("key_ids", "negative_ids")
        ]


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ({"key_ids": torch.ones(3)}, r"key_ids must be int64 \[3\], not \[3\] torch.float32"),
        ({"key_ids": torch.arange(4)}, r"key_ids must be int64 \[3\], not \[4\]"),
        ({"negative_ids": torch.arange(3), "pair_ids": torch.arange(3)}, r"negative_ids must be int64 \[3, 2\], not"),
        ({"negative_ids": torch.ones(3, 2), "pair_ids": torch.arange(3)}, r"negative_ids must be int64 \[3, 2\], not"),
        ({"negative_ids": torch.ones(3, 2).long()}, "negative_ids are compared with pair_ids and key_ids; give pair_"),
    ],
)
def test_wrong_ids_are_refused_with_what_would_do(ids: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        contrastive_loss(torch.ones(3, 4), torch.ones(3, 4), hard_negatives=torch.ones(3, 2, 4), **ids)


def test_ids_of_hard_negatives_without_any_are_refused() -> None:
    with pytest.raises(ValueError, match="negative_ids are those of hard_negatives, which are not given"):
        contrastive_loss(torch.ones(3, 4), torch.ones(3, 4), pair_ids=torch.arange(3), negative_ids=torch.ones(3, 1))

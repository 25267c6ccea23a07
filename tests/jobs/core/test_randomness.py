"""Random numbers are functions of their keys: the same everywhere, and as good as random."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch import Tensor

from jobs.core.randomness import DROPOUT, init_seed, keep, mix, permutation, uniform

WORD = st.integers(0, 2**32 - 1)
ANY = st.integers(-(2**63), 2**63 - 1)


def reference(*keys: int) -> int:
    """The hash in Python's unbounded integers, written out once more."""

    def finalise(x: int) -> int:
        x = (x ^ x >> 16) * 0x21F0AAAD % 2**32
        x = (x ^ x >> 15) * 0xD35A2D97 % 2**32
        return x ^ x >> 15

    state = 0x6A09E667
    for key in keys:
        state = finalise(state ^ finalise((key ^ (key >> 32) * 0x1E35A7BD) % 2**32))
    return state


@settings(deadline=None, max_examples=200)
@given(st.lists(ANY, min_size=1, max_size=4))
def test_tensors_and_ints_give_the_hash_of_unbounded_arithmetic(keys: list[int]) -> None:
    """Mutant check: leaving a product unmasked fails this."""
    assert int(mix(*keys)) == reference(*keys)
    assert int(mix(*map(torch.tensor, keys))) == reference(*keys)
    assert int(mix(*keys[:-1], torch.tensor(keys[-1:]))) == reference(*keys)


def test_the_hash_does_not_change_between_versions() -> None:
    """A changed constant would change every trial of every sweep while its id stayed the same."""
    assert mix(1, 2, 3).item() == 907923498
    assert permutation(8, 1, 2).tolist() == [0, 3, 6, 1, 2, 4, 5, 7]


def test_keys_broadcast_and_int32_keys_count_as_int64() -> None:
    rows, places = torch.arange(3, dtype=torch.int32)[:, None], torch.arange(4)
    whole = mix(7, rows, places)
    assert whole.shape == (3, 4)
    assert whole[2, 1] == mix(7, 2, 1)


@settings(deadline=None, max_examples=100)
@given(WORD, WORD)
def test_the_last_key_never_collides(a: int, b: int) -> None:
    assert (mix(5, a) == mix(5, b)).item() == (a == b)


def test_order_and_number_of_keys_matter() -> None:
    assert len({mix(*keys).item() for keys in [(1, 2), (2, 1), (1,), (2,), (1, 2, 0), (0, 1, 2), (0,), (0, 0)]}) == 8


def test_no_value_depends_on_threads_or_on_what_else_is_asked() -> None:
    whole = mix(1, torch.arange(200_000))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(mix(1, torch.arange(200_000)), whole)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(mix(1, torch.arange(99_000, 99_777)), whole[99_000:99_777])


def test_numbers_are_the_same_in_another_process_and_leave_torchs_generator_alone() -> None:
    code = "from jobs.core.randomness import *; print(mix(3, torch.arange(5)).tolist(), permutation(5, 4).tolist())"
    state = torch.get_rng_state()
    here = f"{mix(3, torch.arange(5)).tolist()} {permutation(5, 4).tolist()}"
    assert torch.equal(torch.get_rng_state(), state)
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert there == here


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bits() -> None:
    keys = torch.arange(10_000)
    assert torch.equal(mix(1, keys.cuda()).cpu(), mix(1, keys))
    assert torch.equal(uniform(1, keys.cuda()).cpu(), uniform(1, keys))
    assert torch.equal(keep(mix(1, keys.cuda()), 33, 0.1)[0].cpu(), keep(mix(1, keys), 33, 0.1)[0])


def streams() -> dict[str, Tensor]:
    """Numbers whose keys differ in one place and follow one another, as those of training do."""
    n = torch.arange(200_000)
    return {"last": uniform(0, 0, n), "first": uniform(n, 0, 0), "grid": uniform(3, n // 500, n % 500)}


@pytest.mark.parametrize("name", ["last", "first", "grid"])
def test_uniform_numbers_are_uniform(name: str) -> None:
    """Kolmogorov-Smirnov against [0, 1), and chi-square on the lowest byte of the 24 bits."""
    numbers = streams()[name]
    assert numbers.dtype == torch.float32
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    assert kstest(numbers.double().numpy(), "uniform").pvalue > 1e-3
    low = (numbers.double() * 2**24).long() % 256
    assert chisquare(torch.bincount(low, minlength=256).numpy()).pvalue > 1e-3


def test_every_bit_of_a_key_moves_half_of_the_bits() -> None:
    """Mutant check: a finaliser that only multiplies fails this."""
    keys = mix(9, torch.arange(4000))
    flipped = keys[:, None] ^ (1 << torch.arange(32))
    changed = mix(1, keys)[:, None] ^ mix(1, flipped)
    share = torch.stack([(changed >> bit & 1).double().mean(0) for bit in range(32)])
    assert (share - 0.5).abs().max() < 0.06


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_a_permutation_holds_every_number_once(n: int) -> None:
    order = permutation(n, 1, 2)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(n))


def test_permutations_are_fair_and_differ_between_keys() -> None:
    """All 24 orders of four things come equally often."""
    orders = [tuple(permutation(4, seed, epoch)) for seed in range(60) for epoch in range(40)]
    counts = np.unique(np.array(orders), axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert chisquare(counts).pvalue > 1e-3
    assert not np.array_equal(permutation(100, 0, 1), permutation(100, 1, 0))


def test_initial_seeds_differ() -> None:
    seeds = [init_seed(seed) for seed in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_keep_rate_is_the_one_asked_for(p: float) -> None:
    """Within 4.5 standard errors, over all numbers, over each channel and over each position's parity."""
    kept, scale = keep(mix(DROPOUT, torch.arange(4000)), 255, p)
    rate = 1 / scale
    assert abs(rate - (1 - p)) <= 2**-17
    for part in (kept.flatten()[:, None], kept, kept[:, ::2].flatten()[:, None], kept[:, 1::2].flatten()[:, None]):
        error = (rate * p / len(part)) ** 0.5
        assert (part.double().mean(0) - rate).abs().max() < 4.5 * error


def test_keep_rates_too_small_or_too_large_for_16_bits_stay_valid() -> None:
    for p in (1e-9, 1 - 1e-9):
        kept, scale = keep(mix(torch.arange(1000)), 8, p)
        assert 1 < scale <= 2**16
        assert abs(kept.double().mean() - (1 - p)) < 0.01


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_are_independent_between_keys_positions_and_channels(p: float) -> None:
    """Correlations of 1e5 and more pairs stay below 5 standard errors.

    Mutant check: leaving out the multiplications of `keep` fails this.
    """
    rows, places = torch.arange(64)[:, None], torch.arange(32)

    def mask(seed: int = 0, step: int = 0, shift: int = 0, call: int = 0) -> Tensor:
        return keep(mix(DROPOUT, seed, step, rows + shift, call, places), 64, p)[0]

    base = mask()
    others = [mask(seed=1), mask(step=1), mask(shift=1), mask(call=1), mask(seed=2**30), mask(step=1 << 16)]
    pairs = [(base, other) for other in others]
    pairs += [(base[:, :, :-lag], base[:, :, lag:]) for lag in (1, 2, 3, 4, 8, 16, 32)]
    pairs += [(base[:, :-lag], base[:, lag:]) for lag in (1, 2, 4, 8)]
    pairs += [(base[:-1], base[1:]), (base[:-32], base[32:])]
    for a, b in pairs:
        assert abs(correlation(a, b)) < 5 / a.numel() ** 0.5


def test_any_two_channels_are_independent_over_keys() -> None:
    """All 64 x 63 / 2 pairs of channels: the largest of 2016 correlations, and their spread, are those of chance.

    Mutant check: one multiplication in `keep` in place of two fails this.
    """
    kept = keep(mix(DROPOUT, torch.arange(20_000)), 64, 0.5)[0].double()
    between = torch.corrcoef(kept.T)[*torch.triu_indices(64, 64, 1)] * 20_000**0.5
    assert between.abs().max() < 5
    assert 0.9 < between.std() < 1.1


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40))
def test_a_channels_mask_does_not_depend_on_the_number_of_channels(few: int, many: int) -> None:
    keys = mix(torch.arange(20))
    shared = min(few, many)
    assert torch.equal(keep(keys, few, 0.3)[0][:, :shared], keep(keys, many, 0.3)[0][:, :shared])

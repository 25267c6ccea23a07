"""What arms are called on a page: by what tells them apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ledgers import BETTER, Begin, finished

from orchestrator import report
from orchestrator.report.naming import LONGEST, Names, names_of, shortened, word


def names(begin: Begin, arms: str) -> Names:
    return names_of(report.summarize(begin(arms).ledger).arms)


def test_levels_of_one_factor_are_named_by_themselves(begin: Begin) -> None:
    """Seen: "temperature=..." three times in a line."""
    found = names(begin, '[compare]\n"loss.temperature" = [0.05, 0.1]\n')
    assert (found.heading, list(found.arm.values())) == ("temperature", ["0.05", "0.1"])
    assert found.pair("temperature=0.1", "temperature=0.05") == "0.1 against 0.05"
    assert found.alone("temperature=0.1") == "temperature 0.1"


def test_further_factors_are_the_place(begin: Begin) -> None:
    found = names(begin, '[compare]\n"loss.temperature" = [0.05, 0.1]\n"batch.size" = [16, 64]\n')
    assert list(found.arm.values()) == ["0.05, batch 16", "0.05, batch 64", "0.1, batch 16", "0.1, batch 64"]
    assert found.heading == "arm"
    assert found.pair("temperature=0.1, size=64", "temperature=0.05, size=64") == "0.1 against 0.05 at batch 64"


def test_words_need_no_name_of_their_factor(begin: Begin) -> None:
    found = names(begin, '[compare]\n"loss.name" = ["infonce", "flatnce"]\n"batch.size" = [16, 64]\n')
    assert found.alone("flatnce, size=16") == "flatnce at batch 16"


def test_labels_of_the_user_s_own_stay(begin: Begin) -> None:
    """Also where their settings differ in one key."""
    found = names(begin, '[[arm]]\nlabel = "cold"\n[[arm]]\nlabel = "warm"\n"loss.temperature" = 0.5\n')
    assert (found.heading, list(found.arm.values())) == ("arm", ["cold", "warm"])


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("loss.temperature", "temperature"),
        ("batch.size", "batch"),
        ("loss.name", "loss"),
        ("seed", "seed"),
        ("size", "size"),
    ],
)
def test_a_key_is_called_by_what_says_something(key: str, said: str) -> None:
    assert word(key) == said


SHARED = "accumulation in eight pools of two thousand and forty-eight pairs each, with warm-up over "


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["plain", "flat"], ["plain", "flat"]),
        ([f"{SHARED}A", f"{SHARED}B"], ["…pairs each, with warm-up over A", "…pairs each, with warm-up over B"]),
        ([f"x {SHARED}", f"y {SHARED}"], ["x…", "y…"]),
        (["k" * 300, "short"], ["k" * 19 + "…" + "k" * 20, "short"]),
    ],
)
def test_a_long_label_keeps_what_differs(labels: list[str], expected: list[str]) -> None:
    """Seen: two labels of 300 characters, cut to the same 40. Mutant check: cutting what comes last."""
    assert shortened(labels) == expected


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=300), min_size=1, max_size=6, unique=True))
@example([f"{SHARED}A{SHARED}", f"{SHARED}B{SHARED}"])
@example(["a" * 300, "a" * 301])
@example(["a" * 41, "…" + "a" * 19 + "…"])
def test_no_two_labels_get_one_name_and_none_is_longer_than_there_is_room(labels: list[str]) -> None:
    found = shortened(labels)
    assert len(set(found)) == len(labels)
    assert all(len(name) <= LONGEST for name in found)
    if all(len(label) <= LONGEST for label in labels):
        assert found == labels


def test_the_sentence_has_names_and_the_page_the_labels_behind_them(begin: Begin, tmp_path: Path) -> None:
    run = begin('[compare]\n"loss.temperature" = [0.05, 0.1]\n')
    finished(run, dict(zip((arm.label for arm in run.plan.arms), BETTER.values(), strict=True)))
    found = report.write(run.ledger, tmp_path / "report")
    assert found.sentence.startswith("temperature 0.1 beats 0.05 by 0.0175 knn_accuracy (")
    assert [arm.label for arm in found.arms] == ["temperature=0.05", "temperature=0.1"]
    written = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "| 0.1 | temperature=0.1 |" in written


def test_arms_of_several_runs_are_named_by_run_and_by_what_differs_within_it(begin: Begin) -> None:
    """Seen: six labels beside a panel, all "first-try: temperature=...", cut before what differs."""
    arms = '[compare]\n"loss.temperature" = [0.05, 0.1]\n"batch.size" = [16, 64]\n'
    runs = [begin(arms, question=f"{k}?") for k in range(2)]
    for run in runs:
        finished(run, {arm.label: BETTER["plain"] for arm in run.plan.arms})
    found = names_of(report.summarize_several({"a": runs[0].ledger, "b": runs[1].ledger}).arms)
    assert list(found.arm.values())[:2] == ["a: 0.05, batch 16", "a: 0.05, batch 64"]


def test_a_word_among_numbers_has_its_factor_behind_it_and_long_levels_are_shortened(begin: Begin) -> None:
    found = names(begin, '[compare]\n"loss.temperature" = [0.1, "learned"]\n')
    assert list(found.spoken.values()) == ["temperature 0.1", "learned temperature"]
    sources = [
        "digits",
        *(f"/data/a/folder/of/many/letters/images/of-the-{year}-collection.parquet" for year in (1, 2)),
    ]
    given = json.dumps(sources)
    found = names(begin, f'[compare]\n"data.train" = {given}\n')
    assert len(set(found.level.values())) == 3
    assert max(map(len, found.level.values())) <= LONGEST

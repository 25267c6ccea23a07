"""What is built in is listed: as JSON, and on a page that is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toolbox
from real import call

from jobs.config import components
from jobs.config.catalogue import Component, catalogue


@pytest.fixture(scope="module")
def listed() -> list[Component]:
    return catalogue()


def test_the_page_is_made_of_what_is_built_in() -> None:
    """Mutant check: an option more fails this until `python tests/support/records/toolbox.py write`."""
    assert toolbox.PAGE.read_text("utf-8") == toolbox.page()


def test_the_verb_prints_every_component_with_its_options(tmp_path: Path, listed: list[Component]) -> None:
    printed = json.loads(call("schema", "components", cwd=tmp_path))
    assert printed == {"version": 1, "components": json.loads(json.dumps(listed))}


def test_every_built_in_is_listed_once_and_says_what_it_is(listed: list[Component]) -> None:
    """A loss, an optimizer or a transform is somebody's idea, and says whose."""
    names = {(one["kind"], one["name"]) for one in listed}
    assert len(names) == len(listed)
    expected = {
        (kind.name, name)
        for kind in components.KINDS.values()
        for name in {*components.builtin_names(kind.name)} - {*kind.names}
    }
    assert names == expected
    assert all(one["description"] for one in listed)
    own = ("infonce_ce", "infonce_matched", "sgd")  # made to measure with, or older than a paper
    ideas = [one for one in listed if one["kind"] in ("loss", "optimizer", "transform") and one["name"] not in own]
    assert [one["name"] for one in ideas if not one["sources"]] == []


def test_options_have_types_defaults_and_bounds(listed: list[Component]) -> None:
    (soft_clip,) = (one for one in listed if one["name"] == "soft_clip")
    expected = {"default": 1.0, "title": "", "type": "number", "exclusiveMinimum": 0}
    assert soft_clip["options"]["properties"]["norm"] | {"title": ""} == expected
    (matryoshka,) = (one for one in listed if one["name"] == "matryoshka")
    assert matryoshka["options"]["required"] == ["dims"]
    assert {one["name"] for one in listed if one["default"]} >= {"infonce", "adamw", "vit", "cosine", "image"}


def test_no_two_built_ins_of_a_kind_have_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder and in a family below it: the one would hide the other."""
    (tmp_path / "losses" / "builtin" / "family").mkdir(parents=True)
    for folder in ("", "family/"):
        (tmp_path / "losses" / "builtin" / f"{folder}mine.py").touch()
    monkeypatch.setattr(components, "PACKAGE", tmp_path)
    components.built_in_files.cache_clear()
    with pytest.raises(TypeError, match=r"the loss 'mine' is built in twice"):
        components.built_in_files("loss")
    components.built_in_files.cache_clear()

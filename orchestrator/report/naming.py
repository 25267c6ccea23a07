"""What arms are called where people read: by what tells them apart, without what all have in common.

The label stays what it is on the command line, in JSON and in MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from jobs.config.components import is_import_path
from orchestrator.sweep.model import labels_of
from orchestrator.sweep.values import shown

LONGEST = 40
"""Characters of a name."""

FEWEST_KEPT = 12
"""Characters that labels must have in common before these are left out."""

SAYS_NOTHING = ("size", "name")
"""Last parts of keys that say nothing without the part before."""


class Labelled(Protocol):
    """An arm by its label and what it sets."""

    @property
    def label(self) -> str:
        """As commands know it."""

    @property
    def settings(self) -> Mapping[str, JsonValue]:
        """Job key -> value."""

    @property
    def run(self) -> str | None:
        """Among arms of several runs: whose it is."""

    @property
    def arm(self) -> str | None:
        """Among arms of several runs: its label there."""


@dataclass(frozen=True)
class Names:
    """Names of an answer's arms, by label."""

    factor: str
    """What a level is a level of: `temperature`; `arm` where arms have labels of their own."""
    arm: Mapping[str, str]
    """`0.1, batch 64`: which no two arms share."""
    level: Mapping[str, str]
    """`0.1`: which is enough beside others at the same place."""
    spoken: Mapping[str, str]
    """`temperature 0.1`: the level where a sentence begins with it."""
    where: Mapping[str, str]
    """`batch 64`: the place among the other factors; empty where there are none."""
    key: str = ""
    """Job key of the factor, where arms are named by the levels of factors."""
    others: Sequence[str] = ()
    """What the other factors are called."""

    @property
    def are_levels(self) -> bool:
        """Whether arms are named by the levels of factors."""
        return bool(self.key)

    @property
    def heading(self) -> str:
        """What heads a column of arms."""
        return "arm" if any(self.where.values()) else self.factor

    def alone(self, label: str) -> str:
        """Name an arm in a sentence by itself: `temperature 0.1 at batch 64`."""
        return f"{self.spoken[label]}{self.at(label, label)}"

    def at(self, a: str, b: str) -> str:
        """Name the place of a comparison: ` at batch 64`; empty where there are no other factors."""
        return f" at {self.where[a]}" if self.where[a] and self.where[a] == self.where[b] else ""

    def sides(self, a: str, b: str) -> tuple[str, str]:
        """Name the arms of a comparison, the first one as a sentence begins with it: `temperature 0.1`, `0.05`."""
        alike = self.where[a] == self.where[b]
        return (self.spoken[a], self.level[b]) if alike else (self.arm[a], self.arm[b])

    def pair(self, a: str, b: str) -> str:
        """Name a comparison: `0.1 against 0.05 at batch 64`."""
        if self.where[a] == self.where[b]:
            return f"{self.level[a]} against {self.level[b]}{self.at(a, b)}"
        return f"{self.arm[a]} against {self.arm[b]}"


def names_of(arms: Sequence[Labelled]) -> Names:
    """Name the arms of an answer; those of several runs by their run and by what differs within it."""
    if any(arm.run is not None for arm in arms):
        return _of_runs(arms)
    return _names([arm.label for arm in arms], [arm.settings for arm in arms])


def _names(labels: Sequence[str], settings: Sequence[Mapping[str, JsonValue]]) -> Names:
    first_arm = settings[0] if settings else {}
    varied = [key for key in first_arm if any(own.get(key) != first_arm[key] for own in settings)]
    if not varied or any(own.keys() != first_arm.keys() for own in settings) or labels_of(settings) != list(labels):
        return _as_they_are(labels, shortened(labels))
    words = _words(varied)
    first, *others = varied
    texts = list(dict.fromkeys(level_text(own[first]) for own in settings))
    short = dict(zip(texts, shortened(texts), strict=True))
    levels = [short[level_text(own[first])] for own in settings]
    places = [place_of({key: own[key] for key in others}) for own in settings]
    are_words = all(_is_word(own[first]) for own in settings)
    given = [own[first] for own in settings]
    spoken = [
        level if are_words else _spoken(words[first], level, value) for level, value in zip(levels, given, strict=True)
    ]
    named = shortened([f"{level}, {place}" if place else level for level, place in zip(levels, places, strict=True)])
    arm, level, said, where = (dict(zip(labels, each, strict=True)) for each in (named, levels, spoken, places))
    return Names(words[first], arm, level, said, where, first, [words[key] for key in others])


def _spoken(factor: str, level: str, value: JsonValue) -> str:
    """Name a level with its factor: `temperature 0.1`, `learned temperature`."""
    return f"{level} {factor}" if _is_word(value) else f"{factor} {level}"


def _of_runs(arms: Sequence[Labelled]) -> Names:
    """Name arms of several runs: `first-try: 0.1, batch 64`."""
    of_run: dict[str, list[Labelled]] = {}
    for arm in arms:
        of_run.setdefault(arm.run or "", []).append(arm)
    named: dict[str, str] = {}
    for run, own in of_run.items():
        names = _names([arm.arm or arm.label for arm in own], [arm.settings for arm in own])
        named |= {arm.label: f"{run}: {names.arm[arm.arm or arm.label]}" for arm in own}
    return _as_they_are(list(named), shortened(list(named.values())))


def _as_they_are(labels: Sequence[str], named: Sequence[str]) -> Names:
    names = dict(zip(labels, named, strict=True))
    return Names("arm", names, names, names, dict.fromkeys(labels, ""))


def as_labelled(arms: Sequence[Labelled]) -> Names:
    """Name the arms by their labels, as other pages and commands know them."""
    labels = [arm.label for arm in arms]
    return _as_they_are(labels, labels)


def word(key: str) -> str:
    """Return what a key is called in a sentence: `temperature` of loss.temperature, `batch` of batch.size."""
    section, _, last = key.rpartition(".")
    return section.rpartition(".")[2] if section and last in SAYS_NOTHING else last


def place_of(settings: Mapping[str, JsonValue]) -> str:
    """Name a place among factors: `batch 64`."""
    words = _words(list(settings))
    return ", ".join(f"{words[key]} {level_text(level)}" for key, level in settings.items())


def level_text(level: JsonValue) -> str:
    """Format one level of a factor: `0.1`, `flatnce`."""
    if isinstance(level, str) and level:
        return level.rpartition(":")[2] if is_import_path(level) else level
    return shown(level)


def shortened(labels: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Shorten labels to at most `longest` characters each, and keep what tells them apart."""
    if all(len(label) <= longest for label in labels):
        return list(labels)
    before = _whole_words(_shared_start(labels))
    after = _whole_words(_shared_start([label[::-1] for label in labels]))
    before, after = (part if part >= FEWEST_KEPT and len(labels) > 1 else 0 for part in (before, after))
    made = [label if len(label) <= longest else _middle(label, before, after, longest) for label in labels]
    if len(set(made)) < len(set(labels)):
        return [_numbered(text, k, longest) for k, text in enumerate(made, 1)]
    return made


def _shared_start(texts: Sequence[str]) -> str:
    """Return what all texts begin with."""
    low, high = min(texts), max(texts)
    return low[: next((k for k, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))]


def _middle(label: str, before: int, after: int, longest: int) -> str:
    """Leave out what a label shares with the others, before and after; then what is in the middle of the rest."""
    end = max(len(label) - after, before)
    kept = label[before:end].strip()
    # Room that is left shows where the others would go on alike.
    lead, tail = ("…" if before else ""), ("…" if end < len(label) else "")
    room = longest - len(kept) - len(lead) - len(tail)
    if room >= 0:
        more = _whole_words(label[:before][::-1][:room][::-1], from_end=True) if before else 0
        return f"{lead}{label[before - more : before]}{kept}{tail}" if more else f"{lead}{kept}{tail}"
    half = (longest - 1) // 2
    whole = f"{lead}{kept}{tail}"
    return f"{whole[:half].rstrip()}…{whole[-(longest - 1 - half) :].lstrip()}"


def _whole_words(shared: str, *, from_end: bool = False) -> int:
    """Count the characters of a text up to its last blank, or from its first one on; all where it has none."""
    if from_end:
        blank = shared.find(" ")
        return len(shared) - blank - 1 if blank >= 0 else len(shared)
    blank = shared.rfind(" ")
    return blank + 1 if blank >= 0 else len(shared)


def _numbered(text: str, number: int, longest: int) -> str:
    end = f" ({number})"
    return f"{text[: longest - len(end)].rstrip()}{end}"


def _words(keys: Sequence[str]) -> dict[str, str]:
    """Return what each key is called, by all of it where two would be called alike."""
    brief = {key: word(key) for key in keys}
    used = list(brief.values())
    return {key: text if used.count(text) == 1 else key for key, text in brief.items()}


def _is_word(level: JsonValue) -> bool:
    return isinstance(level, str) and bool(level)

"""Digests of what computes: what changes them and what does not, and what a run makes of it."""

from __future__ import annotations

import ast
import email
import io
import itertools
import json
import os
import shutil
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folders
import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real import SWEEP, call, driver, status, wait_for
from test_session import opened

import jobs
from jobs.config import JobConfig
from jobs.core.provenance import bare_code, code_digest, code_files
from jobs.data import digests, resolve
from jobs.data.validate import stamps
from jobs.models.pretrained.folder import digest
from orchestrator.ledger import Attempt
from orchestrator.ledger.stored import AttemptRecord, CodeRecord
from orchestrator.run_dir.provenance import (
    DataFault,
    Group,
    OtherCode,
    accept_what_ran,
    behind,
    examine,
    is_known,
    look_at_encoders,
    refuse_other_code,
    refuse_other_data,
    today,
    write_down,
)
from orchestrator.sweep.model import Sweep
from orchestrator.sweep.plan import Plan, make
from orchestrator.verify import origin_checks

ROOT = Path(__file__).parents[3]

CODE = '''
"""Docstring."""
X = "a # no comment"  # a comment


class Thing:
    """Of the class."""

    field: int = 3
    """Of the field."""

    def method(self) -> str:
        # why
        text = """a string
        that stays"""
        return text
'''


def test_comments_docstrings_and_blank_lines_do_not_count() -> None:
    """Mutant check: leaving docstrings in fails this."""
    other = CODE.replace("# why", "# another reason").replace("Docstring.", "Another.").replace("Of the", "On the")
    assert bare_code(other) == bare_code(CODE)
    assert bare_code(CODE.replace("\n\n", "\n\n\n")) == bare_code(CODE)
    assert "that stays" in bare_code(CODE)
    assert '"a # no comment"' in bare_code(CODE)


@pytest.mark.parametrize(
    ("old", "new"), [("3", "4"), ("that stays", "that goes"), ("# no", "# yes"), ("text\n", "''\n")]
)
def test_everything_else_counts(old: str, new: str) -> None:
    assert bare_code(CODE.replace(old, new)) != bare_code(CODE)


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=30))
def test_a_comment_of_any_text_does_not_count(text: str) -> None:
    """Columns of characters and of bytes differ. Mutant check: cutting by characters fails this."""
    line = "x = 'ü'  "
    assert bare_code(f"{line}# {text}\ny = 1\n") == bare_code(f"{line}\ny = 1\n") == "x = 'ü'\ny = 1"


def test_what_counts_is_what_python_itself_makes_of_a_file() -> None:
    """Of ours and of Python's own, which hold whatever may stand in one. Mutant checks: a raw string that
    ends at a quote behind a backslash, one over several lines that does, and not looking below `match`."""
    tops = [Path(module.__file__ or "").parent for module in (jobs, email, json)]
    files = [path for top in tops for path in top.rglob("*.py")]
    assert len(files) > 100
    for path in files:
        with tokenize.open(path) as file:
            source = file.read()
        assert bare_code(source) == bare_by_its_tokens(source), path


@pytest.mark.parametrize(
    "source",
    [
        "x = r'\\\\'  # why\n",
        "x = r'a\\'# no comment'  # why\n",
        "x = 'a\\\n# no comment'  # why\n",
        "x = (\"a\"  # why\n     'b')\n",
        'x = """a\\"""# no comment"""  # why\n',
        'x = """a""  # no comment\n\'\'\'\n"""  # why\n',
        "x = ''  # why 'not\ny = '#'\n",
        "match x:\n    case 1:\n        'a docstring'\n        y = 2  # why\n",
        "try:\n    'one'\nexcept A:\n    'two'\nelse:\n    'three'\nfinally:\n    'four'\n    x = 1\n",
        "x = lambda: 'no docstring'; 'one'\n\f\ny = 1  # why",
    ],
)
def test_comments_within_strings_count_and_strings_within_comments_do_not(source: str) -> None:
    assert bare_code(source) == bare_by_its_tokens(source)


def bare_by_its_tokens(source: str) -> str:
    """What `bare_code` says, by all of a file's tokens and nodes."""
    lines = [line.encode() for line in io.StringIO(source)]
    spans = [
        ((node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or 0))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            (row, start), (_, end) = token.start, token.end
            spans.append(((row, len(token.line[:start].encode())), (row, len(token.line[:end].encode()))))
    for (first, start), (last, end) in sorted(spans, reverse=True):
        lines[first - 1 : last] = [lines[first - 1][:start] + lines[last - 1][end:]]
    text = b"".join(lines).decode()
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def test_every_file_of_a_package_counts_and_no_other(tmp_path: Path) -> None:
    package = tmp_path / "a" / "jobs"
    (package / "deep").mkdir(parents=True)
    (package / "one.py").write_text("x = 1\n")
    (package / "deep" / "two.py").write_text("y = 2\n")
    moved = tmp_path / "b" / "jobs"
    shutil.copytree(package, moved)
    (moved / "notes.txt").write_text("no code")
    (moved / "__pycache__").mkdir()
    (moved / "__pycache__" / "one.py").write_text("junk")
    assert code_digest(moved) == code_digest(package)
    shutil.copytree(package, tmp_path / "c")
    (tmp_path / "c" / "deep" / "two.py").write_text("y = 3\n")
    assert code_digest(tmp_path / "c") != code_digest(package)
    assert set(code_files(ROOT / "jobs")) >= {"train/loop.py", "losses/__init__.py"}


def test_what_editors_and_systems_leave_beside_code_does_not_count_and_what_is_no_python_does(tmp_path: Path) -> None:
    """Emacs' lock is a link to nowhere, macOS' companion is no text. Seen: a traceback."""
    package = tmp_path / "jobs"
    (package / "deep").mkdir(parents=True)
    (package / "one.py").write_text("x = 1\n")
    shutil.copytree(package, tmp_path / "more")
    (tmp_path / "more" / ".#one.py").symlink_to("somebody@host.123:456")
    (tmp_path / "more" / "deep" / "._two.py").write_bytes(b"\x00\x05\x16\x07\xff")
    (tmp_path / "more" / "gone.py").symlink_to("nowhere.py")
    (tmp_path / "more" / "folder.py").mkdir()
    (tmp_path / "more" / "one.py").write_bytes(b"x = 1\r\n# another system's ends of lines\r\n")
    assert code_files(tmp_path / "more") == code_files(package)
    for number, content in enumerate([b"<<<<<<< HEAD\n", b"\xff\xfe", b"x = '\x00'\n", b"'''", b"(", b"x = 1\n  y"]):
        copied = tmp_path / f"odd{number}"
        shutil.copytree(package, copied)
        (copied / "one.py").write_bytes(content)
        assert code_digest(copied) != code_digest(package)


def image_job(path: Path, **data: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "task": "image",
            "budget": {"steps": 1},
            "batch": {"size": 4},
            "data": {"train": str(path), "confirm": f"{path}[:5]", "columns": ["image", "label"], **data},
        }
    )


def write_images(path: Path, seed: int = 0, rows: int = 12, **columns: Any) -> None:
    rng = np.random.default_rng(seed)
    images = [row.tobytes() for row in rng.integers(0, 256, (rows, 64), dtype=np.uint8)]
    table = {"image": pa.array(images, pa.binary(64)), "label": pa.array([k % 3 for k in range(rows)])}
    pq.write_table(pa.table(table | columns), path)


def test_rows_are_told_apart_by_what_is_used_of_them_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_images(path)
    first = {use: entry["digest"] for use, entry in digests(image_job(path)).items()}
    assert set(first) == {f'data.{use} ["image", "label"]' for use in (f"train = {path}", f"confirm = {path}[:5]")}
    write_images(path, other=pa.array(range(12)))
    assert {use: entry["digest"] for use, entry in digests(image_job(path)).items()} == first, "a column nobody uses"
    write_images(path, seed=1)
    changed = {use: entry["digest"] for use, entry in digests(image_job(path)).items()}
    assert all(changed[use] != first[use] for use in first)


def test_arms_that_read_a_set_by_other_columns_are_judged_on_other_rows(tmp_path: Path) -> None:
    """Seen: both had one key, so that the first arm's trials were refused."""
    path = tmp_path / "a.parquet"
    write_images(path, other=pa.array([k % 2 for k in range(12)]))
    first, second = (digests(image_job(path, columns=["image", name])) for name in ("label", "other"))
    assert not first.keys() & second.keys()
    both = first | second
    for name, found in (("label", first), ("other", second)):
        assert digests(image_job(path, columns=["image", name]), both) == found


def test_a_run_that_was_recorded_without_columns_in_its_keys_is_compared_by_them(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_images(path)
    job = image_job(path)
    recorded = {key.replace('[:5] ["image", "label"]', "[:5]"): entry for key, entry in digests(job).items()}
    assert f"data.confirm = {path}[:5]" in recorded
    assert digests(job, recorded) == recorded
    write_images(path, seed=1)
    now = digests(job, recorded)
    assert now.keys() == recorded.keys()
    assert all(now[key]["digest"] != recorded[key]["digest"] for key in now)


def test_a_file_whose_time_is_not_known_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind hf://, by the file systems of fsspec. Seen: while its size was equal it counted as unchanged."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/a.csv", b"text\n")
    filesystem = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(memory))
    monkeypatch.setattr("pyarrow.fs.FileSystem", SimpleNamespace(from_uri=lambda _: (filesystem, "a.csv")))
    (file,) = resolve.locate("made-up://a.csv").files
    assert (file.size, file.changed) == (5, None)
    assert stamps("made-up://a.csv") is None


def test_a_file_that_has_not_changed_is_not_read_again_and_one_whose_time_was_set_back_is(tmp_path: Path) -> None:
    """Mutant checks: reading always would find the truth in place of what is claimed here; trusting the time of the
    content would not notice the second change."""
    path = tmp_path / "a.parquet"
    write_images(path)
    known = digests(image_job(path))
    claimed = {use: {**entry, "digest": "claimed"} for use, entry in known.items()}
    assert {entry["digest"] for entry in digests(image_job(path), claimed).values()} == {"claimed"}
    before = path.stat()
    write_images(path, seed=1)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    now = digests(image_job(path), claimed)
    assert not {entry["digest"] for entry in now.values()} & {"claimed", *(e["digest"] for e in known.values())}


def test_weights_and_tokenizer_of_an_encoder_count_and_its_readme_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "training_args.bin"):
        (folder / name).write_text(name)
    first = digest(str(folder), tokenizer=True)
    assert first is not None
    for name in ("README.md", "training_args.bin"):
        (folder / name).write_text("changed")
    same = digest(str(folder), tokenizer=True)
    assert same is not None
    assert same["digest"] == first["digest"]
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        (folder / name).write_text(f"changed {name}")
        now = digest(str(folder), tokenizer=True)
        assert now is not None
        assert now["digest"] != first["digest"]
        first = now
    assert digest("vit", tokenizer=True) is None
    assert digest(None, tokenizer=True) is None


RECORD: Any = {
    "code": "aaa",
    "files": {"train/loop.py": "1", "train/step.py": "2"},
    "versions": {"torch": "2.13.0"},
    "data": {"data.train = x": {"digest": "d1", "source": "x"}},
    "weights": {},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"code": "bbb", "files": {"train/loop.py": "1", "train/step.py": "3"}},
            r"aaa -> bbb: jobs/train/step.py differ",
        ),
        ({"versions": {"torch": "2.14.0"}}, r"torch 2.13.0 -> 2.14.0"),
        ({"versions": {"torch": "2.13.0", "ray": "2.60"}}, r"ray none -> 2.60"),
    ],
)
def test_other_code_is_refused_with_what_differs_until_it_is_accepted(change: dict[str, Any], words: str) -> None:
    now = RECORD | change
    refuse_other_code(RECORD, RECORD, resume="orchestrator resume runs/x")
    with pytest.raises(OtherCode, match=words) as refusal:
        refuse_other_code(RECORD, now, resume="orchestrator resume runs/x")
    assert "orchestrator resume runs/x --accept-code" in str(refusal.value)
    accepted = RECORD | {"accepted": [{"code": now["code"], "versions": now["versions"]}]}
    refuse_other_code(accepted, now, resume="")
    assert is_known(accepted, RECORD), "what the run began with stays known"


def test_a_package_that_an_earlier_version_did_not_record_is_no_other_code() -> None:
    """But it is where it was recorded."""
    now = RECORD | {"versions": {"torch": "2.13.0", "pillow": "13.0.0"}}
    refuse_other_code(RECORD, now, resume="")
    with pytest.raises(OtherCode) as refusal:
        refuse_other_code(RECORD, now | {"code": "bbb"}, resume="")
    assert "pillow" not in str(refusal.value)
    with pytest.raises(OtherCode, match=r"pillow 13.0.0 -> 13.1.0"):
        refuse_other_code(now, RECORD | {"versions": {"torch": "2.13.0", "pillow": "13.1.0"}}, resume="")
    with pytest.raises(OtherCode, match=r"pillow 13.0.0 -> none"):
        refuse_other_code(now, RECORD, resume="")


def test_other_rows_are_refused_with_both_digests() -> None:
    now = RECORD | {"data": {"data.train = x": {"digest": "d2", "source": "x"}}}
    with pytest.raises(
        ValueError, match=r"data.train = x is not what the run was begun with: its digest was d1 and is d2"
    ):
        refuse_other_data(RECORD, now)


@pytest.mark.parametrize("kind", ["data", "weights"])
def test_what_is_gone_is_refused(kind: str) -> None:
    """Seen: only what was found was compared."""
    entry: dict[str, Any] = {"digest": "d1", "names": [], "revision": None}
    recorded = RECORD | {kind: {"x": entry}}
    label = "model.name = x" if kind == "weights" else "x"
    refuse_other_data(recorded, recorded)
    with pytest.raises(DataFault, match=f"^{label} is gone, with which the run was begun; put it back"):
        refuse_other_data(recorded, RECORD | {kind: {}})
    with pytest.raises(DataFault, match=f"^{label} is not what the run was begun with"):
        refuse_other_data(recorded, RECORD | {kind: {"x": entry | {"digest": "d2"}}})


def test_the_files_of_a_guide_are_recorded_and_named_by_its_key(tmp_path: Path) -> None:
    """Of every arm that has one, found by a look at the plan. A folder that is no encoder is refused then."""
    guide = folders.encoder(tmp_path / "guide")
    (tmp_path / "rows.tsv").write_text("\n".join(["text", *(f"red {thing} {n}" for n in range(4) for thing in "abcd")]))
    judged = [f"red {n}\tblue {n}\t{n}" for n in range(8)]
    (tmp_path / "judged.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *judged]))

    def plan(folder: Path) -> Plan:
        job = {
            "task": "sentence",
            "budget": {"steps": 1},
            "batch": {"size": 4},
            "model": {"vocabulary": 100},
            "data": {"train": str(tmp_path / "rows.tsv"), "confirm": str(tmp_path / "judged.tsv")},
        }
        arms = [{"label": "plain"}, {"label": "guided", "loss": {"name": "gist", "guide": str(folder)}}]
        sweep = {"name": "s", "question": "q?", "metric": {"name": "spearman", "mode": "max"}, "job": job, "arm": arms}
        return make(Sweep.model_validate(sweep | {"confirm": {"seeds": 6}}))

    recorded = examine(plan(guide)).record
    assert recorded["weights"][str(guide)]["key"] == "loss.guide"
    other: Any = recorded | {"weights": {str(guide): recorded["weights"][str(guide)] | {"digest": "d2"}}}
    with pytest.raises(DataFault, match=r"^loss\.guide = .*guide is not what the run was begun with"):
        refuse_other_data(recorded, other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataFault, match=r"^loss\.guide = '.*empty' cannot be used"):
        look_at_encoders(plan(tmp_path / "empty"))


def made(trial: str, number: int, code: str | None, torch: str = "2.13.0") -> Attempt:
    ran: AttemptRecord | None = None if code is None else {"code": code, "versions": {"torch": torch}}
    return Attempt(trial, number, "done", {}, "host", provenance=ran)


@dataclass
class Named:
    id: str


def groups(attempts: Iterable[Attempt], accepted: list[CodeRecord]) -> list[Group]:
    every = list(attempts)
    trials: Any = [Named(name) for name in dict.fromkeys(attempt.trial for attempt in every)]
    return behind(RECORD | {"accepted": accepted}, trials, every)


def test_a_trial_stands_behind_every_code_that_its_attempts_ran() -> None:
    """The second went on from the first one's checkpoint. Seen: the last alone was named. Mutant check: that."""
    versions = {"torch": "2.13.0"}
    attempts = (made("t", 1, "aaa"), made("t", 2, "bbb"), made("u", 1, "bbb"), made("u", 2, "bbb"))
    assert groups(attempts, [{"code": "bbb", "versions": versions}]) == [
        {"code": "aaa", "versions": versions, "accepted": False, "trials": ["t"]},
        {"code": "bbb", "versions": versions, "accepted": True, "trials": ["t", "u"]},
    ]
    assert [group["code"] for group in groups((made("t", 1, None), made("t", 2, "aaa")), [])] == [None, "aaa"]


CODES = st.sampled_from([None, "aaa", "bbb", "ccc"])


@given(st.lists(st.tuples(st.sampled_from("tuv"), CODES, st.sampled_from(["2.13.0", "2.14.0"])), max_size=8))
def test_report_and_verify_count_the_same(ran: list[tuple[str, str | None, str]]) -> None:
    accepted: list[CodeRecord] = [{"code": "bbb", "versions": {"torch": "2.13.0"}}]
    attempts: dict[str, list[Attempt]] = {}
    for trial, code, torch in ran:
        of_trial = attempts.setdefault(trial, [])
        of_trial.append(made(trial, len(of_trial) + 1, code, torch))
    facts: Any = SimpleNamespace(
        run=SimpleNamespace(provenance={**RECORD, "accepted": accepted}),
        trials={trial: Named(trial) for trial in attempts},
        attempts=attempts,
    )
    told = [group for group in groups(itertools.chain(*attempts.values()), accepted) if group["code"] is not None]
    wanted = [
        f"{len(group['trials'])} trial{'s' * (len(group['trials']) > 1)} by code {group['code']}"
        f"{'' if group['versions'] == RECORD['versions'] else ' with torch 2.14.0'}{' (accepted)' * group['accepted']}"
        for group in told
    ]
    alone = all((group["code"], group["versions"]) == ("aaa", RECORD["versions"]) for group in told)
    (note,) = list(origin_checks._codes(facts)) or [""]
    found = note.removeprefix("versions of code: ").split(", ") if note else []
    assert sorted(found) == ([] if alone else sorted(wanted))


def test_code_that_a_finished_run_ran_can_still_be_accepted(tmp_path: Path) -> None:
    """And code that none of its attempts ran is not. Seen: `verify` advised it, and it changed nothing."""
    with opened(tmp_path, {"tune": None}) as (session, ledger, _, _):
        session.start()
        trial = ledger.trials()[0].id
        ledger.set_run(provenance=RECORD | {"code": "0" * 12})
        accept_what_ran(ledger)
        assert "accepted" not in (ledger.run.provenance or {})
        now = today()
        ledger.start_attempt(trial, {}, "host", provenance={"code": now["code"], "versions": now["versions"]})
        accept_what_ran(ledger)
        accept_what_ran(ledger)
        recorded: Any = ledger.run.provenance
        assert [entry["code"] for entry in recorded["accepted"]] == [now["code"]]


def test_what_was_accepted_is_named(tmp_path: Path) -> None:
    """Seen: "code aaa was accepted beside aaa"."""
    with opened(tmp_path, {"tune": None}) as (session, ledger, _, _):
        session.start()
        ledger.set_run(provenance=RECORD)
        write_down(ledger, RECORD | {"versions": {"torch": "2.14.0"}})
        write_down(ledger, RECORD | {"code": "bbb"})
        said = [event.text for event in ledger.events("code_accepted")]
        assert said == ["torch 2.14.0 was accepted beside 2.13.0", "code bbb was accepted beside aaa"]


def test_weights_that_an_earlier_version_recorded_are_recorded_again_and_that_is_said(tmp_path: Path) -> None:
    """Its digest counted other files, so there is nothing to compare."""
    before = RECORD | {"weights": {"enc": {"digest": "old", "files": []}}}
    now = RECORD | {"weights": {"enc": {"digest": "new", "files": [], "names": ["config.json"], "revision": None}}}
    refuse_other_data(before, now)
    with opened(tmp_path, {"tune": None}) as (session, ledger, _, _):
        session.start()
        ledger.set_run(provenance=before)
        write_down(ledger, now)
        write_down(ledger, now)
        assert (ledger.run.provenance or {})["weights"] == now["weights"]
        assert len(ledger.events("weights_recorded")) == 1


@pytest.mark.soak
@pytest.mark.slow
def test_a_run_goes_on_with_the_code_the_data_and_the_weights_that_it_began_with(tmp_path: Path) -> None:
    """Stopped, then continued by a checkout whose jobs/metrics differs, then with other rows in
    the file: exit 2, and not one trial. Accepted, the code stands beside every number. Seen: all was pooled,
    and verify said ok."""
    home = tmp_path / "here"
    home.mkdir()
    write_images(home / "rows.parquet", rows=300)
    toml = (
        SWEEP.replace("steps = 8", "steps = 60")
        .replace("ranks = 2", "ranks = 1")
        .replace('confirm = "digits[400:500]"', 'confirm = "rows.parquet[200:]"')
    )
    toml = toml.replace('"digits[:300]"', '"rows.parquet[:150]"').replace(
        '"digits[300:400]"', '"rows.parquet[150:200]"'
    )
    (home / "sweep.toml").write_text(toml)
    with driver("launch", "sweep.toml", "--offline", "--set", "resources.concurrent=1", cwd=home) as process:
        wait_for(lambda: (home / "runs/small/sweep.json").exists() and status(home)["counts"]["done"] >= 2)
        process.terminate()
        process.communicate(timeout=60)
    before = status(home)["counts"]["done"]
    assert before < 10
    begun = sum(trial["attempts"] > 0 for trial in status(home)["trials"])

    other = tmp_path / "other"
    for package in ("jobs", "orchestrator"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    evaluate = other / "jobs" / "metrics" / "builtin" / "knn_accuracy.py"
    evaluate.write_text(evaluate.read_text().replace("KNN_TEMPERATURE = 0.07", "KNN_TEMPERATURE = 0.7"))
    there = {"PYTHONPATH": str(other)}
    said = call("resume", "small", "--offline", cwd=home, code=2, env=there)
    assert "jobs/metrics/builtin/knn_accuracy.py differ" in said
    assert status(home)["counts"]["done"] == before

    original = (home / "rows.parquet").read_bytes()
    write_images(home / "rows.parquet", seed=1, rows=300)
    said = call("launch", "sweep.toml", "--offline", cwd=home, code=2)
    assert "data.train = rows.parquet[:150] is not what the run was begun with: its digest was" in said
    (home / "rows.parquet").unlink()
    runs = {"ORCHESTRATOR_RUNS": str(home / "runs")}
    assert "rows.parquet" in call("resume", "small", "--offline", cwd=tmp_path, code=2, env=runs)
    (home / "rows.parquet").write_bytes(original)
    assert status(home)["counts"]["done"] == before

    # From another folder, with the other checkout, accepted: relative data are those of the folder where it began.
    elsewhere = there | runs
    call("resume", "small", "--accept-code", cwd=tmp_path, env=elsewhere)
    call("resume", "small", cwd=tmp_path, env=elsewhere)
    answer = json.loads(call("compare", "small", "--json", cwd=home))
    assert [(group["accepted"], len(group["trials"])) for group in answer["code"]] == [
        (False, begun),  # the trial that was stopped half-way is one of both
        (True, 10 - before),
    ]
    assert any("several programs" in note for note in answer["notes"])
    found = json.loads(call("verify", "small", "--json", cwd=home))
    assert found["ok"], found["faults"]
    assert any("accepted" in note for note in found["notes"])

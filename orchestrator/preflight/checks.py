"""The checks. Each stands by itself: what cannot be asked is a finding too."""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.config import ConfigError
from orchestrator.ledger import LedgerError, probe, sqlite_url
from orchestrator.preflight import node as nodes
from orchestrator.preflight import requirements
from orchestrator.preflight.findings import BLOCKER, OK, WARNING, Finding, of_error
from orchestrator.preflight.node import Facts, Questions, StorageMarker
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir import provenance
from orchestrator.run_dir.bucket import RemoteError
from orchestrator.run_dir.folder import RunError, RunFolder
from orchestrator.run_dir.provenance import DataFault
from orchestrator.session import cluster
from orchestrator.session.cluster import access, capacity, inquiry
from orchestrator.session.cluster.capacity import Node
from orchestrator.session.cluster.inquiry import Answer
from orchestrator.sweep.plan import Plan
from orchestrator.system.addresses import address_option
from orchestrator.system.exit_codes import InfrastructureMissing
from orchestrator.system.terminal import caught

ANSWER_S = nodes.LOOK_S + 60.0
"""How long a node may take: to start a process of Ray's, and to look."""

LITTLE, SMALL = 3 * 2**19, 5 * 2**30
"""Free bytes below which not even the ledger and a tiny encoder's checkpoint fit, and below which a sweep may run out.
In between a person decides: a disk that fills up stops the sweep with nothing lost."""

SHARED_MEMORY = 2**30
"""Ray's objects and NCCL's buffers lie there. Containers get 64 MB unless told otherwise."""

AHEAD_S, APART_S = 2.0, 300.0
"""Clocks further apart than this mix up what happened when; and than this, a store refuses what was signed."""

EXACT = ("python", "torch", "numpy")
"""Packages of which another version may give other numbers: then a trial's result depends on where it ran."""


def examine(folder: RunFolder | None, *, plan: Plan | None = None, offline: bool = False) -> list[Finding]:
    """Look at everything that a run in `folder` needs, here and on the cluster of $RAY_ADDRESS. Leaves nothing.

    folder: None where it is not said yet; then neither storage nor what depends on it is looked at.
    """
    findings = [*_on_nodes(folder, plan, thorough=True), *_token(), *_ledger(folder)]
    if not offline:
        findings.append(_mlflow(folder))
    if plan is not None:
        findings += [_room(plan), *_data(plan)]
    return findings


def refuse(folder: RunFolder, plan: Plan) -> list[str]:
    """Return what a person should know before a session: on a cluster every node is asked, this machine only about its
    disk. Raises InfrastructureMissing for blockers. What else would stop a session (room, data, ledger, MLflow) stops
    it by itself."""
    findings = _on_nodes(folder, plan, thorough=False)
    blockers = [finding for finding in findings if finding.level == BLOCKER]
    if blockers:
        lines = "\n".join(
            f"  {finding.check}, {finding.where}: {finding.found}\n    -> {finding.remedy}" for finding in blockers
        )
        raise InfrastructureMissing(
            f"{len(blockers)} blocker{'s' * (len(blockers) > 1)}; `orchestrator doctor{address_option()}` looks again:"
            f"\n{lines}"
        )
    findings += [*_token(), *(finding for finding in _ledger(folder) if finding.check == "clock")]
    return [finding.line for finding in findings if finding.level != OK]


def _on_nodes(folder: RunFolder | None, plan: Plan | None, *, thorough: bool) -> list[Finding]:
    """Collect what the nodes tell, or this machine where there is no other."""
    try:
        with _mark(folder) as marker:
            answers, more = _answers(_questions(marker, plan), thorough=thorough)
    except ConnectionError as error:
        return [_no_cluster(error)]
    except (RemoteError, OSError) as error:
        return [of_error("storage", "driver", error)]
    except InfrastructureMissing as error:
        return [of_error("cluster", access.address() or "here", error)]
    facts = {answer.name: answer.value for answer in answers if answer.value is not None}
    return [
        *more,
        *_unanswered(answers),
        *_versions(answers, facts),
        *_gpus(answers, facts, plan),
        *(_storage(facts, in_bucket=folder.remote is not None) if folder is not None else ()),
        *_disk(facts, {} if folder is None else {str(_there(folder.path)): str(folder.path.absolute())}),
        *_clocks(answers),
        *_sources(facts),
    ]


@contextlib.contextmanager
def _mark(folder: RunFolder | None) -> Iterator[StorageMarker | None]:
    """Keep a file beside the run that nodes are asked to find, while the context lasts. Raises RemoteError, OSError."""
    if folder is None:
        yield None
        return
    mark, content = f".orchestrator-doctor-{secrets.token_hex(4)}", secrets.token_hex(8)
    if folder.remote is not None:
        folder.remote.put(mark, content.encode())
        try:
            yield StorageMarker(mark, content, uri=folder.remote.uri)
        finally:
            folder.remote.delete(mark)
        return
    there = _there(folder.path)
    (there / mark).write_text(content)
    try:
        yield StorageMarker(mark, content, folder=str(there))
    finally:
        (there / mark).unlink(missing_ok=True)


def _there(folder: Path) -> Path:
    """Return the folder, or the nearest existing one above it."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _questions(marker: StorageMarker | None, plan: Plan | None) -> Questions:
    gpus = plan is None or plan.sweep.resources.gpus_per_rank > 0
    jobs = [arm.config(stage="confirm", seed=0).data for arm in plan.arms] if plan else []
    sources = {source for data in jobs for source in data.every_source}
    return Questions(marker, str(runs.scratch()), tuple(sorted(sources)), gpus=gpus)


def _answers(asked: Questions, *, thorough: bool) -> tuple[list[Answer[Facts]], list[Finding]]:
    """Ask every node, or this machine. Returns the answers and what the cluster itself calls for. Raises
    ConnectionError."""
    if access.address() is None:
        here = capacity.here()
        gpus = asked.gpus and here.gpus > 0
        return [Answer("this machine", here, nodes.facts(replace(asked, gpus=gpus, ranks=thorough)))], []

    def about(node: Node) -> Questions:
        return replace(asked, gpus=asked.gpus and node.gpus > 0, ranks=node.cpus > 0)

    with caught(), cluster.session(cpus=0):
        answers = inquiry.ask(nodes.facts, about, limit_s=ANSWER_S)
        findings = []
        if cluster.open_to_others():
            risk = "whoever reaches the cluster may run any command on it"
            remedy = "start head and workers with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN (infra/README.md)"
            findings.append(Finding("token", access.address() or "", WARNING, risk, remedy))
    cpus, gpus = (sum(getattr(answer.node, kind) for answer in answers) for kind in ("cpus", "gpus"))
    sums = f"{len(answers)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
    return answers, [Finding("cluster", access.address() or "", OK, sums), *findings]


def _no_cluster(error: Exception) -> Finding:
    if isinstance(error, cluster.NoToken):
        return of_error("token", f"RAY_ADDRESS={access.address()}", error)
    remedy = "start it, correct the address, or unset RAY_ADDRESS to run on this machine"
    return Finding("cluster", f"RAY_ADDRESS={access.address()}", BLOCKER, f"does not answer: {error}", remedy)


def _unanswered(answers: Sequence[Answer[Facts]]) -> Iterator[Finding]:
    for answer in answers:
        if answer.error is not None:
            remedy = "install this package there as here: pip install -c constraints.txt . (infra/README.md)"
            if "answered" in answer.error:
                remedy = "see whether the node lives and has memory left; `ray status` on the head lists it"
            yield Finding("node", answer.name, BLOCKER, answer.error, remedy)
        elif answer.value is not None and answer.value.trouble:
            remedy = "run it there by hand: python -m jobs.workers.node_info --gpus"
            yield Finding("node", answer.name, BLOCKER, answer.value.trouble, remedy)


def _versions(answers: Sequence[Answer[Facts]], facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Compare the nodes: all must run one code, and the packages that numbers depend on."""
    ranks = {name: of_node.looked["versions"] for name, of_node in facts.items() if of_node.looked is not None}
    here = nodes.code()
    for name, of_node in facts.items():
        if of_node.code != here:
            remedy = "install the same commit on every node, or launch with --address, which takes the code along"
            yield Finding(
                "versions", name, BLOCKER, f"runs other code of this package than the driver ({here})", remedy
            )
    differ = False
    for package in sorted({package for versions in ranks.values() for package in versions}):
        counts = Counter(versions[package] for versions in ranks.values())
        usual = counts.most_common(1)[0][0]
        for name, versions in ranks.items():
            if versions[package] != usual:
                differ = True
                level = BLOCKER if package in EXACT else WARNING
                remedy = "make the nodes alike: pip install -c constraints.txt ., or one container image for all"
                yield Finding("versions", name, level, f"{package} {versions[package]}, elsewhere {usual}", remedy)
    if ranks and not differ:
        (first, *_) = ranks.values()
        where = f"{len(ranks)} nodes" if len(answers) > 1 else next(iter(ranks))
        shown = ", ".join(f"{package} {first[package]}" for package in ("python", "torch", "ray", "transformers"))
        yield Finding("versions", where, OK, shown)


def _gpus(answers: Sequence[Answer[Facts]], facts_of: Mapping[str, Facts], plan: Plan | None) -> Iterator[Finding]:
    """Compare what Ray hands out of a node with what torch sees there, and computes on."""
    for answer in answers:
        facts = facts_of.get(answer.name)
        if facts is None or facts.looked is None or facts.looked["gpus"] is None:
            continue
        seen, level = facts.looked["gpus"], BLOCKER if plan is not None else WARNING
        names = ", ".join(f"{count} x {name}" for name, count in Counter(seen["names"]).items())
        if seen["error"]:
            yield Finding(
                "gpus", answer.name, level, seen["error"], "see nvidia-smi there; restart the driver or the node"
            )
        elif len(seen["names"]) < answer.node.gpus:
            remedy = "start the node with as many as there are: ray start --num-gpus=N; see nvidia-smi there"
            if seen["cuda"] is None:
                remedy = "this torch is built for CPUs only: install the CUDA build of the same version there"
            promised = f"Ray has {answer.node.gpus:g} GPUs there, torch sees {names or 'none'}"
            yield Finding("gpus", answer.name, level, promised, remedy)
        else:
            yield Finding("gpus", answer.name, OK, f"{names} (CUDA {seen['cuda']})")


def _storage(facts: Mapping[str, Facts], *, in_bucket: bool) -> Iterator[Finding]:
    bad = {name: of_node.storage for name, of_node in facts.items() if of_node.storage}
    for name, what in bad.items():
        remedy = "keep the run where every node may write: --into s3://BUCKET/NAME, or a folder that they share"
        if "RemoteError" in what or in_bucket:
            remedy = "set the bucket's keys in the environment of head and workers (infra/README.md)"
        yield Finding("storage", name, BLOCKER, what, remedy)
    if facts and not bad:
        where = "the bucket" if in_bucket else "the folder of runs"
        yield Finding(
            "storage", f"{len(facts)} of {len(facts)}", OK, f"{where} can be written, and files in it replaced"
        )


def _disk(facts_of: Mapping[str, Facts], meant: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Judge the room on every node. meant: folder that was looked at -> the one that it stands for, as that of a run
    which is not there yet: it has one name in all sessions."""
    low = False
    for name, facts in facts_of.items():
        for looked_at, free in facts.free.items():
            folder = (meant or {}).get(looked_at, looked_at)
            if free < SMALL:
                low = True
                remedy = f"free some space in {folder}, or put it elsewhere: ORCHESTRATOR_SCRATCH, TMPDIR, --into"
                level = BLOCKER if free < LITTLE else WARNING
                room = f"{free / 2**30:.1f} GiB" if free >= 2**29 else f"{free / 2**20:.1f} MiB"
                yield Finding("disk", name, level, f"{room} free in {folder}", remedy)
        if facts.shared_memory is not None and facts.shared_memory < SHARED_MEMORY:
            shown = f"shared memory of {facts.shared_memory / 2**20:.0f} MiB, where Ray and NCCL keep buffers"
            remedy = "give the container more: docker run --shm-size=4g, or an emptyDir of medium Memory there"
            yield Finding("disk", name, WARNING, shown, remedy)
    if facts_of and not low:
        least = min(free for facts in facts_of.values() for free in facts.free.values())
        yield Finding("disk", f"{len(facts_of)} of {len(facts_of)}", OK, f"{least / 2**30:.0f} GiB free or more")


def _clocks(answers: Sequence[Answer[Facts]]) -> Iterator[Finding]:
    yield from filter(None, (clock(answer.name, answer.ahead_s) for answer in answers if answer.error is None))
    if len(answers) > 1:
        most = max(abs(answer.ahead_s) for answer in answers)
        if most <= AHEAD_S:
            yield Finding("clock", f"{len(answers)} nodes", OK, f"at most {most:.3f} s apart from the driver's")


def clock(where: str, ahead_s: float) -> Finding | None:
    """Judge a clock that is `ahead_s` seconds ahead of the driver's; return None if it is close enough."""
    if abs(ahead_s) <= AHEAD_S:
        return None
    shown = f"its clock is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the driver's"
    level = BLOCKER if abs(ahead_s) > APART_S else WARNING
    return Finding("clock", where, level, shown, "synchronise clocks: timedatectl set-ntp true, or chronyd")


def _sources(facts_of: Mapping[str, Facts]) -> Iterator[Finding]:
    for name, facts in facts_of.items():
        missing = {} if facts.looked is None else facts.looked.get("missing", {})
        for source, why in missing.items():
            remedy = "put it where every node reads it: a shared folder, ORCHESTRATOR_DATA on each, or s3://..."
            yield Finding("data", name, BLOCKER, f"{source}: {why}", remedy)


def _token() -> Iterator[Finding]:
    if not access.keep_private():
        risk = f"others can read {access.made_up()}, which is a link or another user's file"
        yield Finding("token", "driver", WARNING, risk, f"have its owner close it: chmod 600 {access.made_up()}")


def _ledger(folder: RunFolder | None) -> Iterator[Finding]:
    try:
        url = runs.at("s3://BUCKET/NAME").ledger_url() if folder is None else folder.ledger_url()
        if folder is not None and url == sqlite_url(folder.path / "ledger.db"):
            url = sqlite_url(_there(folder.path) / "ledger.db")
        ahead_s = probe(url)
    except (LedgerError, RunError) as error:
        yield of_error("ledger", "driver", error)
        return
    if (skewed := clock("the ledger's server", ahead_s)) is not None:
        yield skewed
    if url.startswith("sqlite") and (access.address() is not None or folder is None or folder.remote is not None):
        remedy = "export ORCHESTRATOR_LEDGER=postgresql://USER@HOST/DATABASE"
        limit = "SQLite in a file, so only this machine can continue the run"
        yield Finding("ledger", "driver", WARNING, limit, remedy)
    else:
        yield Finding(
            "ledger", "driver", OK, f"{'SQLite' if url.startswith('sqlite') else 'PostgreSQL'} can be written"
        )


def _mlflow(folder: RunFolder | None) -> Finding:
    folder = runs.at("s3://BUCKET/NAME") if folder is None else folder
    try:
        uri = requirements.check_tracking(folder)
    except (InfrastructureMissing, RemoteError) as error:
        return of_error("mlflow", "driver", error)
    return Finding(
        "mlflow", "driver", OK, "a store beside the runs" if uri.startswith("sqlite") else "the server answers"
    )


def _room(plan: Plan) -> Finding:
    ranks = requirements.max_world_size(plan)
    try:
        requirements.check_cluster(plan, ranks)
        at_once = requirements.concurrent(plan, ranks)
    except ConfigError as error:
        (issue, *_) = error.issues
        return Finding("room", "cluster", BLOCKER, f"{issue.key} = {issue.found} does not fit", issue.expected)
    except InfrastructureMissing as error:
        return of_error("room", "cluster", error)
    return Finding("room", "cluster", OK, f"{at_once} trial{'s' * (at_once != 1)} of {ranks} ranks at once")


def _data(plan: Plan) -> Iterator[Finding]:
    try:
        warnings = provenance.examine(plan).notes
    except DataFault as error:
        yield of_error("data", "driver", error)
        return
    for text in warnings:
        what, _, remedy = text.partition("; ")
        yield Finding("data", "driver", WARNING, what, remedy or "see jobs.data")
    if not warnings:
        yield Finding("data", "driver", OK, "every row that trials read is as it should be")

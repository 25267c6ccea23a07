"""Who holds what of a real Ray cluster, and who waits for more, as Ray tells without a dashboard."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from real import wait_for

from orchestrator.session import cluster
from orchestrator.session.cluster.picture import DRIVER, RUN, SWEEP, Owner, Painter
from orchestrator.session.cluster.sharing import PLAIN

CARD = {SWEEP: "mine", RUN: "runs/mine", DRIVER: "here pid 1"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def painter() -> Iterator[Painter]:
    with cluster.session(cpus=3, card=CARD):
        yield Painter()


def test_what_one_session_leaves_out_the_others_are_told(painter: Painter) -> None:
    from orchestrator.session.cluster.picture import SPACE, STUCK, _client

    assert painter.left_out() == {}
    painter.leave_out({"plain [('CPU', 1.0)]": (1.5e9, 30.0)})
    assert Painter().left_out() == {"plain [('CPU', 1.0)]": (1.5e9, 30.0)}
    for other in (b"[1]", b"{", b'{"a": 1}', b"\xff"):
        _client().internal_kv_put(STUCK, other, True, namespace=SPACE, timeout=5)
        assert painter.left_out() == {}, "another version says it in another way"


def test_groups_tasks_and_actors_are_seen_with_whose_they_are(painter: Painter) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    empty = painter.picture()
    assert (empty.held, empty.claims, dict(empty.plain)) == ((), (), {})
    assert [one["CPU"] for one in empty.total] == [3.0]
    group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="SPREAD")
    ray.get(group.ready(), timeout=60)
    waits = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")

    @ray.remote(num_cpus=1)
    class Actor:
        def there(self) -> bool:
            return True

    actor = Actor.remote()  # type: ignore[attr-defined, unused-ignore]
    assert ray.get(actor.there.remote(), timeout=60)
    late = Actor.remote()  # type: ignore[attr-defined, unused-ignore]
    picture = wait_for(
        lambda: (seen := painter.picture()).plain.get("CPU") == 1 and len(seen.claims) == 2 and seen, seconds=30
    )
    me = ray.get_runtime_context().get_job_id()
    assert picture.me == me
    assert picture.sweeps == {me}
    (held,) = picture.held
    assert (held.id, held.job, dict(held.all)) == (group.id.hex(), me, {"CPU": 2.0})
    assert {(one.job, one.strategy, len(one.bundles)) for one in picture.claims} == {
        (me, "STRICT_SPREAD", 2),
        (PLAIN, "PACK", 1),
    }
    assert painter.owner(me) == Owner(me, "mine", "runs/mine", "here pid 1", *_entrypoint(painter.owner(me)))
    assert str(painter.owner(me)) == f"sweep mine (runs/mine, driven by here pid 1, Ray job {me})"
    assert painter.of_plain() == [painter.owner(me)]
    ray.kill(actor)
    ray.kill(late)
    for one in (group, waits):
        remove_placement_group(one)
    wait_for(lambda: not (seen := painter.picture()).held and not seen.claims and not seen.plain, seconds=30)


def _entrypoint(owner: Owner) -> tuple[str, str]:
    assert owner.entrypoint
    assert owner.where.startswith(f"pid {os.getpid()} at ")
    return owner.entrypoint, owner.where


@pytest.mark.parametrize(
    ("entrypoint", "said"),
    [
        ("python train.py", "python train.py"),
        ("/usr/bin/python3 /home/me/train.py --token hunter2", "python3 train.py"),
        ("TOKEN=hunter2 python -m tool.train --x hunter2", "python -m tool.train"),
        ("python -c 'hunter2'", "python"),
        ("python --password=hunter2 a b", "python"),
        ("./run\x1b[2J hunter2", "run\\x1b[2J"),
        ("ray", "ray"),
    ],
)
def test_somebody_elses_job_is_named_by_its_program(entrypoint: str, said: str) -> None:
    """Not by its arguments: these may be secrets, and the words go to a log."""
    assert str(Owner("02000000", entrypoint=entrypoint, where="pid 7 at 10.0.0.9")) == (
        f"Ray job 02000000 ({said}, pid 7 at 10.0.0.9)"
    )


def test_a_job_of_which_nothing_is_known_has_its_number() -> None:
    assert str(Painter().owner("03000000")) == "Ray job 03000000"

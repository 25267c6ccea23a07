"""Ray Tune as a stateless executor: it places trials, runs them on warm gangs and brings back what they report.

What to run next, what a report means and when to stop are the session's business (session.py). Tune keeps nothing that
matters: no retries, no restore, no checkpoints of its own. The only file that imports ray.tune.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

# Tune reads these when it is imported, and a slot when it is begun, which imports this.
os.environ |= {
    "TUNE_FORCE_TRIAL_CLEANUP_S": "20",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # One may wait for a slot while another one takes the slot that is warm.
    "TUNE_MAX_PENDING_TRIALS_PG": "2",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

import ray
from ray import cloudpickle, tune
from ray.tune.execution import tune_controller
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from jobs.core.failures import Failure
from jobs.workers.group import LEAVING_S, Gang, GangError, first_line, kind_of, node_is_lost
from orchestrator.session.cluster import capacity
from orchestrator.session.cluster.room import Room
from orchestrator.session.cluster.sharing import Claim
from orchestrator.session.cluster.slots import Slots
from orchestrator.session.session import Session
from orchestrator.session.writer import Dispatch

if TYPE_CHECKING:
    from ray.actor import ActorClass
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

MANAGER = "PlacementGroupResourceManager"
"""What Tune's loop makes for its placement groups. It takes another one, and `Tuner` has no option for it."""

CLASSES = "_ActorClassCache"
"""What makes its actors' classes, likewise."""


@dataclass(frozen=True)
class Shape:
    """What one slot of the cluster holds."""

    ranks: int
    """The largest world size of the sweep: slots are alike, so that a gang serves every trial."""

    cpus: int
    gpus: float
    placement: str = "pack"
    """`pack`: its ranks on one node if they fit; `spread`: on as many as there are."""

    accelerator_type: str | None = None


class TrialActor(tune.Trainable):
    """A slot: drives one gang, which stays warm from trial to trial."""

    def setup(self, config: dict[str, object]) -> None:
        """Keep the config; the gang is built by the first step, where a failure can be reported."""
        self._gang: Gang | None = None
        self._given: Dispatch | None = None
        self._begun = False

    def take(self, attempt: Dispatch) -> None:
        """Take the attempt to run. It comes by itself, once the slot is there: until then its trial is queued."""
        self._given = attempt

    def step(self) -> dict[str, object]:
        """Train for about a second. Failures of ranks come back as results, so that the slot survives them, unless
        its node is gone: then the slot is too."""
        if self._given is None:  # nothing was due any more
            return {"done": True}
        try:
            return self._turn(self._given)
        except GangError as error:
            self._gang = None
            if error.failure.kind == "node_lost":
                raise
            return {"done": True, "failure": asdict(error.failure)}

    def reset_config(self, new_config: dict[str, object]) -> bool:
        """Be ready for the next trial. Nothing may raise here: Tune would wait for ever."""
        self._let_go()
        self._given, self._begun = None, False
        return True

    def cleanup(self) -> None:
        """Give up the slot: commit what is unfinished, end the ranks."""
        self._let_go()
        if self._gang is not None:
            self._gang.kill()

    def _turn(self, given: Dispatch) -> dict[str, object]:
        shape = Shape(**self.config["shape"])
        if self._gang is None:
            group = ray.util.get_current_placement_group()
            assert group is not None, "Tune runs this actor inside a placement group"
            self._gang = Gang(group, size=shape.ranks, cpus=shape.cpus, gpus=shape.gpus)
            self._begun = False
        if not self._begun:
            report = self._gang.begin(
                given.job,
                given.folder,
                attempt=(given.token, given.attempt),
                remote=given.remote,
                expected=None if given.expected is None else dict(given.expected),
            )
            self._begun = True
        else:
            report = self._gang.advance()
        return report | {"done": report["result"] is not None}

    def _let_go(self) -> None:
        """Save a checkpoint and drop the job, as far as the ranks still can."""
        if self._gang is None or not self._begun:
            return
        try:
            self._gang.save()
            self._gang.end()
        except GangError as error:
            logging.getLogger(__name__).warning("a gang was lost between trials: %s", error)
            self._gang = None


class ActorClasses:
    """Actor classes for Tune, with the environment of their nodes and no other.

    Tune's own pass variables of the driver on, keys of buckets among them, which everybody reads who sees the cluster
    or its logs. And for any variable at all Ray begins each worker with a process that sets it: twice the start.
    """

    def __init__(self) -> None:
        self._made: dict[type[tune.Trainable], ActorClass[tune.Trainable]] = {}

    def get(self, trainable: type[tune.Trainable]) -> ActorClass[tune.Trainable]:
        """Return the actor class of a trainable, always the same, because each is kept in the cluster's store."""
        if trainable not in self._made:
            self._made[trainable] = ray.remote(trainable)
        return self._made[trainable]


def slot(shape: Shape) -> Claim:
    """Return what a trial takes of a cluster."""
    return Claim("", "", tuple(_bundle(shape) for _ in range(shape.ranks)), shape.placement.upper())


def run(session: Session, *, shape: Shape, scratch: Path, room: Room | None = None) -> None:
    """Run attempts until the session has finished. Ray must be initialised.

    room: what is known of those who share the cluster; None: it is this session's alone.
    """
    shape_config = asdict(shape)
    wanted = slot(shape)
    resources = tune.PlacementGroupFactory([{}, *map(dict, wanted.bundles)], strategy=wanted.strategy)
    link = _Link(session, room, None if room is None else Slots(room=room))
    tuner = tune.Tuner(
        tune.with_resources(TrialActor, lambda _config: resources),
        tune_config=tune.TuneConfig(
            search_alg=_Search(link, shape_config),
            scheduler=_Scheduler(link),
            num_samples=10**6,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch.resolve()),
            verbose=0,
            stop=_Stop(link),
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[_Listener(link)],
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(tune_controller, CLASSES, ActorClasses))
        if link.slots is not None:
            stack.enter_context(mock.patch.object(tune_controller, MANAGER, return_value=link.slots))
        tuner.fit()


def _bundle(shape: Shape) -> dict[str, float]:
    bundle = {"CPU": float(shape.cpus)} | ({"GPU": shape.gpus} if shape.gpus else {})
    if shape.accelerator_type is not None:
        bundle[capacity.TYPE + shape.accelerator_type] = 0.001  # a mark, not an amount
    return bundle


class _Link:
    """The session, and which attempt each of Tune's trials is. Tune snapshots its searcher, scheduler and callbacks;
    nothing is ever restored from that, so what is pickled of this is nothing."""

    def __init__(self, session: Session, room: Room | None, slots: Slots | None) -> None:
        self.session, self.room, self.slots = session, room, slots
        self.attempts: dict[str, Dispatch] = {}
        """Of the trials for which a slot was there."""
        self.waiting: set[str] = set()
        """Those for which none is there yet."""
        self.controller: TuneController | None = None
        """Tune's own loop, once a trial has ended."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return (object, ())


class _Search(Searcher):
    """Asks for a slot when an attempt is due. Which one it gets is settled once the slot is there (_Listener). Tune's
    own trial ids mean nothing to us."""

    def __init__(self, link: _Link, shape: dict[str, object]) -> None:
        super().__init__(metric="step", mode="max")
        self._link, self._shape = link, shape

    def suggest(self, trial_id: str) -> Any:  # Ray says dict or None, and takes FINISHED, a text
        """Return a config, None while nothing is due, or FINISHED."""
        session = self._link.session
        if session.finished():
            return Searcher.FINISHED
        if not session.due(len(self._link.waiting)):
            return None
        self._link.waiting.add(trial_id)
        return {"shape": self._shape}

    def on_trial_complete(self, trial_id: str, result: dict[str, object] | None = None, error: bool = False) -> None:
        """Do nothing: the listener has heard it."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger has what there is to keep."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: this is never called, because a sweep is continued from the ledger."""


class _Scheduler(FIFOScheduler):
    """Prunes when the session says so; gives slots back when others are to have them."""

    def __init__(self, link: _Link) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._link = link

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, object]) -> str:
        """Return STOP or CONTINUE."""
        dispatch = self._link.attempts.get(trial.trial_id)
        prune = dispatch is not None and self._link.session.prune(dispatch, result)
        return str(FIFOScheduler.STOP if prune else FIFOScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, object]) -> None:
        """Decide, when a trial has ended, whether Tune keeps its slot warm or ends it."""
        if (slots := self._link.slots) is not None:
            self._link.controller = tune_controller
            tune_controller._reuse_actors = not slots.given_back()  # noqa: SLF001 - Tune has no option for it

    def choose_trial_to_run(self, tune_controller: TuneController) -> None:
        """Choose none of the trials that wait: a warm slot would be given to the trial that has waited longest, and the
        slot that is coming up for it would be ended. Where trials are short, no second slot would ever come up.

        Warm slots are given back here too if nothing is due for them: it may be long until another trial ends.
        """
        controller, slots = self._link.controller, self._link.slots
        if controller is not None and slots is not None:
            idle = controller._actor_cache.num_cached_objects and not controller._pending_trials  # noqa: SLF001
            if idle and slots.given_back():
                controller._cleanup_cached_actors(force_all=True)  # noqa: SLF001


class _Stop(tune.Stopper):
    """Stops every trial once the session is stopping."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Return whether to stop, at the end too: a slot may still be asked for, for what is no longer due."""
        return self._link.session.stopping() or self._link.session.finished()


class _Listener(tune.Callback):
    """Passes on what comes back."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._lost_idle = 0
        """Slots that were lost one after the other without an attempt on them."""

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: object) -> None:
        """Begin the attempt that is due by now, if any is: a slot is there for it."""
        self._link.waiting.discard(trial.trial_id)
        self._lost_idle = 0
        dispatch = self._link.session.next()
        if dispatch is None:
            return
        self._link.attempts[trial.trial_id] = dispatch
        actor = trial.temporary_state.ray_actor
        assert actor is not None, "Tune says that it has started"
        actor.take.remote(dispatch)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, object], **_: object
    ) -> None:
        """Pass on what a gang has reported."""
        if (dispatch := self._link.attempts.get(trial.trial_id)) is not None:
            self._link.session.report(dispatch, result)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: object) -> None:
        """Handle the loss of a slot: its actor died, or a bug in it. A slot that nothing ran on yet, or that never came
        to be, is charged to nobody the first time, and then to what is due: there must be an end to it."""
        self._link.waiting.discard(trial.trial_id)
        dispatch = self._link.attempts.get(trial.trial_id)
        if dispatch is None:
            self._lost_idle += 1
            dispatch = self._link.session.next() if self._lost_idle > 1 else None
        if dispatch is None:
            return
        with Path(trial.pickled_error_file).open("rb") as file:  # Tune's own, written by this process
            error = cloudpickle.load(file)
        cause = error
        while isinstance(inner := getattr(cause, "cause", None), BaseException):
            cause = inner
        failure = cause.failure if isinstance(cause, GangError) else _lost_slot(cause, str(error))
        self._link.session.lost(dispatch, failure)


def _lost_slot(cause: BaseException, trace: str) -> Failure:
    """Explain why the actor that drove a gang is gone: by itself, or because its node is."""
    kind, reason = kind_of(cause), first_line(cause)
    if kind == "worker_lost":
        node = capacity.node_of(str(getattr(cause, "actor_id", None) or ""))
        if node_is_lost(node, within_s=LEAVING_S):
            kind, reason = "node_lost", f"its node {node[:12]} died"
    return Failure(kind, None, f"the slot was lost: {reason}", trace)

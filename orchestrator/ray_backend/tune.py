"""Ray Tune, driven by our agenda and written to our journal.

Tune keeps the trials going, calls the scheduler at each report and restarts a trial's process when
it dies. What to train next, what was decided and what is finished stand in the journal alone:
Tune's own state lies in a scratch folder and may be lost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.config.experiment import Search
from orchestrator.ray_backend.trial import relay
from orchestrator.study.agenda import Capped, Done, Wait
from orchestrator.study.trial import TrialPlan
from orchestrator.tracking.journal import Journal

Json = dict[str, Any]
TRIAL_RESTARTS = 3  # of the Tune function, whose process may be killed; the gang has its own budget


class NextTrial(Protocol):
    """Where the next trial comes from (`study.agenda`)."""

    def next(self, record: Any, running: frozenset[str]) -> TrialPlan | Wait | Done | Capped:
        """What to train next, given the record and the trials that are under way."""
        ...


@dataclass
class Study:
    """What the classes below share: the source of trials, the record and the gangs' mailbox."""

    agenda: NextTrial
    journal: Journal
    mailbox: ActorHandle
    search: Search
    epochs: int
    assign: Callable[[TrialPlan], Json]
    draining: Callable[[], bool]

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles its searcher, scheduler and callbacks as a snapshot that nobody reads."""
        return object, ()


class TrialSource(Searcher):  # type: ignore[misc]  # ray ships no types
    """Gives Tune its next configuration: unfinished trials first, then the sampler's."""

    def __init__(self, study: Study) -> None:
        super().__init__()
        self._study = study
        self._running: dict[str, str] = {}  # Tune's trial id -> ours

    def suggest(self, trial_id: str) -> Json | str | None:
        study = self._study
        if study.draining():
            return str(Searcher.FINISHED)
        turn = study.agenda.next(study.journal.record, frozenset(self._running.values()))
        if isinstance(turn, Wait):
            return None
        if isinstance(turn, Done | Capped):
            return str(Searcher.FINISHED)
        self._running[trial_id] = turn.trial
        assignment = study.assign(turn)
        study.journal.append(assignment["planned"])
        ray.get(study.mailbox.submit.remote(turn.trial, assignment))
        return {"trial": turn.trial}

    def on_trial_complete(
        self, trial_id: str, result: Json | None = None, error: bool = False
    ) -> None:
        self._running.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the record."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study resumes from its journal, never from Tune's files")


class PathwayScheduler(FIFOScheduler):  # type: ignore[misc]  # ray ships no types
    """Successive halving over the trials of the search; every other trial runs to its end.

    Ray's ASHA makes the decisions; its rungs are filled from the journal when a study resumes, and
    a report that is read twice (its trial's process died) is decided upon once. A driver may die
    between a report and what followed from it: then that is made up for here.
    """

    def __init__(self, study: Study) -> None:
        super().__init__()
        self._study = study
        self._decided: dict[str, int] = {}
        self.stopped: dict[str, str] = {}
        self._asha = _asha(study.search, study.epochs)
        self._recall()

    def _recall(self) -> None:
        """Fill the rungs in the order of the reports; stop what the last driver did not live to."""
        journal = self._study.journal
        for event in journal.events:
            if event["kind"] != "epoch" or self._decide(event["trial"], event) != self.STOP:
                continue
            trial, epoch = journal.record.trials[event["trial"]], event["epoch"]
            if not trial.over and trial.epochs[-1].epoch == epoch:
                journal.append({"kind": "stopped", "trial": trial.trial, "why": _why(epoch)})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tune would give the process of each trial a runtime environment: AWS's secrets, for which
        it has no use, and a second start of Python."""
        kind = trial.get_trainable_cls()
        tune_controller._class_cache._cache.setdefault(kind, ray.remote(kind))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Json) -> str:
        name = trial.config["trial"]
        if "report/epoch" not in result:
            return str(TrialScheduler.CONTINUE)
        epoch = result["report/epoch"]
        value = result.get(f"report/metrics/{self._study.search.metric}")
        metrics = {} if value is None else {self._study.search.metric: value}
        action = self._decide(name, {"trial": name, "epoch": epoch, "metrics": metrics})
        if action == TrialScheduler.STOP:
            self.stopped[name] = _why(epoch)
            self._study.mailbox.stop.remote(name)
        return action

    def _decide(self, name: str, event: Json) -> str:
        epoch, metric = event["epoch"], self._study.search.metric
        plan = self._study.journal.record.trials.get(name)
        exempt = self._asha is None or plan is None or plan.stage != "search"
        if exempt or epoch <= self._decided.get(name, 0) or epoch >= self._study.epochs:
            return str(TrialScheduler.CONTINUE)
        assert self._asha is not None
        if name not in self._decided:
            self._asha.on_trial_add(None, _Named(name))
        self._decided[name] = epoch
        result = {"epoch": epoch, metric: float(event["metrics"][metric])}
        return str(self._asha.on_trial_result(None, _Named(name), result))


def _why(epoch: int) -> str:
    return f"successive halving stopped it at epoch {epoch}"


@dataclass(frozen=True)
class _Named:
    """The one thing that ASHA asks of a trial: an id that outlives Tune's."""

    trial_id: str


class JournalCallback(tune.Callback):  # type: ignore[misc]  # ray ships no types
    """Writes what Tune learns of the trials to the journal."""

    def __init__(self, study: Study, scheduler: PathwayScheduler) -> None:
        self._study = study
        self._scheduler = scheduler

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Json) -> None:
        name = trial.config["trial"]
        if "report" in result:
            report = dict(result["report"])
            key = report.pop("checkpoint", None)
            self._study.journal.append({"kind": "epoch", "trial": name, **report})
            if key is not None:
                at = {"trial": name, "epoch": report["epoch"], "key": key}
                self._study.journal.append({"kind": "checkpoint", **at})
        elif "outcome" in result:
            self._study.journal.append({"trial": name, **result["outcome"]})

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any) -> None:
        name = trial.config["trial"]
        if name in self._scheduler.stopped:
            why = self._scheduler.stopped[name]
            self._study.journal.append({"kind": "stopped", "trial": name, "why": why})

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any) -> None:
        if not self._study.draining():
            event = {"kind": "trial_restarted", "trial": trial.config["trial"]}
            self._study.journal.append({**event, "why": "the trial's process died"})

    def on_trial_error(self, iteration: int, trials: Any, trial: Any) -> None:
        name, error = trial.config["trial"], f"the trial's process died {TRIAL_RESTARTS + 1} times"
        try:
            ray.get(self._study.mailbox.stop.remote(name))
        except RayActorError:
            return  # it died of that: the trial stays unfinished, for the next run of the study
        self._study.journal.append({"kind": "failed", "trial": name, "error": error})


def run(study: Study, concurrency: int, node_id: str, folder: str) -> None:
    """Run the study's trials until its agenda is done or it drains.

    `concurrency` trials exist at once: one for each gang, and one more that waits, so that a gang
    never does. Trials are kept on `node_id`, the driver's node, whatever CPUs it offers.
    """
    scheduler = PathwayScheduler(study)
    here = tune.PlacementGroupFactory(
        [{"memory": 1024}], bundle_label_selector=[{"ray.io/node-id": node_id}]
    )
    tuner = tune.Tuner(
        tune.with_resources(relay, here),
        param_space={"mailbox": study.mailbox},
        tune_config=tune.TuneConfig(
            search_alg=TrialSource(study),
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=concurrency,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder,
            callbacks=[JournalCallback(study, scheduler)],
            stop=_Drain(study.draining),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=TRIAL_RESTARTS),
        ),
    )
    tuner.fit()


class _Drain(tune.Stopper):  # type: ignore[misc]  # ray ships no types
    """Ends the experiment, not its trials, when the study drains: they stay unfinished."""

    def __init__(self, draining: Callable[[], bool]) -> None:
        self._draining = draining

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()

    def __call__(self, trial_id: str, result: Json) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._draining()


def _asha(search: Search, epochs: int) -> Any | None:
    if search.scheduler.kind == "none" or search.scheduler.grace_epochs >= epochs:
        return None
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=search.metric,
        mode=search.mode,
        max_t=epochs,
        grace_period=search.scheduler.grace_epochs,
        reduction_factor=search.scheduler.reduction_factor,
        stop_last_trials=False,
    )

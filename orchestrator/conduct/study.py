"""One study from its experiment to its report: the order of things, and nothing else.

Everything that happened stands in the journal, so each step asks the record what is left to do:
the same call starts a study, resumes it after any kind of death, and does nothing when it is done.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from shutil import rmtree
from typing import Any, NoReturn

from rich.markup import escape

from orchestrator import clock, environment
from orchestrator.conduct import preflight
from orchestrator.conduct.assign import Assigner
from orchestrator.conduct.brake import Brake
from orchestrator.conduct.keeping import let_go, surplus
from orchestrator.conduct.log import StudyLog, teed
from orchestrator.conduct.ownership import check_owner, snapshot
from orchestrator.conduct.places import named_study, tracking_uri
from orchestrator.conduct.progress import View
from orchestrator.conduct.supply import Supply, data_digest, imported
from orchestrator.conduct.timing import Timing, timing
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import as_dict, as_text, experiment_sha256
from orchestrator.errors import BudgetSpent, NoTrialSucceeded, Stopped
from orchestrator.evidence.findings import findings
from orchestrator.evidence.report import render
from orchestrator.evidence.wording import count as counted
from orchestrator.storage import layout
from orchestrator.storage.collector import wait_until_free
from orchestrator.storage.lease import Lease
from orchestrator.storage.patient import PatientStore
from orchestrator.storage.removal import still_held
from orchestrator.storage.uri import Store
from orchestrator.study.agenda import Agenda, Capped
from orchestrator.study.budget import Meter, Reached, reached, spent_in
from orchestrator.study.plan import make_plan
from orchestrator.study.settlement import to_settle
from orchestrator.tracking.journal import Journal, read_events
from orchestrator.tracking.mlflow import Tracker
from orchestrator.tracking.record import Purpose, StudyRecord, fold

Json = dict[str, Any]
PUBLISH_SECONDS = 60.0
LAST_SECONDS = 2.0  # for what a second signal leaves time for
GO_ON = "the same command, or `resume`, goes on from here"


@dataclass(frozen=True)
class Conclusion:
    """What a study came to."""

    experiment: Experiment
    record: StudyRecord
    events: list[Json]
    timing: Timing
    already_done: bool


def conduct(
    experiment: Experiment,
    address: str | None,
    view: View,
    farewell: Callable[[str], object] = str,
    *,
    purpose: Purpose = "search",
) -> Conclusion:
    """Run, or go on with, the study of `experiment`; return at once when it is finished.

    `farewell` hears why when a second signal ends the process: then this never returns. The
    `purpose` of a study that has begun stays what it was.

    Raises `Stopped` when it was asked to stop and `BudgetSpent` when a cap is reached (it can be
    resumed), `NoTrialSucceeded`, and the errors of what it stands on: `RequestError`,
    `StorageError`, `ClusterError`.
    """
    store = Store.open(experiment.storage)
    preflight.check_storage(store)
    check_owner(store, experiment)
    events = read_events(store, experiment.name)
    record = fold(events)
    done = record.status == "finished"
    cap = reached(spent_in(events), experiment.budget)
    if record.status == "stopped" and cap is not None:
        raise _spent(experiment, cap)
    published = any(event["kind"] == "published" for event in events)
    if not (done and published) or surplus(store, experiment, record):
        if not done:
            preflight.check(
                experiment,
                address,
                begun=bool(events),
                stored=imported(store, experiment, record),
            )
        with ExitStack() as stack:
            run = _Run.enter(stack, store, experiment, view)
            run.purpose = record.purpose if record.experiment else purpose
            run.brake.at_once(lambda: farewell(f"{run.brake.why}; {GO_ON}"))
            if not done:
                run.go(address)
            run.publish()
            run.let_go()
            record, events = run.record, run.journal.events
    return Conclusion(experiment, record, events, timing(events), already_done=done)


@dataclass
class _Run:
    """A study under way in this process."""

    store: Store
    experiment: Experiment
    view: View
    lease: Lease
    journal: Journal
    tracker: Tracker
    brake: Brake
    purpose: Purpose = "search"

    @staticmethod
    def enter(stack: ExitStack, store: Store, experiment: Experiment, view: View) -> "_Run":
        """Own the study: lease, journal, tracker, brake; each is left in the reverse order."""
        name, text = experiment.name, as_text(experiment)
        lease = stack.enter_context(Lease.acquire(store, name))
        wait_until_free(store, view.phase)
        log = stack.enter_context(StudyLog(store, name, lease.epoch))
        stack.enter_context(teed(log))
        stack.enter_context(view.copied_to(log.write))
        spool = environment.state_folder() / "spool"
        journal = stack.enter_context(Journal.open(store, name, lease, spool=spool))
        tracker = Tracker(tracking_uri(experiment), name, name, lease)
        stack.callback(tracker.close)
        journal.subscribe(tracker.observe, replay=True)
        with view.recalling():
            journal.subscribe(view.observe, replay=True)
        meter = Meter()
        journal.subscribe(meter.observe, replay=True)
        brake = stack.enter_context(Brake(store, name, lease, tell=view.phase))
        brake.limit(lambda: reached(meter.spent(clock.now()), experiment.budget))
        brake.at_once(
            lambda: journal.append({"kind": "study_stopped", "why": brake.why}),
            lambda: journal.close(LAST_SECONDS),
            lambda: tracker.close(LAST_SECONDS),
            lease.release,
        )
        plan = json.dumps(make_plan(experiment).as_dict(), indent=1)
        store.put(layout.experiment(name), snapshot(experiment))
        store.put(layout.plan(name), plan.encode())
        tracker.add_artifact("experiment.yaml", text)
        tracker.add_artifact("plan.json", plan)
        return _Run(store, experiment, view, lease, journal, tracker, brake)

    @property
    def record(self) -> StudyRecord:
        """Everything that happened, folded."""
        return self.journal.record

    @property
    def patient(self) -> Store:
        """The store for what may wait: it has been reached before, so it will be back."""
        return PatientStore(self.store, 60.0 * self.experiment.failures.storage_minutes)

    def go(self, address: str | None) -> None:
        """From connecting to Ray to the report."""
        from orchestrator.ray_backend.address import destination
        from orchestrator.ray_backend.session import connect

        where = destination(address)
        if (cap := reached(spent_in(self.journal.events), self.experiment.budget)) is not None:
            self.brake.spend(cap)
            self._stop()
        self.journal.append(
            {
                "kind": "study_started",
                "experiment": as_dict(self.experiment),
                "experiment_sha256": experiment_sha256(self.experiment),
                "purpose": self.purpose,
            }
        )
        self.view.phase(where.told)
        try:
            with connect(where.address) as cluster:
                self._on(cluster)
        except Stopped:
            pass
        except Exception:
            self.brake.raise_if_broken()  # what ended the study, not what followed from it
            raise
        self.brake.raise_if_broken()
        if self.brake():
            self._stop()
        self._conclude()

    def _stop(self) -> NoReturn:
        """Write down why the study ends before it is done, and say so."""
        cap = self.brake.reached
        figures = {} if cap is None else {"budget": cap.as_dict()}
        self.journal.append({"kind": "study_stopped", "why": self.brake.why, **figures})
        if cap is not None:
            raise _spent(self.experiment, cap)
        raise Stopped(f"{self.brake.why}; {GO_ON}")

    def _on(self, cluster: Any) -> None:
        """Everything that needs gangs."""
        from orchestrator.ray_backend import tune
        from orchestrator.ray_backend.gang import Gangs
        from orchestrator.ray_backend.leases import following, lease_all, open_mailbox
        from orchestrator.ray_backend.trial import keep_keys_from_trials

        experiment, name = self.experiment, self.experiment.name
        self.brake.at_once(lambda: rmtree(cluster.folder, ignore_errors=True))
        count = cluster.capacity.gangs(experiment.resources)
        mailbox = open_mailbox(cluster.node_id)
        opened = clock.now()
        gangs = Gangs(mailbox, count, experiment.resources, name, cluster)
        workers = counted(experiment.resources.workers, "worker")
        self.view.phase(f"opening {counted(count, 'gang')} of {workers}")
        self.brake.watch(gangs.check)

        def lease(
            work: Mapping[str, Json], on_report: Callable[[str, Json], None]
        ) -> dict[str, Json]:
            return lease_all(mailbox, work, self.brake, on_report)

        with following(mailbox, lambda event: self._on_gang_event(event, opened)) as check, gangs:
            self.brake.watch(check)
            known = imported(self.patient, experiment, self.record)
            digests = Supply(
                self.patient,
                experiment,
                lease,
                self.journal.append,
                self.journal.accepted,
                imported=known,
                earlier=dict(self.record.auxiliaries),
                confirm=lambda: still_held(self.lease),
            ).digests()
            if self.purpose == "pretrain":
                return
            agenda = Agenda(experiment, lambda own: replace(digests, data=data_digest(own)))
            assigner = Assigner(name, self.store.uri, self.journal.accepted, digests)
            self.view.trials()
            study = tune.Study(
                agenda=agenda,
                journal=self.journal,
                mailbox=mailbox,
                search=experiment.search,
                epochs=experiment.training.epochs,
                assign=assigner.train,
                draining=self.brake,
            )
            keep_keys_from_trials()
            tune.run(study, count + 1, cluster.node_id, cluster.folder)
            self._see_whether_trials_were_held_back(agenda)
            if not self.brake():
                self._settle(agenda, assigner, lease)

    def _see_whether_trials_were_held_back(self, agenda: Agenda) -> None:
        """All trials that were started have ended: is it the cap on trials that starts no more?"""
        cap = self.experiment.budget.trials
        if cap is not None and isinstance(agenda.next(self.record), Capped):
            self.brake.spend(Reached("trials", len(self.record.trials), cap))

    def _on_gang_event(self, event: Json, opened: float) -> None:
        kind, trials = event["kind"], self.record.trials
        if kind in ("gang_opened", "gang_lost"):
            seconds = {"seconds": event["time"] - opened} if kind == "gang_opened" else {}
            self.journal.append(event | {"gang": f"gang-{event['gang']}"} | seconds)
        elif kind == "started" and event["lease"] in trials:
            self.journal.append(
                {
                    "kind": "started",
                    "time": event["time"],
                    "trial": event["lease"],
                    "gang": f"gang-{event['gang']}",
                    "attempt": event["attempt"],
                }
            )

        elif (
            kind in ("attempt_failed", "checkpoint_damaged", "preempted")
            and event["lease"] in trials
        ):
            self.journal.append(
                {name: value for name, value in event.items() if name != "lease"}
                | {"trial": event["lease"]}
            )

    def _settle(self, agenda: Agenda, assigner: Assigner, lease: Any) -> None:
        """Read the test split, once for each trial that the verdict compares; export the best."""
        pending = {
            f"settle:{one.plan.trial}": assigner.settle(
                one.plan, export=one.export, costed=one.costed
            )
            for one in to_settle(self.record, self.experiment, agenda)
            if not self.record.trials[one.plan.trial].tested
            or (one.export and self.record.trials[one.plan.trial].exported is None)
        }
        if not pending:
            return
        self.view.phase("test split, fusing and proving")
        for name, outcome in lease(pending, lambda lease_name, value: None).items():
            trial = name.removeprefix("settle:")
            if outcome["kind"] != "finished":
                self.view.say(f"  [red]✗ {trial}: {outcome.get('error')}[/]")
                continue
            self.journal.append({"kind": "tested", "trial": trial, "metrics": outcome["metrics"]})
            if "proof" in outcome:
                proof = {"key": outcome["key"], "proof": outcome["proof"]}
                self.journal.append({"kind": "exported", "trial": trial, **proof})
            elif "refused" in outcome:
                self.view.say(f"  [red]✗ not exported[/]: {escape(outcome['refused'])}")

    def _conclude(self) -> None:
        """The verdict, the report, and the end of the study."""
        if self.purpose == "pretrain":
            made = ", ".join(self.record.auxiliaries)
            self.journal.append({"kind": "study_finished", "verdict": f"pre-trained: {made}"})
            return
        if not any(trial.status == "finished" for trial in self.record.trials.values()):
            errors = sorted({t.error for t in self.record.trials.values() if t.error})
            raise NoTrialSucceeded(f"every trial failed: {'; '.join(errors)[:1000]}")
        line = findings(self.record, self.experiment).verdict.text
        self.journal.append({"kind": "study_finished", "verdict": line})

    def publish(self) -> None:
        """The report, and all of MLflow; what is missed now is made up for by the same command."""
        self.view.phase("writing report and MLflow")
        # a report has no epoch: one of a study that somebody else may own by now is not written
        self.lease.wait_until_sure(60.0 * self.experiment.failures.storage_minutes)
        for file, data in render(self.record, self.experiment).items():
            self.patient.put(layout.report(self.experiment.name, file), data)
            self.tracker.add_artifact(f"report/{file}", data)
        if self.tracker.close(PUBLISH_SECONDS):
            self.journal.append({"kind": "published"})
        else:
            error = self.tracker.state.error or f"not done after {PUBLISH_SECONDS:.0f} s"
            self.view.say(
                f"  MLflow misses a part ({escape(error)}): the same command makes up for it"
            )

    def let_go(self) -> None:
        """Carry out `checkpoints.keep_trials`, once the store knows that the study is finished."""
        if not self.journal.flush(PUBLISH_SECONDS):
            return
        if told := let_go(self.patient, self.experiment, self.record, self.lease):
            self.view.say(f"  {told}")


def _spent(experiment: Experiment, cap: Reached) -> BudgetSpent:
    """The error of a study that reached a cap: which, the figures, and how to go on."""
    return BudgetSpent(
        f"{cap.why}; what is checkpointed stays. To go on: `orchestrator resume "
        f"{named_study(experiment)} --set {cap.larger}`, or the same command with a larger cap "
        "(null: none)"
    )

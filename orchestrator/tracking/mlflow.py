"""The door to MLflow: fills a server, or an SQLite file, from a study's events, in the background.

Importing this module imports no MLflow; the tracker's own thread does. MLflow may be away for
any time: the study neither stops nor slows, and what it should hold is sent once it is back.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator import environment
from orchestrator.storage.lease import Lease
from orchestrator.tracking.events import FIELDS, URGENT
from orchestrator.tracking.reconcile import (
    Change,
    Context,
    RunState,
    study_change,
    study_id,
    trial_change,
)
from orchestrator.tracking.record import StudyRecord
from orchestrator.tracking.runs import NotOurs, Order, Runs, compare_url, without_secret

__all__ = ["Order", "Tracker", "TrackerState", "compare_url"]

_LOG = logging.getLogger(__name__)
_GATHER_SECONDS = 0.5
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 15.0


@dataclass(frozen=True)
class TrackerState:
    """How far MLflow is."""

    connected: bool
    behind: int
    """Events and files that MLflow does not show yet."""
    runs: int
    points: int
    """Values of metrics sent by this process."""
    error: str | None
    """What the last attempt failed with; None when it did not."""
    compare_url: str | None
    """Shows this study's trials side by side; None until known, or without a server."""


class Tracker:
    """One study in MLflow: a parent run, one child per trial. No server's fault is ever raised."""

    def __init__(
        self, tracking_uri: str, experiment: str, study: str, lease: Lease | None = None
    ) -> None:
        """`experiment` is the experiment's name in MLflow, `study` the study's.

        With `lease` nothing is sent while it is not sure that this driver still owns the study.
        """
        self._lease = lease
        self._uri = tracking_uri
        self._shown = without_secret(tracking_uri)
        self._experiment = experiment
        self._study = study
        self._changed = threading.Condition()
        # shared with the thread, under the condition above
        self._arrived: list[Mapping[str, Any]] = []
        self._new_files: dict[str, bytes] = {}
        self._unsent = 0
        self._urgent = False
        self._ended = False
        self._given_up = False
        self._error: str | None = None
        # written by the thread alone
        self._record = StudyRecord()
        self._files: dict[str, bytes] = {}
        self._held = 0
        self._pause = 0.0
        self._runs: Runs | None = None
        self._have: dict[str, RunState] = {}
        self._dirty: dict[str, None] = {}
        self._stuck: str | None = None
        self._doubt = lease is not None and lease.epoch > 1
        """Did anything fail since the start, or may something of an earlier owner still arrive?"""
        self._points = 0
        self._url: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"mlflow-{study}", daemon=True)
        self._thread.start()

    def observe(self, event: Mapping[str, Any]) -> None:
        """Take one event of the journal: `journal.subscribe(tracker.observe, replay=True)`.

        What comes after `close` is left to the next run of the study.
        """
        with self._changed:
            if self._ended:
                return
            self._arrived.append(event)
            self._unsent += 1
            self._urgent |= event["kind"] in URGENT
            self._changed.notify_all()

    def add_artifact(self, name: str, content: bytes | str) -> None:
        """Put a file beside the parent run, such as "plan.json" or "report/report.html"."""
        with self._changed:
            self._new_files[name] = content.encode() if isinstance(content, str) else content
            self._unsent += 1
            self._changed.notify_all()

    @property
    def state(self) -> TrackerState:
        """How far MLflow is, now."""
        with self._changed:
            error, behind = self._error, self._unsent
        connected = self._runs is not None
        return TrackerState(connected, behind, len(self._have), self._points, error, self._url)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until MLflow shows everything; False when `timeout` seconds were too few."""
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._unsent, timeout)

    def close(self, timeout: float = 30.0) -> bool:
        """Flush and end; False when MLflow misses something: the next run of the study sends it.

        A study that has not ended shows as killed from now on, until it is resumed. Closing what
        is closed says the same again.
        """
        with self._changed:
            closed_before, self._ended = self._given_up, True
            self._changed.notify_all()
        self._thread.join(0.0 if closed_before else timeout)
        with self._changed:
            self._given_up = True
            self._changed.notify_all()
            complete = not self._thread.is_alive() and not self._unsent
        if not complete and not closed_before and not self._lost:
            _LOG.warning("MLflow at %s is not complete: %s", self._shown, self._error or "no time")
        return complete

    def _run(self) -> None:
        """The thread: gather what happened and send it; all of it again when that failed."""
        while not self._given_up:
            ending = self._gather()
            if self._lost:
                return
            if self._record.started is None and not ending:
                continue  # files alone: there is no study yet that they could belong to
            try:
                if self._record.started is not None:
                    self._bring_up_to_date(closed=ending)
            except NotOurs:
                self._runs, self._doubt = None, True
                with self._changed:
                    self._changed.wait_for(lambda: self._given_up, _FIRST_PAUSE_SECONDS)
                continue
            except Exception as error:  # whatever it is, the study goes on without MLflow
                self._wait_after(error)
                continue
            with self._changed:
                self._unsent -= self._held
                self._held, self._pause, self._error = 0, 0.0, None
                self._changed.notify_all()
                if ending and not self._unsent and not self._doubt:
                    return
                if ending and self._doubt:  # an answer was lost on the way: look once more
                    self._runs, self._doubt = None, False

    def _gather(self) -> bool:
        """Wait for something to send, and a moment for more; true when the study's driver ends."""
        with self._changed:
            if not self._held or self._record.started is None:
                self._changed.wait_for(self._has_work)
                self._changed.wait_for(lambda: self._urgent or self._stopping, _GATHER_SECONDS)
            events, self._arrived = self._arrived, []
            files, self._new_files = self._new_files, {}
            self._held += len(events) + len(files)
            self._urgent = False
            ending = self._ended
        self._files |= files
        for event in events:
            self._record.apply(event)
            self._dirty[event.get("trial", "")] = None
            if event["kind"] not in FIELDS or "trial" not in FIELDS[event["kind"]]:
                self._touch_open_trials()
        if ending:
            self._touch_open_trials()
        return ending

    def _has_work(self) -> bool:
        files = self._new_files and self._record.started is not None
        return bool(self._arrived or files or self._stopping)

    @property
    def _lost(self) -> bool:
        return self._lease is not None and self._lease.lost.is_set()

    def _ours(self) -> bool:
        return self._lease is None or self._lease.sure

    @property
    def _stopping(self) -> bool:
        return self._ended or self._given_up

    def _touch_open_trials(self) -> None:
        """What happens to a study shows in the state of its trials that have not ended."""
        open_trials = (name for name, trial in self._record.trials.items() if not trial.over)
        self._dirty |= dict.fromkeys(["", *open_trials])

    def _bring_up_to_date(self, *, closed: bool) -> None:
        """Send what MLflow lacks. Raises whatever MLflow raises; nothing is lost by it."""
        if self._runs is None:
            self._connect()
        runs, record = self._runs, self._record
        assert runs is not None
        artifacts = self._have[""].tags.get("artifacts", "") if "" in self._have else ""
        context = Context(self._study, study_id(self._study, record), closed, artifacts)
        self._send(runs, "", study_change(record, context, self._have.get("")))
        for key in sorted(self._dirty, key=lambda key: key == self._stuck):
            if (trial := record.trials.get(key)) is not None:
                self._send(runs, key, trial_change(record, trial, context, self._have.get(key)))
            del self._dirty[key]
        for name in list(self._files):
            self._send_file(runs, name, context)
            del self._files[name]

    def _connect(self) -> None:
        """Look everything up anew: what was sent last may have arrived, or not."""
        runs = Runs.open(self._uri, self._experiment, self._ours)
        identity = study_id(self._study, self._record)
        self._have = runs.find(identity)
        self._dirty |= dict.fromkeys(self._record.trials)
        order = Order.of(self._record.experiment.get("search", {}))
        self._url = compare_url(self._uri, runs.experiment_id, identity, order)
        with self._changed:
            if self._error is not None:
                _LOG.warning("MLflow at %s is back", self._shown)
            self._error = None
        self._runs = runs

    def _send(self, runs: Runs, key: str, change: Change | None) -> None:
        """Bring the run of trial `key`, or the parent, up to date; it is made when needed."""
        if change is None or (change.empty and key in self._have):
            return
        self._stuck = key
        have = self._have.get(key)
        if have is None:
            parent = self._have[""].run_id if key else None
            have = runs.create(change, parent)
            change = replace(change, tags={})
        self._points += runs.send(change, have)
        self._have[key] = change.applied_to(have)
        self._stuck = None

    def _send_file(self, runs: Runs, name: str, context: Context) -> None:
        """Put a file beside the parent run, and note there that it is done."""
        parent = self._have[""]
        known = json.loads(parent.tags.get("artifacts", "{}"))
        digest = hashlib.sha256(self._files[name]).hexdigest()[:12]
        if known.get(name) != digest:
            runs.put_file(parent.run_id, name, self._files[name])
            noted = json.dumps({**known, name: digest})
            after = replace(context, artifacts=noted)
            self._send(runs, "", study_change(self._record, after, parent))

    def _wait_after(self, error: Exception) -> None:
        """Wait longer and longer before everything is looked up again."""
        self._runs, self._doubt = None, True
        said = f"{type(error).__name__}: {error}".replace(self._uri, self._shown)
        said = environment.redacted(said)[:500]
        with self._changed:
            if self._error is None:
                _LOG.warning("MLflow at %s is away, the study goes on: %s", self._shown, said)
            self._error = said
            self._pause = min(2 * self._pause or _FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)
            if self._ended:
                self._pause = _FIRST_PAUSE_SECONDS
            self._changed.wait_for(lambda: self._stopping, self._pause)

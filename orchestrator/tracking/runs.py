"""Runs of MLflow: looking them up, creating them, sending what they lack.

MLflow itself is imported when they are opened, not before.

Every call may raise whatever MLflow raises. What was created or sent without an answer is found
by the next look-up, which is why a study's runs are looked up again after every failure.
"""

import fcntl
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from orchestrator import environment
from orchestrator.errors import TrackingError
from orchestrator.tracking.reconcile import STUDY_STAGE, Change, RunState, batches, metric_name

_LOG = logging.getLogger(__name__)
_SQLITE = "sqlite:///"
_POINTS_PER_BATCH = 800  # MLflow takes 1000 entities, of which 100 tags and 100 parameters
_PAGE = 1000
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"}


class NotOurs(Exception):
    """Another driver may own the study by now: MLflow is left as it is."""


class Runs:
    """The runs of one MLflow experiment.

    MLflow knows no fencing epochs, so whether the study is still this driver's is asked anew
    before each call that changes anything; where it may not be, the call raises NotOurs instead.
    """

    def __init__(self, client: Any, experiment_id: str, ours: Callable[[], bool]) -> None:
        self._client = client
        self._ours = ours
        self.experiment_id = experiment_id

    @classmethod
    def open(
        cls, tracking_uri: str, experiment: str, ours: Callable[[], bool] = lambda: True
    ) -> "Runs":
        """Connect; the experiment, and an SQLite file, are made when they are not there."""
        environment.prepare_mlflow()
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # they tell every table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        with _sole_opener(tracking_uri):
            client = MlflowClient(tracking_uri)
            return cls(client, _experiment_id(client, tracking_uri, experiment), ours)

    def find(self, study_id: str) -> dict[str, RunState]:
        """The runs of a study by trial id; the parent's key is "".

        A run that was created without an answer may have a twin: of two the one that is further
        stays, the other is put in MLflow's bin.
        """
        found: dict[str, RunState] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.study_id = '{study_id}'",
                max_results=_PAGE,
                page_token=token,
            )
            for run in page:
                tags = dict(run.data.tags)
                key = "" if tags.get("stage") == STUDY_STAGE else tags.get("trial_id", "")
                state = RunState(run.info.run_id, run.info.status, tags, frozenset(run.data.params))
                if key in found:
                    twins = sorted((found[key], state), key=_progress)
                    self._writer.delete_run(twins[0].run_id)
                    state = twins[1]
                found[key] = state
            token = page.token
            if not token:
                return found

    def create(self, change: Change, parent: str | None) -> RunState:
        """A new run that carries the tags of `change`, under the run `parent`."""
        tags = dict(change.tags)
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = self._writer.create_run(
            self.experiment_id, start_time=change.start_ms, tags=tags, run_name=change.name
        )
        return RunState(run.info.run_id, "RUNNING", tags, frozenset())

    def send(self, change: Change, have: RunState) -> int:
        """Bring a run up to date; how many points of metrics that took.

        The status comes last, and comes also when MLflow refuses the rest for good.
        """
        from mlflow.exceptions import MlflowException

        try:
            sent = self._send_batches(change, have.run_id)
        except MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            said = environment.redacted(str(error))
            _LOG.warning("MLflow refuses a part of run %s: %s", have.run_id, said)
            sent = 0
        if change.status == "RUNNING":
            self._writer.update_run(have.run_id, status=change.status)
        elif change.status is not None:
            self._writer.set_terminated(have.run_id, change.status, end_time=change.end_ms)
        return sent

    def put_file(self, run_id: str, name: str, content: bytes) -> None:
        """A file among a run's artifacts."""
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / file
            path.write_bytes(content)
            self._writer.log_artifact(run_id, str(path), folder or None)

    @property
    def _writer(self) -> Any:
        """The client, for one call that changes something. Raises NotOurs."""
        if not self._ours():
            raise NotOurs
        return self._client

    def _send_batches(self, change: Change, run_id: str) -> int:
        from mlflow.entities import Metric, Param, RunTag

        parts = batches(change.points, _POINTS_PER_BATCH)
        for index, points in enumerate(parts):
            tags = dict(change.tags) if index == 0 else {}
            if index == len(parts) - 1:
                tags |= change.marks
            params = change.params if index == 0 else {}
            if not (points or tags or params):
                continue
            self._writer.log_batch(
                run_id,
                metrics=[Metric(p.key, p.value, p.time_ms, p.step) for p in points],
                params=[Param(key, value) for key, value in params.items()],
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
        return len(change.points)


@dataclass(frozen=True)
class Order:
    """Which trials come first on a page."""

    metric: str = "val/accuracy"
    ascending: bool = False

    @classmethod
    def of(cls, search: Mapping[str, Any]) -> "Order":
        """The best first, by the section `search` of an experiment."""
        return cls(search.get("metric", "val/accuracy"), search.get("mode") == "min")


def compare_url(
    server: str, experiment_id: str, study_id: str, order: Order | None = None
) -> str | None:
    """A page of `server` that shows a study's trials side by side, best first, in charts.

    None when `server` is no address that a browser can open.
    """
    if not server.startswith(("http://", "https://")):
        return None
    order = order or Order()
    query = {
        "searchFilter": f"tags.study_id = '{study_id}' and tags.stage != '{STUDY_STAGE}'",
        # in any order but that of creation the page shows children without their parent
        "orderByKey": f"metrics.`{metric_name(order.metric)}`",
        "orderByAsc": str(order.ascending).lower(),
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",  # MLflow's other half is about conversations
    }
    page = f"{without_secret(server).rstrip('/')}/#/experiments/{experiment_id}/runs"
    return f"{page}?{urlencode(query, quote_via=quote)}"


def without_secret(uri: str) -> str:
    """`uri` as it may be shown: without a user's name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in uri else uri


def _progress(have: RunState) -> tuple[int, int, str]:
    ended = have.status in ("FINISHED", "FAILED")
    return int(have.tags.get("rung", "0")), int(ended), have.run_id


def _experiment_id(client: Any, tracking_uri: str, experiment: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            location = _artifact_location(tracking_uri, experiment)
            return str(client.create_experiment(experiment, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(experiment)  # somebody else was quicker
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"{without_secret(tracking_uri)}: the experiment {experiment!r} was deleted there;"
            f" restore it with `mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    return str(found.experiment_id)


def _artifact_location(tracking_uri: str, experiment: str) -> str | None:
    """Beside an SQLite file; a server knows its own place."""
    database = database_of(tracking_uri)
    if database is None:
        return None
    return (database.parent / "mlflow-artifacts" / experiment).as_uri()


def database_of(tracking_uri: str) -> Path | None:
    """The SQLite file of a tracking URI; None for a server's address."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(tracking_uri.removeprefix(_SQLITE)).absolute()


@contextmanager
def _sole_opener(tracking_uri: str) -> Iterator[None]:
    """Two processes that make the tables of one SQLite file at once trip over each other."""
    database = database_of(tracking_uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

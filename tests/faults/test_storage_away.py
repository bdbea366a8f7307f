"""A store that is away, overloaded, full or forgetful costs a trial time, and nothing else."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.ray_backend.session import connect
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import read_events
from orchestrator.tracking.record import fold
from tests.contract.mlflow_setup import Server
from tests.faults.bench import Bench, Json, gang_of, once
from tests.proxy import Answer, Delay, Fault, Lose, Proxy, Reset, proxied
from tests.studies import TINY, check_each_trial_ended_once, finish, select, start, wait_until
from tests.swift import Swift, running, use
from tests.tracked import check_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STATES = "/state-"


@dataclass
class Place:
    """A store of our own, what spoils its answers, and a gang that uses it."""

    server: Swift
    proxy: Proxy
    bench: Bench

    @contextmanager
    def healed_after(self, seconds: float) -> Iterator[None]:
        """What is wrong with the store ends after a while."""
        timer = threading.Timer(seconds, self.proxy.clear)
        timer.start()
        try:
            yield
        finally:
            timer.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    with running(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="module")
def place(server: Swift) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch, proxied(server.endpoint) as proxy:
        use(server, patch, AWS_ENDPOINT_URL=proxy.endpoint)
        storage = f"s3://{server.bucket()}/studies"
        with connect(None) as cluster, gang_of(cluster, storage, workers=1) as bench:
            yield Place(server, proxy, bench)


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> list[Json]:
    return place.bench.train("undisturbed")


def check_it_cost_nothing(place: Place, study: str, reports: list[Json], same: list[Json]) -> None:
    """Every epoch once, the same figures and bits, and no attempt or gang lost."""
    assert reports == same
    assert place.bench.state(study) == place.bench.state("undisturbed")
    assert place.bench.events("attempt_failed", study) == []
    assert place.bench.events("gang_lost") == []


@pytest.mark.parametrize("seconds", [4, 45])
def test_an_outage_costs_time_alone(place: Place, undisturbed: list[Json], seconds: int) -> None:
    study = f"away-{seconds}"
    back = threading.Timer(seconds, place.server.start)

    def go() -> None:
        place.server.kill()
        back.start()

    began = time.monotonic()
    reports = place.bench.train(study, on_epoch=once(1, go))
    back.join()
    assert time.monotonic() - began > seconds
    check_it_cost_nothing(place, study, reports, undisturbed)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("overloaded", Answer(503, "SlowDown")),
        ("broken", Answer(500, "InternalError")),
        ("full", Answer(507, "InsufficientStorage")),
        ("expired", Answer(400, "ExpiredToken")),
        ("reset", Reset(after=1000)),
    ],
)
def test_a_spell_of_faults_costs_time_alone(
    place: Place, undisturbed: list[Json], name: str, fault: Fault
) -> None:
    def go() -> None:
        place.proxy.add(fault, method="PUT")

    with place.healed_after(12):
        reports = place.bench.train(name, on_epoch=once(1, go))
    check_it_cost_nothing(place, name, reports, undisturbed)


def test_a_slow_store_and_lost_answers_cost_time_alone(
    place: Place, undisturbed: list[Json]
) -> None:
    place.proxy.add(Lose(), method="PUT", times=3)
    place.proxy.add(Delay(1.0), method="PUT")
    try:
        reports = place.bench.train("slow")
    finally:
        place.proxy.clear()
    check_it_cost_nothing(place, "slow", reports, undisturbed)


def test_a_refused_upload_is_never_called_a_checkpoint(
    place: Place, undisturbed: list[Json]
) -> None:
    def refuse() -> None:
        place.proxy.add(Answer(403, "AccessDenied"), method="PUT", path=STATES)

    outcome = place.bench.fail("refused", on_epoch=once(1, refuse))
    assert outcome["failure"] == "storage"
    assert "AccessDenied" in outcome["error"]
    assert [e["again"] for e in place.bench.events("attempt_failed", "refused")] == [
        True,
        True,
        False,
    ]
    kept = place.bench.checkpoints("refused").latest()
    place.proxy.clear()
    assert kept is not None
    assert kept.step < 4
    assert place.bench.train("refused")[-1] == undisturbed[-1]
    assert place.bench.state("refused") == place.bench.state("undisturbed")


def test_a_study_outlives_two_minutes_without_its_store_and_more_without_its_mlflow(
    server: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Driver, journal, lease, gang and tracker together: MLflow is killed first and comes back
    last."""
    use(server, monkeypatch)
    storage = f"s3://{server.bucket()}/studies"
    (tmp_path / "tiny.yaml").write_text(TINY)
    tracking = Server(tmp_path)
    tracking.start()
    try:
        places = ("--storage", storage, "--tracking", tracking.uri)
        longer = ("--set", "training.epochs=24", "--set", "training.batch_size=8")
        driver = start(tmp_path, "search", "tiny.yaml", *places, *longer, "--json")
        epochs = _epochs(storage)
        wait_until(driver, lambda: epochs() > 2)
        tracking.kill()
        known = epochs()
        wait_until(driver, lambda: epochs() > known + 5)
        server.kill()
        time.sleep(120)
        assert driver.poll() is None
        server.start()
        wait_until(driver, lambda: epochs() == 24)
        back = time.time()
        tracking.start()
        done = finish(driver)
        assert done["exit_code"] == 0
        happened = read_events(Store.open(storage), "tiny")
        assert set(check_each_trial_ended_once(happened).values()) == {"finished"}
        assert len(select(happened, "epoch")) == 24
        assert not select(happened, "attempt_failed", "gang_lost", "trial_restarted")
        assert len(select(happened, "takeover")) == 1
        assert happened[-1]["kind"] == "published"
        assert happened[-1]["time"] > back
        check_mlflow(tracking.uri, "tiny", fold(happened))
    finally:
        tracking.kill()


def _epochs(storage: str) -> Callable[[], int]:
    return lambda: len(select(read_events(Store.open(storage), "tiny"), "epoch"))

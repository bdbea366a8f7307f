"""A store that is away, overloaded, full or forgetful costs a trial time, and nothing else."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

from orchestrator.ray_backend.session import connect
from orchestrator.storage.clients import ATTEMPTS
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import read_events
from orchestrator.tracking.record import fold
from tests.faults.alone import check_it_is_as_if_nothing_had_been
from tests.faults.bench import Bench, Json, gang_of, once
from tests.faults.cut_off import EPOCHS, CutOff, cut_off
from tests.proxy import Answer, Delay, Fault, Lose, Proxy, Reset, proxied
from tests.studies import check_each_trial_ended_once, select
from tests.swift import Swift, use
from tests.tracked import check_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STATES = "/state-"
LAST = "test_a_study_outlives_two_minutes_without_its_store_and_more_without_its_mlflow"


@dataclass
class Place:
    """A store of our own, what spoils its answers, and a gang that uses it."""

    server: Swift
    proxy: Proxy
    bench: Bench


@pytest.fixture(scope="module", autouse=True)
def waiting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[CutOff] | None]:
    """The study of the last test: it spends its two minutes while the others run."""
    if all(item.name != LAST for item in request.session.items):
        yield None
        return
    with cut_off(tmp_path_factory.mktemp("cut-off")) as told:
        yield told


@pytest.fixture(scope="module")
def place(swift: Swift) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch, proxied(swift.endpoint) as proxy:
        use(swift, patch, AWS_ENDPOINT_URL=proxy.endpoint)
        storage = f"s3://{swift.bucket()}/studies"
        with connect(None) as cluster, gang_of(cluster, storage, workers=1) as bench:
            yield Place(swift, proxy, bench)


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> list[Json]:
    return place.bench.train("undisturbed")


def check_it_cost_nothing(place: Place, study: str, reports: list[Json], same: list[Json]) -> None:
    """Every epoch once, the same figures and bits, and no attempt or gang lost."""
    assert reports == same
    assert place.bench.state(study) == place.bench.state("undisturbed")
    assert place.bench.events("attempt_failed", study) == []
    assert place.bench.events("gang_lost") == []


def test_an_outage_costs_time_alone(place: Place, undisturbed: list[Json]) -> None:
    """Longer than the client's own attempts take, which end after two seconds."""
    seconds, study = 5, "away"
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
    ("name", "fault", "attempts"),
    [
        ("overloaded", Answer(503, "SlowDown"), ATTEMPTS),
        ("broken", Answer(500, "InternalError"), ATTEMPTS),
        ("full", Answer(507, "InsufficientStorage"), 1),
        ("expired", Answer(400, "ExpiredToken"), 1),
        ("reset", Reset(after=1000), ATTEMPTS),
    ],
)
def test_a_spell_of_faults_costs_time_alone(
    place: Place, undisturbed: list[Json], name: str, fault: Fault, attempts: int
) -> None:
    """One answer more than the client makes attempts of its own: we ask again, and once more."""
    rules = []

    def go() -> None:
        rules.append(place.proxy.add(fault, method="PUT", path=STATES, times=attempts + 1))

    reports = place.bench.train(name, on_epoch=once(1, go))
    place.proxy.clear()
    assert [rule.hits for rule in rules] == [attempts + 1]
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
    waiting: Future[CutOff], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Driver, journal, lease, gang and tracker together: MLflow is gone first and comes back
    last."""
    one = waiting.result()
    use(one.server, monkeypatch)
    store = Store.open(one.storage)
    happened = read_events(store, "tiny")
    assert set(check_each_trial_ended_once(happened).values()) == {"finished"}
    assert len(select(happened, "epoch")) == EPOCHS
    assert not select(happened, "attempt_failed", "gang_lost", "trial_restarted")
    assert len(select(happened, "takeover")) == 1
    assert happened[-1]["kind"] == "published"
    assert happened[-1]["time"] > one.back
    record = fold(happened)
    for trial in record.trials.values():
        check_it_is_as_if_nothing_had_been(store, "tiny", trial)
    check_mlflow(one.tracking.uri, "tiny", record)

"""Trials of one gang: it is as fresh after each. A store that is away, overloaded, full or
forgetful costs them time, and nothing else; each kind of failure is told apart, tried again or not,
and leaves the gang to others."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestrator.ray_backend.session import connect
from orchestrator.storage.clients import ATTEMPTS
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import read_events
from orchestrator.tracking.record import fold
from tests.contract.mlflow_setup import Server
from tests.faults.alone import check_it_is_as_if_nothing_had_been
from tests.faults.bench import KERNELS_WIDTH, VARIANTS, Bench, Json, gang_of, once
from tests.faults.beside import titled
from tests.faults.cut_off import EPOCHS, CutOff, cut_off
from tests.proxy import Answer, Delay, Fault, Lose, Proxy, Reset, proxied
from tests.studies import check_each_trial_ended_once, select
from tests.swift import Swift, use
from tests.tracked import check_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STATES = "/state-"
CONTROLLER = "GangController"
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
    server: Server = request.getfixturevalue("mlflow_server")
    with cut_off(tmp_path_factory.mktemp("cut-off"), server) as told:
        yield told


@pytest.fixture(scope="module")
def place(swift: Swift) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch, proxied(swift.endpoint) as proxy:
        use(swift, patch, AWS_ENDPOINT_URL=proxy.endpoint)
        storage = f"s3://{swift.bucket()}/studies"
        with connect(None) as cluster, gang_of(cluster, storage, workers=1) as bench:
            yield Place(swift, proxy, bench)


@pytest.fixture(scope="module")
def bench(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same gang, for trials whose store is a folder."""
    return replace(place.bench, storage=str(tmp_path_factory.mktemp("studies")))


def test_a_used_gang_trains_as_a_fresh_one(bench: Bench) -> None:
    """Trials of other shapes, precisions and failures before it leave nothing behind; and two
    epochs, a stop and two more are the same as four."""
    first = bench.train("fresh")
    bench.train("wide", "model.width=32", "training.epochs=1")
    bench.train("double", "resources.precision=fp64", "training.epochs=1")
    bench.train("half", "resources.precision=bf16", "training.epochs=1")
    with pytest.raises(AssertionError, match="FloatingPointError"):
        bench.train("unsound", "training.learning_rate=1e30")
    assert bench.train("used") == first
    assert bench.state("used") == bench.state("fresh")
    assert [report["epoch"] for report in bench.stop_after("halves", 2)] == [1, 2]
    assert bench.train("halves") == first  # told of the first two from the checkpoint
    assert bench.state("halves") == bench.state("fresh")
    assert not bench.events("gang_lost")


def test_each_of_many_compiled_shapes_is_compiled(bench: Bench) -> None:
    """More shapes than Dynamo keeps variants of; the first again at the end, bit by bit, and with
    kernels."""
    base = ("resources.compile=true", "training.epochs=1", "model.depth=1")
    widths = [KERNELS_WIDTH, 8, 16, 20, KERNELS_WIDTH]
    assert len(set(widths)) > VARIANTS
    seen: dict[int, Json] = {}
    for number, width in enumerate(widths):
        heads = "model.heads=1"
        (report,) = bench.train(f"shape-{number}", *base, heads, f"model.width={width}")
        assert report["metrics"]["compile/graphs"] >= 1
        assert seen.setdefault(width, report) == report


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> list[Json]:
    """On the store that is spoiled."""
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


def test_a_loss_that_is_no_number_is_not_tried_again(bench: Bench) -> None:
    outcome = bench.fail("nan", "training.learning_rate=1e30")
    assert outcome["failure"] == "not_finite"
    assert "FloatingPointError" in outcome["error"]
    (failed,) = bench.events("attempt_failed", "nan")
    assert not failed["again"]
    assert bench.train("after-nan")


def test_out_of_memory_is_tried_as_often_as_the_file_says(bench: Bench) -> None:
    huge = ("model.width=600000", "model.heads=1", "model.depth=1")
    assert bench.fail("huge", *huge)["failure"] == "out_of_memory"
    assert len(bench.events("attempt_failed", "huge")) == 1
    again = (*huge, "failures.retries.out_of_memory=1")
    assert "attempt 2" in bench.fail("huge-again", *again)["error"]
    assert [e["again"] for e in bench.events("attempt_failed", "huge-again")] == [True, False]
    assert bench.train("after-huge")


def test_bad_data_is_not_tried_again(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and then nothing of a table")
    outcome = bench.fail("bad", f"data={{source: {tmp_path / 'x.parquet'}}}")
    assert outcome["failure"] == "bad_input"
    assert len(bench.events("attempt_failed", "bad")) == 1


def test_a_hung_trial_is_ended_and_the_gang_renewed(bench: Bench) -> None:
    """So short a time that every epoch counts as hung."""
    began = time.monotonic()
    outcome = bench.fail("hung", "failures.hang_minutes=0.0001")
    assert (outcome["failure"], "attempt 2" in outcome["error"]) == ("hang", True)
    assert time.monotonic() - began < 60
    assert [e["again"] for e in bench.events("attempt_failed", "hung")] == [True, False]
    assert bench.train("after-hung")


def test_a_killed_controller_of_ray_train_costs_no_epoch(bench: Bench) -> None:
    from ray.util import placement_group_table

    undisturbed = bench.train("undisturbed")

    def kill() -> None:
        raylets = psutil.Process().children()  # not that of the study beside, a child's own child
        ours = [one for raylet in raylets for one in raylet.children()]
        (controller,) = [one for one in ours if CONTROLLER in titled(one)]
        controller.kill()

    assert bench.train("no-controller", on_epoch=once(2, kill)) == undisturbed
    assert bench.state("no-controller") == bench.state("undisturbed")
    groups = placement_group_table().values()
    assert [group["state"] for group in groups].count("CREATED") == 1  # the dead one's is free


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_passed_over_and_named(bench: Bench, damage: str) -> None:
    undisturbed = bench.train("undisturbed")
    study = f"damaged-{damage}"
    bench.stop_after(study, 2)
    kept = bench.checkpoints(study)
    newest = kept.latest()
    assert newest is not None
    key = newest.files["state.safetensors"].key
    content = kept.store.get(key)
    kept.store.delete(key)
    if damage == "flipped":
        kept.store.put(key, content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncated":
        kept.store.put(key, content[: len(content) // 2])
    assert bench.train(study)[-2:] == undisturbed[-2:]
    assert bench.state(study) == bench.state("undisturbed")
    (named,) = bench.events("checkpoint_damaged", study)
    assert key in named["why"]


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

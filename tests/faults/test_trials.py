"""Trials of one gang: it is as fresh after each; each kind of failure is told apart, tried again or
not, and leaves the gang to others."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from orchestrator.ray_backend.session import Cluster, connect
from tests.faults.bench import Bench, Json, gang_of, once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CONTROLLER = "TrainController"


@pytest.fixture(scope="module")
def cluster(ray_head: str) -> Iterator[Cluster]:
    with connect(ray_head) as found:
        yield found


@pytest.fixture(scope="module")
def bench(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with gang_of(cluster, str(tmp_path_factory.mktemp("studies")), workers=1) as bench:
        yield bench


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
    """More shapes than Dynamo keeps variants of (8); the first again at the end, bit by bit."""
    base = ("resources.compile=true", "training.epochs=1", "model.depth=1")
    widths = [8, 12, 16, 20, 24, 28, 32, 36, 40, 8]
    seen: dict[int, Json] = {}
    for number, width in enumerate(widths):
        heads = "model.heads=1"
        (report,) = bench.train(f"shape-{number}", *base, heads, f"model.width={width}")
        assert report["metrics"]["compile/graphs"] >= 1
        assert seen.setdefault(width, report) == report


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
    undisturbed = bench.train("undisturbed")

    def kill() -> None:
        family = psutil.Process().children(recursive=True)
        (controller,) = [one for one in family if CONTROLLER in " ".join(one.cmdline())]
        controller.kill()

    assert bench.train("no-controller", on_epoch=once(2, kill)) == undisturbed
    assert bench.state("no-controller") == bench.state("undisturbed")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_passed_over_and_named(bench: Bench, damage: str) -> None:
    undisturbed = bench.train("sound")
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
    assert bench.state(study) == bench.state("sound")
    (named,) = bench.events("checkpoint_damaged", study)
    assert key in named["why"]

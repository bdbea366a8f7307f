"""Metrics per second into a real MLflow server: our tracker against a call for each metric.

    python benchmarks/tracking.py [--rounds 5] [--trials 8] [--epochs 30] [--calls 100]

The server is started here, on loopback, with an SQLite file. In each round our tracker fills it
with a study of its own (runs, tags and parameters included; the clock stops when MLflow has all of
it), and then `MlflowClient.log_metric` is called again and again on one run. Shown are medians over
rounds, and the ratio of the two rates of each round. Epochs are as a trial of twelve blocks
reports them: λ of 48 linears beside losses, accuracy and times.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator import environment
from orchestrator.tracking.mlflow import Tracker

START_SECONDS = 120
LINEARS = [f"{block}.{linear}" for block in range(12) for linear in ("qkv", "proj", "fc1", "fc2")]


@dataclass(frozen=True)
class Round:
    """Metrics per second, one after the other on one server."""

    ours: float
    one_call_each: float

    @property
    def ratio(self) -> float:
        """Ours over the other."""
        return self.ours / self.one_call_each


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """An `mlflow server` on a free port of loopback; its address."""
    sys.path.insert(0, str(Path(__file__).parent.parent))  # a script sees its own folder alone
    from tests.contract.mlflow_setup import running_server

    with running_server(folder) as running:
        yield running.uri


def study(trials: int, epochs: int) -> list[dict[str, Any]]:
    """The events of a finished study."""
    events: list[dict[str, Any]] = []
    for number in range(trials):
        trial = {"trial": f"trial-{number}"}
        plan = {"arm": f"arm-{number}", "label": "audio · all", "stage": "search", "seed": 0}
        what = {"values": {"training.learning_rate": 0.001}, "auxiliary": "audio"}
        events.append({"kind": "planned", **trial, **plan, **what, "coverage": "all"})
        events.append({"kind": "started", **trial, "gang": "gang-0", "attempt": 1})
        events += [{"kind": "epoch", **trial, **_epoch(epoch, epochs)} for epoch in range(epochs)]
        events.append({"kind": "finished", **trial})
    return events


def _epoch(epoch: int, epochs: int) -> dict[str, Any]:
    names = ("train/loss", "val/loss", "val/accuracy", "learning_rate", "pathway/norm_ratio")
    return {
        "epoch": epoch + 1,
        "epochs": epochs,
        "metrics": dict.fromkeys(names, 1.0 / (epoch + 1)),
        "scales": {f"lambda/{linear}": 0.01 * epoch for linear in LINEARS},
        "seconds": {"train": 1.0, "evaluate": 0.1},
    }


def ours(uri: str, name: str, events: list[dict[str, Any]]) -> float:
    """Metrics per second of the tracker, from the first event until MLflow has all of them."""
    tracker = Tracker(uri, name, name)
    began = {"experiment": {"name": name}, "experiment_sha256": "0" * 64}
    tracker.observe({"kind": "study_started", "time": time.time(), **began})
    assert tracker.flush(START_SECONDS), tracker.state  # importing mlflow is no part of the rate
    started, sent = time.perf_counter(), tracker.state.points
    for event in events:
        tracker.observe({"time": time.time(), **event})
    assert tracker.flush(START_SECONDS), tracker.state
    seconds = time.perf_counter() - started
    points = tracker.state.points - sent
    assert tracker.close(), tracker.state
    wanted = sum(
        len(event["metrics"]) + len(event["scales"]) + len(event["seconds"])
        for event in events
        if event["kind"] == "epoch"
    )
    assert points == wanted, f"{points} of {wanted} metrics arrived"
    return points / seconds


def one_call_each(uri: str, name: str, calls: int) -> float:
    """Metrics per second of `MlflowClient.log_metric`."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment(name)).info.run_id
    started = time.perf_counter()
    for number in range(calls):
        client.log_metric(run, f"lambda/{LINEARS[number % len(LINEARS)]}", 0.5, step=number)
    return calls / (time.perf_counter() - started)


def main() -> None:
    """Measure, and print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args()
    environment.prepare_mlflow()
    events = study(parsed.trials, parsed.epochs)
    rounds = []
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as uri:
        for number in range(parsed.rounds):
            mine = ours(uri, f"study-{number}", events)
            rounds.append(Round(mine, one_call_each(uri, f"calls-{number}", parsed.calls)))
            print(f"measured: {rounds[-1]}", file=sys.stderr, flush=True)
    if parsed.json:
        print(json.dumps([asdict(one) | {"ratio": one.ratio} for one in rounds]))
        return
    print(f"ours               {statistics.median(r.ours for r in rounds):9.0f} metrics/s")
    print(f"a call per metric  {statistics.median(r.one_call_each for r in rounds):9.1f} metrics/s")
    print(f"ratio              {statistics.median(r.ratio for r in rounds):9.0f}")


if __name__ == "__main__":
    main()

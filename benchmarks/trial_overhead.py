"""What a trial costs beside its training: warm gangs against stock Ray, in one run.

    python benchmarks/trial_overhead.py [--trials 20] [--stock-trials 5]

Every contestant trains the same trial (a small transformer on digits, three epochs) one after
another; overhead is the wall time from the first trial's start to the last one's end, less the
seconds spent training and evaluating, per trial. Contestants: this project's study with gangs of
one and of two workers (checkpoints, journal and MLflow included), Ray Tune with a TorchTrainer for
each trial and TuneReportCallback (the documented nesting), and Ray Tune alone.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from m2pt.training.recipe import TrainingConfig
from m2pt.training.world import World
from orchestrator import environment
from orchestrator.conduct.progress import View
from orchestrator.conduct.study import conduct
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import parse_experiment

EXPERIMENT = """
name: overhead
data: {source: digits, limit: 400}
model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}
training: {epochs: 3, batch_size: 50}
resources: {concurrent_trials: 1}
search:
  seeds: 1
  confirm: 0
  scheduler: {kind: none}
  sampler: random
  space:
    training.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}
"""


@dataclass(frozen=True)
class Overhead:
    """One contestant's figures, in seconds."""

    name: str
    trials: int
    wall_seconds: float
    training_seconds: float
    opening_seconds: float = 0.0
    """Paid once for all trials (gangs); in no other figure."""

    @property
    def per_trial_seconds(self) -> float:
        """Wall time beside training, per trial."""
        return (self.wall_seconds - self.training_seconds) / self.trials


def ours(trials: int, workers: int, folder: Path) -> Overhead:
    """A study of this project."""
    overrides = [
        f"storage={folder}",
        f"search.trials={trials - 1}",  # and the baseline
        f"resources.workers={workers}",
    ]
    experiment = parse_experiment(EXPERIMENT, "benchmark", overrides)
    console = Console(file=io.StringIO())
    with View(console, "val/accuracy", trials) as view:
        events = conduct(experiment, None, view).events
    epochs = [event for event in events if event["kind"] == "epoch"]
    first = min(event["time"] for event in events if event["kind"] == "started")
    ended = [event["time"] for event in events if event["kind"] == "finished"]
    assert len(ended) == trials, f"{len(ended)} of {trials} trials finished"
    training = sum(sum(e["seconds"][part] for part in ("train", "evaluate")) for e in epochs)
    opening = max(e["seconds"] for e in events if e["kind"] == "gang_opened")
    return Overhead(f"ours, {workers} worker(s)", trials, max(ended) - first, training, opening)


def stock(trials: int, workers: int, folder: Path) -> Overhead:
    """Ray Tune over a TorchTrainer for each trial, as Ray's documentation nests them."""
    import ray.train
    import ray.tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    config = _config()

    def train_function(values: dict[str, Any]) -> None:
        context = ray.train.get_context()
        world = World(context.get_world_rank(), context.get_world_size())
        _train(config, world, lambda metrics: ray.train.report(metrics))

    def driver(values: dict[str, Any]) -> None:
        trainer = TorchTrainer(
            train_function,
            train_loop_config=values,
            scaling_config=ray.train.ScalingConfig(num_workers=workers),
            run_config=ray.train.RunConfig(
                name=f"train-{ray.tune.get_context().get_trial_id()}",
                storage_path=str(folder),
                callbacks=[TuneReportCallback()],
            ),
        )
        trainer.fit()

    wall, training = _tune(driver, trials, folder)
    return Overhead(f"Tune + TorchTrainer, {workers} worker(s)", trials, wall, training)


def tune_alone(trials: int, folder: Path) -> Overhead:
    """Ray Tune with the training inside its function."""
    import ray.tune

    config = _config()

    def function(values: dict[str, Any]) -> None:
        _train(config, World(), lambda metrics: ray.tune.report(metrics))

    wall, training = _tune(function, trials, folder)
    return Overhead("Tune alone", trials, wall, training)


def _config() -> TrainingConfig:
    experiment: Experiment = parse_experiment(EXPERIMENT, "benchmark")
    return experiment.training_config()


def _train(config: TrainingConfig, world: World, report: Callable[[dict[str, Any]], None]) -> None:
    """Train once; each report carries the seconds trained so far."""
    import torch

    from m2pt.data.load import load
    from m2pt.training.loop import Training

    torch.set_num_threads(1)
    training = Training(config, load(config.data), {}, world=world)
    seconds = 0.0
    for done in training.epochs():
        seconds += sum(done.seconds.values())
        report({**done.metrics, "trained_seconds": seconds})


def _tune(function: Any, trials: int, folder: Path) -> tuple[float, float]:
    """Wall seconds of `trials` trials, one at a time, and the training seconds among them."""
    import ray
    import ray.tune

    ray.init(
        address="local",
        num_cpus=4,  # a trial's driver takes a share of one, its workers one each
        log_to_driver=False,
        include_dashboard=False,
        logging_level="ERROR",
    )
    seen: dict[str, float] = {}

    class Sum(ray.tune.Callback):  # type: ignore[misc]  # ray ships no types
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any) -> None:
            seen[trial.trial_id] = result["trained_seconds"]

    tuner = ray.tune.Tuner(
        ray.tune.with_resources(function, {"CPU": 0.01}),
        param_space={"learning_rate": ray.tune.loguniform(1e-4, 1e-2)},
        tune_config=ray.tune.TuneConfig(num_samples=trials, max_concurrent_trials=1),
        run_config=ray.tune.RunConfig(
            name="tune", storage_path=str(folder), verbose=0, callbacks=[Sum()]
        ),
    )
    began = time.perf_counter()
    tuner.fit()
    wall = time.perf_counter() - began
    ray.shutdown()
    assert len(seen) == trials, f"{len(seen)} of {trials} trials reported"
    return wall, sum(seen.values())


def main() -> None:
    """Measure all contestants and print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--stock-trials", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args()
    environment.prepare_ray(local=True)
    figures = []
    for workers in (1, 2):
        for run, trials in ((ours, parsed.trials), (stock, parsed.stock_trials)):
            with tempfile.TemporaryDirectory() as folder:
                figures.append(run(trials, workers, Path(folder)))
                print(f"measured: {figures[-1]}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures.append(tune_alone(parsed.trials, Path(folder)))
    if parsed.json:
        print(json.dumps([asdict(f) | {"per_trial_seconds": f.per_trial_seconds} for f in figures]))
        return
    for figure in figures:
        print(
            f"{figure.name:<34}{figure.trials:>3} trials  {figure.per_trial_seconds:8.3f} s beside "
            f"{figure.training_seconds / figure.trials:.2f} s of training each"
            + (
                f"; gang opened once in {figure.opening_seconds:.0f} s"
                * bool(figure.opening_seconds)
            )
        )
    for mine, theirs in (figures[0:2], figures[2:4]):
        ratio = theirs.per_trial_seconds / mine.per_trial_seconds
        print(f"{theirs.name}: {ratio:.0f} times ours")


if __name__ == "__main__":
    main()

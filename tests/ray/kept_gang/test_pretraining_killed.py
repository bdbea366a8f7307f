"""kill -9 in the middle of a pre-training, first of a rank, then of everything: it goes on."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from m2pt.pretrain.mae import MaskedAutoencoding
from m2pt.training.recipe import Numerics
from m2pt.weights.files import blocks_from_bytes
from orchestrator.config.io import parse_experiment
from orchestrator.storage import layout
from orchestrator.storage.uri import Store
from orchestrator.tracking.record import fold
from tests.ray.kept_gang.kept import Kept
from tests.studies import events, kill_all, select, start, verb, wait_until
from tests.tracked import check_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EPOCHS = 30
TEXT = f"""
name: making
data: {{source: digits, limit: 100}}
model: {{width: 16, depth: 2, heads: 2, tokenizer: {{patch: 4}}}}
auxiliaries:
  audio:
    pretrain:
      data: {{source: tones, limit: 64}}
      tokenizer: {{patch: 8}}
      epochs: {EPOCHS}
      batch_size: 4
      keep_epochs: [3, {EPOCHS - 1}]
resources: {{workers: 2, concurrent_trials: 1, precision: fp64}}
checkpoints: {{every_epochs: 2}}
"""
NAME = "making-pretrain"


def test_a_pretraining_goes_on_after_a_worker_and_after_everything_was_killed(
    tmp_path: Path, kept: Kept
) -> None:
    (tmp_path / "making.yaml").write_text(TEXT)
    command = ("pretrain", "making.yaml", "--storage", "studies")
    storage = tmp_path / "studies"

    def epochs_done(lost: int) -> int:
        happened = events(storage, NAME)
        enough = len(select(happened, "gang_lost")) >= lost
        return len(select(happened, "auxiliary_epoch")) if enough else 0

    driver = start(tmp_path, *command)
    wait_until(driver, lambda: epochs_done(0) >= 4)
    (opened,) = select(events(storage, NAME), "gang_opened")
    os.kill(opened["workers"][1]["pid"], signal.SIGKILL)
    known = epochs_done(0)
    wait_until(driver, lambda: known + 2 < epochs_done(1) < EPOCHS)
    kill_all(driver)

    alone = ("--set", "resources.workers=1")  # as many as there are now: it is the same
    done = kept.study(tmp_path, *command, *alone)
    happened = events(storage, NAME)
    check_nothing_was_done_twice(happened)
    check_weights(done["weights"], storage)
    check_mlflow(f"sqlite:///{storage / 'mlflow.db'}", NAME, fold(happened))

    again = verb(tmp_path, *command)
    assert (again["already_done"], again["weights"]) == (True, done["weights"])
    assert events(storage, NAME) == happened


def check_nothing_was_done_twice(happened: list[dict[str, Any]]) -> None:
    """Each epoch is told of once, and its checkpoints are of one owner, who went on where the one
    before had come to."""
    reported = select(happened, "auxiliary_epoch")
    assert [event["epoch"] for event in reported] == list(range(1, EPOCHS + 1))
    kept = [event["checkpoint"] for event in reported if "checkpoint" in event]
    numbers = [at for key in kept if (at := layout.parse_manifest(key)) is not None]
    assert [at.step for at in numbers] == list(range(2, EPOCHS + 1, 2))
    owners = [at.epoch for at in numbers]
    assert owners == sorted(owners)
    assert set(owners) == {1, 2}
    assert len(select(happened, "takeover")) == 2


def check_weights(weights: list[dict[str, Any]], storage: Path) -> None:
    """They are those of a run on one worker that nothing happened to, in plain Python."""
    experiment = parse_experiment(TEXT, "making.yaml", [])
    config = experiment.auxiliaries["audio"].pretrain
    assert config is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = MaskedAutoencoding(config, experiment.model, numerics=Numerics("fp64"))
        wanted = {
            report.epoch: run.block_weights()
            for report in run.epochs()
            if report.epoch in config.kept
        }
    finally:
        torch.set_num_threads(threads)
    store = Store.open(str(storage))
    for one in weights:
        found = blocks_from_bytes(store.get(layout.blob(one["sha256"])))
        torch.testing.assert_close(found, wanted[one["epoch"]], rtol=1e-6, atol=1e-9)
    names = ["audio", f"audio@{EPOCHS - 1}", "audio@3"]
    assert [one["name"] for one in weights] == names
    assert [one["reference"] for one in weights] == [f"study://{NAME}/{name}" for name in names]
    assert store.list(layout.trials(NAME)) == []

"""The shipped studies of real data, through the command line, much shortened, on one cluster.

What is held out stays held out, for each of the four target modalities.
"""

from pathlib import Path

import pytest
import torch

from m2pt.data.load import load
from orchestrator.config.io import load_experiment
from tests.ray.kept_gang.kept import Kept
from tests.studies import check_each_trial_ended_once, events, select

SHARED = Path(__file__).parents[4] / "shared"
STUDIES = {"signdigits": "audio", "esc10": "image", "ldraw": "image", "sprites": "point"}
"""Each file, and the auxiliary that is tried here."""
SHORT = {
    "model.width": "32",
    "model.depth": "2",
    "model.heads": "2",
    "data.limit": "100",
    "training.epochs": "2",
    "training.warmup_epochs": "1",
    "search.trials": "1",
    "search.seeds": "1",
    "search.scheduler": "{kind: none}",
    "search.space.pathway.coverage.blocks.choice": "[all, 'first:1']",
    "storage": "store",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not all((SHARED / "data" / f"{name}_train.parquet").exists() for name in STUDIES),
        reason="the data sets of search_spaces are not there (../shared/data)",
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder that sees the data at ../shared/data, as the repository's root does."""
    (tmp_path / "shared").symlink_to(SHARED)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_each_modality_is_a_target(folder: Path, kept: Kept) -> None:
    for name, auxiliary in STUDIES.items():
        assert kept.study(folder, "search", name, *shortened(auxiliary))["exit_code"] == 0
        check_test_rows_took_no_part(events(folder / "store", name))


def shortened(auxiliary: str) -> list[str]:
    pretraining = f"auxiliaries.{auxiliary}.pretrain"
    changes = {
        **SHORT,
        f"{pretraining}.epochs": "1",
        f"{pretraining}.data.limit": "100",
        "search.space.pathway.auxiliary.grid": f"[{auxiliary}]",
    }
    return [f"--set={path}={value}" for path, value in changes.items()]


def check_test_rows_took_no_part(happened: list[dict[str, object]]) -> None:
    """They were read once, for the three trials that are compared, after the last epoch."""
    assert set(check_each_trial_ended_once(happened).values()) == {"finished"}
    planned = {event["trial"]: event["stage"] for event in select(happened, "planned")}
    assert sorted(map(str, planned.values())) == ["baseline", "control", "search"]
    tested = [event["trial"] for event in select(happened, "tested")]
    assert sorted(map(str, tested)) == sorted(map(str, planned))
    epochs = select(happened, "epoch")
    assert min(event["time"] for event in select(happened, "tested")) > max(
        event["time"] for event in epochs
    )
    assert not any(name.startswith("test/") for event in epochs for name in event["metrics"])


@pytest.mark.parametrize("name", list(STUDIES))
def test_validation_is_held_out_of_the_training_rows(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    dataset = load(load_experiment(name).data)
    train, validation = dataset.train.labels, dataset.validation.labels
    rows = {"signdigits": (1651, 411), "esc10": (320, 80), "ldraw": (1721, 495)}
    assert (len(train) + len(validation), len(dataset.test)) == rows.get(name, (1260, 315))
    share = len(validation) / (len(train) + len(validation))
    assert share == pytest.approx(0.25 if name == "esc10" else 0.2, abs=0.01)  # a fold of four
    classes = dataset.info.classes
    assert torch.bincount(train, minlength=classes).min() > 0
    assert torch.bincount(validation, minlength=classes).min() > 0

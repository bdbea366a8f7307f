"""The real data set, through the command line, much shortened: what is held out stays held out."""

from pathlib import Path

import pytest

from m2pt.data.load import load
from m2pt.data.parquet import read_index
from orchestrator.config.io import load_experiment
from tests.studies import check_each_trial_ended_once, events, orchestrator, select

SHARED = Path(__file__).parents[3] / "shared"
SHORT = {
    "model": "{width: 32, depth: 2, heads: 2, tokenizer: {patch: 16}}",
    "data.limit": "200",
    "auxiliaries.audio.pretrain.epochs": "1",
    "training.epochs": "2",
    "training.warmup_epochs": "1",
    "search.trials": "1",
    "search.seeds": "1",
    "search.scheduler": "{kind: none}",
    "search.space.pathway.auxiliary.grid": "[audio]",
    "search.space.pathway.coverage.blocks.choice": "[all, 'first:1']",
    "storage": "store",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (SHARED / "data" / "signdigits_train.parquet").exists(),
        reason="the data sets of search_spaces/signdigits.yaml are not there (../shared/data)",
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder that sees the data at ../shared/data, as the repository's root does."""
    (tmp_path / "shared").symlink_to(SHARED)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_test_rows_take_no_part_and_are_read_once(folder: Path) -> None:
    overrides = [f"--set={path}={value}" for path, value in SHORT.items()]
    printed = orchestrator(folder, "search", "signdigits", *overrides)
    assert printed["exit_code"] == 0

    happened = events(folder / "store", "signdigits")
    assert set(check_each_trial_ended_once(happened).values()) == {"finished"}
    planned = {event["trial"]: event["stage"] for event in select(happened, "planned")}
    assert sorted(planned.values()) == ["baseline", "control", "search"]
    tested = [event["trial"] for event in select(happened, "tested")]
    assert sorted(tested) == sorted(planned)  # each of them once: all three are compared
    last_epoch = max(event["time"] for event in select(happened, "epoch"))
    assert min(event["time"] for event in select(happened, "tested")) > last_epoch
    assert not any(
        name.startswith("test/") for event in select(happened, "epoch") for name in event["metrics"]
    )


def test_validation_is_held_out_of_the_training_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    data = load_experiment("signdigits").data
    dataset = load(data)
    train_file, test_file = read_index(data.source), read_index(data.test_source or "")
    rows = {name: set(getattr(dataset, name)._rows.tolist()) for name in ("train", "validation")}
    assert rows["train"] | rows["validation"] == set(train_file.rows("train"))
    assert not rows["train"] & rows["validation"]
    assert len(rows["validation"]) == round(0.2 * len(train_file.ids))
    assert len(dataset.test) == len(test_file.ids)
    assert not set(train_file.ids) & set(test_file.ids)

"""The shipped presets of the paper: each is read, planned without its files, and takes a step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from m2pt.data.load import load
from m2pt.measure import stand_ins
from m2pt.training.loop import Training
from orchestrator.cli import main
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import apply, load_experiment
from orchestrator.study.arms import possible_auxiliaries
from search_spaces import catalog

PRESETS = [name for name in catalog.names() if name.startswith("paper/")]
SHARED = Path(__file__).parents[3] / "shared"
FEW = ["data.limit=4", "training.batch_size=4", "training.epochs=1", "training.warmup_epochs=0"]
RECIPE_OF_IMAGE = ("paper/coverage", "paper/maturity", "paper/scale")


def test_every_table_of_the_paper_has_its_preset() -> None:
    tables = "audio coverage image maturity points scale segmentation video"
    assert [f"paper/{name}" for name in tables.split()] == PRESETS


@pytest.mark.parametrize("preset", RECIPE_OF_IMAGE)
@pytest.mark.parametrize("size", ["null", "tiny"])
def test_ablations_have_the_target_and_the_recipe_of_image(preset: str, size: str) -> None:
    ours, image = (load_experiment(name, [f"size={size}"]) for name in (preset, "paper/image"))
    for section in ("data", "model", "target", "training", "resources"):
        assert getattr(ours, section) == getattr(image, section), section


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_each_is_planned_without_its_files(
    preset: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", preset, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    keys = [line.partition(": ")[0] for line in plan["absent"]]
    full = load_experiment(preset)
    borrowed = [f"auxiliaries.{name}.weights" for name in possible_auxiliaries(full)]
    assert sorted(keys) == sorted(["data.source", "target.weights", *borrowed])
    assert (full.model.width, full.model.depth, full.model.heads) == (768, 12, 12)
    assert plan["trials"] >= 3 + full.search.trials
    assert main(["search", preset]) == 2
    assert f"{len(keys)} problems" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize("preset", PRESETS)
def test_each_takes_a_step_when_tiny(
    preset: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shared").symlink_to(SHARED)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert main(["plan", preset, "--no-measure", "--set", "size=tiny"]) == 0
    assert "absent" not in capsys.readouterr().out
    tiny = load_experiment(preset, ["size=tiny", *FEW])
    if not tiny.pathway.names:
        tiny = apply(tiny, {"pathway.auxiliary": possible_auxiliaries(tiny)[0]})
    report = next(trained(tiny).epochs())
    assert report.scales
    assert report.metrics["train/loss"] > 0
    assert tiny.search.metric in report.metrics


def trained(tiny: Experiment) -> Training:
    """Beside stand-ins for what the study would pre-train first; validated on what it trains on."""
    assert tiny.target is not None
    assert tiny.target.pretrain is not None
    data = load(tiny.data)
    data = replace(data, validation=data.train)
    made = stand_ins(tiny.model, data.info, (*tiny.pathway.names, "target"))
    target = made.pop("target")
    return Training(tiny.training_config(), data, made, target_weights=target)

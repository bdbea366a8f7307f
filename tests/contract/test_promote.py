"""A stored trial goes into a real MLflow registry, and out of it where this project is not."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from m2pt.data.config import DataConfig
from m2pt.data.load import load
from m2pt.pathway.reparam import fuse_pathway
from m2pt.training.world import World
from orchestrator.cli import main
from orchestrator.conduct.assign import Assigner
from orchestrator.conduct.ownership import stored_experiment
from orchestrator.errors import TrackingError
from orchestrator.promotion import export as export_module
from orchestrator.promotion import measure
from orchestrator.promotion.gate import PromotionError
from orchestrator.promotion.load_model import load_model
from orchestrator.ray_backend import work
from orchestrator.storage.uri import Store
from orchestrator.study.agenda import Agenda
from orchestrator.study.identity import Digests
from orchestrator.tracking.reconcile import STUDY_STAGE, study_id
from orchestrator.tracking.record import StudyRecord
from orchestrator.tracking.registry import Registry, Version
from orchestrator.tracking.segments import JournalReader
from tests.contract.mlflow_setup import Target
from tests.stored_study import NAME, stored_study

pytestmark = pytest.mark.slow

CLEAN = """
import json, sys
for name in ("orchestrator", "m2pt", "timm"):
    sys.modules[name] = None  # an import of it raises
import mlflow, numpy, torch
mlflow.set_tracking_uri(sys.argv[1])
uri, samples = sys.argv[2], numpy.load(sys.argv[3])
module, served = mlflow.pytorch.load_model(uri), mlflow.pyfunc.load_model(uri)
found = {}
for size in (1, 3):
    batch = samples[:size]
    with torch.no_grad():
        found[f"pytorch {size}"] = module(torch.from_numpy(batch)).tolist()
    found[f"pyfunc {size}"] = served.predict(batch).tolist()
print(json.dumps(found))
"""


class Stored:
    """A finished study, and what verbs say about it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.record: StudyRecord = stored_study(folder)

    def trial(self, auxiliary: str, seed: int = 0) -> str:
        return next(
            one.trial
            for one in self.record.trials.values()
            if (one.auxiliary, one.seed) == (auxiliary, seed)
        )

    @property
    def client(self) -> Any:
        return Target(self.uri, NAME).client

    def clean(self, uri: str, samples: Path) -> dict[str, Any]:
        """What a process says that has MLflow and torch, and nothing of this project."""
        done = subprocess.run(
            [sys.executable, "-I", "-c", CLEAN, self.uri, uri, str(samples)],
            cwd=samples.parent,
            env={
                "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
                "PATH": "",
                "HOME": str(self.folder),
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return Stored(tmp_path_factory.mktemp("stored"))


def say(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The object that a verb prints, and its exit code."""
    capsys.readouterr()
    code = main([*words, "--json"])
    printed: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    print(printed.get("error", ""))  # shown where a test fails
    return {**printed, "code": code}


def test_a_promoted_model_runs_where_this_project_is_not(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("promote", NAME, "--storage", str(stored.folder))
    said = say(capsys, *words)
    assert (said["code"], said["model"], said["version"]) == (0, NAME, "1")
    assert said["registered"]
    assert said["alias_moved"]
    assert said["trial"] == stored.trial("audio")
    check_version(stored, said)
    samples, _ = load(DataConfig("digits")).test.batch(range(3))
    np.save(tmp_path / "samples.npy", samples.numpy())
    found = stored.clean("models:/stored@champion", tmp_path / "samples.npy")
    folder = stored.client.get_model_version_download_uri(NAME, "1").removeprefix("file://")
    plain = load_model(Path(folder) / "export")
    for size in (1, 3):
        with torch.no_grad():
            expected = plain(samples[:size])
        for flavour in ("pytorch", "pyfunc"):
            given = torch.tensor(found[f"{flavour} {size}"])
            torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)

    again = say(capsys, *words)
    assert (again["version"], again["registered"], again["alias_moved"]) == ("1", False, False)
    assert len(stored.client.search_model_versions(f"name = '{NAME}'")) == 1
    assert main([*words]) == 0
    assert "was registered before, as stored version 1; nothing to do" in capsys.readouterr().out


def check_version(stored: Stored, said: Mapping[str, Any]) -> None:
    """It says what it holds, belongs to its trial's run, and has its files beside it."""
    client = stored.client
    version = client.get_model_version_by_alias(NAME, "champion")
    run = client.get_run(version.run_id)
    assert run.data.tags["trial_id"] == said["trial"]
    assert {key: version.tags[key] for key in ("trial_id", "study", "sha256", "label")} == {
        "trial_id": said["trial"],
        "study": NAME,
        "sha256": said["sha256"],
        "label": said["label"],
    }
    assert version.tags["scales"].startswith("|λ| mean 0.09")
    assert "nothing is claimed" in version.tags["evidence"]
    logged = client.get_logged_model(version.tags["model_id"])
    assert (logged.status.value, logged.source_run_id) == ("READY", version.run_id)
    assert [one.model_id for one in run.outputs.model_outputs] == [logged.model_id]
    folder = Path(logged.artifact_location.removeprefix("file://"))
    assert sorted(path.name for path in (folder / "export").iterdir()) == [
        "README.md", "load_model.py", "model.json", "model.safetensors"
    ]  # fmt: skip
    card = (folder / "export" / "README.md").read_text()
    assert "Verdict: " in card
    assert not [path for path in folder.rglob("*") if path.suffix in (".pth", ".pkl", ".pickle")]
    graph = (folder / "data" / "model.pt2").read_bytes()
    assert b"site-packages" not in graph


def test_an_alias_moves_from_one_trial_to_another_and_back(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("promote", NAME, "--storage", str(stored.folder), "--name", "two", "--alias", "best")
    first = say(capsys, *words, "--trial", stored.trial("audio"))
    other = say(capsys, *words, "--trial", stored.trial("none"))
    assert (first["version"], other["version"], other["alias_before"]) == ("1", "2", "1")
    assert other["proof"]["weights"] is None
    back = say(capsys, *words, "--trial", stored.trial("audio"))
    assert (back["version"], back["registered"], back["alias_before"]) == ("1", False, "2")
    assert {k: str(v) for k, v in stored.client.get_registered_model("two").aliases.items()} == {
        "best": "1"
    }


def test_what_fails_at_the_gate_is_not_registered(
    stored: Stored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: torch.nn.Module) -> torch.nn.Module:
        fuse_pathway(model)
        with torch.no_grad():
            model.get_parameter("blocks.0.mlp.fc1.weight").mul_(1.001)
        return model

    monkeypatch.setattr(measure, "fuse_pathway", wrong)
    words = ("--storage", str(stored.folder), "--trial", stored.trial("audio"))
    said = say(capsys, "promote", NAME, "--name", "never", *words)
    assert said["code"] == said["exit_code"] == 3
    assert "blocks.0.mlp.fc1.weight differs from W + λW' by 1.00e-03" in said["error"]
    assert stored.client.search_registered_models("name = 'never'") == []
    to = stored.folder / "refused"
    assert say(capsys, "export", NAME, "--to", str(to), *words)["code"] == 3
    assert not to.exists()


def test_an_export_has_its_card_and_an_onnx_file(
    stored: Stored,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("export", NAME, "--storage", str(stored.folder), "--to", str(tmp_path / "model"))
    said = say(capsys, *words, "--onnx")
    files = ["README.md", "load_model.py", "model.json", "model.onnx", "model.safetensors"]
    assert said["files"] == files
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == files
    card = (tmp_path / "model" / "README.md").read_text()
    for told in (
        'timm.create_model(\n    "vit_tiny_patch16_224"',
        "| validation accuracy, % |",
        "One arm was tried",
        "pre-trained in the study, masked autoencoding of tones",
    ):
        assert told in card
    snippet = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path / "model")
    made: dict[str, Any] = {}
    exec(snippet, made)  # what the card tells its reader to do
    samples, _ = load(DataConfig("digits")).test.batch(range(3))
    with torch.no_grad():
        assert torch.equal(made["model"](samples), load_model(tmp_path / "model")(samples))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--alias", "latest"), 2, "--alias 'latest'"),
        (("--name", "a/b"), 2, "--name 'a/b'"),
        (("--trial", "nobody"), 2, "--trial nobody: no such trial has ended"),
        (("--tracking", "sqlite:///nowhere/mlflow.db"), 4, "there is no such file"),
        (("--tracking", "http://127.0.0.1:9"), 4, "MLflow at http://127.0.0.1:9: "),
    ],
)
def test_what_cannot_be_is_refused_before_the_gate(
    words: tuple[str, ...],
    code: int,
    says: str,
    stored: Stored,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "measure", None)
    said = say(capsys, "promote", NAME, "--storage", str(stored.folder), *words)
    assert said["code"] == code
    assert says in said["error"]


def test_of_two_promotions_at_once_the_first_stays(stored: Stored) -> None:
    registry, client = Registry.open(stored.uri), stored.client
    tags = {"trial_id": "twin", "sha256": "0" * 64}
    client.create_registered_model("twins")
    first, second = (
        Version(
            "twins", str(client.create_model_version("twins", f"file:///{n}", tags=tags).version)
        )
        for n in range(2)
    )
    assert registry._without_twin(second, tags) == first
    assert registry._without_twin(first, tags) == first
    assert [str(v.version) for v in client.search_model_versions("name = 'twins'")] == ["1"]


def test_whatever_an_upload_raises_is_told_in_a_sentence(
    stored: Stored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCredentials(Exception):
        """As boto3's: of no kind that MLflow knows."""

    def fail(self: Any, *args: Any, **more: Any) -> None:
        raise NoCredentials("unable to locate credentials")

    monkeypatch.setattr("mlflow.MlflowClient.log_model_artifacts", fail)
    words = ("promote", NAME, "--storage", str(stored.folder), "--name", "unsent")
    said = say(capsys, *words)
    assert said["code"] == 4
    assert "unable to locate credentials; the same command goes on" in said["error"]
    assert stored.client.search_registered_models("name = 'unsent'") == []


def test_an_export_that_is_refused_at_a_studys_end_takes_no_figure_with_it(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(trial: str, proof: object) -> None:
        raise PromotionError(f"trial {trial}: no")

    store, record = Store.open(str(stored.folder)), stored.record
    blob = record.auxiliaries["audio"].sha256
    experiment = stored_experiment(store, NAME)
    digests = Digests(load(experiment.data).info.digest, None, {"audio": blob})
    trial = stored.trial("audio")
    plan = Agenda(experiment, digests).plan_of(record, trial)
    accepted = JournalReader(store, NAME).view().accepted
    assignment = Assigner(NAME, str(stored.folder), accepted, digests).settle(plan, export=True)
    gang: Any = SimpleNamespace(world=World())
    gang.alone = lambda: gang
    done = work.settle(gang, {"assignment": assignment}, {})
    assert done["proof"]["probe"]["samples"] > 0
    monkeypatch.setattr(export_module, "check", refuse)
    refused = work.settle(gang, {"assignment": assignment}, {})
    assert refused == {
        "kind": "finished",
        "metrics": done["metrics"],
        "refused": f"trial {trial}: no",
    }


def test_an_mlflow_that_never_saw_the_study(stored: Stored) -> None:
    registry = Registry.open(stored.uri)
    for study, identity in (("other", "other-1"), (NAME, f"{NAME}-1")):
        with pytest.raises(TrackingError, match=f"shows no run of study '{study}': .* resume"):
            registry.run_of(study, identity, stored.trial("audio"))


def test_a_trial_without_a_run_is_logged_to_its_studys(stored: Stored) -> None:
    run_id = Registry.open(stored.uri).run_of(NAME, study_id(NAME, stored.record), "nobody")
    assert stored.client.get_run(run_id).data.tags["stage"] == STUDY_STAGE

"""Whatever is kept carries a format's number: what an older release kept is read, a newer refused.

data/format_1.json is what the first release wrote, as it wrote it; it must be readable for ever.
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m2pt.data import manifest as data_manifest
from m2pt.data.config import DataConfig
from m2pt.data.describe import describe
from m2pt.training import state
from orchestrator.cli import main
from orchestrator.conduct import brake, ownership
from orchestrator.conduct.made import PRETRAINED_FORMAT, Made, parse_made
from orchestrator.conduct.ownership import snapshot, stored_experiment
from orchestrator.errors import StorageError
from orchestrator.evidence import report
from orchestrator.importing import destination
from orchestrator.promotion import load_model
from orchestrator.storage import checkpoints
from orchestrator.storage.checkpoints import TrialCheckpoints, read_manifest
from orchestrator.storage.lease import Lease, read_owner
from orchestrator.storage.uri import Store
from orchestrator.study.plan import make_plan
from orchestrator.tracking import segments, spool
from orchestrator.tracking.journal import Journal, JournalReader, read_events
from orchestrator.tracking.record import fold
from tests.contract.wrong_input import DECLARED, table

DATA = Path(__file__).parent / "data"
TRIAL = "0a1b2c3d4e5f"
MANIFEST = f"studies/kept/trials/{TRIAL}/checkpoints/000001-00000001/manifest.json"
SEGMENT, LEASE = "studies/kept/journal/000002-000000.jsonl", "studies/kept/lease/000002.json"
PRETRAINED, REQUEST = "pretrained/0123.json", "studies/kept/control/000002-stop-1.json"
EXPERIMENT = "studies/kept/experiment.yaml"


def kept(number: int = 1) -> dict[str, bytes]:
    """Everything that release wrote, by its key, and its spool."""
    told = json.loads((DATA / f"format_{number}.json").read_text())
    return {
        key: text.encode() if isinstance(text, str) else base64.b64decode(text["base64"])
        for key, text in told.items()
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.open(str(tmp_path / "store"))
    for key, content in kept().items():
        if key != "spool":
            made.put(key, content)
    return made


def _pretrained(store: Store, epochs: int) -> Made:
    return parse_made(store.get(PRETRAINED), PRETRAINED, epochs)


# What was kept ---------------------------------------------------------------------------------


def test_a_study_of_the_first_release_is_read(store: Store) -> None:
    record = fold(read_events(store, "kept"))
    trial = record.trials[TRIAL]
    assert (record.status, trial.status, trial.stage) == ("stopped", "running", "baseline")
    assert [epoch.metrics for epoch in trial.epochs] == [{"val/accuracy": 0.5, "train/loss": 1.25}]
    experiment = stored_experiment(store, "kept")
    assert (experiment.name, experiment.training.epochs) == ("kept", 2)
    owner = read_owner(store, "kept")
    assert owner is not None
    assert (owner.epoch, owner.released, owner.pid) == (2, True, 4711)
    kept = _pretrained(store, 3).kept[3]
    assert (kept.metrics, kept.sha256) == ({"pretrain/loss": 0.25}, "0" * 64)
    assert brake._asked_by(store, REQUEST) == "somebody"


def test_its_checkpoint_is_loaded(store: Store) -> None:
    accepted = JournalReader(store, "kept").view().accepted
    found = TrialCheckpoints(store, "kept", TRIAL, accepted).load_latest()
    assert found is not None
    manifest, files = found
    assert (manifest.key, manifest.step, manifest.final) == (MANIFEST, 1, False)
    restored = state.from_bytes(files["state.safetensors"])
    assert restored.tensors["model/head.bias"].tolist() == [0.5, -1.0]
    assert restored.meta["epoch"] == 1


def test_it_goes_on_under_a_new_owner(store: Store, tmp_path: Path) -> None:
    before = read_events(store, "kept")
    with (
        Lease.acquire(store, "kept") as lease,
        Journal.open(store, "kept", lease, spool=tmp_path / "spool") as journal,
    ):
        assert lease.epoch == 3
        journal.append({"kind": "stopped", "trial": TRIAL, "why": "a test"})
        found = TrialCheckpoints(store, "kept", TRIAL, journal.accepted).latest()
        assert found is not None
    after = read_events(store, "kept")
    assert after[: len(before)] == before
    assert [event["kind"] for event in after[len(before) :]] == ["takeover", "stopped"]


@pytest.mark.parametrize("header", [b"", b"spool 1\n"])
def test_its_spool_is_read(tmp_path: Path, header: bytes) -> None:
    """Also one of the days before its format had a number."""
    text = kept()["spool"]
    assert text.startswith(b"spool 1\n")
    spool._path(tmp_path, "s", "token").write_bytes(text.replace(b"spool 1\n", header))
    kinds = [event["kind"] for _, event in spool.left_over(tmp_path, "s", "token")]
    assert kinds == ["study_started", "planned", "started", "epoch", "checkpoint"]


def test_an_experiment_without_a_number_is_read(store: Store) -> None:
    text = store.get(EXPERIMENT)
    assert text.startswith(b"# m2pt experiment, format 1\n")
    store.put(EXPERIMENT, text.partition(b"\n")[2])
    assert stored_experiment(store, "kept").name == "kept"


# What carries a number -------------------------------------------------------------------------


def test_every_format_has_what_it_wrote_in_a_file_here() -> None:
    """Who raises one of these adds data/format_N.json, and reads both."""
    newest = {
        "experiment": ownership.FORMAT,
        "segment": segments.FORMAT,
        "manifest": checkpoints.FORMAT,
        "state": state.FORMAT,
        "pretrained": PRETRAINED_FORMAT,
        "request": brake.FORMAT,
        "spool": spool.FORMAT,
        "import": destination.FORMAT,
        "data set": data_manifest.FORMAT,
        "export": load_model.FORMAT,
        "report": report.FORMAT,
    }
    files = sorted(path.name for path in DATA.glob("format_*.json"))
    assert files == [f"format_{number + 1}.json" for number in range(max(newest.values()))]


def test_what_is_written_today_carries_its_number(store: Store) -> None:
    experiment = stored_experiment(store, "kept")
    written = snapshot(experiment)  # has the keys of today, which may be more
    assert written.splitlines()[0] == store.get(EXPERIMENT).splitlines()[0]
    store.put("studies/again/experiment.yaml", written)
    assert stored_experiment(store, "again") == experiment
    assert make_plan(experiment).as_dict()["format"] == 1
    for key, content in kept().items():
        if key.endswith((".json", ".jsonl")):
            assert json.loads(content.splitlines()[0] if "jsonl" in key else content)["format"] == 1


# Others ----------------------------------------------------------------------------------------

Read = Callable[[Store], Any]
READERS: dict[str, tuple[str, Read]] = {
    "experiment": (EXPERIMENT, lambda store: stored_experiment(store, "kept")),
    "segment": (SEGMENT, lambda store: read_events(store, "kept")),
    "lease": (LEASE, lambda store: read_owner(store, "kept")),
    "manifest": (MANIFEST, lambda store: read_manifest(store, MANIFEST)),
    "pretrained": (PRETRAINED, lambda store: _pretrained(store, 1)),
    "request": (REQUEST, lambda store: brake._asked_by(store, REQUEST)),
    "import": ("import.json", lambda store: destination.read_json(store, "import.json")),
}


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(2, "reads up to 1: upgrade to the release that"), (0, "reads 1 and later: go on with the")],
)
@pytest.mark.parametrize("name", READERS)
def test_another_format_is_refused_with_the_remedy(
    store: Store, name: str, number: int, remedy: str
) -> None:
    key, read = READERS[name]
    if name == "import":
        store.put(key, b'{"format": 1}')
    read(store)
    content = store.get(key)
    for one in (b'"format": %d', b"experiment, format %d"):
        content = content.replace(one % 1, one % number, 1)
    store.put(key, content)
    with pytest.raises(StorageError, match=f"{key} has format {number}, this release {remedy}"):
        read(store)


@pytest.mark.parametrize("number", ["two", None, True, 1.5])
def test_a_number_that_is_none_is_damage(store: Store, number: object) -> None:
    said = json.loads(store.get(MANIFEST)) | {"format": number}
    store.put(MANIFEST, json.dumps(said).encode())
    with pytest.raises(StorageError, match="is no manifest of a checkpoint: format is"):
        read_manifest(store, MANIFEST)


def test_a_state_of_another_format_is_refused() -> None:
    for number in (0, 2):
        other = state.to_bytes(state.State({}, {"format": number, "epoch": 1}))
        with pytest.raises(ValueError, match=f"format {number} .* resume with the version that"):
            state.from_bytes(other)


def test_a_spool_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    file = spool._path(tmp_path, "s", "token")
    file.write_bytes(kept()["spool"].replace(b"spool 1\n", b"spool 2\n"))
    with pytest.raises(StorageError, match="has format 2, this release reads up to 1: upgrade"):
        list(spool.left_over(tmp_path, "s", "token"))


def test_a_data_set_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    table(name="part-00000.parquet")(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"format": 2, "dataset": DECLARED}))
    with pytest.raises(ValueError, match="format 2, but this release reads up to 1; take a newer"):
        describe(DataConfig(source=f"{tmp_path}/"))


def test_an_export_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match=r"format is 2, this file reads 1; use the load_model\.py"):
        load_model.load_model(tmp_path)


@pytest.mark.parametrize(
    ("verb", "key"),
    [("status", SEGMENT), ("report", SEGMENT), ("resume", EXPERIMENT), ("stop", LEASE)],
)
def test_the_command_line_says_so(
    store: Store, capsys: pytest.CaptureFixture[str], verb: str, key: str
) -> None:
    content = store.get(key)
    for one in (b'"format": %d', b"experiment, format %d"):
        content = content.replace(one % 1, one % 2, 1)
    store.put(key, content)
    assert main([verb, "kept", "--storage", store.uri]) == 3
    assert f"{key} has format 2, this release reads up to 1: upgrade" in capsys.readouterr().err

"""What comes from a store or a file is data: it runs nothing, and lands where it should alone.

Weights, experiment files and YAML tags that a person names are in tests/contract/test_wrong_input.
"""

import ast
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2pt.data.config import DataConfig
from m2pt.data.describe import describe
from m2pt.data.schema import DataError
from m2pt.training.state import from_bytes
from m2pt.weights.files import load_blocks
from orchestrator.conduct.brake import Brake
from orchestrator.conduct.made import parse_made
from orchestrator.conduct.ownership import stored_experiment
from orchestrator.errors import OrchestratorError, StorageError
from orchestrator.importing.destination import DATASET, read_json
from orchestrator.importing.kinds import Broken
from orchestrator.importing.points import PointClouds
from orchestrator.importing.show import look
from orchestrator.storage import blobs, layout
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints, read_manifest
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.layout import ManifestKey
from orchestrator.storage.lease import Lease, read_owner
from orchestrator.storage.uri import Damaged, Store
from orchestrator.tracking.journal import read_events
from orchestrator.tracking.segments import to_bytes
from orchestrator.tracking.spool import _path, left_over
from tests.contract.wrong_input import BASE, Trap, tree
from tests.security.calls import unsafe
from tests.test_architecture import sources

MANIFEST = layout.manifest("s", ManifestKey("t", 1, 2))
SEGMENT = layout.segment("s", 1, 0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


# Code ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_module_reads_what_could_run() -> None:
    wrong = [f"{path}:{told}" for path, module in sources().items() for told in unsafe(module)]
    assert not wrong


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.loads(b'')",
        "import pickle as p\np.Unpickler(f).load()",
        "from pickle import loads as read\nread(b'')",
        "import pickle\nlist(map(pickle.loads, found))",
        "from ray import cloudpickle",
        "import ray.cloudpickle",
        "def read():\n    import dill",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import torch\ntorch.load(f, weights_only=trusted)",
        "from torch import load\nload(f)",
        "import torch\nread = torch.load",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy as np\nnp.load(f)",
        "import yaml\nyaml.load(t, Loader=yaml.Loader)",
        "import yaml\nyaml.load(t, Loader=yaml.UnsafeLoader)",
        "import yaml\nyaml.compose(t)",
        "import yaml\nyaml.unsafe_load(t)",
        "import yaml\nclass Mine(yaml.FullLoader): ...\nyaml.load(t, Loader=Mine)",
        "eval(text)",
        "archive.extractall(folder)",
    ],
)
def test_the_look_at_modules_finds_it(text: str) -> None:
    assert list(unsafe(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\ntry: ...\nexcept pickle.UnpicklingError: ...",
        "import torch\ntorch.load(f, weights_only=True)",
        "from safetensors.torch import load\nload(f)",
        "import yaml\nclass Mine(yaml.SafeLoader): ...\nyaml.load(t, Loader=Mine)",
        "model.eval()",
    ],
)
def test_the_look_at_modules_lets_data_pass(text: str) -> None:
    assert not list(unsafe(ast.parse(text)))


def _brake(store: Store, folder: Path) -> None:
    """A request that cannot be understood is put away, and the study can still be stopped."""
    with Lease.acquire(store, "s") as lease:
        brake = Brake(store, "s", lease)
        brake._take(layout.control("s", 1, "stop-1"))
    assert not brake()
    assert not store.list(layout.controls("s"))
    raise Damaged("put away")


def _spool(store: Store, folder: Path) -> None:
    assert not list(left_over(folder, "s", "token"))
    raise Damaged("nothing was read")


def _blob(store: Store, folder: Path) -> None:
    load_blocks(store.local_path("blobs/x") or folder)


def _state(store: Store, folder: Path) -> None:
    from_bytes(store.get("state"))


def _points(store: Store, folder: Path) -> None:
    PointClouds(4).sample(store.get("cloud.npy"), ".npy", 0)


Read = Callable[[Store, Path], object]
READERS: dict[str, tuple[str, Read]] = {
    "lease": (layout.lease("s", 1), lambda store, _: read_owner(store, "s")),
    "journal": (SEGMENT, lambda store, _: read_events(store, "s")),
    "manifest": (MANIFEST, lambda store, _: read_manifest(store, MANIFEST)),
    "experiment": (layout.experiment("s"), lambda store, _: stored_experiment(store, "s")),
    "pretrained": ("pretrained/x", lambda store, _: parse_made(store.get("pretrained/x"), "x", 1)),
    "request": (layout.control("s", 1, "stop-1"), _brake),
    "data set": (DATASET, lambda store, _: read_json(store, DATASET)),
    "state": ("state", _state),
    "blob": ("blobs/x", _blob),
    "points": ("cloud.npy", _points),
    "spool": ("../" + _path(Path(), "s", "token").name, _spool),
}


@pytest.mark.parametrize("kind", ["pickle", "torch", "nested", "other JSON"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_data_is_refused_and_runs_nothing(
    store: Store, tmp_path: Path, name: str, kind: str
) -> None:
    trace = tmp_path / "trace"
    if kind == "pickle":
        content = pickle.dumps({"format": 1, "kind": Trap(trace)})
    elif kind == "torch":
        import torch

        made = io.BytesIO()
        torch.save({"model": Trap(trace)}, made)
        content = made.getvalue()
    else:
        content = b"[" * 100_000 if kind == "nested" else b'[{"format": 1}]'
    key, read = READERS[name]
    file = tmp_path / "store" / key
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    with pytest.raises((OrchestratorError, ValueError, Broken)) as refused:
        read(store, tmp_path)
    assert str(refused.value)
    assert not trace.exists()


def test_the_trap_does_snap(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


def test_a_tag_in_a_stored_experiment_makes_nothing(store: Store, tmp_path: Path) -> None:
    tag = f"!!python/object/apply:os.mkdir [{tmp_path / 'trace'}]"
    store.put(layout.experiment("s"), BASE.replace("mine", tag).encode())
    with pytest.raises(OrchestratorError, match=r"tag .*os\.mkdir.* is not allowed"):
        stored_experiment(store, "s")
    assert not (tmp_path / "trace").exists()


# Places ----------------------------------------------------------------------------------------

ELSEWHERE = ["../../../../../outside", "/outside", "..", "", "a/b", "..\\x", 7]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_manifest_names_files_beside_it_alone(store: Store, name: object) -> None:
    trial = TrialCheckpoints(store, "s", "t", Accepted(1))
    before = trial.save(1, {"state.safetensors": b"sound"}, {})
    said = json.loads(store.get(before.key))
    said["files"]["state.safetensors"]["file"] = name
    store.put(MANIFEST, json.dumps({**said, "step": 2}).encode())
    with pytest.raises(Damaged, match=r"names the file .*, which cannot lie beside it"):
        read_manifest(store, MANIFEST)
    assert trial.latest() == before


@pytest.mark.parametrize(
    "name", ["../../../outside", "/outside", f"../{'0' * 64}", "0" * 63, "A" * 64, "0" * 64 + "\n"]
)
def test_a_blob_is_named_by_its_digest_alone(tmp_path: Path, name: str) -> None:
    class Far(FolderStore):
        def local_path(self, key: str) -> Path | None:
            return None

    store, cache = Far(tmp_path / "a" / "store"), tmp_path / "a" / "b" / "cache"
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="named by its sha256, 64 hex digits"):
        blobs.fetch(store, name, cache)
    assert tree(tmp_path) == before


def _takeover(**fields: Any) -> bytes:
    event = {"kind": "takeover", "time": 1.0, "segments": [], "manifests": []} | fields
    return to_bytes([json.dumps(event)], token="t", first=0)


@pytest.mark.parametrize("name", ["../../other/journal/000001-000000.jsonl", "/etc/passwd", ""])
def test_a_takeover_names_segments_of_its_study_alone(store: Store, name: str) -> None:
    store.put(layout.segment("other", 1, 0), _takeover())
    store.put(SEGMENT, _takeover(segments=[name]))
    with pytest.raises(Damaged, match="which is no segment of a journal"):
        read_events(store, "s")


@pytest.mark.parametrize("name", ["../secret.parquet", "/secret.parquet"])
def test_a_data_set_names_parts_in_its_folder_alone(tmp_path: Path, name: str) -> None:
    """Neither where it is shown nor where it is trained on."""
    from tests.contract.wrong_input import DECLARED, table

    folder = tmp_path / "set"
    folder.mkdir()
    table(name="part-00000.parquet")(folder)
    table(name="secret.parquet")(tmp_path)
    parts = [{"name": name, "rows": 12, "bytes": 1, "sha256": "0" * 64}]
    told = {"format": 1, "dataset": DECLARED, "rows": {"train": 9, "test": 3}, "parts": parts}
    (folder / DATASET).write_text(json.dumps({**told, "digest": "0" * 64, "classes": []}))
    with pytest.raises(DataError, match=f"names {name}, which is not there"):
        describe(DataConfig(source=f"{folder}/"))
    with pytest.raises(StorageError, match="a storage key is a relative path"):
        look(str(folder), verify=True)


@pytest.mark.parametrize("name", ["../../../points.npy", "/tmp/m2pt-outside/points.npy"])
def test_members_of_an_archive_are_read_in_memory_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    array, made = io.BytesIO(), io.BytesIO()
    np.save(array, np.arange(12.0).reshape(4, 3))
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, array.getvalue())
    assert len(PointClouds(4).sample(made.getvalue(), ".npz", 0)) == 48
    assert not tree(tmp_path)
    assert not Path("/tmp/m2pt-outside").exists()


# Sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lease", "journal", "manifest", "experiment", "data set"])
def test_what_is_too_large_is_not_read(store: Store, tmp_path: Path, name: str) -> None:
    """Eight GiB, all of them zeros that no disk holds."""
    key, read = READERS[name]
    file = tmp_path / "store" / key
    file.parent.mkdir(parents=True)
    with file.open("wb") as made:
        made.truncate(8 * 2**30)
    with pytest.raises(Damaged, match=rf"{key} has {8 * 2**30} bytes, .* at most \d+: it is not"):
        read(store, tmp_path)


def test_a_trial_goes_on_before_a_manifest_that_is_too_large(store: Store, tmp_path: Path) -> None:
    trial = TrialCheckpoints(store, "s", "t", Accepted(1))
    before = trial.save(1, {"state.safetensors": b"sound"}, {})
    file = tmp_path / "store" / MANIFEST
    file.parent.mkdir(parents=True)
    with file.open("wb") as made:
        made.truncate(2**30)
    assert trial.latest() == before

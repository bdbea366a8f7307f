"""What goes along with a job, and what does not."""

import os
import zipfile
from pathlib import Path

import pytest

from orchestrator.errors import RequestError
from orchestrator.ray_backend import package


def folder_of(root: Path, *files: str) -> Path:
    """A folder `code` with these files, each of its own name as content."""
    for name in files:
        path = root / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root / "code"


def test_source_goes_along_and_the_rest_does_not(tmp_path: Path) -> None:
    kept = ("a.py", "inner/page.html", "inner/space.yaml", "py.typed")
    left = (".git/config", "__pycache__/a.pyc", "x.parquet", "model.safetensors", ".env")
    folder = folder_of(tmp_path, *kept, *left, "m2pt-studies/studies/s/plan.json", "mlruns/0/m")
    built = package.build("name: one\n", tmp_path / "p.zip", [folder])
    with zipfile.ZipFile(built) as content:
        assert set(content.namelist()) == {package.EXPERIMENT, *(f"code/{name}" for name in kept)}
        assert content.read(package.EXPERIMENT) == b"name: one\n"
        assert content.read("code/a.py") == b"a.py"


def test_the_same_content_is_the_same_package(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "1", "a.py", "b.py")
    second = folder_of(tmp_path / "2", "b.py", "a.py")
    packages = [
        package.build("name: one\n", tmp_path / f"{n}.zip", [folder]).read_bytes()
        for n, folder in enumerate((first, second))
    ]
    assert packages[0] == packages[1]
    assert package.build("name: two\n", tmp_path / "3.zip", [first]).read_bytes() != packages[0]


def test_a_large_package_is_refused_by_its_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "LARGEST_BYTES", 100_000)
    folder = folder_of(tmp_path, "a.py")
    (folder / "big.bin").write_bytes(bytes(range(256)) * 10)
    (folder / "table.csv").write_bytes(os.urandom(150_000))
    with pytest.raises(RequestError, match=r"code/table\.csv \(0\.1 MiB\), code/big\.bin"):
        package.build("name: one\n", tmp_path / "p.zip", [folder])


def test_our_own_package_is_small_and_whole(tmp_path: Path) -> None:
    built = package.build("name: one\n", tmp_path / "p.zip")
    assert built.stat().st_size < package.LARGEST_BYTES / 5
    with zipfile.ZipFile(built) as content:
        names = set(content.namelist())
    expected = {"orchestrator/__main__.py", "orchestrator/evidence/report.html", "m2pt/__init__.py"}
    assert expected | {"search_spaces/quickstart.yaml", "cluster/__init__.py"} <= names
    assert not any("__pycache__" in name for name in names)

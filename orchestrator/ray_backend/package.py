"""What a Ray job is given: the experiment and our own source, as one small zip. Imports no Ray.

The source goes along so that the cluster runs the code that checked the file; data, weights and
results never do. The same content gives the same bytes, which Ray then uploads only once.
"""

import importlib.util
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from orchestrator.errors import RequestError

PACKAGES = ("orchestrator", "m2pt", "search_spaces", "cluster")
EXPERIMENT = "experiment.yaml"
"""The name of the experiment file in the package."""
LARGEST_BYTES = 10 * 2**20
_LEFT_OUT_FOLDERS = {"__pycache__", "m2pt-studies", "mlruns"}
_LEFT_OUT_ENDINGS = {".pyc", ".parquet", ".safetensors", ".pt", ".pth", ".db", ".log", ".zip"}
_DATE = (1980, 1, 1, 0, 0, 0)


def source_folders() -> list[Path]:
    """Where our packages lie, whether installed or in a working tree."""
    found = (importlib.util.find_spec(name) for name in PACKAGES)
    return [Path(spec.origin).parent for spec in found if spec is not None and spec.origin]


def build(experiment: str, target: Path, folders: Iterable[Path] | None = None) -> Path:
    """Write the package to `target`, a .zip file.

    Args:
        experiment: the experiment file's text.
        target: where to write.
        folders: packages to take along, each under its own name; ours unless given.

    Raises:
        RequestError: it is larger than 10 MiB; the message names the largest files.
    """
    files = dict(_files(source_folders() if folders is None else folders))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr(_entry(EXPERIMENT), experiment)
        for name, file in sorted(files.items()):
            package.writestr(_entry(name), file.read_bytes())
    size = target.stat().st_size
    if size > LARGEST_BYTES:
        raise RequestError(_too_large(target, size))
    return target


def _files(folders: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        for file in folder.rglob("*"):
            inside = file.relative_to(folder)
            hidden = any(part.startswith(".") or part in _LEFT_OUT_FOLDERS for part in inside.parts)
            if file.is_file() and not hidden and file.suffix not in _LEFT_OUT_ENDINGS:
                yield f"{folder.name}/{inside.as_posix()}", file


def _entry(name: str) -> zipfile.ZipInfo:
    """A file of the zip that says nothing of when it was written."""
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def _too_large(package: Path, size: int) -> str:
    with zipfile.ZipFile(package) as content:
        largest = sorted(content.infolist(), key=lambda entry: -entry.compress_size)[:3]
    listed = ", ".join(f"{one.filename} ({_mib(one.compress_size)})" for one in largest)
    return (
        f"the package of the job is {_mib(size)}, and may be {_mib(LARGEST_BYTES)}: its largest "
        f"files are {listed}. Move what is no source out of these folders; data and weights are "
        "named in the experiment file by an address that the cluster sees"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"

"""What must be so of an experiment that runs as a Ray job, in a folder that Ray removes."""

from collections.abc import Iterator
from pathlib import Path

from m2pt.data.config import EMBEDDED, DataConfig
from orchestrator.config.experiment import Experiment, WeightSource
from orchestrator.config.weights import reference_in
from orchestrator.errors import RequestError


def check_lasting(experiment: Experiment) -> None:
    """Raise `RequestError` for a storage or tracking whose place depends on the working folder.

    A job works in a copy of its package on the head: a study in there would be lost with it.
    """
    storage, tracking = experiment.storage, experiment.tracking or ""
    why = "is relative, and a Ray job works in a copy of its package that is removed later"
    if _relative(storage):
        raise RequestError(
            f"storage: {storage!r} {why}; give --storage s3://BUCKET/PREFIX, or the absolute path "
            "of a folder that all nodes see"
        )
    if tracking.startswith("sqlite:///") and not tracking.startswith("sqlite:////"):
        raise RequestError(
            f"tracking: {tracking!r} {why}; give --tracking http://HOST:PORT, or "
            "sqlite:////ABSOLUTE/PATH"
        )


def check_reachable_data(experiment: Experiment) -> None:
    """Raise `RequestError` for data or weights that lie beside the experiment file.

    They do not go along in the package, which is small.
    """
    beside = [f"{key}: {path!r}" for key, path in _files(experiment) if _relative(path)]
    if beside:
        raise RequestError(
            f"{'; '.join(beside)}: relative, and data and weights do not go along with a job; put "
            "them where the cluster sees them, and give s3://BUCKET/KEY or an absolute path"
        )


def _relative(address: str) -> bool:
    return "://" not in address and not Path(address).is_absolute()


def _files(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Each file that the experiment names, with its key."""
    yield from _data("data", experiment.data)
    sources: dict[str, WeightSource | None] = {
        f"auxiliaries.{name}": source for name, source in experiment.auxiliaries.items()
    }
    for key, source in (sources | {"target": experiment.target}).items():
        if source is not None and source.weights and reference_in(source.weights) is None:
            yield f"{key}.weights", source.weights
        if source is not None and source.pretrain is not None:
            yield from _data(f"{key}.pretrain.data", source.pretrain.data)


def _data(key: str, data: DataConfig) -> Iterator[tuple[str, str]]:
    if data.source not in EMBEDDED:
        yield f"{key}.source", data.source
    if data.test_source is not None:
        yield f"{key}.test_source", data.test_source

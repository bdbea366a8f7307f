"""Weights from outside the storage: a file, a bucket, the Hugging Face Hub, timm."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2pt.data.describe import describe
from m2pt.pretrain.config import PretrainConfig
from m2pt.weights.address import InBucket, parse
from m2pt.weights.provenance import Origin, Provenance, warnings
from orchestrator.config.experiment import Experiment, WeightSource
from orchestrator.errors import StorageError
from orchestrator.storage.foreign import ForeignFolder

if TYPE_CHECKING:
    from m2pt.weights.public import Weights

_CHUNK_BYTES = 8 * 2**20
WARNINGS = "warnings"
"""What stands beside the fields of a provenance in the journal."""


def load_outside(source: WeightSource) -> "Weights":
    """The weights that `source.weights` names, wherever they are.

    Raises:
        ValueError: they cannot be read, are others, or have no layout that can serve.
        RequestError, StorageError: a bucket does not give them.
    """
    from m2pt.weights.public import load, load_file

    assert source.weights is not None  # the caller looked
    address = parse(source.weights)
    if not isinstance(address, InBucket):
        return load(source.weights, source.layout, sha256=source.sha256)
    with _fetched(address.uri) as file:
        return load_file(file, source.layout, sha256=source.sha256, uri=address.uri)


@contextmanager
def _fetched(uri: str) -> Iterator[Path]:
    """An object as a whole file of this machine, for a while; who reads it checks its digest."""
    folder, _, name = uri.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="m2pt-weights-") as place:
        file = Path(place) / "weights"
        with ForeignFolder(folder).open(name) as opened, file.open("wb") as written:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(0)
            shutil.copyfileobj(opened, written, _CHUNK_BYTES)
        if (got := file.stat().st_size) != size:
            raise StorageError(f"{uri}: {got:,} of {size:,} bytes came; give the command again")
        yield file


def provenance_said(
    experiment: Experiment, source: WeightSource, known: Mapping[str, Any]
) -> dict[str, Any]:
    """What the journal says of weights: what is known, what the file states, and warnings.

    `known` is of `Provenance.as_dict`.

    Raises:
        ValueError: `known` is damaged.
    """
    found = Provenance.from_dict(known)
    if source.provenance is not None:
        said = source.provenance.model_dump(exclude_none=True)
        found = found.with_origin(found.origin.stated(**said))
    return _told(experiment, found, lent=source is not experiment.target)


def provenance_made(
    experiment: Experiment, config: PretrainConfig, sha256: str, *, lent: bool
) -> dict[str, Any]:
    """The same of what a study pre-trains itself; `lent` as an auxiliary's, or the target's."""
    model, data = experiment.model, describe(config.data)
    found = Provenance(
        uri="pre-trained here",
        sha256=sha256,
        layout="timm",
        dim=model.width,
        depth=model.depth,
        hidden=int(model.width * model.mlp_ratio),
        origin=Origin(data.modality, False, config.data.source, "scratch"),
        heads=model.heads,
        norm="pre",
        activation="gelu",
    )
    return _told(experiment, found, lent=lent)


def _told(experiment: Experiment, found: Provenance, *, lent: bool) -> dict[str, Any]:
    modality = describe(experiment.data).modality if lent else None
    return {
        **found.as_dict(),
        WARNINGS: list(warnings(found, modality, experiment.model.heads)),
    }

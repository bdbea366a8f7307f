"""dataset.json: what a folder of parts says of itself, checked against what lies there."""

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m2pt.data import schema
from m2pt.data.files import ABOUT, Place
from m2pt.data.schema import DataError, Schema

FORMAT = 1
_REMEDY = "run `orchestrator data import` again"


@dataclass(frozen=True)
class Manifest:
    """The content of a dataset.json; `sizes` are the bytes of each part by its name."""

    schema: Schema
    rows: dict[str, int]
    digest: str
    sizes: dict[str, int]


def parse(place: Place) -> Manifest | None:
    """The dataset.json of a folder, or None without one.

    Raises:
        DataError: it is damaged, of a newer format, or names other parts than lie there.
    """
    if place.about is None:
        return None
    path = f"{place.uri.rstrip('/')}/{ABOUT}"
    try:
        told = json.loads(place.about)
        if told["format"] > FORMAT:
            raise DataError(
                f"{path}: format {told['format']}, but this release reads up to {FORMAT}; "
                "take a newer release of this project"
            )
        found = Manifest(
            schema=schema.parse(told["dataset"], path),
            rows={name: int(told["rows"].get(name, 0)) for name in ("train", "test")},
            digest=_digest(told),
            sizes={part["name"]: int(part["bytes"]) for part in told["parts"]},
        )
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); {_REMEDY}") from error
    _check_parts(found, place, path)
    return found


def check(told: Manifest, place: Place, found: Schema, test: npt.NDArray[np.bool_]) -> None:
    """Compare with what the parts hold; `test` (N,), whether a row is of the test split.

    Raises:
        DataError: they hold something else than dataset.json says.
    """
    path = f"{place.uri.rstrip('/')}/{ABOUT}"
    if found != told.schema:
        raise DataError(
            f"{path}: `dataset` is not that of {place.files[0].name}'s schema metadata; {_REMEDY}"
        )
    rows = {"train": int((~test).sum()), "test": int(test.sum())}
    if rows != told.rows:
        raise DataError(f"{path}: has the rows {told.rows}, but the parts have {rows}; {_REMEDY}")


def _digest(told: dict[str, Any]) -> str:
    digest = told["digest"]
    if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
        raise ValueError(f"digest is {digest!r}, no sha256")
    return digest


def _check_parts(told: Manifest, place: Place, path: str) -> None:
    there = {file.name: file.size_bytes for file in place.files}
    for name, size in told.sizes.items():
        if name not in there:
            raise DataError(f"{path}: names {name}, which is not there; {_REMEDY}")
        if size != there[name]:
            raise DataError(
                f"{path}: {name} has {size} bytes, but there it has {there[name]}; {_REMEDY}"
            )
    for name in there:
        if name not in told.sizes:
            raise DataError(f"{path}: does not name {name}; move that away, or {_REMEDY}")

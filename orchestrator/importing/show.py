"""What a data set holds: a folder by its `dataset.json`, a single file by its rows."""

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

from m2pt.data.schema import DataError, parse
from m2pt.data.write import Row, chain, read_metadata, read_rows
from orchestrator.errors import RequestError
from orchestrator.importing.destination import DATASET, digest_of, read_json
from orchestrator.storage.foreign import ForeignFolder
from orchestrator.storage.uri import Damaged, Missing, Store


@dataclass(frozen=True)
class Seen:
    """A data set as `dataset.json` tells it; `verified` when every row was read to say so."""

    uri: str
    dataset: dict[str, Any]
    verified: bool


def look(uri: str, *, verify: bool) -> Seen:
    """What is at `uri`: a folder with `dataset.json`, or a Parquet file, which is always read.

    Raises:
        RequestError: nothing is there, or it is no data set.
        StorageError: it cannot be read, or, with `verify`, is not what it was.
    """
    return _file(uri) if uri.endswith(".parquet") else _folder(Store.open(uri), verify)


def _folder(store: Store, verify: bool) -> Seen:
    try:
        dataset = read_json(store, DATASET)
    except Missing as error:
        raise RequestError(
            f"{store.uri}: has no {DATASET}: no data set, or an import that is not finished; check "
            "the path, or give the import's command again"
        ) from error
    if verify:
        _check_task(store.uri, dataset["dataset"])
        digest = chain("", (row for part in dataset["parts"] for row in _rows(store, part)))
        if digest != dataset["digest"]:
            raise Damaged(
                f"{store.uri}: its rows have the digest {digest}, but {DATASET} says "
                f"{dataset['digest']}; import it again with --restart"
            )
    return Seen(store.uri, dataset, verify)


def _check_task(uri: str, declared: Mapping[str, Any]) -> None:
    if (task := declared.get("task", "classes")) != "classes":
        raise RequestError(
            f"{uri}: `dataset`, key 'task' is {task!r}, and `data show` reads rows of one class "
            "each; `orchestrator plan FILE` of an experiment on it checks every row"
        )


def _rows(store: Store, part: Mapping[str, Any]) -> Iterator[Row]:
    content = store.get(part["name"])
    if digest_of(content) != part["sha256"]:
        raise Damaged(
            f"{store.uri}/{part['name']}: is not what was written ({len(content):,} bytes, "
            f"{part['bytes']:,} then); import it again with --restart"
        )
    yield from read_rows(io.BytesIO(content))


def _file(uri: str) -> Seen:
    folder, slash, name = uri.rpartition("/")
    with ExitStack() as stack:
        file = stack.enter_context(ForeignFolder(folder or slash or ".").open(name))
        try:
            declared = read_metadata(file).get("dataset")
            parse(declared if isinstance(declared, dict) else {}, uri)
            return _counted(uri, dict(declared or {}), file)
        except DataError as error:
            raise RequestError(str(error)) from error
        except ValueError as error:
            raise RequestError(f"{uri}: not a readable Parquet file ({error})") from error


def _counted(uri: str, declared: dict[str, Any], file: BinaryIO) -> Seen:
    _check_task(uri, declared)
    classes = declared["classes"]
    counts = {split: [0] * len(classes) for split in ("train", "test")}

    def counting(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            if row.split not in counts or not 0 <= row.label < len(classes):
                raise DataError(
                    f"{uri}: row {row.id!r}: split {row.split!r}, label {row.label}; splits are "
                    f"train and test, labels 0 to {len(classes) - 1}"
                )
            counts[row.split][row.label] += 1
            yield row

    digest = chain("", counting(read_rows(file)))
    dataset = {
        "dataset": declared,
        "classes": classes,
        "rows": {split: sum(of) for split, of in counts.items()},
        "counts": counts,
        "digest": digest,
    }
    return Seen(uri, dataset, True)

"""Before anything starts: is everything there that a study needs? What costs least comes first.

Each check raises one error that names key, value, rule and remedy; none leaves a trace.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from m2pt.data.check import check_samples
from m2pt.data.config import EMBEDDED, DataConfig, DataInfo
from m2pt.data.describe import describe
from m2pt.data.files import is_there
from m2pt.data.schema import DataAway
from m2pt.models.config import ModelConfig, Tokenizer, unfit
from m2pt.models.tokens import token_grid
from m2pt.rivals.config import why_no_task
from m2pt.training.fit import check_recipe
from orchestrator.conduct.places import tracking_uri
from orchestrator.conduct.supply import check_depth, key_of, read_weights, sources
from orchestrator.config.document import shown
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import apply
from orchestrator.config.metrics import why_no_metric
from orchestrator.config.weights import file_of
from orchestrator.errors import RequestError, StorageError
from orchestrator.storage.uri import Store
from orchestrator.study.arms import possible_rivals
from search_spaces.space import Choice, Distribution, Grid, RandInt, Value

_LOOKED_AT = ("data", "model", "training", "training.mixup", "training.cutmix")
"""Sections and keys that have to fit the data."""
_MOST_TRIED = 64


@dataclass(frozen=True)
class Absent:
    """A file or folder that a study needs and that is not there: its key and its place."""

    key: str
    place: str

    def __str__(self) -> str:
        return f"{self.key}: {self.place}"


def absent_inputs(experiment: Experiment, stored: Container[str] = ()) -> tuple[Absent, ...]:
    """The data and weights that do not exist, of those that the study may use, by key.

    Raises `StorageError` where the server that has the data is away.
    """
    wanted = [*_data_places(experiment.data, "data")]
    for name, source in sources(experiment).items():
        if source.pretrain is not None:
            wanted += _data_places(source.pretrain.data, f"{key_of(name)}.pretrain.data")
        elif source.weights is not None and name not in stored:
            file = file_of(source.weights)
            if file is not None:  # else `read_weights` looks where it is
                wanted.append((f"{key_of(name)}.weights", source.weights, file.exists))
    try:
        return tuple(Absent(key, place) for key, place, there in wanted if not there())
    except DataAway as error:
        raise StorageError(str(error)) from error


def check_inputs(experiment: Experiment, stored: Container[str] = ()) -> dict[str, dict[str, Any]]:
    """Data and weights: they are there, sound, and fit the model; those in `stored` did once.

    Returns where the others come from, by name, as the journal will say it.

    Raises `RequestError`, and `StorageError` where the server that has the data is away.
    """
    if len(absent := absent_inputs(experiment, stored)) > 1:
        listed = "\n  ".join(f"{one}: does not exist; put it in place" for one in absent)
        raise RequestError(f"{experiment.name}: {len(absent)} problems\n  {listed}")
    info = _described(experiment.data, "data")
    _check_metric(experiment, info, "")
    _check_recipe(experiment, info, "")
    _check_tokens(experiment.model.tokenizer, info, "model")
    _check_model(experiment.model, info, "model")
    _check_rivals(experiment, info, "")
    for one, why in _variants(experiment):
        if one.data != experiment.data:
            _check_metric(one, _described(one.data, f"{why}data"), why)
        info = describe(one.data)
        _check_tokens(one.model.tokenizer, info, f"{why}model")
        _check_model(one.model, info, f"{why}model")
        _check_recipe(one, info, why)
        _check_rivals(one, info, why)
    known: dict[str, dict[str, Any]] = {}
    for name, source in sources(experiment).items():
        if source.pretrain is not None:
            where = f"{key_of(name)}.pretrain"
            info = _described(source.pretrain.data, f"{where}.data")
            _check_tokens(source.pretrain.tokenizer, info, where)
            try:
                check_depth(experiment, experiment.model.depth)
            except ValueError as error:
                raise RequestError(f"pathway.mapping, for {key_of(name)}: {error}") from error
        elif source.weights is not None and name not in stored:
            known[name] = read_weights(experiment, name, source).provenance
    return known


def check_storage(store: Store) -> None:
    """The storage holds what is put there. Raises `StorageError`."""
    from orchestrator.storage.probe import check_writable

    check_writable(store)


def check(
    experiment: Experiment, address: str | None, *, begun: bool, stored: Container[str] = ()
) -> None:
    """Everything but the storage. Raises `RequestError`, `TrackingError`, `ClusterError`.

    A study that has `begun` goes on without MLflow, as it does when MLflow goes away, and without
    the files of the weights in `stored`, which it has in the store.
    """
    check_inputs(experiment, stored)
    tracking = tracking_uri(experiment)
    if not begun:
        from orchestrator.tracking.probe import check as check_tracking

        check_tracking(tracking)
    _check_cluster(experiment, address)


def _check_cluster(experiment: Experiment, address: str | None) -> None:
    """One gang fits: on this machine, should Ray be started here, or in the cluster to join."""
    from orchestrator.ray_backend.address import destination
    from orchestrator.ray_backend.capacity import on_this_machine

    where = destination(address).address
    if where is None:
        on_this_machine(experiment.resources).gangs(experiment.resources)
        return
    from orchestrator.ray_backend.session import connect

    with connect(where) as cluster:
        cluster.capacity.gangs(experiment.resources)


def _data_places(data: DataConfig, key: str) -> Iterator[tuple[str, str, Callable[[], bool]]]:
    """(key, place, whether something is there) of each table that a section `data` names."""
    if data.source in EMBEDDED:
        return
    yield f"{key}.source", data.source, partial(is_there, data.source)
    if data.test_source is not None:
        yield f"{key}.test_source", data.test_source, partial(is_there, data.test_source)


def _described(data: DataConfig, where: str) -> DataInfo:
    try:
        info = describe(data)
        check_samples(data)
    except DataAway as error:
        raise StorageError(f"{where}: {error}") from error
    except (ValueError, OSError) as error:
        raise RequestError(f"{where}: {error}") from error
    return info


def _check_metric(experiment: Experiment, info: DataInfo, why: str) -> None:
    rule = why_no_metric(experiment.search.metric, experiment.data, info.task)
    if rule is not None:
        raise RequestError(f"{why}search.metric: {rule}")


def _check_recipe(experiment: Experiment, info: DataInfo, why: str) -> None:
    try:
        check_recipe(experiment.training, info)
    except ValueError as error:
        raise RequestError(f"{why}training.{error}") from error


def _check_tokens(tokenizer: Tokenizer, info: DataInfo, where: str) -> None:
    try:
        token_grid(tokenizer, info)
    except ValueError as error:
        raise RequestError(f"{where}.{error}") from error


def _check_model(model: ModelConfig, info: DataInfo, where: str) -> None:
    if rule := unfit(model, info.modality, info.task):
        raise RequestError(f"{where}.{rule}")


def _check_rivals(experiment: Experiment, info: DataInfo, why: str) -> None:
    for rival in possible_rivals(experiment):
        if rule := why_no_task(rival.kind, info.task):
            raise RequestError(f"{why}rival.kind: {rule}")


def _variants(experiment: Experiment) -> Iterator[tuple[Experiment, str]]:
    """The experiment with each searched value that has to fit the data, one at a time."""
    for path, distribution in experiment.search.space.items():
        if path in _LOOKED_AT or path.partition(".")[0] in ("data", "model"):
            for value in _values(distribution):
                where = f"search.space.{path}: value {shown(value)} cannot be used: "
                yield apply(experiment, {path: value}), where


def _values(distribution: Distribution) -> list[Value]:
    if isinstance(distribution, Choice | Grid):
        return distribution.values
    if isinstance(distribution, RandInt):
        low, high = distribution.randint
        return list(range(low, min(high, low + _MOST_TRIED) + 1))
    return list(distribution.bounds)

"""Who a trial is: a digest of everything that changes its result, and of nothing else.

Names of auxiliaries, workers, storage and tracking are outside. The same trial planned by another
study, on another cluster, has the same id.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m2pt.later import plain
from m2pt.models.config import ModelConfig
from m2pt.pretrain.config import PretrainConfig
from m2pt.training.recipe import Numerics
from orchestrator.config.experiment import Experiment
from orchestrator.config.paths import PATHWAY_ONLY

FORMAT = 1
"""Raised when the meaning of a configuration changes, so that old results are not taken for new."""


@dataclass(frozen=True)
class Digests:
    """Content digests of what an experiment reads.

    Attributes:
        data: of the target task's data.
        target: of the weights that the target starts from; None is from scratch.
        auxiliaries: by name, of every auxiliary that is no control.
    """

    data: str
    target: str | None = None
    auxiliaries: Mapping[str, str] = field(default_factory=dict)


def canonical(value: Any) -> str:
    """The one JSON text of plain values: keys sorted, no blanks, tuples as lists, floats by repr.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(experiment: Experiment, seed: int, digests: Digests) -> str:
    """Trial id: 12 hexadecimal digits.

    Args:
        experiment: the configuration of the trial (its own seed and search space do not count).
        seed: the seed of the trial.
        digests: at least of the data and of the auxiliaries in use.

    Raises:
        KeyError: the digest of an auxiliary in use is missing.
    """
    return _short({**arm_identity(experiment, digests), "seed": seed})


def arm_id(experiment: Experiment, digests: Digests) -> str:
    """As `fingerprint`, whatever the seed."""
    return _short(arm_identity(experiment, digests))


def arm_identity(experiment: Experiment, digests: Digests) -> dict[str, Any]:
    """Everything but the seed that changes the result of a trial, as plain values."""
    borrowed = [_source(experiment, name, digests) for name in experiment.pathway.names]
    pathway = experiment.pathway.pathway
    data = plain(experiment.data)
    for place in ("source", "test_source"):  # the digest says what is there
        del data[place]
    training = plain(experiment.training)
    if pathway is None:
        for path in PATHWAY_ONLY:
            training.pop(path.removeprefix("training."), None)
    return {
        "format": FORMAT,
        "data": {**data, "digest": digests.data},
        "model": plain(experiment.model),
        "target": digests.target,
        "auxiliaries": borrowed,
        "pathway": None if pathway is None else plain(pathway),
        "training": training,
        "precision": experiment.resources.precision,
        "compile": experiment.resources.compile,
    }


def pretrain_fingerprint(
    config: PretrainConfig,
    model: ModelConfig,
    data_digest: str,
    numerics: Numerics = Numerics(),  # noqa: B008  # a frozen value
    *,
    whole: bool = False,
) -> str:
    """Who an auxiliary that is made here is, before and whether or not it has been made.

    A `whole` one is more than its blocks: what a target starts from.

    Only the shape of the encoder's blocks is taken from `model`: its tokenizer is the target's.
    Which epochs of it are kept changes none of them. Of `numerics` only what differs from the
    default counts.
    """
    made = plain(config)
    made.pop("keep_epochs", None)
    data = made.pop("data")
    for place in ("source", "test_source"):
        del data[place]
    blocks = plain(model)
    del blocks["tokenizer"]
    identity = {
        "format": FORMAT,
        "pretrain": made,
        "data": {**data, "digest": data_digest},
        "model": blocks,
    }
    default = plain(Numerics())
    unusual = {key: value for key, value in plain(numerics).items() if value != default[key]}
    if unusual:
        identity["numerics"] = unusual
    if whole:
        identity["parts"] = "all"
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def _source(experiment: Experiment, name: str, digests: Digests) -> Any:
    source = experiment.source_of(name)
    if source.control is not None and source.like is not None:
        return {"control": source.control, "like": _source(experiment, source.like, digests)}
    return digests.auxiliaries[name]


def _short(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:12]

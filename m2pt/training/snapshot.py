"""A training as data, and back: what is in a state, and whether a state fits."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from m2pt.later import plain as as_plain
from m2pt.pathway.whole import spread, whole
from m2pt.training.average import Average
from m2pt.training.probe import learned as _learned
from m2pt.training.probe import unchanged_names
from m2pt.training.state import FORMAT, JSON, State, check_format

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MODEL, OPTIMIZER, AVERAGE = "model/", "optimizer/", "average/"
ADAMW = ("step", "exp_avg", "exp_avg_sq")
_SHOWN = 5


def take(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    config: "DataclassInstance",
    epoch: int,
    digests: Mapping[str, str],
    keep: bool = True,
    average: Average | None = None,
) -> State:
    """A copy, on the CPU, of everything that training changes; what is frozen is left out.

    `config` is everything that decides the result; its field `data` is a `DataConfig`.
    Of a sharded model whole tensors, under the same names: every rank calls this then, and those
    that do not `keep` what comes of it get a state without tensors.
    """
    tensors = {MODEL + name: tensor for name, tensor in _learned(model).items()}
    tensors |= _averaged(average)
    for name, parameter in _optimised(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{OPTIMIZER}{name}/{key}"] = value
    # clone(): a state must not change as training goes on; and safetensors refuses shared memory,
    # which λ values have that several linears share
    full = ((name, whole(value.detach())) for name, value in tensors.items())
    copies = {name: value.cpu().clone() for name, value in full if keep}
    meta: dict[str, JSON] = {
        "format": FORMAT,
        "epoch": epoch,
        "config": _plain(config),
        "digests": dict(digests),
    }
    return State(copies, meta)


def put_back(
    state: State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    config: "DataclassInstance",
    digests: Mapping[str, str],
    average: Average | None = None,
) -> int:
    """Load `state` into model, optimiser and average and return its epoch; or refuse, and touch
    nothing.

    Raises:
        ValueError: the state belongs to another configuration, other data or other frozen
            auxiliaries, or its tensors do not fit; the message names the ones that differ.
    """
    check_format(state.meta)
    _check_meta(state.meta, {"config": _plain(config), "digests": dict(digests)})
    epoch = state.meta.get("epoch")
    if not isinstance(epoch, int):
        raise ValueError(f"state: meta 'epoch' must be a whole number, is {epoch!r}")
    learned = _learned(model)
    averaged = _averaged(average)
    expected = _expected(learned, dict(_optimised(model, optimizer)), epoch)
    expected |= {name: tuple(tensor.shape) for name, tensor in averaged.items()}
    _check_tensors(state.tensors, expected)
    with torch.no_grad():
        for name, tensor in learned.items():
            tensor.copy_(spread(state.tensors[MODEL + name], tensor))
        for name, tensor in averaged.items():
            tensor.copy_(spread(state.tensors[name], tensor))
    optimizer.state.clear()
    for name, parameter in _optimised(model, optimizer):
        found = _entries(state.tensors, name)
        optimizer.state[parameter] = {key: spread(value, parameter) for key, value in found.items()}
    return epoch


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, types and contents, whatever the order and the device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def frozen_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training never changes, by parameter name."""
    frozen = unchanged_names(model)
    return {name: value for name, value in model.named_parameters() if name in frozen}


def _averaged(average: Average | None) -> dict[str, Tensor]:
    found = {} if average is None else average.tensors()
    return {AVERAGE + name: tensor for name, tensor in found.items()}


def _optimised(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, nn.Parameter]]:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return ((name, p) for name, p in model.named_parameters() if id(p) in trained)


def _entries(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """AdamW's state of one parameter."""
    prefix = f"{OPTIMIZER}{name}/"
    return {key: tensors[prefix + key] for key in ADAMW if prefix + key in tensors}


def _expected(
    learned: Mapping[str, Tensor], optimised: Mapping[str, nn.Parameter], epoch: int
) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a state of this epoch holds."""
    shapes = {MODEL + name: tuple(value.shape) for name, value in learned.items()}
    if epoch:
        for name, parameter in optimised.items():
            for key in ADAMW:
                shape = () if key == "step" else tuple(parameter.shape)
                shapes[f"{OPTIMIZER}{name}/{key}"] = shape
    return shapes


def _plain(config: "DataclassInstance") -> dict[str, JSON]:
    """The configuration as JSON, but for where the data lies: its digest says what it is."""
    plain: dict[str, Any] = json.loads(json.dumps(as_plain(config)))
    for path in ("source", "test_source"):
        del plain["data"][path]
    return plain


def _check_meta(found: Mapping[str, JSON], wanted: Mapping[str, JSON]) -> None:
    here = dict(_flat("", dict(wanted)))
    there = dict(_flat("", {key: found.get(key) for key in wanted}))
    missing = "nothing"
    differing = [
        f"{path} is {there.get(path, missing)!r} in the state and {here.get(path, missing)!r} here"
        for path in sorted(here.keys() | there.keys())
        if there.get(path, missing) != here.get(path, missing)
    ]
    if differing:
        raise ValueError(
            f"state: belongs to another training: {_some(differing, '; ')}. "
            "Resume with the configuration that wrote it, or start afresh"
        )


def _check_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is unknown here" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {tuple(found[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    if problems:
        raise ValueError(f"state: does not fit this model: {_some(problems, '; ')}. Start afresh")


def _flat(path: str, value: JSON) -> Iterator[tuple[str, JSON]]:
    """Leaves of nested dicts with their dotted paths."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{path}.{key}" if path else key, inner)
    else:
        yield path, value


def _some(items: Sequence[str], separator: str) -> str:
    more = f"{separator}and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more

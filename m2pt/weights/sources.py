"""The door to the Hugging Face Hub and to timm's pre-trained models.

The Hub's own client fetches and caches: its cache, its offline mode and its credentials are used as
they are set up (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, `hf auth login`).
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from m2pt.weights.address import FromTimm, OnHub
from m2pt.weights.blocks import WeightsError

HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
"""What is looked for where an address names no file."""
CONFIG = "config.json"
_OFFLINE = (
    "it is not in the local cache, and the hub cannot be reached or offline mode is on; fetch it "
    "where there is a network (`hf download {repo}`), or name a file"
)


@dataclass(frozen=True)
class Fetched:
    """A file of the hub on this machine."""

    path: Path
    revision: str | None
    """The commit that it is of."""
    config: Path | None
    """What lies beside it as config.json."""


def from_hub(address: OnHub, uri: str) -> Fetched:
    """The file that `address` names, fetched or from the cache.

    Raises:
        WeightsError: there is no such model, revision or file, it is not ours to read, or the hub
            cannot be reached.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    names = HUB_FILES if address.file is None else (address.file,)
    away: Exception | None = None
    with _explained(uri, address.repo):
        for name in names:
            try:
                path = _download(address, name, cached=away is not None)
            except LocalEntryNotFoundError as error:
                away = error
            except EntryNotFoundError:
                continue
            else:
                return Fetched(path, _revision(path), _config(address, path))
    if away is not None:
        raise WeightsError(f"{uri}: {_OFFLINE.format(repo=address.repo)}") from away
    raise WeightsError(
        f"{uri}: the model has no {', '.join(names)}; look on its page which files it has, and "
        f"name one: hf://{address.repo}/FILE"
    )


def from_timm(address: FromTimm, uri: str) -> tuple[dict[str, Tensor], int | None]:
    """(state, heads) of a model that timm loads with its pre-trained weights.

    Raises:
        WeightsError: timm knows no such model or weights, or they cannot be fetched.
    """
    import timm

    if not timm.is_model(address.model):
        near = difflib.get_close_matches(address.model, timm.list_models(), 1)
        meant = f"; did you mean {near[0]!r}?" if near else "; see timm.list_models()"
        raise WeightsError(f"{uri}: timm {timm.__version__} knows no such model{meant}")
    if not timm.is_model_pretrained(address.model):
        known = timm.list_pretrained(f"{address.model.partition('.')[0]}.*")
        raise WeightsError(
            f"{uri}: timm has no weights of that name; of this model it has "
            f"{', '.join(known[:8]) or 'none'}"
        )
    with _explained(uri, f"timm/{address.model}"):
        model: nn.Module = timm.create_model(address.model, pretrained=True)
    return model.state_dict(), heads_in(model)


def heads_in(model: nn.Module) -> int | None:
    """The attention heads of a model of timm blocks."""
    blocks = getattr(model, "blocks", None)
    first = next(iter(blocks.children()), None) if isinstance(blocks, nn.Module) else None
    heads = getattr(getattr(first, "attn", None), "num_heads", None)
    return heads if isinstance(heads, int) else None


def _download(address: OnHub, name: str, *, cached: bool = False) -> Path:
    """With `cached` nothing is asked over the network: it did not answer a moment ago."""
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(address.repo, name, revision=address.revision, local_files_only=cached)
    )


def _config(address: OnHub, path: Path) -> Path | None:
    """config.json of the same commit, if it is to be had; weights serve without it."""
    beside = path.with_name(CONFIG)
    if beside.is_file():
        return beside
    try:
        return _download(OnHub(address.repo, _revision(path) or address.revision), CONFIG)
    except (OSError, ValueError):
        return None


def _revision(path: Path) -> str | None:
    parts = path.parts
    at = parts.index("snapshots") + 1 if "snapshots" in parts else len(parts)
    return parts[at] if at < len(parts) else None


@contextmanager
def _explained(uri: str, repo: str) -> Iterator[None]:
    """Errors of the hub's client as ours, one sentence each."""
    from huggingface_hub import errors

    try:
        yield
    except errors.EntryNotFoundError as error:  # of a name that was asked for, not looked for
        raise WeightsError(f"{uri}: {_OFFLINE.format(repo=repo)}") from error
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{uri}: its owner lets only some read it; ask for access on its page, and log in with "
            "`hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{uri}: the model has no such revision; correct it") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{uri}: the hub has no such model, or it is private and you are not logged in "
            "(`hf auth login`)"
        ) from error
    except errors.HFValidationError as error:
        raise WeightsError(f"{uri}: no name of a model on the hub ({error})") from error
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"{uri}: cannot be fetched ({type(error).__name__}: {_first_line(error)}); is the hub "
            "reachable from here? Otherwise fetch the file elsewhere and name it"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]

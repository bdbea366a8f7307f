"""MLflow's model registry: which version holds a trial's model, making one, moving an alias.

MLflow itself is imported when a registry is opened, not before. A version is one MLflow model in
the format pt2 (a graph of `torch.export`, no pickle), linked to the run of its trial, with further
files beside it. Two tags say what it is: `trial_id` and `sha256`, so that nothing is made twice.
"""

import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import environment
from orchestrator.errors import OrchestratorError, RequestError, TrackingError
from orchestrator.tracking.reconcile import STUDY_STAGE
from orchestrator.tracking.runs import database_of, without_secret

EXTRA = "export"
"""The folder of a version in which its further files lie."""

_UPLOAD_SECONDS = 600
_MAX_TAG_CHARACTERS = 5000
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    version: str


@dataclass(frozen=True)
class Candidate:
    """A model to be registered.

    Attributes:
        module: a traced `torch.nn.Module` on the CPU.
        save: writes its graph to a path, as pt2.
        example: one input (2, ...), an array.
        outputs: the shape of an output, -1 where it is free.
        check: told the loaded module and pyfunc's predict, before anything is sent; raises.
        files: what is to lie beside it, by name.
        requirements: what pip has to install so that it runs, MLflow apart.
        tags: of the version; `trial_id` and `sha256` are among them.
        description: of the version, in a sentence.
    """

    module: Any
    save: Callable[[Path], object]
    example: Any
    outputs: Sequence[int]
    check: Callable[[Any, Callable[[Any], Any]], None]
    files: Mapping[str, bytes]
    requirements: Sequence[str]
    tags: Mapping[str, str]
    description: str = ""


class Registry:
    """The registry of one MLflow. Every call raises `TrackingError` where that cannot be used."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client = client
        self._uri = uri

    @classmethod
    def open(cls, tracking_uri: str) -> "Registry":
        """Connect, and hear an answer, before anything costly is done."""
        database = database_of(tracking_uri)
        if database is not None and not database.exists():
            raise TrackingError(
                f"{tracking_uri}: there is no such file; a study fills one as it runs, "
                "--tracking names another MLflow"
            )
        environment.prepare_mlflow()
        with _told(tracking_uri):
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.ERROR)
            client = MlflowClient(tracking_uri)
            client.search_registered_models(max_results=1)
        return cls(client, tracking_uri)

    def run_of(self, study: str, study_id: str, trial: str) -> str:
        """The run of a trial; the study's own where the trial has none."""
        of_study = f"tags.study_id = '{study_id}'"
        with _told(self._uri):
            experiment = self._client.get_experiment_by_name(study)
            for wanted in (f"tags.trial_id = '{trial}'", f"tags.stage = '{STUDY_STAGE}'"):
                if experiment is not None and (
                    runs := self._client.search_runs(
                        [experiment.experiment_id], f"{of_study} and {wanted}", max_results=1
                    )
                ):
                    return str(runs[0].info.run_id)
        raise TrackingError(
            f"{without_secret(self._uri)} shows no run of study {study!r}: `orchestrator "
            f"resume {study}` fills it, or --tracking names the MLflow that has it"
        )

    def find(self, name: str, tags: Mapping[str, str]) -> Version | None:
        """The version of a model that holds the trial's weights, if there is one."""
        wanted = " and ".join(f"tags.{key} = '{tags[key]}'" for key in ("trial_id", "sha256"))
        with _told(self._uri):
            found = self._client.search_model_versions(f"name = '{name}' and {wanted}")
        whole = [one for one in found if one.status == "READY"]
        return _version(min(whole, key=lambda one: int(one.version))) if whole else None

    def register(self, name: str, candidate: Candidate, run_id: str) -> tuple[Version, bool]:
        """The version that holds the candidate, complete once this has returned, and whether it is
        a new one: somebody else may have made one meanwhile. Raises whatever `check` raises."""
        environment.prepare_mlflow(timeout_seconds=_UPLOAD_SECONDS)
        with tempfile.TemporaryDirectory() as temporary, _told(self._uri):
            folder = Path(temporary) / "model"
            self._save(candidate, folder)
            # What sends files raises what it likes: boto3's errors are of no common kind.
            with _told(self._uri, Exception):
                made = self._send(name, candidate, folder, run_id)
        kept = self._without_twin(made, candidate.tags)
        return kept, kept == made

    def point(self, name: str, alias: str, version: str) -> str | None:
        """Let `alias` mean `version`; what it meant before, or None."""
        with _told(self._uri):
            aliases = self._client.get_registered_model(name).aliases
            before = None if alias not in aliases else str(aliases[alias])  # SQLite's are numbers
            if before != version:
                self._client.set_registered_model_alias(name, alias, version)
        return before

    def _save(self, candidate: Candidate, folder: Path) -> None:
        """Write the model, and load it again as others will."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of MLflow, about its own types
            import mlflow.pyfunc
            import mlflow.pytorch
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        example, free = candidate.example, (-1, *candidate.example.shape[1:])
        mlflow.pytorch.save_model(
            candidate.module,
            str(folder),
            serialization_format="pt2",
            input_example=example,
            signature=ModelSignature(
                Schema([TensorSpec(example.dtype, free)]),
                Schema([TensorSpec(example.dtype, tuple(candidate.outputs))]),
            ),
            pip_requirements=[*candidate.requirements, f"mlflow=={mlflow.__version__}"],
        )
        # MLflow traced the module once more, and noted for each node where on this machine.
        (graph,) = folder.glob("data/*.pt2")
        candidate.save(graph)
        _stamp(folder)
        for name, content in candidate.files.items():
            path = folder / EXTRA / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        served = mlflow.pyfunc.load_model(str(folder))
        candidate.check(mlflow.pytorch.load_model(str(folder)), served.predict)

    def _send(self, name: str, candidate: Candidate, folder: Path, run_id: str) -> Version:
        from mlflow.entities import LoggedModelOutput

        client, tags = self._client, _cut(candidate.tags)
        experiment_id = client.get_run(run_id).info.experiment_id
        logged = client.create_logged_model(
            experiment_id, name=name, source_run_id=run_id, tags=tags, model_type="pt2"
        )
        try:
            _stamp(folder, model_id=logged.model_id, run_id=run_id)
            client.log_model_artifacts(logged.model_id, str(folder))
            client.finalize_logged_model(logged.model_id, "READY")
        except Exception:
            with suppress(Exception):  # the first one tells what is wrong
                client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        self._make_model(name)
        made = client.create_model_version(
            name,
            logged.artifact_location,  # its address by id would be looked up in another MLflow
            run_id=run_id,
            tags=tags | {"model_id": logged.model_id},  # which MLflow itself does not keep
            description=candidate.description,
            model_id=logged.model_id,
        )
        return _version(made)

    def _without_twin(self, made: Version, tags: Mapping[str, str]) -> Version:
        """Of two versions that were made at the same time the first stays, whoever made it."""
        first = self.find(made.name, tags) or made
        if first != made:
            with _told(self._uri):
                self._client.delete_model_version(made.name, made.version)
        return first

    def _make_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def check_name(name: str) -> str:
    """`name`, where MLflow takes it for a model. Raises `RequestError`."""
    if not name.strip() or len(name) > 256 or set("/:'\"%`") & set(name):
        raise RequestError(
            f"--name {name!r}: a registered model's name is not empty, has at most 256 characters, "
            "and no slash, colon, quote or percent sign in it"
        )
    return name


def check_alias(alias: str) -> str:
    """`alias`, where MLflow takes it for one. Raises `RequestError`."""
    reserved = alias.lower() == "latest" or re.fullmatch(r"v\d+", alias, re.IGNORECASE)
    if reserved or not _ALIAS.fullmatch(alias):
        raise RequestError(
            f"--alias {alias!r}: letters, digits, - and _, and neither latest nor a version such "
            "as v3, which MLflow keeps for itself; champion is usual"
        )
    return alias


def _stamp(folder: Path, *, model_id: str | None = None, run_id: str | None = None) -> None:
    """Say in the MLmodel file where it comes from, and that its graph is one for the CPU.

    Otherwise pyfunc asks for an accelerator wherever there is one, and the graph refuses it.
    """
    from mlflow.models import Model

    described = Model.load(str(folder))
    described.flavors["python_function"]["config"] = {"device": "cpu"}
    described.model_id, described.run_id = model_id, run_id
    described.save(str(folder / "MLmodel"))


def _cut(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value[:_MAX_TAG_CHARACTERS] for key, value in tags.items()}


def _version(found: Any) -> Version:
    return Version(found.name, str(found.version))


@contextmanager
def _told(uri: str, *further: type[Exception]) -> Iterator[None]:
    """What MLflow, or the way to it, raises becomes one message without a secret; `further`
    too."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except OrchestratorError:
        raise
    except (MlflowException, RequestException, OSError, *further) as error:
        said = " ".join(str(error).replace(uri, without_secret(uri)).split())
        raise TrackingError(
            f"MLflow at {without_secret(uri)}: {environment.redacted(said)[:500]}; the same "
            "command goes on once it can be used"
        ) from error

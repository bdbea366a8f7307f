"""Weights in a bucket of a real S3 server: fetched whole, checked, told where they come from."""

import pytest

from m2pt.data.describe import describe
from m2pt.models.build import build_model
from m2pt.weights.files import blocks_to_bytes
from orchestrator.conduct.preflight import check_inputs
from orchestrator.config.experiment import Experiment
from orchestrator.config.io import parse_experiment
from orchestrator.errors import RequestError
from orchestrator.storage.uri import Store

pytestmark = pytest.mark.slow

TEXT = """\
name: mine
data: {source: digits, limit: 100}
model: {width: 16, depth: 2, heads: 2, tokenizer: {patch: 4}}
auxiliaries: {other: {weights: WEIGHTS}}
pathway: {auxiliary: other}
"""


def borrowing(uri: str, *overrides: str) -> Experiment:
    return parse_experiment(TEXT.replace("WEIGHTS", uri), "exp.yaml", overrides)


def test_weights_in_a_bucket(s3: str) -> None:
    experiment = borrowing(f"{s3}/deep/audiomae.safetensors")
    content = blocks_to_bytes(build_model(experiment.model, describe(experiment.data), seed=0))
    Store.open(s3).put("deep/audiomae.safetensors", content)
    said = check_inputs(experiment)["other"]
    assert (said["uri"], said["modality"]) == (f"{s3}/deep/audiomae.safetensors", "audio")
    pinned = borrowing(
        f"{s3}/deep/audiomae.safetensors", f"auxiliaries.other.sha256={said['sha256']!r}"
    )
    assert check_inputs(pinned)["other"] == said
    with pytest.raises(RequestError, match=r"audiomae.safetensors: its sha256 is "):
        check_inputs(
            borrowing(f"{s3}/deep/audiomae.safetensors", f"auxiliaries.other.sha256={'f' * 64}")
        )
    with pytest.raises(RequestError, match=r"gone.pth: no such file or folder"):
        check_inputs(borrowing(f"{s3}/gone.pth"))

"""The types of the experiment file: rules, defaults, and what is generated from them."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from m2pt.pathway.config import Pathway
from m2pt.training.recipe import TrainingConfig
from orchestrator.config.experiment import Experiment, PathwaySection, RuleError
from orchestrator.config.io import apply, as_dict, parse_experiment
from orchestrator.config.paths import all_paths, searchable_paths
from orchestrator.config.reference import EXAMPLE, reference
from orchestrator.config.schema import experiment_schema
from orchestrator.errors import RequestError
from tests.unit.study_setup import BASE, experiment

_ROOT = Path(__file__).parents[2]


def test_name_and_data_are_enough_and_the_pathway_is_the_papers() -> None:
    least = experiment(text="name: a\ndata: {source: digits}\n")
    assert least.pathway.pathway is None
    assert least.pathway == PathwaySection()
    borrowed = experiment()
    assert borrowed.pathway.pathway == Pathway()
    assert borrowed.training_config() == TrainingConfig(
        model=borrowed.model, data=borrowed.data, pathway=Pathway()
    )


@pytest.mark.parametrize("written", ["none", "null", "[]", "[none]"])
def test_no_auxiliary_is_the_baseline(written: str) -> None:
    baseline = experiment(f"pathway.auxiliary={written}")
    assert baseline.pathway.auxiliary is None
    assert baseline.training_config().pathway is None


def test_one_auxiliary_in_a_list_is_that_auxiliary() -> None:
    assert experiment("pathway.auxiliary=[audio]") == experiment("pathway.auxiliary=audio")
    assert experiment("pathway.auxiliary=[audio, shape]").pathway.names == ("audio", "shape")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=A", "name: must be 1 to 63 lower-case"),
        ("seed=-1", "seed: must be greater than or equal to 0"),
        ("storage=", "storage: must be text, is null"),
        (
            "pathway.auxiliary=audo",
            "'audo' is not declared under auxiliaries; did you mean 'audio'",
        ),
        ("pathway.auxiliary=[audio, audio]", "without repeats"),
        ("pathway.auxiliary=[audio, none]", "without none"),
        ("pathway.coverage.blocks=first:5", "more blocks than model.depth = 4"),
        ("pathway.coverage.blocks=[0, 4]", "block 4 does not exist"),
        ("pathway.mapping=reverse", "did you mean 'reversed'"),
        ("auxiliaries.shuffled.like=nose", "'nose' is not declared"),
        ("auxiliaries.shuffled.like=shuffled", "circle: shuffled -> shuffled"),
        ("auxiliaries.shuffled.like=null", "control and like belong together"),
        ("auxiliaries.audio.weights=a.pt", "has pretrain and weights"),
        ("auxiliaries.audio={}", "has none of them"),
        ("auxiliaries.none={weights: a.pt}", "rename 'none'"),
        ("auxiliaries.a/b={weights: a.pt}", "a name is letters"),
        ("auxiliaries.random~audio={weights: a.pt}", "a name is letters"),
        ("target={control: random, like: audio}", "for auxiliaries only"),
        ("resources.gpus_per_worker=1.5", "must be a whole number"),
        ("resources.workers=0", "greater than or equal to 1"),
        ("resources.workers=true", "must be a whole number, is true"),
        ("resources.sharding=fsdp2", "resources.workers is 1: raise it, or set sharding to none"),
        ("resources.sharding=fsdp", "did you mean 'fsdp2'"),
        ("resources.precision=fp16", "must be 'fp32', 'bf16' or 'fp64'"),
        ("search.metric=test/accuracy", "take no part in a choice"),
        ("search.metric=val/loss", "must be min for val/loss"),
        ("search.scheduler.grace_epochs=7", "at most training.epochs = 6"),
        ("training.learning_rate=-1", "training.learning_rate: must be above 0"),
        ("training.epochs=2.0", "training.epochs: must be a whole number, is 2.0"),
        ('training.learning_rate="1e-3"', 'must be a number, is "1e-3"; take the quotes off'),
        ("model.heads=5", "must divide width"),
        ("data.source=digts", "did you mean 'digits'"),
    ],
)
def test_a_broken_rule_names_path_value_and_remedy(override: str, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        experiment(override)
    assert message in str(refused.value)


def test_a_chain_of_controls_brings_its_sources() -> None:
    chained = experiment("auxiliaries.twice={control: random, like: shuffled}")
    used = apply(chained, {"pathway.auxiliary": ["twice", "shape"]}).used_auxiliaries()
    assert used == ("audio", "shuffled", "twice", "shape")


def test_an_experiment_is_frozen_and_survives_pickling() -> None:
    one = experiment()
    with pytest.raises(ValidationError, match="frozen"):
        one.seed = 3
    assert pickle.loads(pickle.dumps(one)) == one
    error = pickle.loads(pickle.dumps(RuleError("a.b", "must be 1")))
    assert str(error) == "a.b: must be 1"


def test_all_keys_have_a_path_and_placement_is_not_searched() -> None:
    one = experiment()
    paths = all_paths(one)
    data = as_dict(one)
    for path in paths:  # every path leads somewhere in the data
        value = data
        for key in path.split("."):
            value = value[key] if value is not None else value
    searchable = searchable_paths(one)
    assert {"training.accumulate", "resources.precision", "resources.compile"} <= set(searchable)
    assert not {"name", "seed", "storage", "resources.workers", "search.trials"} & set(searchable)
    assert "resources.sharding" not in searchable
    assert not [path for path in searchable if path.startswith(("auxiliaries", "target"))]


def test_the_reference_is_current_and_its_example_is_valid() -> None:
    file = _ROOT / "docs" / "experiments.md"
    assert file.read_text(encoding="utf-8") == reference(), (
        "the types changed: python -m orchestrator.config.reference > docs/experiments.md"
    )
    assert parse_experiment(EXAMPLE, "example").search.trials == 12


def test_every_key_of_the_trunks_sections_is_described() -> None:
    table = reference()
    for section in ("resources", "search", "pathway", "checkpoints"):
        own = table.split(f"## `{section}`\n")[1].split("\n## ")[0]
        rows = [line for line in own.splitlines() if line.startswith("| `")]
        assert rows
        if section != "pathway":  # whose inherited keys are described above its table
            assert not [row for row in rows if row.endswith("|  |")]


def test_the_schema_takes_what_the_types_take() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = experiment_schema()
    validator = jsonschema.Draft202012Validator(schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    whole = as_dict(experiment("search.space.training.learning_rate={loguniform: [1e-4, 1e-2]}"))
    assert not list(validator.iter_errors(whole))
    assert not list(validator.iter_errors(as_dict(parse_experiment(EXAMPLE, "example"))))
    for path, value in (("training", {"epoch": 1}), ("model", {"width": "wide"}), ("nmae", "a")):
        assert list(validator.iter_errors({**whole, path: value}))
    wrong = {**whole, "search": {"space": {"resources.workers": {"choice": [1]}}}}
    assert list(validator.iter_errors(wrong))
    assert json.loads(json.dumps(schema)) == schema


def test_reading_an_experiment_loads_no_torch_and_no_ray() -> None:
    code = (
        "import sys\n"
        "from orchestrator.config.io import parse_experiment\n"
        "from orchestrator.study.plan import make_plan\n"
        f"make_plan(parse_experiment({BASE!r}, 'a'))\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'timm') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_ROOT
    )
    assert done.stdout.strip() == "[]"


def test_the_root_type_refuses_unknown_keys() -> None:
    with pytest.raises(ValidationError):
        Experiment.model_validate({"name": "a", "data": {"source": "digits"}, "nmae": "b"})

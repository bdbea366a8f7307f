"""Experiment files: YAML, overrides, messages with lines, round trips."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.document import read_yaml, write_yaml
from orchestrator.config.io import (
    apply,
    as_dict,
    as_text,
    experiment_sha256,
    from_dict,
    load_experiment,
    parse_experiment,
)
from orchestrator.config.names import nearest
from orchestrator.errors import RequestError
from tests.unit.study_setup import BASE, experiment

SEARCHED = "pathway.auxiliary={choice: [none, audio]}"


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(RequestError) as refused:
        parse_experiment(text, "exp.yaml", overrides)
    return str(refused.value)


def test_yaml_1_2_numbers_and_words() -> None:
    text = "a: 1e-3\nb: on\nc: 12:30\nd: 2024-01-01\ne: 010\nf: ~\ng: .5\nh: -2\ni: no\nj: True\n"
    assert read_yaml(text, "t").data == {
        "a": 1e-3, "b": "on", "c": "12:30", "d": "2024-01-01", "e": 10,
        "f": None, "g": 0.5, "h": -2, "i": "no", "j": True,
    }  # fmt: skip


_PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["1e-3", "on", "null", "~", "", "12:30", "a: b", "010", ".5", "true", "é"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "b.c", "on"]), inner),
    max_leaves=8,
)


@given(_PLAIN)
def test_what_is_written_is_read_back(value: object) -> None:
    assert read_yaml(write_yaml(value), "t").data == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\ndata: {source: digits}\nname: b\n", "exp.yaml:3:1: duplicate key 'name', first"),
        (
            "data:\n  source: a\n  source: b\n",
            "exp.yaml:3:3: duplicate key 'data.source', first on l",
        ),
        ("a: [1\n", "exp.yaml:2:1: not valid YAML"),
        ("a: 'x\n", "not valid YAML"),
        ("a:\tb: c\n", "exp.yaml:1:3: not valid YAML"),
        ("a: *b\n", "exp.yaml:1:4: not valid YAML: found undefined alias"),
        ("a: &b [*b]\n", "exp.yaml:1:4: an alias stands within its own anchor"),
        ("a: !!python/object:os.system x\n", "exp.yaml:1:4: tag"),
        ("a: !thing x\n", "only plain data is read"),
        ("a: .inf\n", "exp.yaml:1:4: a number must be finite, is .inf"),
        ("1: a\n", "exp.yaml:1:1: a key must be text, is '1'"),
        ("? [a]\n: b\n", "exp.yaml:1:3: a key must be text"),
        ("a: 1\n---\nb: 1\n", "not valid YAML"),
        ("a: \x01\n", "not valid YAML"),
        ("", "but this is empty"),
        ("- a\n", 'but this is ["a"]'),
        ("a\n", 'but this is "a"'),
    ],
)
def test_what_is_no_experiment_is_refused_with_its_line(text: str, message: str) -> None:
    assert message in refusal(text)


def test_all_problems_come_at_once_each_with_its_line() -> None:
    lines = refusal(BASE + "training:\n  epoch: 3\n  batch_size: many\nmodle: {}\n").splitlines()
    assert lines[0] == "exp.yaml: 3 problems"
    assert set(map(str.strip, lines[1:])) == {
        "exp.yaml:9:3: training.epoch: unknown key; did you mean 'epochs'?",
        'exp.yaml:10:3: training.batch_size: must be a whole number, is "many"',
        "exp.yaml:11:1: modle: unknown key; did you mean 'model'?",
    }


def test_a_key_in_the_wrong_section_is_pointed_to_the_right_one() -> None:
    assert "did you mean 'training.learning_rate'?" in refusal(BASE + "learning_rate: 1e-3\n")


def test_a_missing_key_is_named_where_it_should_be() -> None:
    assert refusal("name: a\n") == "exp.yaml: data: is missing; it has no default"
    assert "auxiliaries.x.pretrain.data: is missing" in refusal(
        "name: a\ndata: {source: digits}\nauxiliaries: {x: {pretrain: {epochs: 2}}}\n"
    )


def test_branches_of_a_union_are_one_problem() -> None:
    message = refusal(BASE, "pathway.coverage.blocks=1.5")
    assert message.count("pathway.coverage.blocks: ") == 1
    assert "must be text or a list, is 1.5" in message
    assert "pathway.coverage.blocks.1: must be a whole number" in refusal(
        BASE, "pathway.coverage.blocks=[1, a]"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.epoch=3"], "--set training.epoch=3: training.epoch: unknown key; did you mean"),
        (["training"], "must be path=value"),
        (["=3"], "must be path=value"),
        (["training..epochs=3"], "must be path=value"),
        (["name.x=3"], "--set name.x=3: name is not a section of keys"),
        (["training.epochs=[1"], "not valid YAML"),
        (["search.space.training.epocs.choice=[1]"], "no such key in an experiment; did you mean"),
        (["search.space.training.epochs.choice=[2, 0]"], "choice.1: value 0 cannot be set"),
        (["search.space.training.epochs.uniform=[1, 2]"], "value 1.0 cannot be set"),
        (["search.space.training.epochs.randint=[0, 3]"], "value 0 cannot be set"),
        (["search.space.model.heads.choice=[4, 5]"], "must divide width"),
        (["search.space.pathway.auxiliary.choice=[none, audo]"], "'audo' is not declared"),
        (["search.space.resources.workers.choice=[1, 2]"], "cannot be searched: it is placement"),
        (["search.space.search.trials.choice=[1, 2]"], "it is the search itself"),
        (["search.space.name.choice=[a, b]"], "it names the study"),
        (["search.space.seed.choice=[1, 2]"], "a seed is never chosen"),
        (
            ["search.space.auxiliaries.audio.pretrain.epochs.choice=[1, 2]"],
            "declare one auxiliary for each variant and search pathway.auxiliary",
        ),
        (["search.space.model.width.choice=[64, 32]"], "cannot be searched together with auxil"),
        (
            ["pathway.auxiliary=none", "search.space.pathway.scale.init.choice=[0.0, 1.0]"],
            "has no effect, because pathway.auxiliary is null",
        ),
        (
            ["search.space.pathway.scale={choice: [{init: 1.0}]}",
             "search.space.pathway.scale.init.choice=[0.0, 1.0]"],
            "is inside 'pathway.scale', which is searched as a whole",
        ),
        (
            ["search.space." + SEARCHED,
             "search.space.pathway.trainable={choice: [true], when: {pathway.auxiliary: shape}}"],
            "its condition can never hold",
        ),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(overrides: list[str], message: str) -> None:
    assert message in refusal(BASE, *overrides)


def test_overrides_replace_make_and_remove() -> None:
    one = experiment(
        "training.epochs=3",
        "auxiliaries.mine={weights: mine.safetensors}",
        "pathway.auxiliary=mine",
        "target.weights=target.safetensors",
        "tracking=",
        "search.space.training.epochs={choice: [1, 3]}",
        "search.space.training.learning_rate.loguniform=[1e-4, 1e-2]",
        "search.space.training.learning_rate.when={training.epochs: 3}",
        "search.space.training.epochs.choice=[1, 2, 3]",
        "search.space.model.depth={choice: [2]}",
        "search.space.model.depth=null",
    )
    assert (one.training.epochs, one.pathway.names, one.tracking) == (3, ("mine",), None)
    assert one.target is not None
    space = one.search.space
    assert set(space) == {"training.epochs", "training.learning_rate"}
    assert space["training.learning_rate"].when == {"training.epochs": 3}
    assert as_dict(one)["search"]["space"]["training.epochs"]["choice"] == [1, 2, 3]


def test_none_and_null_are_one_auxiliary_also_in_conditions() -> None:
    one = experiment(
        "search.space." + SEARCHED,
        "search.space.training.mixup={uniform: [0, 0.5], when: {pathway.auxiliary: none}}",
    )
    two = experiment(
        "search.space.pathway.auxiliary={choice: [null, audio]}",
        "search.space.training.mixup={uniform: [0, 0.5], when: {pathway.auxiliary: [null]}}",
    )
    assert one == two
    assert "there twice" in refusal(BASE, "search.space.pathway.auxiliary.choice=[none, null]")


def test_a_value_is_tried_where_its_conditions_hold() -> None:
    long = ["search.space.training.epochs.choice=[6, 60]"]
    held = "search.space.training.warmup_epochs={choice: [20.0], when: {training.epochs: 60}}"
    assert experiment(*long, held).search.space
    assert "must lie in [0, epochs = 6]" in refusal(
        BASE, *long, "search.space.training.warmup_epochs={choice: [20.0]}"
    )


def test_apply_sets_values_and_checks_again() -> None:
    one = experiment()
    changed = apply(one, {"pathway.scale.init": 0.1, "pathway.coverage.blocks": [0, 2]})
    assert changed.pathway.scale.init == 0.1
    assert changed.pathway.coverage.blocks == (0, 2)
    assert one.pathway.scale.init == 0.0
    assert apply(one, {}) == one
    with pytest.raises(
        RequestError, match=r"pathway\.scale\.int: unknown key; did you mean 'init'"
    ):
        apply(one, {"pathway.scale.int": 0.1})
    with pytest.raises(RequestError, match=r"sounds-into-digits: training\.epochs: must be 1"):
        apply(one, {"training.epochs": 0})
    with pytest.raises(RequestError, match="seed is not a section"):
        apply(one, {"seed.x": 0})


def test_the_whole_experiment_comes_back_from_text_and_values() -> None:
    places = ("storage=s3://bucket/prefix", "tracking=http://host:5000")
    one = experiment("search.space." + SEARCHED, *places, "pathway.mapping=2")
    assert parse_experiment(as_text(one), "again") == one
    assert from_dict(as_dict(one)) == one
    assert experiment_sha256(one) == experiment_sha256(from_dict(as_dict(one)))
    assert experiment_sha256(one) != experiment_sha256(apply(one, {"name": "other"}))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(BASE)
    assert load_experiment(file, ["training.epochs=2"]).training.epochs == 2
    with pytest.raises(RequestError, match=r"no such file; beside it there is mine\.yaml"):
        load_experiment(tmp_path / "mien.yaml")
    with pytest.raises(RequestError, match="is a folder; name an experiment file"):
        load_experiment(tmp_path)
    with pytest.raises(RequestError, match="no experiment 'nosuchname' is shipped"):
        load_experiment("nosuchname")
    file.write_bytes(b"name: \xff\n")
    with pytest.raises(RequestError, match="not UTF-8"):
        load_experiment(file)


def test_nearest_offers_one_or_a_few_or_nothing() -> None:
    assert nearest("epoch", ["epochs", "seed"]) == "; did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "seed"]) == "; there is 'epochs', 'seed'"
    assert nearest("zzz", map(str, range(20))) == ""

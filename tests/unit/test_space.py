"""Distributions, conditions, and what of them is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from search_spaces import catalog
from search_spaces.space import Distribution, Space, SpaceError, same

_ADAPTER: TypeAdapter[dict[str, Distribution]] = TypeAdapter(dict[str, Distribution])


def space(**paths: object) -> Space:
    return Space(_ADAPTER.validate_python({k.replace("__", "."): v for k, v in paths.items()}))


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({}, "exactly one of choice"),
        ({"choice": [1], "grid": [1]}, "exactly one of choice"),
        ({"choose": [1]}, "exactly one of choice"),
        ({"choice": []}, "at least 1 item"),
        ({"choice": [1, 2, 1.0]}, "there twice"),
        ({"choice": [[1, 2], [1, 2]]}, "there twice"),
        ({"uniform": [1, 0]}, "low below high"),
        ({"uniform": [1, 1]}, "low below high"),
        ({"uniform": [0, float("inf")]}, "low below high"),
        ({"loguniform": [0, 1]}, "must be above 0"),
        ({"randint": [0, 1.5]}, "valid integer"),
        ({"randint": [0, 1], "step": 2}, "Extra inputs"),
    ],
)
def test_a_wrong_distribution_is_refused(wrong: object, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        space(a=wrong)


@pytest.mark.parametrize(
    ("paths", "at", "rule"),
    [
        ({"a": {"choice": [1], "when": {"b": 1}}}, "a", "'b', which is not searched"),
        (
            {"lr": {"choice": [1]}, "a": {"choice": [1], "when": {"lrr": 1}}},
            "a",
            "did you mean 'lr'",
        ),
        ({"a": {"choice": [1]}, "b": {"choice": [1], "when": {"a": 2}}}, "b", "is never 2"),
        ({"a": {"choice": [1]}, "b": {"choice": [1], "when": {"a": True}}}, "b", "is never True"),
        ({"a": {"randint": [1, 3]}, "b": {"choice": [1], "when": {"a": [4, 5]}}}, "b", "1 to 3"),
        ({"a": {"uniform": [0, 1]}, "b": {"choice": [1], "when": {"a": 0.5}}}, "b", "continuous"),
        ({"a": {"choice": [1], "when": {"a": 1}}}, "a", "circle: a -> a"),
        (
            {"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1], "when": {"a": 1}}},
            "a",
            "circle: a -> b -> a",
        ),
        (
            {
                "a": {"choice": [1, 2]},
                "b": {"choice": [1], "when": {"a": 1}},
                "c": {"choice": [1], "when": {"a": 2, "b": 1}},
            },
            "c",
            "'a' would have to be",
        ),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(
    paths: dict[str, object], at: str, rule: str
) -> None:
    with pytest.raises(SpaceError, match=rule) as refused:
        space(**paths)
    assert refused.value.path == at


def test_conditions_come_before_what_they_rule() -> None:
    one = space(
        b={"uniform": [0, 1], "when": {"a": [1, [2, 3]]}},
        a={"choice": [1, [2, 3], None]},
    )
    assert one.order == ("a", "b")
    assert one.active("b", {"a": [2, 3]})
    assert not one.active("b", {"a": None})
    assert one.contains({"a": 1.0, "b": 0.25})
    assert not one.contains({"a": 1})
    assert not one.contains({"a": None, "b": 0.25})
    assert not one.contains({"a": 4})


def test_a_condition_on_an_inactive_path_does_not_hold() -> None:
    one = space(
        a={"choice": [1, 2]},
        b={"choice": [1], "when": {"a": 1}},
        c={"choice": [1], "when": {"b": 1}},
    )
    assert list(one.assignments()) == [{"a": 1, "b": 1, "c": 1}, {"a": 2}]


def test_cells_multiply_and_leave_out_what_conditions_forbid() -> None:
    one = space(
        aux={"grid": ["none", "audio"]},
        blocks={"grid": ["first", "last"], "when": {"aux": "audio"}},
        rate={"uniform": [0, 1]},
    )
    assert one.cells() == [
        {"aux": "none"},
        {"aux": "audio", "blocks": "first"},
        {"aux": "audio", "blocks": "last"},
    ]
    assert space().cells() == [{}]
    assert not one.finite
    assert one.size() is None


def test_a_finite_space_is_counted_up_to_a_limit() -> None:
    one = space(a={"randint": [0, 9]}, b={"choice": [1, 2, 3]})
    assert one.size() == 30
    assert one.size(limit=29) is None
    with pytest.raises(ValueError, match="continuous"):
        list(space(a={"uniform": [0, 1]}).assignments())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0]) | st.text("ab"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner),
    max_leaves=4,
)


@given(_JSON, _JSON)
def test_equality_is_symmetric_and_tells_truth_from_number(left: object, right: object) -> None:
    assert same(left, left)  # type: ignore[arg-type]  # drawn values are JSON
    assert same(left, right) == same(right, left)  # type: ignore[arg-type]  # as above
    assert not same(True, 1)
    assert not same([0], [False])


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.tuples(st.lists(st.integers(0, 2), min_size=1, unique=True), st.sampled_from("abcd")),
        min_size=1,
    )
)
def test_all_listed_configurations_are_in_the_space(
    drawn: dict[str, tuple[list[int], str]],
) -> None:
    paths: dict[str, object] = {}
    for path, (values, parent) in drawn.items():  # conditions only on earlier paths: no circle
        when = {parent: drawn[parent][0][0]} if parent in paths else {}
        paths[path] = {"choice": values, "when": when}
    try:
        one = space(**paths)
    except SpaceError:
        return  # conditions that exclude each other
    listed = list(one.assignments())
    assert all(one.contains(values) for values in listed)
    assert all(any(path in values for values in listed) for path in one.order)
    assert len({str(values) for values in listed}) == len(listed) == one.size()


def test_shipped_experiments_are_found_by_name() -> None:
    for name in catalog.names():
        assert catalog.find(name).stem == name.rpartition("/")[2]
    assert "paper/image" in catalog.names()
    with pytest.raises(LookupError, match="no experiment 'nosuch' is shipped"):
        catalog.find("nosuch")

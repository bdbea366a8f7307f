"""Selection of linears, and which auxiliary block meets which target block."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2pt.pathway.config import LINEARS, Coverage, Scale
from m2pt.pathway.coverage import bands, layer_name, mapping, scale_places, select, spread

depths = st.integers(1, 40)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        ("first:1", (0,)),
        ("first:6", (0, 1, 2, 3, 4, 5)),
        ("last:2", (4, 5)),
        ("every:1", (0, 1, 2, 3, 4, 5)),
        ("every:2", (0, 2, 4)),
        ("every:4", (0, 4)),
        ("every:6", (0,)),
        ((5, 2), (2, 5)),
    ],
)
def test_blocks_of_six(blocks: str | tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = select(Coverage(blocks), 6)
    assert tuple(dict.fromkeys(block for block, _ in found)) == expected
    assert len(found) == 4 * len(expected)


@given(depths, st.sets(st.sampled_from(LINEARS), min_size=1))
def test_all_is_every_chosen_linear_of_every_block_once(depth: int, linears: set[str]) -> None:
    found = select(Coverage("all", tuple(linears)), depth)  # type: ignore[arg-type]  # a set of Literals is a set of str to mypy
    assert len(set(found)) == len(found) == depth * len(linears)
    assert list(found) == sorted(found, key=lambda pair: (pair[0], LINEARS.index(pair[1])))


@given(depths, st.data())
def test_first_and_last_together_are_all(depth: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, depth))
    first = select(Coverage(f"first:{count}"), depth)
    last = select(Coverage(f"last:{depth - count}"), depth) if count < depth else ()
    assert first + last == select(Coverage(), depth)


@pytest.mark.parametrize("blocks", ["first:5", "last:5", "every:5", (1, 4)])
def test_more_blocks_than_there_are_is_refused(blocks: str | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the target has 4"):
        select(Coverage(blocks), 4)


@given(depths, st.integers(-100, 100))
def test_every_mapping_meets_each_auxiliary_block_once(depth: int, shift: int) -> None:
    for rule in ("identity", "reversed", shift):
        assert sorted(mapping(rule, depth)) == list(range(depth))
    assert mapping(0, depth) == mapping("identity", depth) == tuple(range(depth))
    assert mapping("reversed", depth) == tuple(range(depth))[::-1]
    assert mapping(shift, depth)[0] == shift % depth
    forth, back = mapping(shift, depth), mapping(-shift, depth)
    assert tuple(back[block] for block in forth) == tuple(range(depth))


def test_layers_have_the_names_that_timm_gives_them() -> None:
    names = [layer_name(2, linear) for linear in LINEARS]
    assert names == [
        "blocks.2.attn.qkv",
        "blocks.2.attn.proj",
        "blocks.2.mlp.fc1",
        "blocks.2.mlp.fc2",
    ]


def test_q_k_and_v_apart_are_the_same_as_together_when_all_are_there() -> None:
    assert Coverage(linears=("v", "q", "k")) == Coverage(linears=("qkv",))
    some = Coverage(linears=("fc2", "v", "q"))
    assert some.linears == ("q", "v", "fc2")
    assert select(some, 1) == ((0, "qkv"), (0, "fc2"))
    assert bands(some, "qkv") == (0, 2)
    assert bands(some, "fc2") is bands(Coverage(), "qkv") is None
    assert scale_places(some, Scale(), "qkv") == (1, (0, None, 0))
    assert scale_places(some, Scale(split_qkv=True), "qkv") == (2, (0, None, 1))


@pytest.mark.parametrize(
    ("depth", "theirs", "expected"),
    [
        (4, 4, (0, 1, 2, 3)),
        (4, 2, (0, 0, 1, 1)),
        (3, 12, (0, 6, 11)),
        (5, 3, (0, 1, 1, 2, 2)),
        (1, 6, (5,)),
        (4, 1, (0, 0, 0, 0)),
    ],
)
def test_stretched_meets_both_ends(depth: int, theirs: int, expected: tuple[int, ...]) -> None:
    assert mapping("stretched", depth, theirs) == expected


def test_rules_for_equal_depths_say_so() -> None:
    for rule in ("identity", "reversed", 1):
        with pytest.raises(ValueError, match=r"has 8 blocks and the target 12.*take stretched"):
            mapping(rule, 12, 8)
    assert mapping((7, 0, 7), 3, 8) == (7, 0, 7)


def test_numbers_are_laid_over_the_depth_with_straight_lines() -> None:
    assert [spread((0.0, 1.0), block, 5) for block in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [spread((0.0, 1.0, 0.0), block, 3) for block in range(3)] == [0.0, 1.0, 0.0]
    assert spread((0.5, 1.0), 0, 1) == 0.5
    assert spread(0.3, 7, 12) == 0.3

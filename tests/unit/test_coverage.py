"""Selection of linears, and which auxiliary block meets which target block."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2pt.pathway.config import LINEARS, Coverage
from m2pt.pathway.coverage import layer_name, mapping, select

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

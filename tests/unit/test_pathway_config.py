"""The values that describe a pathway: what they accept, what they refuse, how they compare."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

import m2pt
from m2pt.pathway.config import LINEARS, Coverage, Envelope, Pathway, Scale


def test_the_default_is_the_papers_setting() -> None:
    pathway = Pathway()
    assert pathway.coverage == Coverage("all", ("qkv", "proj", "fc1", "fc2"))
    assert pathway.mapping == "identity"
    assert pathway.trainable
    assert pathway.scale == Scale(
        init=0.0, learned=True, granularity="linear", split_qkv=False, envelope=Envelope("constant")
    )


@given(st.permutations(LINEARS), st.permutations([0, 3, 7]))
def test_two_spellings_of_one_coverage_are_equal(linears: Any, blocks: list[int]) -> None:
    assert Coverage(tuple(blocks), tuple(linears)) == Coverage((0, 3, 7), LINEARS)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Coverage, {"blocks": "firs:2"}, "blocks: .*'firs:2'"),
        (Coverage, {"blocks": "first:0"}, "blocks: .*K above 0.*'first:0'"),
        (Coverage, {"blocks": "last:-1"}, "blocks: .*'last:-1'"),
        (Coverage, {"blocks": "every:"}, "blocks: .*'every:'"),
        (Coverage, {"blocks": "all:3"}, "blocks: .*'all:3'"),
        (Coverage, {"blocks": ()}, "blocks: at least one block index"),
        (Coverage, {"blocks": (1, 1)}, r"none twice, not \(1, 1\)"),
        (Coverage, {"blocks": (-1,)}, r"0 or above.*not \(-1,\)"),
        (Coverage, {"blocks": (True,)}, "blocks: .*whole"),
        (Coverage, {"linears": ()}, "linears: at least one of qkv, q, k, v, proj, fc1, fc2"),
        (Coverage, {"linears": ("qkv", "qkv")}, "linears: .*none twice"),
        (Coverage, {"linears": ("query",)}, "linears: .*'query'"),
        (Envelope, {"kind": "warmup"}, "kind: one of constant, .*not 'warmup'"),
        (Envelope, {"until": 0.0}, r"until: .*\(0, 1\], not 0.0"),
        (Envelope, {"until": 1.5}, "until: .*not 1.5"),
        (Envelope, {"until": float("nan")}, "until: .*not nan"),
        (Scale, {"init": float("inf")}, "init: a finite number, not inf"),
        (Scale, {"granularity": "head"}, "granularity: one of linear, block, global, not 'head'"),
        (Pathway, {"mapping": "shifted"}, "mapping: .*not 'shifted'"),
        (Pathway, {"mapping": True}, "mapping: .*not True"),
        (Pathway, {"mapping": (0, -1)}, r"mapping: .*0 or above.*\[0, -1\]"),
        (Pathway, {"mapping": ()}, "mapping: a list has an auxiliary block"),
        (Coverage, {"linears": ("qkv", "q")}, "qkv is q, k and v together"),
        (Scale, {"init": (0.1,)}, "init: a list has two numbers or more"),
        (Scale, {"init": (0.1, 0.2), "granularity": "global"}, "granularity global"),
        (Scale, {"init": (0.1, float("nan"))}, "init: a finite number"),
        (Scale, {"clamp": 0.0}, "clamp: a number above 0"),
        (Scale, {"init": -0.5, "clamp": 0.1}, "clamp: 0.1 is less than init -0.5"),
        (Scale, {"merge_every": 0}, "merge_every: 1 epoch or more"),
        (Scale, {"merge_every": 2, "learned": False}, "merge_every: .*must be learned"),
        (Scale, {"merge_every": 2, "envelope": Envelope("anneal")}, "merge_every: .*not anneal"),
        (Pathway, {"trainable": "later"}, "trainable: true, false, 'from:T' or 'rank:R'"),
        (Pathway, {"trainable": "from:1"}, "above 0 and below 1, not 'from:1'"),
        (Pathway, {"trainable": "from:"}, "a number after 'from'"),
        (Pathway, {"trainable": "rank:0"}, "a whole rank of 1 or more"),
        (Pathway, {"trainable": "rank:1.5"}, "a whole rank of 1 or more"),
        (Pathway, {"keep": "bf16"}, "keep: bf16 is for frozen weights"),
        (Pathway, {"keep": "int8", "trainable": False}, "keep: one of same, bf16"),
        (Pathway, {"prepare": "whiten"}, "prepare: none, frobenius or 'rank:R'"),
        (Pathway, {"prepare": "rank:x"}, "prepare: a number after 'rank'"),
        (Pathway, {"bias": "yes"}, "bias: one of ignored, added"),
    ],
)
def test_what_is_impossible_is_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**fields)


def test_pydantic_reads_them_and_refuses_unknown_keys() -> None:
    reader = TypeAdapter(Pathway)
    found = reader.validate_python(
        {"coverage": {"blocks": [3, 1], "linears": ["fc1", "qkv"]}, "mapping": 2}
    )
    assert found == Pathway(Coverage((1, 3), ("qkv", "fc1")), mapping=2)
    assert reader.validate_json(reader.dump_json(found)) == found
    for unknown in (
        {"coverage": {"block": "all"}},
        {"scale": {"envelope": {"til": 0.5}}},
        {"scale": {"lerned": True}},
        {"frozen": True},
    ):
        with pytest.raises(ValidationError, match="Unexpected keyword"):
            reader.validate_python(unknown)


def test_reading_a_configuration_costs_no_torch() -> None:
    code = """
import sys
import m2pt
import m2pt.pathway.config
m2pt.Pathway(), m2pt.Coverage(), m2pt.Scale(), m2pt.Envelope()
assert not {"torch", "timm", "numpy", "pydantic"} & set(sys.modules), sorted(sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_every_public_name_is_found_and_no_other() -> None:
    assert all(getattr(m2pt, name) is not None for name in m2pt.__all__)
    assert set(m2pt.__all__) == set(m2pt._HOMES) <= set(dir(m2pt))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        m2pt.nothing  # noqa: B018  # looking it up is the point

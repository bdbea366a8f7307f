"""What to try next: the same answer to the same question, and useful answers."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from orchestrator.study.sampler import STARTUP, Observation, Sampler
from search_spaces.space import Distribution, Space, Values

_ADAPTER: TypeAdapter[dict[str, Distribution]] = TypeAdapter(dict[str, Distribution])
MIXED = Space(
    _ADAPTER.validate_python(
        {
            "aux": {"choice": [None, "audio", ["audio", "shape"]]},
            "rate": {"loguniform": [1e-4, 1e-1]},
            "mix": {"uniform": [-1.0, 1.0]},
            "depth": {"randint": [1, 4]},
            "init": {"choice": [0.0, 0.5], "when": {"aux": ["audio", ["audio", "shape"]]}},
            "until": {"uniform": [0.1, 1.0], "when": {"init": 0.5}},
        }
    )
)
GRID = Space(
    _ADAPTER.validate_python(
        {
            "aux": {"grid": [None, "audio", "shape"]},
            "blocks": {"grid": ["first", "last"], "when": {"aux": ["audio", "shape"]}},
            "rate": {"uniform": [0, 1]},
        }
    )
)


def observed(sampler: Sampler, count: int, score: float = 0.5) -> list[Observation]:
    return [
        Observation(sampler.ask(n), score + n / 100 if n % 3 else None, n) for n in range(count)
    ]


@pytest.mark.parametrize("kind", ["tpe", "random"])
@settings(max_examples=15, deadline=None)
@given(number=st.integers(0, 10_000), seed=st.integers(0, 2**31 - 1), seen=st.integers(0, 14))
def test_answers_are_in_the_space_and_do_not_change(
    kind: str, number: int, seed: int, seen: int
) -> None:
    first, second = (Sampler(MIXED, kind, seed) for _ in range(2))  # type: ignore[arg-type]  # a Literal
    history = observed(first, seen)
    values = first.ask(number, history)
    assert MIXED.contains(values)
    assert values == first.ask(number, history) == second.ask(number, list(reversed(history)))


@pytest.mark.slow
def test_the_answer_is_the_same_in_another_process() -> None:
    code = (
        "from search_spaces.space import Space, Uniform, Choice\n"
        "from orchestrator.study.sampler import Observation, Sampler\n"
        "space = Space({'a': Uniform(uniform=(0, 1)), 'b': Choice(choice=['x', 'y', None])})\n"
        "sampler = Sampler(space, 'tpe', 7)\n"
        "seen = [Observation(sampler.ask(n), n / 9, n) for n in range(9)]\n"
        "print([sampler.ask(n, seen) for n in (9, 10, 11)])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0].stdout == runs[1].stdout != ""
    assert runs[0].stderr == ""


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_numbers_and_seeds_differ(kind: str) -> None:
    sampler = Sampler(MIXED, kind, 0)  # type: ignore[arg-type]  # a Literal
    asked = [str(sampler.ask(number)) for number in range(20)]
    assert len(set(asked)) == 20
    assert asked[0] != str(Sampler(MIXED, kind, 1).ask(0))  # type: ignore[arg-type]  # a Literal


def test_drawn_numbers_are_short() -> None:
    values = Sampler(MIXED, "random").ask(3)
    assert float(f"{values['rate']:.6g}") == values["rate"]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_tpe_goes_where_it_was_good(mode: str) -> None:
    space = Space(_ADAPTER.validate_python({"x": {"uniform": [0, 1]}, "c": {"choice": [0, 1, 2]}}))
    sign = 1 if mode == "max" else -1

    def mean(kind: str) -> float:
        sampler = Sampler(space, kind, 0, mode)  # type: ignore[arg-type]  # Literals
        history: list[Observation] = []
        for number in range(40):
            values = sampler.ask(number, history)
            score = -((float(str(values["x"])) - 0.8) ** 2) + (values["c"] == 1)
            history.append(Observation(values, sign * score, number))
        return sum(sign * (one.value or 0.0) for one in history[20:]) / 20

    assert mean("tpe") > mean("random") + 0.3


def test_running_stopped_and_foreign_observations_are_taken() -> None:
    sampler = Sampler(MIXED, "tpe", 0)
    history = observed(sampler, STARTUP * 2)
    stopped = [Observation(sampler.ask(50), 0.1, 50, stopped_at=1)]
    foreign = [Observation({"aux": "video"}, 0.9, 60), Observation({}, float("nan"), 61)]
    assert MIXED.contains(sampler.ask(99, history + stopped))
    assert sampler.ask(99, history + foreign) == sampler.ask(99, history)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.integers(0, 5))
def test_grid_cells_come_in_turn(first: int, seed: int) -> None:
    sampler = Sampler(GRID, "random", seed)
    assert len(sampler.cells) == 5
    numbers = range(first, first + 5)
    asked: list[Values] = [sampler.ask(number) for number in numbers]
    for number, values in zip(numbers, asked, strict=True):
        cell = sampler.cells[number % 5]
        assert {path: values.get(path) for path in cell} == cell
    cells = {str({path: values.get(path) for path in GRID.grids}) for values in asked}
    assert len(cells) == 5


def test_cells_may_be_skipped_and_an_empty_space_has_one_answer() -> None:
    sampler = Sampler(GRID, "tpe", 0, skip=lambda cell: cell["aux"] is None)
    assert len(sampler.cells) == 4
    assert {sampler.ask(number)["aux"] for number in range(4)} == {"audio", "shape"}
    assert len(Sampler(GRID, skip=lambda cell: True).cells) == 5
    assert Sampler(Space({})).ask(3) == {}

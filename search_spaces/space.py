"""What a study may vary: distributions over dotted paths, and the conditions between them.

This module knows nothing of experiments: a path is a name, a value is JSON. What a path means, and
whether a value suits it, the reader of the experiment file checks.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import isfinite
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

KINDS = ("choice", "grid", "uniform", "loguniform", "randint")
Value: TypeAlias = JsonValue
"""A scalar, null, list or mapping."""
Values: TypeAlias = dict[str, Value]
"""One configuration: the value of every path that is active in it."""


class SpaceError(ValueError):
    """A rule of the search space is broken at `path`."""

    def __init__(self, path: str, rule: str) -> None:
        super().__init__(path, rule)
        self.path = path
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}"


class _Distribution(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    kind: ClassVar[str]

    when: dict[str, Value] = Field(default_factory=dict)
    """Other searched path -> the value (or list of values) at which this path is searched at all;
    all of them must hold. Where they do not, the path keeps the value that the file gives it."""

    def wanted(self, path: str) -> list[Value]:
        """The values of `path` at which this distribution is active."""
        value = self.when[path]
        return value if isinstance(value, list) else [value]


class _Listed(_Distribution):
    @property
    def values(self) -> list[Value]:
        """The values, in the order of the file."""
        listed: list[Value] = getattr(self, self.kind)
        return listed

    @model_validator(mode="after")
    def _distinct(self) -> "_Listed":
        for index, value in enumerate(self.values):
            if any(same(value, earlier) for earlier in self.values[:index]):
                raise ValueError(f"every value must be listed once, but {value!r} is there twice")
        return self

    def contains(self, value: Value) -> bool:
        """Whether `value` is one of the listed."""
        return any(same(value, listed) for listed in self.values)


class Choice(_Listed):
    """One of the listed values, drawn by the sampler."""

    kind: ClassVar[Literal["choice"]] = "choice"
    choice: list[Value] = Field(min_length=1)
    """The values: scalars, null, lists or mappings."""


class Grid(_Listed):
    """Every listed value in turn; the trials are spread evenly over the cells of all grids."""

    kind: ClassVar[Literal["grid"]] = "grid"
    grid: list[Value] = Field(min_length=1)
    """The values: scalars, null, lists or mappings."""


class _Range(_Distribution):
    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value, both included."""
        bounds: tuple[float, float] = getattr(self, self.kind)
        return bounds

    @model_validator(mode="after")
    def _ordered(self) -> "_Range":
        low, high = self.bounds
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ValueError(
                f"must be [low, high] with low below high, is [{low:g}, {high:g}]; "
                "give a fixed value in the section that the path names"
            )
        return self

    def contains(self, value: Value) -> bool:
        """Whether `value` is a number within the bounds."""
        low, high = self.bounds
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        )


class Uniform(_Range):
    """A real number between two bounds."""

    kind: ClassVar[Literal["uniform"]] = "uniform"
    uniform: tuple[float, float]
    """Lowest and highest value."""


class LogUniform(_Range):
    """A real number between two bounds above 0, uniform in its logarithm."""

    kind: ClassVar[Literal["loguniform"]] = "loguniform"
    loguniform: tuple[float, float]
    """Lowest and highest value, both above 0."""

    @model_validator(mode="after")
    def _positive(self) -> "LogUniform":
        if self.loguniform[0] <= 0:
            raise ValueError(f"the lower bound must be above 0, is {self.loguniform[0]:g}")
        return self


class RandInt(_Range):
    """A whole number between two bounds, both included."""

    kind: ClassVar[Literal["randint"]] = "randint"
    randint: tuple[int, int]
    """Lowest and highest value."""

    def contains(self, value: Value) -> bool:
        """Whether `value` is a whole number within the bounds."""
        low, high = self.randint
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _kind(value: Any) -> str | None:
    if isinstance(value, _Distribution):
        return value.kind
    named = [kind for kind in KINDS if isinstance(value, Mapping) and kind in value]
    return named[0] if len(named) == 1 else None


Distribution: TypeAlias = Annotated[
    Annotated[Choice, Tag("choice")]
    | Annotated[Grid, Tag("grid")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[RandInt, Tag("randint")],
    Discriminator(
        _kind,
        custom_error_type="distribution",
        custom_error_message="must have exactly one of " + ", ".join(KINDS),
    ),
]


@dataclass(frozen=True)
class Space:
    """A checked search space: its paths in an order in which conditions come before what they rule.

    Raises:
        SpaceError: a condition names a path that is not searched, can never hold, or runs in a
            circle.
    """

    paths: Mapping[str, Distribution]

    def __post_init__(self) -> None:
        for path, distribution in self.paths.items():
            for other in distribution.when:
                if other not in self.paths:
                    raise SpaceError(path, _not_searched(other, self.paths))
        for path in self.order:
            _check_can_hold(self.paths, path)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """All paths; a path comes after those that its conditions name."""
        return tuple(_ordered(self.paths))

    @property
    def grids(self) -> tuple[str, ...]:
        """The paths whose values are visited in turn."""
        return tuple(path for path in self.order if isinstance(self.paths[path], Grid))

    def active(self, path: str, values: Mapping[str, Value]) -> bool:
        """Whether `path` is searched, given the values of the paths before it."""
        distribution = self.paths[path]
        return all(
            other in values
            and any(same(values[other], want) for want in distribution.wanted(other))
            for other in distribution.when
        )

    def contains(self, values: Mapping[str, Value]) -> bool:
        """Whether `values` are one complete configuration: all active paths and no other."""
        active = [path for path in self.order if self.active(path, values)]
        return set(active) == set(values) and all(
            self.paths[path].contains(values[path]) for path in active
        )

    def cells(self) -> list[Values]:
        """Every combination of grid values; one empty cell where there is no grid.

        A grid whose conditions hang on sampled paths takes part in every cell and is dropped where
        it turns out inactive.
        """
        cells: list[Values] = [{}]
        for path in self.grids:
            distribution = self.paths[path]
            grids_only = all(other in self.grids for other in distribution.when)
            cells = [
                wider
                for cell in cells
                for wider in (
                    _extended(cell, path, distribution)
                    if not grids_only or self.active(path, cell)
                    else [cell]
                )
            ]
        return cells

    def assignments(self) -> Iterator[Values]:
        """Every configuration of a finite space, in a fixed order.

        Raises:
            ValueError: the space is not finite.
        """
        if not self.finite:
            raise ValueError("a space with a continuous path cannot be listed")
        yield from self._assignments(self.order, {})

    @property
    def finite(self) -> bool:
        """Whether the configurations can be counted: no path is continuous."""
        return all(_listed(distribution) is not None for distribution in self.paths.values())

    def size(self, limit: int = 100_000) -> int | None:
        """How many configurations there are; None where there are more than `limit`."""
        if not self.finite:
            return None
        count = sum(1 for _ in islice(self.assignments(), limit + 1))
        return count if count <= limit else None

    def _assignments(self, order: tuple[str, ...], values: Values) -> Iterator[Values]:
        if not order:
            yield dict(values)
            return
        path, rest = order[0], order[1:]
        if not self.active(path, values):
            yield from self._assignments(rest, values)
            return
        for value in _listed(self.paths[path]) or ():
            yield from self._assignments(rest, {**values, path: value})


def same(left: Value, right: Value) -> bool:
    """Equality of JSON values: 1 equals 1.0, but no truth value equals a number."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _listed(distribution: Distribution) -> list[Value] | range | None:
    if isinstance(distribution, RandInt):
        return range(distribution.randint[0], distribution.randint[1] + 1)
    return distribution.values if isinstance(distribution, Choice | Grid) else None


def _extended(cell: Values, path: str, distribution: Distribution) -> list[Values]:
    return [{**cell, path: value} for value in _listed(distribution) or ()]


def _ordered(paths: Mapping[str, Distribution]) -> Iterator[str]:
    """Parents first, else the order of the file; refuses a circle."""
    done: set[str] = set()

    def visit(path: str, above: tuple[str, ...]) -> Iterator[str]:
        if path in above:
            circle = " -> ".join((*above[above.index(path) :], path))
            raise SpaceError(path, f"conditions run in a circle: {circle}")
        if path in done:
            return
        for parent in paths[path].when:
            yield from visit(parent, (*above, path))
        done.add(path)
        yield path

    for path in paths:
        yield from visit(path, ())


def _check_can_hold(paths: Mapping[str, Distribution], path: str) -> None:
    """Refuses a path whose conditions, with those of the paths they name, exclude each other."""
    allowed: dict[str, list[Value]] = {}
    pending = [path]
    while pending:
        child = pending.pop()
        for parent in paths[child].when:
            wanted = paths[child].wanted(parent)
            possible = [value for value in wanted if _can_be(paths[parent], value)]
            if not possible:
                raise SpaceError(path, _never(parent, paths[parent], wanted))
            before = allowed.get(parent, possible)
            allowed[parent] = [value for value in before if any(same(value, p) for p in possible)]
            if not allowed[parent]:
                raise SpaceError(
                    path,
                    f"its condition can never hold: {parent!r} would have to be {before!r} "
                    f"and {possible!r} at once",
                )
            pending.append(parent)


def _not_searched(other: str, paths: Iterable[str]) -> str:
    near = difflib.get_close_matches(other, paths, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"searched are {', '.join(paths)}"
    return f"when names {other!r}, which is not searched; {hint}"


def _can_be(distribution: Distribution, value: Value) -> bool:
    return distribution.contains(value) and not isinstance(distribution, Uniform | LogUniform)


def _never(parent: str, distribution: Distribution, wanted: list[Value]) -> str:
    values = _listed(distribution)
    if values is None:
        return (
            f"its condition can never hold: {parent!r} is continuous and meets a single value "
            "by chance only; make it a choice"
        )
    shown = f"{values[0]} to {values[-1]}" if isinstance(values, range) else f"one of {values!r}"
    asked = wanted[0] if len(wanted) == 1 else wanted
    return f"its condition can never hold: {parent!r} is never {asked!r}; it is {shown}"

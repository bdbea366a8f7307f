"""The search space against the types: every path exists, every value fits, every condition can
hold. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from orchestrator.config.document import shown
from orchestrator.config.experiment import Experiment
from orchestrator.config.names import nearest
from orchestrator.config.paths import (
    BLOCK_SHAPE,
    needs_auxiliary,
    needs_rival,
    searchable_paths,
    why_unsearchable,
)
from orchestrator.config.problems import Problem
from search_spaces.space import (
    Choice,
    Distribution,
    Grid,
    RandInt,
    Space,
    SpaceError,
    Value,
    Values,
)

Attempt = Callable[[Values], str | None]
"""Tries a configuration; returns the rule that it breaks, or None."""


def check_search(experiment: Experiment, attempt: Attempt) -> list[Problem]:
    """Everything that is wrong with `search.space`; nothing means that it can be searched.

    Every listed value and every bound is tried alone on the file's configuration, with the paths
    that its conditions name set so that they hold.
    """
    paths = experiment.search.space
    problems = [
        Problem(("search", "space", path), rule)
        for path, rule in (
            *_unknown(experiment),
            *_overlapping(paths),
            *(() if _may_borrow(experiment) else _idle(paths)),
            *(_misfit(paths) if _borrowed_shape(experiment) else ()),
            *(() if _may_rival(experiment) else _idle_of_rivals(paths)),
        )
    ]
    if problems:
        return problems
    try:
        space = Space(paths)
    except SpaceError as error:
        return [Problem(("search", "space", error.path), error.rule)]
    return [problem for path in space.order for problem in _refused(space, path, attempt)]


def _unknown(experiment: Experiment) -> Iterator[tuple[str, str]]:
    searchable = searchable_paths(experiment)
    for path in experiment.search.space:
        why = why_unsearchable(path)
        if why is not None:
            yield path, f"cannot be searched: {why}"
        elif path not in searchable:
            yield path, f"no such key in an experiment{nearest(path, searchable)}"


def _overlapping(paths: Mapping[str, Distribution]) -> Iterator[tuple[str, str]]:
    for path in paths:
        for other in paths:
            if path.startswith(f"{other}."):
                yield path, f"is inside {other!r}, which is searched as a whole; keep one of them"


def _may_borrow(experiment: Experiment) -> bool:
    searched = experiment.search.space.keys() & {"pathway", "pathway.auxiliary"}
    return bool(experiment.pathway.names or searched)


def _may_rival(experiment: Experiment) -> bool:
    return experiment.rival.kind is not None or "rival.kind" in experiment.search.space


def _idle_of_rivals(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        if needs_rival(path):
            yield (
                path,
                "has no effect, because rival.kind is null and is not searched; search it as well "
                "(the arms of search.rivals have the file's value)",
            )


def _idle(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        if needs_auxiliary(path):
            yield (
                path,
                "has no effect, because pathway.auxiliary is null and is not searched; "
                "name an auxiliary there, or search it",
            )


def _borrowed_shape(experiment: Experiment) -> bool:
    """Whether some trial may use an auxiliary, by a pathway or by a rival."""
    return _may_borrow(experiment) or _may_rival(experiment)


def _misfit(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        if path in BLOCK_SHAPE:
            yield (
                path,
                "cannot be searched together with auxiliaries: their blocks are made ready once, "
                "in the shape of the file's model; run one study for each shape",
            )


def _refused(space: Space, path: str, attempt: Attempt) -> Iterator[Problem]:
    distribution = space.paths[path]
    listed = isinstance(distribution, Choice | Grid)
    context = _context(space, path)
    for index, value in enumerate(_probes(distribution)):
        broken = attempt({**context, path: value})
        if broken is not None:
            inside = ("search", "space", path, distribution.kind, *((index,) if listed else ()))
            yield Problem(inside, f"value {shown(value)} cannot be set: {broken}")


def _probes(distribution: Distribution) -> list[Value]:
    if isinstance(distribution, Choice | Grid):
        return list(distribution.values)
    if isinstance(distribution, RandInt):
        return list(distribution.randint)
    return list(distribution.bounds)


def _context(space: Space, path: str) -> Values:
    """Values of the paths that conditions name, such that `path` is active."""
    wanted: dict[str, list[Value]] = {}
    pending = [path]
    while pending:
        distribution = space.paths[pending.pop()]
        for parent in distribution.when:
            options = [v for v in distribution.wanted(parent) if space.paths[parent].contains(v)]
            kept = [v for v in wanted.get(parent, options) if v in options]
            wanted[parent] = kept or options
            pending.append(parent)
    return {parent: options[0] for parent, options in wanted.items()}

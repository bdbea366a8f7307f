"""Which files become test rows where no folder says it: drawn class by class, in whole groups."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.errors import RequestError
from orchestrator.importing.folders import Item
from orchestrator.importing.kinds import seed_of


def with_splits(items: Sequence[Item], fraction: float | None, seed: int) -> tuple[Item, ...]:
    """The items, each with its split: that of its folder, or one that is drawn.

    `fraction` of each class (0.2 when None) becomes test rows: whole groups, taken in an order
    hashed from their names, whenever that brings the classes closer to their fractions; a class
    never gives all its rows. An item without a group is one of its own.

    Raises:
        RequestError: the fraction does not fit the folders, nothing could be held out, or a group
            lies in both splits.
    """
    if items[0].split is not None:
        if fraction is not None:
            raise RequestError(
                "--test-fraction: the folders train, val and test say the split; leave it out"
            )
        _check_apart(items)
        return tuple(items)
    share = 0.2 if fraction is None else fraction
    if not 0 < share < 1:
        raise RequestError(f"--test-fraction: above 0 and below 1, but it is {share:g}")
    held = _held_out(items, share, seed)
    if not held:
        groups = "; with --group-by, groups of half the size would do" if items[0].group else ""
        raise RequestError(
            f"--test-fraction {share:g}: no file could be held out of {len(items)}{groups}; add "
            "files or give a larger fraction"
        )
    return tuple(
        replace(item, split="test" if number in held else "train")
        for number, item in enumerate(items)
    )


def with_groups(items: Sequence[Item], group_by: str | None) -> tuple[Item, ...]:
    """The items, each with the group that a regular expression, if one is given, finds in its path.

    A group's name is what the expression's own first group matches, or else all that it matches.
    Raises RequestError when it is none, or matches nothing in a path.
    """
    if group_by is None:
        return tuple(items)
    pattern = _compiled(group_by)
    grouped = []
    for item in items:
        found = pattern.search(item.path)
        name = found and found[1 if pattern.groups else 0]
        if not name:
            raise RequestError(
                f"--group-by {group_by!r}: matches nothing in {item.path!r}; it must say the group "
                "of every file"
            )
        grouped.append(replace(item, group=name))
    return tuple(grouped)


def _check_apart(items: Sequence[Item]) -> None:
    first: dict[str, Item] = {}
    for item in items:
        other = first.setdefault(item.group, item) if item.group is not None else item
        if other.split != item.split:
            raise RequestError(
                f"--group-by: group {item.group!r} lies in both splits: {other.path!r} and "
                f"{item.path!r}; move its files together"
            )


def _compiled(group_by: str) -> re.Pattern[str]:
    try:
        return re.compile(group_by)
    except re.error as error:
        raise RequestError(
            f"--group-by {group_by!r}: no regular expression: {error}; for what stands before the "
            "first hyphen of a file's name write '([^/-]+)-[^/]*$'"
        ) from error


def _held_out(items: Sequence[Item], share: float, seed: int) -> set[int]:
    """Numbers of the items that become test rows."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        groups[item.path if item.group is None else item.group].append(number)
    sizes = Counter(item.class_name for item in items)
    wanted = {name: min(max(1, round(share * n)), n - 1) for name, n in sizes.items()}
    taken: Counter[str] = Counter()
    held: set[int] = set()
    for name in sorted(groups, key=lambda name: (seed_of(seed, f"split {name}"), name)):
        adds = Counter(items[number].class_name for number in groups[name])
        closer = sum(
            abs(wanted[c] - taken[c]) - abs(wanted[c] - taken[c] - n) for c, n in adds.items()
        )
        if closer > 0 and all(taken[c] + n < sizes[c] for c, n in adds.items()):
            taken.update(adds)
            held.update(groups[name])
    return held

"""What a listing means, which files are held out, and what is refused before anything is read."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import RequestError
from orchestrator.importing.classes import read_classes
from orchestrator.importing.folders import Item, class_map, read_contents
from orchestrator.importing.images import Images
from orchestrator.importing.plan import Plan, Request, make_plan
from orchestrator.importing.splits import with_groups, with_splits
from orchestrator.storage.foreign import ForeignFile, Listing


def listing(*paths: str, empty: tuple[str, ...] = ()) -> Listing:
    """Files by their paths, with the folders above them."""
    folders = {"/".join(p.split("/")[:n]) for p in paths for n in range(1, p.count("/") + 1)}
    files = tuple(ForeignFile(path, 1, 1) for path in paths)
    return Listing(files, tuple(sorted(folders | set(empty))))


def found(*paths: str, ignore: tuple[str, ...] = ()) -> dict[str, tuple[str, str | None]]:
    contents = read_contents(listing(*paths), Images(), "photos", ignore)
    return {item.path: (item.class_name, item.split) for item in contents.items}


def test_class_folders() -> None:
    got = found("cat/a.png", "cat/deep/er/b.JPG", "dog/a.png", "dog/.hidden.txt", "dog/Thumbs.db")
    assert got == {
        "cat/a.png": ("cat", None),
        "cat/deep/er/b.JPG": ("cat", None),
        "dog/a.png": ("dog", None),
    }


@pytest.mark.parametrize(
    ("tops", "splits"),
    [
        (("train", "test"), {"train": "train", "test": "test"}),
        (("train", "val"), {"train": "train", "val": "test"}),
        (("train", "valid", "test"), {"train": "train", "valid": "train", "test": "test"}),
        (("Training", "Testing"), {"Training": "train", "Testing": "test"}),
        (("train",), {"train": None}),
    ],
)
def test_split_folders(tops: tuple[str, ...], splits: dict[str, str | None]) -> None:
    got = found(*(f"{top}/{name}/a.png" for top in tops for name in ("cat", "dog")))
    assert {path.split("/")[0]: split for path, (_, split) in got.items()} == splits
    assert {name for name, _ in got.values()} == {"cat", "dog"}


def test_a_split_needs_a_train_folder() -> None:
    assert set(found("test/a.png", "val/a.png").values()) == {("test", None), ("val", None)}
    assert found("train/a.png", "dog/a.png")["train/a.png"] == ("train", None)


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (listing(), "holds no files; give the folder that holds the class folders"),
        (listing("cat/a.png", "a.png"), "CLASS/FILE, but 'a.png' lies in no class folder"),
        (listing("train/a.png", "test/cat/b.png"), "SPLIT/CLASS/FILE, but 'train/a.png' lies in"),
        (listing("cat/a.png", "dog/b.txt"), r"one file is of another suffix .* --ignore '\*.txt'"),
        (
            listing("cat/a.png", *(f"dog/{n}.wav" for n in range(5))),
            "5 files are of another suffix .* and 2 more; .* or import another kind",
        ),
        (listing("cat/a.png", empty=("dog",)), "no file in the class folder 'dog'; remove"),
        (
            listing("cat/é.png", "cat/e\u0301.png", "dog/a.png"),
            "2 files would have the id .*differ only in how accents",
        ),
        (listing("cat/a.png"), "two class folders or more, but there is 'cat'"),
        (
            listing("train/cat/a.png", "train/dog/a.png", "test/cow/a.png"),
            "class 'cow' has files in the test split alone",
        ),
    ],
)
def test_refused_listings(there: Listing, told: str) -> None:
    with pytest.raises(RequestError, match=f"SOURCE photos: .*{told}"):
        plan_of(there)


def plan_of(there: Listing, **options: object) -> Plan:
    request = Request(Images(), "photos", "out", **options)  # type: ignore[arg-type]  # by name
    return make_plan(request, there)


def test_what_is_ignored() -> None:
    paths = ("cat/a.png", "dog/a.png", "README.md", "cow/a.png", "dog/notes.md")
    assert set(found(*paths, ignore=("*.md", "cow"))) == {"cat/a.png", "dog/a.png"}
    assert set(found(*paths, ignore=("*.md", "cow", "dog/"))) == {"cat/a.png"}


def test_labels_are_sorted_names_or_as_given(tmp_path: Path) -> None:
    contents = read_contents(listing("b/1.png", "a/1.png", "B/1.png"), Images(), "photos", ())
    assert class_map(contents, None, "photos") == ("B", "a", "b")
    for text in ("b\na\n\nB\n", '["b", "a", "B"]', '{"a": 1, "B": 2, "b": 0}'):
        (tmp_path / "classes").write_text(text)
        assert class_map(contents, read_classes(tmp_path / "classes"), "photos") == ("b", "a", "B")
    for names, told in (
        (("a", "b"), "class folder 'B' that is not listed"),
        (("a", "b", "B", "c"), "class 'c' has no folder"),
        (("a", "b", "B", "a"), "'a' is there twice"),
    ):
        with pytest.raises(RequestError, match=f"--classes: .*{told}"):
            class_map(contents, names, "photos")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1, 2]", "a name is no text"),
        ("[", "no JSON"),
        ('{"a": 0, "b": 2}', "labels are 0 to 1, each once"),
        (None, "cannot be read"),
    ],
)
def test_refused_class_files(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / "classes").write_text(text)
    with pytest.raises(RequestError, match=f"--classes .*{told}"):
        read_classes(tmp_path / "classes")


def items(sizes: dict[str, int], name: str = "{c}/{n}.png") -> tuple[Item, ...]:
    return tuple(
        Item(ForeignFile(name.format(c=c, n=n), 1, 1), c, None)
        for c, size in sizes.items()
        for n in range(size)
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(2, 40), st.floats(0.05, 0.9), st.integers(0, 9))
def test_each_class_gives_its_fraction(cats: int, dogs: int, share: float, seed: int) -> None:
    got = with_splits(items({"cat": cats, "dog": dogs}), share, seed)
    held = Counter(item.class_name for item in got if item.split == "test")
    for name, size in (("cat", cats), ("dog", dogs)):
        assert held[name] == min(max(1, round(share * size)), size - 1)


def test_a_file_keeps_its_split_when_others_come() -> None:
    """More or less: the fraction moves, but the order in which files are taken does not."""
    few, many = (with_splits(items({"a": n, "b": n}), 0.2, 0) for n in (50, 55))
    before = {item.path for item in few if item.split == "test"}
    after = {item.path for item in many if item.split == "test"}
    assert len(before & after) >= 16


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 20))
def test_groups_are_never_split(seed: int) -> None:
    """Ten students, each with files in both classes."""
    files = [
        Item(ForeignFile(f"{c}/student{s}-{n}.png", 1, 1), c, None)
        for c in ("cat", "dog")
        for s in range(10)
        for n in range(1 + s % 3)
    ]
    got = with_splits(with_groups(files, r"student(\d+)-"), 0.3, seed)
    sides: dict[str, set[str | None]] = {}
    for item in got:
        group = re.findall(r"student(\d+)", item.path)[0]
        sides.setdefault(group, set()).add(item.split)
    assert all(len(side) == 1 for side in sides.values())
    held = Counter(item.class_name for item in got if item.split == "test")
    assert held["cat"] == held["dog"]
    assert 3 <= held["cat"] <= 8  # of 19, where 6 are asked for


@pytest.mark.parametrize(
    ("fraction", "group_by", "told"),
    [
        (1.0, None, "--test-fraction: above 0 and below 1, but it is 1"),
        (0.2, "(", "no regular expression: .*; for what stands"),
        (0.2, "student", "matches nothing in 'a/0.png'"),
        (0.2, "^(a|b)", "no file could be held out of 8; with --group-by"),
    ],
)
def test_refused_splits(fraction: float, group_by: str | None, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        with_splits(with_groups(items({"a": 4, "b": 4}), group_by), fraction, 0)


def test_folders_that_say_the_split_take_no_fraction() -> None:
    there = listing("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")
    assert len(plan_of(there).parts) == 2
    with pytest.raises(RequestError, match=r"--test-fraction: the folders .* say the split"):
        plan_of(there, test_fraction=0.2)
    grouped = plan_of(there, group_by="train|test")
    assert {item.group for part in grouped.parts for item in part} == {"train", "test"}
    with pytest.raises(RequestError, match=r"group '1' lies in both splits: 'test/a/1.png' and 't"):
        plan_of(there, group_by=r"(\d)\.")


def test_parts_are_shuffled_once_and_hold_one_split() -> None:
    there = listing(*(f"{c}/{n:03d}.png" for c in "ab" for n in range(100)))
    size = 10 * 224 * 224 * 3
    plan = plan_of(there, part_bytes=size)
    assert [len(part) for part in plan.parts] == [10] * 20
    assert [{item.split for item in part} for part in plan.parts] == [{"train"}] * 16 + [
        {"test"}
    ] * 4
    mixed = [Counter(item.class_name for item in part) for part in plan.parts[:16]]
    assert all(counts["a"] and counts["b"] for counts in mixed)
    assert plan_of(there, part_bytes=size) == plan
    assert plan_of(there, part_bytes=size, seed=1).parts != plan.parts

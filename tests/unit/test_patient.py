"""Calls to a store that is away are repeated; what is something else is raised at once."""

import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from orchestrator.storage.folder import FolderStore
from orchestrator.storage.patient import PatientStore
from orchestrator.storage.uri import AlreadyThere, Damaged, Missing, Unreachable


class Away(FolderStore):
    """A folder store that does not answer the next calls, or breaks off in the middle."""

    def __init__(self, root: Path, absences: Iterable[str] = ()) -> None:
        super().__init__(root)
        self.absences = list(absences)
        """What the next calls find; "half" gives the first byte of what is read."""

    def _answer(self) -> str:
        found = self.absences.pop(0) if self.absences else ""
        if found == "away":
            raise Unreachable("nobody answers")
        return found

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = False) -> None:
        self._answer()
        super().put(key, data, if_absent=if_absent)

    def chunks(self, key: str) -> Iterator[bytes]:
        half = self._answer() == "half"
        for piece in super().chunks(key):
            yield piece[:1] if half else piece
            if half:
                raise Unreachable("the line broke")

    def size(self, key: str) -> int | None:
        self._answer()
        return super().size(key)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, none of which takes any time."""
    pauses: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("orchestrator.storage.patient.time.sleep", sleep)
    monkeypatch.setattr("orchestrator.storage.patient.time.monotonic", lambda: now[0])
    return pauses


def test_absences_cost_pauses_that_grow(tmp_path: Path, slept: list[float]) -> None:
    inner = Away(tmp_path, absences=["away"] * 8)
    store = PatientStore(inner, 600.0)
    store.put("a/b", b"content")
    assert len(slept) == 8
    assert slept[0] <= 0.5 < slept[-1] <= 10.0
    inner.absences.extend(["away", "half", "half", "away"])
    assert b"".join(store.chunks("a/b")) == b"content"
    inner.absences.append("half")
    assert store.get("a/b") == b"content"
    inner.absences.append("away")
    assert store.size("a/b") == 7
    assert [entry.key for entry in store.sub("a").list()] == ["b"]


def test_it_gives_up_after_its_time_and_says_so(tmp_path: Path, slept: list[float]) -> None:
    store = PatientStore(Away(tmp_path, absences=["away"] * 1000), 45.0)
    with pytest.raises(Unreachable, match=r"nobody answers \(it stayed away for 45 s\)"):
        store.put("a", b"x")
    assert sum(slept) == pytest.approx(45.0)


def test_other_faults_are_raised_at_once(tmp_path: Path, slept: list[float]) -> None:
    store = PatientStore(Away(tmp_path), 45.0)
    store.put("a", b"x")
    with pytest.raises(AlreadyThere):
        store.put("a", b"y", if_absent=True)
    with pytest.raises(Missing):
        store.get("b")
    store.delete("a")
    assert not store.exists("a")
    assert slept == []
    assert pickle.loads(pickle.dumps(store)).uri == store.uri
    assert store.settle_seconds == store.inner.settle_seconds


def test_what_is_known_by_its_digest(tmp_path: Path, slept: list[float]) -> None:
    store = PatientStore(Away(tmp_path, absences=["away", "", "half", "", "away"]), 45.0)
    sha256 = store.put_hashing("a", b"content")
    assert store.get_known("a", sha256) == b"content"
    store.put_known("b", b"content", sha256)
    assert len(slept) == 3
    with pytest.raises(Damaged, match=sha256):
        store.get_known("a", "0" * 64)

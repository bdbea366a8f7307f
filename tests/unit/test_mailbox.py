"""The mailbox keeps state: whoever dies takes nothing with it, whoever is stale changes nothing."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from orchestrator.ray_backend import mailbox as module
from orchestrator.ray_backend.mailbox import Mailbox

GANG = 0


def new() -> Mailbox:
    return Mailbox(poll_seconds=0.05)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


def call(attempt: int, lease: str, gang: int = GANG) -> dict[str, Any]:
    return {"gang": gang, "gang_attempt": attempt, "lease": lease}


def kinds(box: Mailbox) -> list[str]:
    return [event["kind"] for event in box._events]


def test_a_lease_passes_through() -> None:
    async def story() -> None:
        box = new()
        attempt = await box.register(GANG, [{"pid": 1}], "")
        assert await box.current(GANG, attempt) is None
        await box.submit("a", {"x": 1})
        turn = await box.current(GANG, attempt)
        assert turn == {"lease": "a", "assignment": {"x": 1}, "reported": 0, "attempt": 1}
        assert await box.report(call(attempt, "a"), 0, {"epoch": 1}, False) == "go"
        assert await box.read("a", 0) == ("report", {"epoch": 1})
        assert await box.read("a", 0) == ("report", {"epoch": 1})  # may be read twice
        assert await box.read("a", 1) == ("wait", None)
        await box.finish(call(attempt, "a"), {"kind": "finished"})
        assert await box.read("a", 1) == ("outcome", {"kind": "finished"})
        await box.acknowledge("a")
        await box.close()
        assert await box.current(GANG, attempt) == "close"

    run(story())


def test_a_new_attempt_finds_the_lease_and_the_old_one_is_stale() -> None:
    async def story() -> None:
        box = new()
        first = await box.register(GANG, [], "")
        await box.submit("a", {"retries": {"worker": 1}})
        await box.current(GANG, first)
        await box.report(call(first, "a"), 0, {"epoch": 1}, False)
        second = await box.register(GANG, [], "")
        turn = await box.current(GANG, second)
        assert isinstance(turn, dict)
        assert (turn["reported"], turn["attempt"]) == (1, 2)
        assert await box.current(GANG, first) == "stale"
        assert await box.report(call(first, "a"), 1, {"epoch": 2}, False) == "stale"
        await box.finish(call(first, "a"), {"kind": "finished"})
        assert await box.read("a", 1) == ("wait", None)
        assert "gang_lost" in kinds(box)

    run(story())


def test_a_dead_gangs_pending_call_swallows_nothing() -> None:
    async def story() -> None:
        box = new()
        first = await box.register(GANG, [], "")
        pending = asyncio.ensure_future(box.current(GANG, first))  # its caller has died
        await asyncio.sleep(0.01)
        second = await box.register(GANG, [], "")
        await box.submit("a", {})
        assert await pending == "stale"
        turn = await box.current(GANG, second)
        assert isinstance(turn, dict)
        assert turn["lease"] == "a"

    run(story())


def test_a_trial_that_breaks_every_gang_is_given_up() -> None:
    async def story() -> None:
        box = new()
        await box.submit("a", {"retries": {"worker": 1}})
        for _ in range(2):
            attempt = await box.register(GANG, [], "")
            await box.current(GANG, attempt)
        attempt = await box.register(GANG, [], "")
        kind, outcome = await box.read("a", 0)
        assert kind == "outcome"
        assert outcome == {
            "kind": "failed",
            "failure": "worker",
            "error": "worker, attempt 2: a worker process died",
        }
        assert await box.current(GANG, attempt) is None  # and the gang is free
        failed = [event for event in box._events if event["kind"] == "attempt_failed"]
        assert [event["again"] for event in failed] == [True, False]

    run(story())


def test_retries_are_counted_by_kind_of_failure() -> None:
    async def story() -> None:
        box = new()
        await box.submit("a", {"retries": {"hang": 1, "storage": 1}})
        attempt = await box.register(GANG, [], "")
        for kind in ("hang", "storage"):
            await box.current(GANG, attempt)
            await box.complain(call(attempt, "a"), "a story", kind)
        assert isinstance(await box.current(GANG, attempt), dict)  # each had one more try
        await box.complain(call(attempt, "a"), "again", "hang")
        _, outcome = await box.read("a", 0)
        assert outcome is not None
        assert (outcome["failure"], outcome["error"]) == ("hang", "hang, attempt 3: again")

    run(story())


def test_of_several_workers_the_one_that_knows_is_believed() -> None:
    async def story() -> None:
        box = new()
        await box.submit("a", {"retries": {"worker": 1}})
        attempt = await box.register(GANG, [], "")
        await box.current(GANG, attempt)
        await box.complain(call(attempt, "a"), "connection closed by peer", "worker")
        await box.complain(call(attempt, "a"), "FloatingPointError: loss is nan", "not_finite")
        await box.complain(call(attempt, "a"), "connection closed by peer", "worker")
        _, outcome = await box.read("a", 0)
        assert outcome == {
            "kind": "failed",
            "failure": "not_finite",
            "error": "not finite: FloatingPointError: loss is nan",
        }
        assert await box.register(GANG, [], "")
        assert await box.current(GANG, attempt + 1) is None

    run(story())


def test_a_report_at_a_rung_waits_for_the_decision() -> None:
    async def story() -> None:
        box = new()
        attempt = await box.register(GANG, [], "")
        for name, decide in (("go-on", box.proceed("go-on", 0)), ("halt", box.stop("halt"))):
            await box.submit(name, {})
            await box.current(GANG, attempt)
            report = asyncio.ensure_future(box.report(call(attempt, name), 0, {}, True))
            await asyncio.sleep(0.1)
            assert not report.done()
            await decide
            assert await report == ("go" if name == "go-on" else "stop")
            await box.finish(call(attempt, name), {"kind": "stopped"})

    run(story())


def test_an_orphan_is_stopped_and_its_owner_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        box = new()
        attempt = await box.register(GANG, [], "")
        await box.submit("a", {"x": 1})
        await box.current(GANG, attempt)
        monkeypatch.setattr(module, "ORPHAN_SECONDS", -1.0)
        await box.events(len(box._events))
        assert await box.report(call(attempt, "a"), 0, {}, False) == "stop"
        await box.finish(call(attempt, "a"), {"kind": "stopped"})
        monkeypatch.setattr(module, "ORPHAN_SECONDS", 90.0)
        await box.reopen("a")
        turn = await box.current(GANG, attempt)
        assert isinstance(turn, dict)
        assert turn["assignment"] == {"x": 1}

    run(story())


def test_leases_are_given_in_order_to_whichever_gang_is_free() -> None:
    async def story() -> None:
        box = new()
        attempts = {gang: await box.register(gang, [], "") for gang in (0, 1)}
        for name in ("a", "b", "c"):
            await box.submit(name, {})
        taken = [await box.current(gang, attempts[gang]) for gang in (1, 0)]
        assert [turn["lease"] for turn in taken if isinstance(turn, dict)] == ["a", "b"]
        await box.finish(call(attempts[0], "b", gang=0), {"kind": "finished"})
        turn = await box.current(0, attempts[0])
        assert isinstance(turn, dict)
        assert turn["lease"] == "c"

    run(story())


def test_a_machine_that_was_announced_to_leave_spends_no_attempt() -> None:
    async def story() -> None:
        box = new()
        await box.submit("a", {})
        for _ in range(3):
            attempt = await box.register(GANG, [], "")
            assert isinstance(await box.current(GANG, attempt), dict)
            await box.excuse(call(attempt, "a"))
            await box.complain(call(attempt, "a"), "connection closed by peer", "worker")
        attempt = await box.register(GANG, [], "")
        assert isinstance(await box.current(GANG, attempt), dict)
        assert "attempt_failed" not in kinds(box)
        assert await box.asked_to_stop(call(attempt, "a")) == "go"
        await box.register(GANG, [], "")  # this time without a word
        assert kinds(box).count("attempt_failed") == 1

    run(story())

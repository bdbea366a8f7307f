"""What a person reads while a study runs."""

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator.conduct.progress import View
from orchestrator.ray_backend.session import _Remarks

Event = dict[str, Any]
PLANNED: list[Event] = [
    {"kind": "planned", "trial": "a", "label": "none (baseline)", "seed": 0},
    {"kind": "planned", "trial": "b", "label": "audio · blocks [0, 3]", "seed": 1},
]


def epoch(trial: str, number: int, accuracy: float) -> Event:
    metrics = {"val/accuracy": accuracy, "train/loss": 1.0}
    return {"kind": "epoch", "trial": trial, "epoch": number, "epochs": 9, "metrics": metrics}


def told(*events: Event, earlier: tuple[Event, ...] = ()) -> list[str]:
    """The lines that stay, where stderr is no terminal."""
    out = io.StringIO()
    with View(Console(file=out, width=60), "val/accuracy", 24) as view:
        with view.recalling():
            for event in earlier:
                view.observe(event)
        for event in events:
            view.observe(event)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_each_trial_that_ends_is_one_line_with_its_figure() -> None:
    ended: list[Event] = [
        epoch("a", 9, 0.90591),
        epoch("b", 3, 0.5),
        {"kind": "finished", "trial": "a"},
        {"kind": "stopped", "trial": "b", "why": "successive halving stopped it at epoch 3"},
        {"kind": "finished", "trial": "a"},
    ]
    assert told(*PLANNED, *ended) == [
        "  ✓ 90.59 %  none (baseline) · seed 0",
        "  ◦ 50.00 %  audio · blocks [0, 3] · seed 1  stopped after epoch 3 of 9",
    ]


def test_what_went_wrong_is_said_in_full() -> None:
    error = "ValueError: " + "no [bold] luck " * 10
    lines = told(
        *PLANNED,
        {"kind": "gang_opened", "gang": "gang-0", "attempt": 1, "seconds": 12.4},
        {"kind": "gang_lost", "gang": "gang-0", "attempt": 1, "why": "rank 0 [1] died"},
        {"kind": "gang_opened", "gang": "gang-0", "attempt": 2},
        {"kind": "trial_restarted", "trial": "b", "why": "the trial's process died"},
        {"kind": "failed", "trial": "a", "error": error},
    )
    assert lines == [
        "  ✓ gang-0 is open  after 12 s",
        "  ! gang-0 was lost: rank 0 [1] died; it comes back",
        "  ✓ gang-0 is open again",
        "  ! audio · blocks [0, 3] · seed 1: the trial's process died; it goes on",
        f"  ✗          none (baseline) · seed 0  {error}".rstrip(),
    ]


def test_auxiliaries_are_told_when_they_are_ready() -> None:
    made: Event = {"kind": "auxiliary_ready", "name": "audio", "seconds": 5.6}
    given: Event = {"kind": "auxiliary_ready", "name": "video"}
    trained: Event = {"kind": "auxiliary_epoch", "name": "audio", "epoch": 1, "epochs": 5}
    assert told(trained | {"metrics": {"pretrain/loss": 0.8}}, made, given) == [
        "▸ auxiliaries",
        "  ✓ auxiliary audio  pre-trained in 6 s",
        "  ✓ auxiliary video",
    ]


def test_what_an_earlier_run_did_is_counted_and_not_told_again() -> None:
    earlier: tuple[Event, ...] = (*PLANNED, epoch("a", 9, 0.9), {"kind": "finished", "trial": "a"})
    assert told(epoch("b", 9, 0.8), {"kind": "finished", "trial": "b"}, earlier=earlier) == [
        "▸ going on with what is there: 1 of 2 planned trials are over",
        "  ✓ 80.00 %  audio · blocks [0, 3] · seed 1",
    ]


def test_a_terminal_shows_every_trial_that_is_under_way() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=30)
    with View(console, "val/accuracy", 24) as view:
        view.trials()
        for event in (*PLANNED, epoch("a", 2, 0.31), epoch("b", 1, 0.29)):
            view.observe(event)
        view._bars.refresh()
        shown = out.getvalue()
    for part in ("0/24", "2/9", "31.00 %", "1/9", "29.00 %", "audio · blocks [0, 3] · seed 1"):
        assert part in shown


def test_what_ray_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    remarks = _Remarks()
    print("(raylet) 8 PYTHON worker processes have been started on node: 1, which", file=remarks)
    print("(autoscaler) no node can hold", "a gang", file=remarks)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "(autoscaler) no node can hold a gang\n")

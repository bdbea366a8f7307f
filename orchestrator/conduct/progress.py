"""What a person sees while a study runs: a live view on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from orchestrator.evidence.wording import Measure, count

Event = Mapping[str, Any]
MARKS = {"finished": "[green]✓[/]", "stopped": "[yellow]◦[/]", "failed": "[red]✗[/]"}
LOST = "[yellow]![/]"


class View:
    """Follows the journal's events; a context manager. Everything goes to `console` (stderr).

    `metric` is the searched one; `total` is how many trials there are at most.
    """

    def __init__(self, console: Console, metric: str, total: int) -> None:
        self._console, self._measure, self._total = console, Measure(metric), total
        self._bars = Progress(
            TextColumn("{task.description}", markup=True),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._whole = self._bars.add_task("[bold]starting[/]", total=None, count="", note="")
        self._rows: dict[str, TaskID] = {}
        self._labels: dict[str, str] = {}
        self._last: dict[str, Event] = {}
        self._over: set[str] = set()
        self._silent = False
        self._copy: Callable[[str], object] | None = None

    def __enter__(self) -> "View":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    @contextmanager
    def recalling(self) -> Iterator[None]:
        """What is observed meanwhile happened in an earlier run: it is counted, not told again."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False
        if self._labels:
            over = f"{len(self._over)} of {count(len(self._labels), 'planned trial')} are over"
            self.phase(f"going on with what is there: {over}")

    @contextmanager
    def copied_to(self, write: Callable[[str], object]) -> Iterator[None]:
        """Meanwhile, the lines that stay are also given to `write`, plainly."""
        self._copy = write
        try:
            yield
        finally:
            self._copy = None

    def phase(self, text: str) -> None:
        """Say what the study is doing now."""
        self._bars.update(self._whole, description=f"[bold]{escape(text)}[/]")
        self.say(f"[bold]▸ {escape(text)}[/]")

    def trials(self) -> None:
        """Say that trials come next, and count them from here on."""
        self.phase("trials")
        self._count()

    def say(self, text: str) -> None:
        """One line that stays, in rich's markup."""
        if self._silent:
            return
        self._console.print(text, soft_wrap=not self._console.is_terminal)
        if self._copy is not None:
            self._copy(Text.from_markup(text).plain + "\n")

    def observe(self, event: Event) -> None:
        """Move on by one event of the journal."""
        kind = event["kind"]
        if kind == "planned":
            self._labels[event["trial"]] = f"{event['label']} · seed {event['seed']}"
        elif kind == "epoch":
            self._epoch(event["trial"], self._label(event["trial"]), event)
        elif kind == "auxiliary_epoch":
            if not any(row.startswith("aux ") for row in self._last):
                self.phase("auxiliaries")
            self._epoch(f"aux {event['name']}", f"pre-training {event['name']}", event)
        elif kind == "auxiliary_ready":
            self._end(f"aux {event['name']}")
            took = f"[dim]pre-trained in {event['seconds']:.0f} s[/]" if "seconds" in event else ""
            self.say(f"  {MARKS['finished']} auxiliary {escape(event['name'])}  {took}")
            if (started := event.get("started")) is not None:
                self.say(f"    [dim]{escape(started['summary'])}[/]")
        elif kind in MARKS:
            self._trial_over(event)
        elif kind in ("gang_opened", "gang_lost", "trial_restarted"):
            self._machinery(event)
        elif kind == "attempt_failed" and event["again"]:
            what = f"{event['failure'].replace('_', ' ')}: {event['error']}"
            self.say(f"  {LOST} {self._shown(event)}: {escape(what)}; it is tried again")
        elif kind == "checkpoint_damaged":
            self.say(f"  {LOST} {self._shown(event)}: {escape(event['why'])}")

    def _epoch(self, row: str, label: str, event: Event) -> None:
        self._last[row] = event
        if self._silent:
            return
        loss = event["metrics"].get("pretrain/loss")
        note = self._level(event) if loss is None else f"loss {loss:.3f}"
        if row not in self._rows:
            self._rows[row] = self._bars.add_task(
                f"  {escape(label)}", total=event["epochs"], count="", note=note
            )
        done = f"{event['epoch']}/{event['epochs']}"
        self._bars.update(self._rows[row], completed=event["epoch"], count=done, note=note)

    def _label(self, trial: str) -> str:
        return self._labels.get(trial, trial)

    def _level(self, event: Event) -> str:
        return self._measure.level(event["metrics"].get(self._measure.name))

    def _trial_over(self, event: Event) -> None:
        trial, kind = event["trial"], event["kind"]
        self._end(trial)
        if trial in self._over:
            return
        self._over.add(trial)
        self._count()
        last = self._last.get(trial)
        level = "" if last is None else self._level(last)
        label = escape(self._label(trial))
        self.say(f"  {MARKS[kind]} {level:>7}  {label}{_why(event, last)}")

    def _count(self) -> None:
        if not self._silent:
            done = f"{len(self._over)}/{self._total}"
            self._bars.update(self._whole, total=self._total, completed=len(self._over), count=done)

    def _machinery(self, event: Event) -> None:
        kind = event["kind"]
        if kind == "gang_opened":
            after = f"  [dim]after {event['seconds']:.0f} s[/]" if "seconds" in event else ""
            again = "" if event["attempt"] == 1 else " again"
            self.say(f"  {MARKS['finished']} {event['gang']} is open{again}{after}")
        elif kind == "gang_lost":
            self.say(f"  {LOST} {event['gang']} was lost: {escape(event['why'])}; it comes back")
        else:
            self.say(f"  {LOST} {self._shown(event)}: {escape(event['why'])}; it goes on")

    def _shown(self, event: Event) -> str:
        return escape(self._label(event["trial"]))

    def _end(self, row: str) -> None:
        if row in self._rows:
            self._bars.remove_task(self._rows.pop(row))


def _why(event: Event, last: Event | None) -> str:
    """What to add to the line of a trial that did not run to its end."""
    if event["kind"] == "failed":
        return f"  [red]{escape(event['error'])}[/]"
    if event["kind"] == "stopped" and last is not None:
        return f"  [dim]stopped after epoch {last['epoch']} of {last['epochs']}[/]"
    return ""

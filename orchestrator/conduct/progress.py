"""What a person sees while a study runs: a live view on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Event = Mapping[str, Any]
MARKS = {"finished": "[green]✓[/]", "stopped": "[yellow]◦[/]", "failed": "[red]✗[/]"}


class View:
    """Follows the journal's events; a context manager. Everything goes to `console` (stderr)."""

    def __init__(self, console: Console, metric: str, total: int) -> None:
        self._console, self._metric = console, metric
        self._bars = Progress(
            TextColumn("{task.description}", markup=True),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._whole = self._bars.add_task("[bold]starting[/]", total=total, note="")
        self._rows: dict[str, TaskID] = {}
        self._labels: dict[str, str] = {}
        self._last: dict[str, float] = {}
        self._over: set[str] = set()

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

    def phase(self, text: str) -> None:
        """Say what the study is doing now."""
        self._bars.update(self._whole, description=f"[bold]{text}[/]")
        self._console.print(f"[bold]▸ {text}[/]")

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text)

    def observe(self, event: Event) -> None:
        """Move on by one event of the journal."""
        kind = event["kind"]
        if kind == "planned":
            self._labels[event["trial"]] = f"{event['label']} · seed {event['seed']}"
        elif kind == "epoch":
            self._epoch(event["trial"], self._labels.get(event["trial"], event["trial"]), event)
        elif kind == "auxiliary_epoch":
            self._epoch(f"aux {event['name']}", f"masked pre-training · {event['name']}", event)
        elif kind == "auxiliary_ready":
            self._end(f"aux {event['name']}")
            self.say(f"  {MARKS['finished']} auxiliary {event['name']} ({event['seconds']:.0f} s)")
        elif kind in MARKS:
            self._trial_over(event)
        elif kind == "gang_lost":
            self.say(f"  [yellow]! {event['gang']} lost[/] ({event['why']}); it comes back")
        elif kind == "tested":
            self._end(event["trial"])

    def _epoch(self, row: str, label: str, event: Event) -> None:
        value = event["metrics"].get(self._metric, event["metrics"].get("pretrain/loss"))
        note = "" if value is None else f"{value:.4f}"
        if value is not None:
            self._last[row] = value
        if row not in self._rows:
            self._rows[row] = self._bars.add_task(f"  {label}", total=event["epochs"], note=note)
        self._bars.update(self._rows[row], completed=event["epoch"], note=note)

    def _trial_over(self, event: Event) -> None:
        trial = event["trial"]
        self._end(trial)
        if trial in self._over:
            return
        self._over.add(trial)
        self._bars.update(self._whole, completed=len(self._over))
        value = f"{self._metric} {self._last[trial]:.4f}" if trial in self._last else ""
        why = event.get("why") or event.get("error") or ""
        label = self._labels.get(trial, trial)
        self.say(f"  {MARKS[event['kind']]} {label}  [bold]{value}[/] [dim]{why}[/]")

    def _end(self, row: str) -> None:
        if row in self._rows:
            self._bars.remove_task(self._rows.pop(row))

"""What the verbs that run a study print at its end: figures first, then where everything lies."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape

from orchestrator.conduct.places import Places, places
from orchestrator.conduct.progress import View
from orchestrator.conduct.study import Conclusion, conduct
from orchestrator.conduct.timing import Timing
from orchestrator.config.experiment import Experiment
from orchestrator.evidence.findings import Findings, findings
from orchestrator.evidence.tables import leaderboard_table, rows
from orchestrator.study.plan import make_plan


def run_study(experiment: Experiment, address: str | None, *, as_json: bool) -> int:
    """Carry out a study, showing its progress on stderr, and print what it came to on stdout."""
    console = Console(stderr=True, highlight=False)
    total = make_plan(experiment).trials
    with View(console, experiment.search.metric, total) as view:
        conclusion = conduct(experiment, address, view)
    show(conclusion, as_json=as_json)
    return 0


def show(conclusion: Conclusion, *, as_json: bool) -> None:
    """Leaderboard, verdict, places and what to run next."""
    experiment, record = conclusion.experiment, conclusion.record
    found, where = findings(record, experiment), places(experiment)
    if as_json:
        print(json.dumps(_as_json(conclusion, found, where), allow_nan=False))
        return
    out = Console(highlight=False)
    if conclusion.already_done:
        out.print(f"study [bold]{experiment.name}[/] is finished; nothing was trained\n")
    out.print(leaderboard_table(found, title=f"study {experiment.name}"))
    out.print(f"\n[bold]verdict[/]  {escape(found.verdict.text)}\n")
    for line in (*_proof_lines(conclusion), _timing_line(conclusion.timing)):
        out.print(line, soft_wrap=True)
    out.print("\n[bold]where everything lies[/]")
    for name, place in where.named():
        out.print(f"  {name:<12}{escape(place)}", soft_wrap=True)
    out.print("\n[bold]what to run next[/]")
    for command in where.next_commands(experiment):
        out.print(f"  {escape(command)}", soft_wrap=True)


def _proof_lines(conclusion: Conclusion) -> list[str]:
    lines = []
    for trial in conclusion.record.trials.values():
        if trial.proof is not None:
            probe = trial.proof.get("test") or trial.proof["probe"]
            lines.append(
                f"[bold]merge[/]    trial {trial.trial} ({escape(trial.label)}) is fused: "
                f"{trial.proof['parameters_exported']:,} parameters, as the plain model; logits "
                f"differ by {probe['relative_difference']:.1e} of their size, predictions of "
                f"{probe['samples']} test samples by {probe['disagreements']}"
            )
    return lines


def _timing_line(timing: Timing) -> str:
    return (
        f"[bold]time[/]     {timing.total_seconds:.0f} s in all: {timing.gangs} gangs opened in "
        f"{timing.opening_seconds:.0f} s; while trials waited, gangs trained "
        f"{100 * timing.busy:.0f} % of {timing.window_seconds:.0f} s; tail "
        f"{timing.tail_seconds:.0f} s"
    )


def _as_json(conclusion: Conclusion, found: Findings, where: Places) -> dict[str, Any]:
    record = conclusion.record
    return {
        "study": conclusion.experiment.name,
        "status": record.status,
        "already_done": conclusion.already_done,
        "verdict": found.verdict.text,
        "claims": found.verdict.claims,
        "leaderboard": rows(found),
        "trials": {
            trial.trial: {"status": trial.status, "stage": trial.stage, "seed": trial.seed}
            for trial in record.trials.values()
        },
        "proofs": {t.trial: t.proof for t in record.trials.values() if t.proof is not None},
        "timing": vars(conclusion.timing),
        "places": dict(where.named()),
    }

"""What the verbs that run a study print at its end: figures first, then where everything lies."""

import json
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape

from orchestrator import environment
from orchestrator.commands import pretrain
from orchestrator.conduct.in_job import check_lasting
from orchestrator.conduct.places import Places, places
from orchestrator.conduct.progress import View
from orchestrator.conduct.study import Conclusion, conduct
from orchestrator.conduct.timing import Timing
from orchestrator.config.experiment import Experiment
from orchestrator.errors import Stopped
from orchestrator.evidence.findings import Findings, findings
from orchestrator.evidence.tables import leaderboard_table, rows
from orchestrator.evidence.wording import count, duration
from orchestrator.study.plan import make_plan
from orchestrator.study.settlement import to_export
from orchestrator.tracking.record import Purpose


def run_study(
    experiment: Experiment, address: str | None, *, as_json: bool, purpose: Purpose = "search"
) -> int:
    """Carry out a study, showing its progress on stderr, and print what it came to on stdout.

    In a Ray job, raises `RequestError` when the study would lie in the job's own folder.
    """
    if environment.ray_job() is not None:
        check_lasting(experiment)
    console = Console(file=sys.stderr, highlight=False)
    total = make_plan(experiment).trials
    with View(console, experiment.search.metric, total) as view:
        farewell = partial(_farewell, view=view, as_json=as_json)
        conclusion = conduct(experiment, address, view, farewell, purpose=purpose)
    show(conclusion, as_json=as_json)
    return 0


def _farewell(why: str, view: View, as_json: bool) -> None:
    """Say why the process ends on the spot, as the command line says why it ends otherwise."""
    if as_json:  # stdout itself: Ray's remarks are sent elsewhere meanwhile
        said = json.dumps({"error": why, "exit_code": Stopped.exit_code})
        print(said, file=sys.__stdout__, flush=True)
    print(f"orchestrator: {why}", file=sys.stderr, flush=True)
    view.__exit__(None, None, None)  # gives a terminal its cursor back


def show(conclusion: Conclusion, *, as_json: bool) -> None:
    """Leaderboard, verdict, places and what to run next; of a pre-training, its weights."""
    if conclusion.record.purpose == "pretrain":
        pretrain.show(conclusion, as_json=as_json)
        return
    experiment, record = conclusion.experiment, conclusion.record
    found, where = findings(record, experiment), places(experiment)
    if as_json:
        print(json.dumps(_as_json(conclusion, found, where), allow_nan=False))
        return
    out = Console(highlight=False)
    if conclusion.already_done:
        out.print(f"study [bold]{experiment.name}[/] is finished; nothing was trained\n")
    out.print(leaderboard_table(found, title=f"study {experiment.name}", width=out.width))
    out.print(f"\n[bold]verdict[/]  {escape(found.verdict.text)}\n")
    for line in (*_proof_lines(conclusion), _timing_line(conclusion.timing)):
        out.print(line)
    out.print("\n[bold]where everything lies[/]")
    for name, place in where.named():
        out.print(f"  {name:<12}{escape(place)}", soft_wrap=True)
    out.print("\n[bold]what to run next[/]")
    exports = to_export(record, experiment) is not None
    for command in where.next_commands(experiment, exports=exports):
        out.print(f"  {escape(command)}", soft_wrap=True)


def _proof_lines(conclusion: Conclusion) -> list[str]:
    return [
        f"[bold]merge[/]    trial {trial.trial} is fused into the plain model of "
        f"{trial.proof['parameters_exported']:,} parameters; {_agreement(trial.proof)}"
        for trial in conclusion.record.trials.values()
        if trial.proof is not None
    ]


def _agreement(proof: Mapping[str, Any]) -> str:
    split = "test" if proof.get("test") else "validation"
    found = proof.get("test") or proof["probe"]
    apart, differ = found["relative_difference"], found["disagreements"]
    logits = f"differ by at most {apart:.1e} of the largest" if apart else "are the same"
    changed = "no prediction" if not differ else count(differ, "prediction")
    return f"on {found['samples']} {split} samples its logits {logits} and {changed} changed"


def _timing_line(timing: Timing) -> str:
    return (
        f"[bold]time[/]     {duration(timing.total_seconds)} in all: gangs opened in "
        f"{duration(timing.opening_seconds)}, then busy {100 * timing.busy:.0f} % of the time "
        f"while trials waited; tail {duration(timing.tail_seconds)}"
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

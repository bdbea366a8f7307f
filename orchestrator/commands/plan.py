"""`plan FILE`: what a search would do; starts nothing and writes nothing."""

import argparse
import json

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.commands.options import add_experiment, experiment_of
from orchestrator.evidence.wording import count
from orchestrator.study.plan import Plan, make_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --set, --storage, --tracking."""
    add_experiment(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print the plan."""
    plan = make_plan(experiment_of(parsed, parsed.file))
    if parsed.json:
        print(json.dumps(plan.as_dict(), allow_nan=False))
    else:
        show(plan)
    return 0


def show(plan: Plan) -> None:
    """The plan for a person."""
    out = Console(highlight=False)
    rungs = ", ".join(str(epoch) for epoch in plan.rungs) or "none"
    out.print(f"[bold]study[/]   {plan.study}: {plan.mode} {plan.metric}, sampler {plan.sampler}")
    out.print(
        f"[bold]trials[/]  at most {plan.trials}, {plan.epochs} epochs in all; "
        f"halving after epochs: {rungs}"
    )
    out.print(
        f"[bold]gangs[/]   {plan.gangs.gangs} of {count(plan.gangs.workers, 'worker')}: "
        f"{plan.gangs.cpus:g} CPUs, {plan.gangs.gpus:g} GPUs"
    )
    for table in (_stages(plan), _space(plan) if plan.space else None, _arms(plan)):
        if table is not None:
            out.print()
            out.print(table)
    for warning in plan.warnings:
        out.print(f"[yellow]note[/]  {escape(warning)}")


def _stages(plan: Plan) -> Table:
    table = Table("stage", "trials", "what", box=None, header_style="bold", pad_edge=False)
    for line in plan.stages:
        table.add_row(line.stage, str(line.trials), escape(line.note))
    return table


def _space(plan: Plan) -> Table:
    table = Table(
        "searched", "kind", "values", "when", box=None, header_style="bold", pad_edge=False
    )
    for line in plan.space:
        table.add_row(escape(line.path), line.kind, escape(line.text), escape(line.when))
    return table


def _arms(plan: Plan) -> Table:
    table = Table("first trials", "stage", "seed", box=None, header_style="bold", pad_edge=False)
    for line in plan.arms:
        table.add_row(escape(line.label), line.stage, str(line.seed))
    return table

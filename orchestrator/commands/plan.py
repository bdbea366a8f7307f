"""`plan FILE`: what a search would do and cost; starts nothing and writes nothing."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from m2pt.weights.provenance import Provenance
from orchestrator.commands.options import add_experiment, experiment_of
from orchestrator.evidence.wording import count, duration, size
from orchestrator.study.budget import WORDS, amount
from orchestrator.study.forecast import Range
from orchestrator.study.plan import Plan, make_plan

if TYPE_CHECKING:
    from orchestrator.conduct.rehearse import Estimate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --set, --storage, --tracking, --no-measure."""
    add_experiment(parser)
    parser.add_argument(
        "--no-measure", action="store_true", help="train no steps here, and so predict no time"
    )


def run(parsed: argparse.Namespace) -> int:
    """Print the plan."""
    from orchestrator.conduct.preflight import absent_inputs, check_inputs
    from orchestrator.conduct.rehearse import estimate  # what reads data comes only now
    from orchestrator.conduct.supply import start_of

    experiment = experiment_of(parsed, parsed.file)
    absent = [str(one) for one in absent_inputs(experiment)]
    found, start, known = None, None, {}
    if not absent:
        known = check_inputs(experiment)
        start = start_of(experiment)
        found = estimate(experiment, measured=not parsed.no_measure)
    plan = make_plan(experiment)
    if parsed.json:
        cost = None if found is None else found.as_dict()
        told = None if start is None else start.lines()
        about = {**plan.as_dict(), "target": told, "weights": known, "cost": cost, "absent": absent}
        print(json.dumps(about, allow_nan=False))
    else:
        summary = "" if start is None else start.summary()
        show(plan, found, absent, start=summary, known=known)
    return 0


def show(
    plan: Plan,
    found: "Estimate | None",
    absent: Sequence[str] = (),
    *,
    start: str = "",
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """The plan for a person; without what it costs where inputs are `absent`.

    `start` says what the target takes of its weights, and `known` where weights come from, as the
    journal will.
    """
    out = Console(highlight=False)
    lines = Table(box=None, show_header=False, pad_edge=False)
    lines.add_column(style="bold")
    costs = () if found is None else (*_sizes(found), *_times(found))
    of_target = [("target", start)] if start else []
    for name, line in (*_study(plan), *of_target, *costs):
        lines.add_row(name, escape(line))
    arms = _labels(plan) if found is None else _arms(plan, found)
    weights = _weights(known) if known else None
    space = _space(plan) if plan.space else None
    for table in (lines, _stages(plan), space, weights, arms):
        if table is not None:
            out.print(table)
            out.print()
    told = [f"{name}: {one}" for name, said in (known or {}).items() for one in said["warnings"]]
    for warning in (*plan.warnings, *told, *(() if found is None else found.notes)):
        out.print(f"[yellow]note[/]  {escape(warning)}")
    if absent:
        what = "files or folders" if len(absent) > 1 else "file or folder"
        out.print(f"[yellow]absent[/]  {len(absent)} {what}; `search` needs them, and what the")
        out.print("        study costs can be told once they are there:")
        for line in absent:
            out.print(f"        {escape(line)}", soft_wrap=True)


def _study(plan: Plan) -> Iterator[tuple[str, str]]:
    """(name, line): what the study does."""
    stops = ", ".join(str(epoch) for epoch in plan.rungs) or "none"
    yield "study", f"{plan.study}: {plan.mode} {plan.metric}, sampler {plan.sampler}"
    yield (
        "trials",
        f"at most {plan.trials}, {plan.epochs} epochs in all; halving after epochs: {stops}",
    )
    caps = [f"{amount(limit)} {WORDS[cap]}" for cap in WORDS if (limit := plan.budget[cap])]
    if caps:
        yield "budget", f"at most {', '.join(caps)}"
    gangs = plan.gangs
    yield (
        "gangs",
        f"{gangs.gangs} of {count(gangs.workers, 'worker')}: {gangs.cpus:g} CPUs, "
        f"{gangs.gpus:g} GPUs",
    )


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


def _weights(known: Mapping[str, Mapping[str, Any]]) -> Table:
    heads = ("weights", "modality", "trained", "started from", "licence", "blocks")
    table = Table(*heads, box=None, header_style="bold", pad_edge=False)
    for name, said in known.items():
        found = Provenance.from_dict(said)
        origin = found.origin
        made = " on ".join(part for part in (found.how, origin.data) if part)
        cells = (name, origin.modality, made, origin.lineage, origin.licence, found.shape)
        table.add_row(*(escape(cell or "not stated") for cell in cells))
    return table


def _labels(plan: Plan) -> Table:
    table = Table("first trials", "stage", "seed", box=None, header_style="bold", pad_edge=False)
    for line in plan.arms:
        table.add_row(escape(line.label), line.stage, str(line.seed))
    return table


def _arms(plan: Plan, found: "Estimate") -> Table:
    heads = ("first trials", "stage", "seed", "borrowed", "trained", "λ", "checkpoint")
    table = Table(*heads, box=None, header_style="bold", pad_edge=False)
    for line, arm in zip(plan.arms, found.cost.arms, strict=False):
        held = arm.cost
        frozen = " frozen" if held.auxiliary and not held.auxiliary_trained else ""
        table.add_row(
            escape(line.label),
            line.stage,
            str(line.seed),
            f"{held.auxiliary:,}{frozen}",
            f"{held.trained:,}",
            str(held.scales),
            size(held.checkpoint_bytes),
        )
    return table


def _sizes(found: "Estimate") -> Iterator[tuple[str, str]]:
    """(name, line): what the study holds and moves."""
    cost, moved, held = found.cost, found.cost.moved, found.cost.largest.cost
    how = "measured" if cost.activations_measured else "estimated"
    tokens = count(cost.model.tokens, "token")
    least = min(arm.cost.memory_bytes for arm in cost.arms)
    memory = _span(Range(least, held.memory_bytes), size)
    yield "model", f"{cost.model.parameters:,} parameters; a sample is {tokens}"
    yield "memory", f"{memory} on each worker, the process and its data aside"
    yield (
        "",
        f"largest: weights {size(held.weights_bytes)}, gradients {size(held.gradients_bytes)}, "
        f"AdamW {size(held.optimizer_bytes)}, activations {size(held.activations_bytes)} ({how})",
    )
    yield "bytes", f"data: {f'{size(moved.data)} to' if moved.data else 'made in'} each process"
    yield "", f"auxiliaries: {size(moved.auxiliaries)} to each node; export: {size(moved.export)}"
    yield (
        "",
        f"checkpoints: a trial's {size(moved.checkpoint)}; {size(moved.kept)} kept in all; "
        f"{_span(moved.written, size)} written",
    )


def _times(found: "Estimate") -> Iterator[tuple[str, str]]:
    """(name, line): what was timed here, and what follows from it."""
    seen, foreseen = found.rehearsal, found.forecast
    if seen is None or foreseen is None:
        return
    yield (
        "time",
        f"timed here for {duration(seen.took)}: {seen.machine}, {count(seen.samples, 'sample')} "
        "a step",
    )
    for what, epoch in (("no auxiliary", seen.plain), ("largest arm", seen.pathway)):
        if epoch is not None:
            yield (
                "",
                f"{what}: step {_step(epoch.step)}, epoch {duration(epoch.seconds)} "
                f"({epoch.steps} steps, then {_step(epoch.evaluation)} of evaluation)",
            )
    if seen.pretraining:
        each = ", ".join(f"{name} {duration(took)}" for name, took in seen.pretraining.items())
        yield "", f"pre-training, where the store has none yet: {each}"
    yield "", f"a trial that runs out: {_span(foreseen.trial_seconds, duration)}"
    gangs = count(foreseen.gangs, "gang")
    yield (
        "foreseen",
        f"{_span(foreseen.wall_seconds, duration)} on this machine with {gangs}: trials stopped as "
        "expected, or none",
    )
    one = f"with 1 gang {_span(foreseen.one_gang_seconds, duration)}; "
    hours = f"{_span(foreseen.training_hours, amount)} worker-hours of training"
    yield "", f"{one if foreseen.gangs > 1 else ''}{hours}"


def _step(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else duration(seconds)


def _span(span: Range, text: Callable[[float], str]) -> str:
    """`3 s to 5 s`; once, where both are the same."""
    least, most = text(span.least), text(span.most)
    return least if least == most else f"{least} to {most}"

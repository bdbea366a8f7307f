"""From the report's plain values to its page: words and cells for the template, nothing else."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, StrictUndefined

from m2pt.weights.provenance import Provenance
from orchestrator.config.experiment import Experiment, WeightSource
from orchestrator.config.weights import maturity
from orchestrator.evidence.findings import Findings
from orchestrator.evidence.rivals import rivals_table
from orchestrator.evidence.statistics import PairedDifference, paired_difference, spread
from orchestrator.evidence.tables import (
    baseline_text,
    level_text,
)
from orchestrator.evidence.verdict import Comparison
from orchestrator.evidence.wording import Measure, count, duration
from orchestrator.study.view import value_text

_TONES = {"above_both": "gain", "worse": "loss"}


def page(
    *,
    template: str,
    data: Mapping[str, Any],
    found: Findings,
    experiment: Experiment,
    images: Mapping[str, str],
) -> str:
    """The HTML text. ``data`` is `report.as_json`, ``images`` are data URIs by plot."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["minus"] = _minus
    return environment.from_string(template).render(
        title=experiment.name,
        subtitle=_subtitle(data, experiment),
        unfinished=data["progress"],
        verdict={
            "headline": found.verdict.headline,
            "text": found.verdict.text,
            "tone": _TONES.get(found.verdict.kind, ""),
        },
        figures=_figures(found, experiment),
        rivals=rivals_table(found),
        leaderboard=_leaderboard(data, found.measure),
        plots={
            "paired": images.get("paired-seeds"),
            "curves": images.get("learning-curves"),
            "trajectories": images.get("scale-trajectories"),
            "heat_map": images.get("scale-heat-map"),
            "seed": found.best.trials_behind[0].seed if found.best else None,
        },
        facts=_facts(data, experiment),
        space=_space(found, experiment),
        auxiliaries=_auxiliaries(data, experiment),
        weights=[
            _weights(name, made["provenance"])
            for name, made in data["auxiliaries"].items()
            if made["provenance"]
        ],
        proofs=[_proof(export) for export in data["exports"]],
        failures=data["failures"],
        losses=data["gangs_lost"],
        command=data["command"],
        reproduce=[
            ("experiment sha256", data["experiment_sha256"]),
            ("versions", ", ".join(f"{name} {v}" for name, v in data["versions"].items())),
        ],
        experiment_yaml=data["experiment"],
        limits=data["limits"],
        footer=f"Made by m2pt-orchestrator {data['versions'].get('m2pt-orchestrator', '')} from "
        "the study's journal. The same values are in report.json.",
    )


def _minus(text: str) -> str:
    """A hyphen before a figure becomes a minus sign, which is as wide as a plus."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)


def _subtitle(data: Mapping[str, Any], experiment: Experiment) -> str:
    model = experiment.model
    said = [
        f"target: {experiment.data.source}",
        f"transformer of width {model.width}, depth {model.depth}, {count(model.heads, 'head')}",
    ]
    if data["started"] is not None:
        started = datetime.fromtimestamp(data["started"], UTC)
        said.append(f"started {started:%Y-%m-%d %H:%M} UTC")
    if data["seconds"]["wall"] is not None:
        said.append(f"took {duration(data['seconds']['wall'])}")
    return " · ".join(said)


def _figures(found: Findings, experiment: Experiment) -> dict[str, Any] | None:
    """Baseline, best arm and control side by side, on test where it was read."""
    comparison = found.test or found.validation
    if comparison is None:
        return None
    measure = comparison.measure
    sides = [
        ("Baseline", found.baseline, comparison.baseline, None, "pinned"),
        ("Best arm", found.best, comparison.values, comparison.to_baseline, "best"),
        (
            f"Its {comparison.control_kind} control",
            found.control,
            comparison.control,
            comparison.control_to_baseline,
            "",
        ),
    ]
    return {
        "title": measure.title,
        "validation_title": found.measure.title if found.test else None,
        "rows": [
            {
                "name": name,
                "label": arm.label if arm else "none was run",
                "level": _level(measure, values),
                **_pairs(measure, pairs),
                "validation": _level(found.measure, arm.row.metrics if arm else {}),
                "style": style,
            }
            for name, arm, values, pairs, style in sides
        ],
        "notes": _notes(comparison, experiment),
    }


def _level(measure: Measure, values: Mapping[int, float]) -> str:
    found = spread(values.values())
    return measure.level_with_spread(found.mean, found.std, found.n)


def _pairs(measure: Measure, found: PairedDifference | None) -> dict[str, str]:
    """Cells of a paired difference."""
    if found is None:
        return {"delta": "", "interval": "", "ahead": ""}
    ahead = found.above if measure.mode == "max" else found.below
    interval = f"{measure.difference(found.low)} to {measure.difference(found.high)}"
    return {
        "delta": measure.difference(found.mean),
        "interval": interval if found.low is not None else "–",
        "ahead": f"{ahead} of {found.n}",
    }


def _notes(comparison: Comparison, experiment: Experiment) -> list[str]:
    """What stands below the three figures."""
    measure, pairs, notes = comparison.measure, comparison.to_baseline, []
    notes.append(
        f"Mean ± standard deviation (seeds). Differences are taken seed by seed"
        f"{' in points' if measure.is_fraction else ''}; better is "
        f"{'higher' if measure.mode == 'max' else 'lower'}."
    )
    if pairs is not None and pairs.n > 1 and pairs.sign_p is not None:
        notes.append(
            f"Exact two-sided sign test against the baseline: p = {pairs.sign_p:.2g}; the "
            f"smallest that {count(pairs.n, 'pair')} can give is {pairs.smallest_sign_p:.2g}."
        )
    fresh = paired_difference(
        {seed: v for seed, v in comparison.values.items() if seed != experiment.seed},
        comparison.baseline,
    )
    if fresh is not None and pairs is not None and fresh.n < pairs.n:
        notes.append(
            f"Over {count(fresh.n, 'seed')} that had no part in choosing the arm: "
            f"{measure.difference(fresh.mean)} against the baseline."
        )
    against = comparison.to_control
    if against is not None:
        interval = _pairs(measure, against)["interval"]
        notes.append(
            f"Arm minus control: {measure.difference(against.mean)}"
            + (f", 95 % interval {interval}." if against.low is not None else ".")
        )
    return notes


def _leaderboard(data: Mapping[str, Any], measure: Measure) -> dict[str, Any]:
    return {
        "title": measure.title,
        "note": "Mean ± standard deviation (seeds), after the last epoch, on the split that arms "
        "are chosen on: the best of many is flattered by it. Beside each arm stands the baseline "
        "at the same seeds, and at the same epoch where the arm was stopped. Differences have "
        "95 % intervals where there are several seeds.",
        "rows": [_leaderboard_row(row, measure) for row in data["leaderboard"]],
    }


def _leaderboard_row(row: Mapping[str, Any], measure: Measure) -> dict[str, Any]:
    compared = row["role"] != "baseline" and row["mean"] is not None
    scaled = row["scale_mean_abs"] is not None
    low, high = row["difference_low"], row["difference_high"]
    return {
        "label": row["label"],
        "tags": _tags(row),
        "outcome": row["outcome"],
        "level": level_text(row, measure),
        "baseline": baseline_text(row, measure) if compared else "",
        "baseline_at": f"at epoch {row['epochs']}" if compared and row["partial"] else "",
        "delta": measure.difference(row["difference"]) if compared else "",
        "interval": ""
        if low is None
        else f"{measure.difference(low)} to {measure.difference(high)}",
        "epochs": f"{row['epochs']} of {row['full_epochs']}",
        "scale": f"mean {row['scale_mean_abs']:.2g}" if scaled else "",
        "largest": f"most {row['scale_max_abs']:.2g} at {row['scale_max_at']}" if scaled else "",
        "style": _style(row),
    }


def _tags(row: Mapping[str, Any]) -> list[str]:
    tags = [row["kind"]] if row["kind"] in ("baseline", "control", "rival") else []
    return ["best", *tags] if row["role"] == "best" else tags


def _style(row: Mapping[str, Any]) -> str:
    if row["role"] in ("baseline", "best"):
        return "pinned" if row["role"] == "baseline" else "best"
    return "aside" if row["partial"] or row["kind"] == "control" else ""


def _facts(data: Mapping[str, Any], experiment: Experiment) -> list[tuple[str, str]]:
    search, seconds = experiment.search, data["seconds"]
    by_status, by_stage = data["trials"]["by_status"], data["trials"]["by_stage"]
    scheduler = search.scheduler
    stopping = (
        f"stopped early by successive halving (from epoch {scheduler.grace_epochs}, "
        f"1/{scheduler.reduction_factor} go on)"
        if scheduler.kind == "asha"
        else "none stopped early"
    )
    seeds = range(experiment.seed, experiment.seed + search.seeds)
    start = data["auxiliaries"].get("target", {}).get("started")
    target = experiment.target
    return [
        *([("Target starts from", f"{_source(target)}; {start}")] if target and start else []),
        ("Trials", _tally(by_status) or "none yet"),
        ("Stages", _tally(by_stage) or "none yet"),
        ("Pathway arms compared", str(data["comparison"]["arms_tried"])),
        ("Search", f"{count(search.trials, 'configuration')} by {search.sampler}, {stopping}"),
        ("Seeds", ", ".join(str(seed) for seed in seeds)),
        ("Epochs of a full trial", str(experiment.training.epochs)),
        (
            "Time",
            f"{duration(seconds['wall'])} in all; {duration(seconds['training'])} of training "
            f"summed over trials; {duration(seconds['auxiliaries'])} for auxiliaries",
        ),
    ]


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _space(found: Findings, experiment: Experiment) -> list[dict[str, str]]:
    """Each searched path: what it could be, and what it is in the best arm."""
    values = found.best.trials[0].values if found.best else {}
    listed = []
    for path, distribution in experiment.search.space.items():
        options = distribution.model_dump(mode="json")[distribution.kind]
        among = ", ".join(value_text(option) for option in options)
        if distribution.kind in ("uniform", "loguniform", "randint"):
            among = f"{value_text(options[0])} to {value_text(options[1])} ({distribution.kind})"
        if distribution.when:
            when = [f"{other} is {value_text(value)}" for other, value in distribution.when.items()]
            among += f", where {' and '.join(when)}"
        best = value_text(values[path]) if path in values else "–"
        listed.append({"path": path, "among": among, "best": best})
    return listed


def _auxiliaries(data: Mapping[str, Any], experiment: Experiment) -> list[dict[str, str]]:
    made = data["auxiliaries"]
    kept = [name for name in made if maturity(name)[0] in experiment.auxiliaries]
    return [
        {
            "name": name,
            "source": _source(experiment.source_of(name)),
            "seconds": f"{made[name]['seconds']:.1f}" if name in made else "",
            "sha256": made[name]["sha256"][:16] if name in made else "",
        }
        for name in dict.fromkeys((*experiment.auxiliaries, *kept))
    ]


def _weights(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Where one set of weights comes from, in words; what is not known is left out."""
    found = Provenance.from_dict(said)
    origin = found.origin
    style = [f"{found.norm}-LN" if found.norm else "", found.activation or ""]
    return {
        "name": name,
        "uri": found.uri,
        "modality": origin.modality or "not stated",
        "made": ", ".join(part for part in (found.how, origin.data) if part) or "not stated",
        "lineage": origin.lineage or "not stated",
        "licence": origin.licence or "not stated",
        "built": ", ".join(part for part in (found.shape, *style, found.layout) if part),
        "sha256": found.sha256[:16],
        "warnings": list(said.get("warnings", ())),
    }


def _source(source: WeightSource) -> str:
    if source.pretrain is not None:
        config = source.pretrain
        return f"masked autoencoding on {config.data.source}, {count(config.epochs, 'epoch')}"
    if source.weights is not None:
        return f"weights from {source.weights}"
    return f"{source.control} control, like {source.like}"


def _proof(export: Mapping[str, Any]) -> dict[str, Any]:
    """One export in words; parts of the proof that were not recorded are left out."""
    proof = export["proof"]
    facts = [("Where", export["key"])]
    if "keys" in proof:
        same = "are" if proof.get("keys_equal") else "are NOT"
        facts.append(("Keys", f"{proof['keys']} keys {same} the plain model's, in its order"))
    if "parameters_exported" in proof:
        facts.append(
            (
                "Parameters",
                f"{proof['parameters_exported']:,} exported, {proof['parameters_plain']:,} in the "
                f"plain model, {proof['parameters_trained']:,} while training",
            )
        )
    for name in ("probe", "test"):
        agreement = proof.get(name)
        if agreement:
            facts.append((f"On {_SAMPLES[name]}", _agreement(agreement, proof)))
    title = f"Trial {export['trial']} ({export['label']}, seed {export['seed']})"
    return {"title": title, "holds": export["holds"], "facts": facts}


_SAMPLES = {"probe": "validation samples", "test": "the test split"}


def _agreement(found: Mapping[str, Any], proof: Mapping[str, Any]) -> str:
    return (
        f"logits differ by at most {found['relative_difference']:.1e} of the largest (allowed: "
        f"{proof.get('tolerance', 0):.0e}); {found['disagreements']} of {found['samples']} "
        "predictions differ"
    )

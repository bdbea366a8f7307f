"""The model card of an export, from what its model.json says: one source for both. Pure.

The front matter is that of the Hugging Face hub, so that a folder can be put there as it is.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

About = Mapping[str, Any]

_UNKNOWN = "not stated"
_NOTHING = "–"
_RIVAL = "It is a rival of M2PT's pathways, and has none itself."
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_TASKS = {
    ("image", "classes"): "image-classification",
    ("audio", "classes"): "audio-classification",
    ("audio", "labels"): "audio-classification",
    ("video", "classes"): "video-classification",
}
_SHAPES = {
    "image": "(B, C, H, W)",
    "audio": "(B, 1, frames, mel bands)",
    "video": "(B, C, T, H, W)",
    "point": "(B, points, 3)",
}


def model_card(about: About) -> str:
    """README.md, Markdown with front matter."""
    parts = [
        _front_matter(about),
        f"# {about['study'] or 'export'} · {about['trial']}\n\n{_opening(about)}",
        "## Load\n\n" + _load(about),
        "## Data\n\n" + _data(about),
        "## Evidence\n\n" + _evidence(about),
        "## The merge\n\n" + _proof(about["proof"]),
        "## Weights and licences\n\n" + _weights(about),
    ]
    if about["scales"]:
        parts.insert(5, "## λ at the end\n\n" + _scales(about["scales"]))
    return "\n\n".join(parts) + "\n"


def _front_matter(about: About) -> str:
    """Licences: where all are known and the same, that one; else `other`, and the card tells."""
    said = {str(one.get("licence") or _UNKNOWN).lower() for one in about.get("lineage", ())}
    only = next(iter(said)) if len(said) == 1 else _UNKNOWN
    licence = only if _LICENCE.fullmatch(only) else "other"
    data = about["data"]
    lines = [
        "---",
        "library_name: timm" if about.get("timm") else "library_name: pytorch",
        f"license: {licence}",
        *(["license_name: see-below"] if licence == "other" else []),
        "tags:",
        *(f"- {tag}" for tag in ("multimodal-pathway", data["modality"])),
        "datasets:",
        f"- {json.dumps(about['source']['source'])}",
    ]
    if task := _TASKS.get((data["modality"], data["task"])):
        lines.append(f"pipeline_tag: {task}")
    return "\n".join([*lines, "---"])


def _opening(about: About) -> str:
    proof = about["proof"]
    return f"{_what(about)} {proof['parameters_exported']:,} parameters, {about['dtype']}."


def _what(about: About) -> str:
    borrowed, rival = about["auxiliaries"], about.get("rival") or {}
    if rival.get("kind") == "lora":
        return (
            f"A vision transformer trained with LoRA of rank {rival['rank']}, which is merged into "
            f"its weights; it borrowed none. {_RIVAL}"
        )
    if rival.get("kind") == "average":
        return (
            "A vision transformer that started from a weighted mean of its own weights and those "
            f"of {_listed(borrowed)} ({rival['share']:.3g} of the mean). {_RIVAL}"
        )
    if borrowed:
        return (
            f"A vision transformer that borrowed weights of {_listed(borrowed)} while it was "
            "trained (M2PT), with the borrowed weights folded in: it costs what a plain one costs."
        )
    baseline = (about.get("evidence") or {}).get("kind") == "baseline"
    return f"A plain vision transformer{': the baseline' * baseline}, which borrowed no weights."


def _load(about: About) -> str:
    if (timm := about.get("timm")) is None:
        model = about["data"]["modality"]
        return (
            f"It is timm's `VisionTransformer` with a tokenizer or a head of m2pt's for {model} "
            "data: `python load_model.py` shows what is here, and its `load_model()` gives the "
            "model (m2pt, torch, timm and safetensors are needed). As registered by `orchestrator "
            "promote`, MLflow alone loads it."
        )
    given = ",\n    ".join(f"{name}={value!r}" for name, value in timm["arguments"].items())
    return (
        "The class is `timm.models.vision_transformer.VisionTransformer`; its weights load "
        "strictly:\n\n"
        "```python\nimport timm\nfrom safetensors.torch import load_file\n\n"
        f'model = timm.create_model(\n    "{timm["name"]}",\n    {given},\n)\n'
        'model.load_state_dict(load_file("model.safetensors"), strict=True)\nmodel.eval()\n```'
    )


def _data(about: About) -> str:
    data, normalised = about["data"], about["normalisation"]
    classes = f"{data['classes']} {'categories' if data['task'] == 'parts' else 'classes'}"
    return (
        f"Trained on `{about['source']['source']}` ({data['modality']}, {classes}; digest "
        f"`{data['digest'][:16]}`), seed {about['seed']}, {about['epochs']} epochs. Inputs are "
        f"{_SHAPES[data['modality']]} with a sample of {' x '.join(map(str, data['shape']))}, "
        f"normalised with mean {normalised['mean']} and standard deviation {normalised['std']}. "
        "Everything else that makes the samples is in `model.json`."
    )


def _evidence(about: About) -> str:
    found = about.get("evidence")
    if not found:
        return "It lies in the report of the study; `orchestrator export` puts it here."
    lines = [
        f"Arm: {found['arm']}. Levels are mean ± standard deviation (seeds), the baseline's at the "
        "same seeds; differences are over matched seeds, with their 95 % interval where there is "
        f"one. {_arms(found['arms_tried'])}",
        "",
        "| | this arm | baseline | difference |",
        "|---|---|---|---|",
        *(
            f"| {row['of']} | {row['level']} | {row['baseline'] or _NOTHING} "
            f"| {row['difference'] or _NOTHING} |"
            for row in found["figures"]
        ),
        "",
        f"Verdict: {found['verdict']}",
    ]
    return "\n".join(lines)


def _arms(tried: int) -> str:
    if not tried:
        return "No arm with a pathway was tried."
    return "One arm was tried." if tried == 1 else f"{tried} arms were tried."


def _scales(scales: Mapping[str, float]) -> str:
    """|λ| over all linears, then each linear's λ."""
    size = [abs(value) for value in scales.values()]
    lines = [
        f"As folded in, the mean of each linear. Mean |λ| {sum(size) / len(size):.4g}, largest "
        f"{max(size):.4g}.",
        "",
        "| linear | λ |",
        "|---|---|",
        *(f"| {name} | {value:+.5f} |" for name, value in scales.items()),
    ]
    return "\n".join(lines)


def _proof(proof: Mapping[str, Any]) -> str:
    """A table of what the gate measured."""
    rows = [
        ("keys, in the plain model's order", str(proof["keys"]), "all"),
        (
            "parameters",
            f"{proof['parameters_exported']:,}",
            f"{proof['parameters_plain']:,} (trained with {proof['parameters_trained']:,})",
        ),
        *_proof_of_outputs(proof),
    ]
    if proof["plain_timm"]:
        rows.append(("strict load into timm's own class", "same logits", "same logits"))
    lines = ["| | measured | must be |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _proof_of_outputs(proof: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    if weights := proof["weights"]:
        yield (
            "weights against W + λW' in float64",
            f"{weights['relative_difference']:.1e}",
            f"at most {weights['tolerance']:.0e}",
        )
        yield ("tensors changed by fusing λ = 0", str(len(proof["changed_by_zero"])), "0")
    for name in ("probe", "test"):
        if found := proof[name]:
            split = "validation" if name == "probe" else "test"
            yield (
                f"logits on {found['samples']} {split} samples",
                f"{found['relative_difference']:.1e}",
                f"at most {proof['tolerance']:.0e}",
            )
            told = f"{found['disagreements']}, of them ties {found['ties']}"
            yield (f"changed predictions, {split}", told, "ties alone")
    for at in proof["dtypes"]:
        yield (
            f"logits in {at['dtype']}, {at['samples']} samples",
            f"{at['relative_difference']:.1e}",
            f"at most {at['tolerance']:.0e}",
        )
    for one in proof["figures"] or ():
        yield (
            f"{one['name']}, recorded {one['recorded']:.6g}",
            f"{one['found']:.6g}",
            f"recorded within {one['low']:.6g} to {one['high']:.6g}",
        )


def _weights(about: About) -> str:
    lineage: Sequence[Mapping[str, Any]] | None = about.get("lineage")
    if lineage is None:
        names = about["auxiliaries"]
        return (f"Borrowed from {_listed(names)}; licences {_UNKNOWN} here. " if names else "") + (
            "What it started from, and the terms of all weights, lie in the report of the study; "
            "`orchestrator export` puts them here."
        )
    if not lineage:
        return "No weights of others went in: it was trained from scratch."
    lines = ["| weights | source | trained on | licence | sha256 |", "|---|---|---|---|---|"]
    for one in lineage:
        digest = f"`{one['sha256'][:16]}`" if one.get("sha256") else ""
        cells = (one["name"], _source(one), _trained_on(one), one.get("licence"), digest)
        lines.append(f"| {' | '.join(str(cell or _UNKNOWN) for cell in cells)} |")
    warned = [f"- {one['name']}: {said}" for one in lineage for said in one.get("warnings", ())]
    told = "Whoever passes this model on sees to the terms of each of them."
    return "\n".join([*lines, "", *warned, *([""] if warned else []), told])


def _source(one: Mapping[str, Any]) -> str:
    """As the experiment names it, and where that in turn came from."""
    source, uri = str(one["source"]), str(one.get("uri", ""))
    return f"{source} ({uri})" if "://" in uri and uri not in source else source


def _trained_on(one: Mapping[str, Any]) -> str:
    supervised = one.get("supervised")
    how = None if supervised is None else f"with{'' if supervised else 'out'} labels"
    return ", ".join(str(part) for part in (one.get("data"), one.get("modality"), how) if part)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)

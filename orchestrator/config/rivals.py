"""The section `rival` of the experiment file, and what it cannot go together with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from m2pt.rivals.config import Rival, RivalKind, why_no_task
from m2pt.rivals.size import matched
from orchestrator.config.metrics import task_known
from orchestrator.config.weights import why_unknown

if TYPE_CHECKING:
    from orchestrator.config.experiment import Experiment

NONE = "none"
"""How a file may write that there is no auxiliary."""


def names_of(auxiliary: str | Sequence[str] | None) -> tuple[str, ...]:
    """The auxiliaries that a file names: null or none, one, or a list of several.

    Raises:
        ValueError: a list has one twice, or none beside others.
    """
    names = (auxiliary,) if isinstance(auxiliary, str) else tuple(auxiliary or ())
    if names == (NONE,):
        return ()
    if len(set(names)) < len(names) or NONE in names:
        raise ValueError(
            f"auxiliary: a name, or a list of names without repeats and without {NONE}, "
            f"not {list(names)!r}"
        )
    return names


@dataclass(frozen=True)
class RivalSection(Rival):
    """What is done in the place of a pathway: another way to use an auxiliary, or none at all.

    With `kind` null there is no rival, and the other fields are those of `search.rivals`. None of
    it is in the paper. The target is trained as in every other arm; with `training.train: probe`
    it is frozen, as CALM and LoRA were published. The auxiliary of calm and gats is always frozen,
    runs beside the target also in use, and sees the target's tokens, as auxiliary blocks do in a
    pathway: modalities differ, so its own tokenizer cannot read the samples. Of it the linears of
    its blocks are known, and no more: its norms have neither scale nor offset, and it has as many
    heads as `model.heads`, which is a handicap where it was trained with others.
    """

    auxiliary: str | tuple[str, ...] | None = None
    """calm, gats, average: the auxiliaries, written as in `pathway.auxiliary`, which is null then.
    With several, CALM adds up what it reads, GATS gathers from all, and averaging takes their
    mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = names_of(self.auxiliary)
        object.__setattr__(self, "auxiliary", (names[0] if len(names) == 1 else names) or None)

    @property
    def names(self) -> tuple[str, ...]:
        """The auxiliaries in use; empty where the kind has none."""
        return names_of(self.auxiliary) if self.borrows else ()

    def of_kind(self, kind: RivalKind) -> Rival:
        """This section's fields for a rival of `kind`, without its auxiliary."""
        own = {part.name: getattr(self, part.name) for part in fields(Rival)}
        return Rival(**{**own, "kind": kind})


def rival_of(experiment: "Experiment") -> Rival | None:
    """The part of the section that the method reads, with a rank of its own; None without a kind.

    A rank that is to match is that of the section `pathway`, as if it had an auxiliary.
    """
    section, pathway = experiment.rival, experiment.pathway
    if section.kind is None:
        return None
    many = max(1, len(pathway.names))
    return matched(section.of_kind(section.kind), experiment.model, pathway, many).plainest()


def broken_rival_rules(experiment: "Experiment") -> Iterator[tuple[str, str]]:
    """(key, rule) of what the file asks for in vain, by `rival` or by `search.rivals`."""
    section = experiment.rival
    for name in names_of(section.auxiliary):
        if (rule := why_unknown(name, experiment.auxiliaries, NONE)) is not None:
            yield "rival.auxiliary", rule
    if section.kind is not None:
        if experiment.pathway.names:
            yield (
                "rival.kind",
                f"{section.kind} is in the place of a pathway, and pathway.auxiliary is "
                f"{', '.join(experiment.pathway.names)}; set one of the two to null (the arms that "
                "a pathway is compared with are named in search.rivals)",
            )
        if section.borrows and not section.names:
            yield "rival.auxiliary", f"must name an auxiliary for {section.kind}, and is null"
    own = () if section.kind is None else (section.kind,)
    for kind in dict.fromkeys((*own, *experiment.search.rivals)):
        yield from _misfits(experiment, kind)


def _misfits(experiment: "Experiment", kind: RivalKind) -> Iterator[tuple[str, str]]:
    """What a rival of this kind cannot have in this experiment."""
    asked = "" if experiment.rival.kind == kind else f"for {kind} of search.rivals: "
    rival = experiment.rival.of_kind(kind)
    if asked:  # its coverage and mapping are the arm's
        rival = replace(rival, coverage=Rival().coverage, mapping=Rival().mapping)
    if misfit := rival.misfit(experiment.model):
        yield f"rival.{misfit[0]}", asked + misfit[1]
    where = "search.rivals" if asked else "rival.kind"
    if kind != "average" and experiment.resources.sharding != "none":
        yield (
            where,
            f"{kind} needs whole modules, and resources.sharding {experiment.resources.sharding} "
            "spreads them over workers; leave one of the two out",
        )
    task = task_known(experiment.data)
    if task is not None and (rule := why_no_task(kind, task)):
        yield where, rule

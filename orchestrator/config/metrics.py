"""Which metric a study may compare: that depends on what is told of its samples."""

from m2pt.data.config import EMBEDDED, EMBEDDED_TASKS, FIGURES, DataConfig, Task

METRICS = (*(f"val/{name}" for told in FIGURES.values() for name in told), "val/loss", "train/loss")

_TOLD: dict[Task, str] = {
    "classes": "one class for each sample",
    "labels": "a set of classes for each sample",
    "parts": "a part for each point",
}


def task_known(data: DataConfig) -> Task | None:
    """The task of embedded data; of a table only a look at it tells."""
    return EMBEDDED_TASKS.get(data.source, "classes") if data.source in EMBEDDED else None


def why_no_metric(metric: str, data: DataConfig, task: Task) -> str | None:
    """The rule that `search.metric` breaks for data of a task, with the remedy, or None."""
    split, _, name = metric.partition("/")
    if name == "loss" or name in FIGURES[task]:
        return None
    there = [f"{split}/{figure}" for figure in FIGURES[task]]
    return (
        f"must be {', '.join(there)}, val/loss or train/loss for {data.source!r}, which has "
        f"{_TOLD[task]}, is {metric!r}; write metric: {there[0]}"
    )

"""Events of a study: their kinds, what each must say, and their text. Pure.

In text an event is one line of strict JSON; numbers that JSON does not know are written as the
words "NaN", "Infinity" and "-Infinity", which `float` reads.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

Event = dict[str, Any]
"""What happened: "kind", "time" (unix seconds) and the fields of its kind, as JSON has them."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "study_started": ("experiment_sha256", "experiment"),
    "takeover": ("segments", "manifests"),
    "auxiliary_epoch": ("name", "epoch", "metrics"),
    "auxiliary_ready": ("name", "sha256"),
    "planned": ("trial", "arm", "label", "stage", "seed", "values", "auxiliary", "coverage"),
    "started": ("trial", "gang", "attempt"),
    "epoch": ("trial", "epoch", "metrics"),
    "checkpoint": ("trial", "epoch", "key"),
    "checkpoint_damaged": ("trial", "why"),
    "preempted": ("trial", "gang"),
    "attempt_failed": ("trial", "failure", "error", "again"),
    "finished": ("trial",),
    "stopped": ("trial", "why"),
    "failed": ("trial", "error"),
    "gang_opened": ("gang", "attempt"),
    "gang_lost": ("gang", "attempt", "why"),
    "tested": ("trial", "metrics"),
    "exported": ("trial", "key"),
    "study_finished": ("verdict",),
    "study_stopped": ("why",),
}
"""What an event of each kind says at least. Kinds that are not here are kept and not understood."""

TERMINAL = frozenset({"finished", "stopped", "failed"})
"""How a trial ends."""

URGENT = TERMINAL | {"tested", "exported", "study_finished", "study_stopped"}
"""What readers should see at once."""


def to_line(event: Mapping[str, Any], *, now: float) -> str:
    """The text of `event`, its time set to `now` unless it has one. Raises ValueError."""
    kind = event.get("kind")
    if not isinstance(kind, str) or not kind:
        raise ValueError(f"an event has a kind, got {event!r:.200}")
    if missing := [name for name in FIELDS.get(kind, ()) if name not in event]:
        raise ValueError(f"an event of kind {kind!r} says {', '.join(missing)}; got {event!r:.200}")
    whole = {"kind": kind, "time": now} | dict(event)
    try:
        return json.dumps(_plain(whole), allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"an event of kind {kind!r} is made of JSON values: {error}") from error


def from_line(line: str | bytes) -> Event:
    """The event that a line holds. Raises ValueError."""
    event = json.loads(line)
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        raise ValueError("a line of a journal is an object with a kind")
    return event


def _plain(value: Any) -> Any:
    """`value` without tuples, numbers of other libraries and numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if not isinstance(value, float) and callable(getattr(value, "item", None)):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value

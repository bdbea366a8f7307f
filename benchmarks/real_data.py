"""How well the shipped studies of real data do: one row for each modality and arm.

    python benchmarks/real_data.py [--only image] [--search] [--seeds 3] [--json]

By default the baseline arm of each file alone, on three seeds; with --search the whole studies,
with the best arm and its matched control beside the baseline. Each runs through `orchestrator
search`, which chooses on rows held out of the training rows and reads the test rows once, at its
end. Beside it stands what k nearest neighbours on hand-made features reach (the data's README).

It runs from the repository's root and reads ../shared/data.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from m2pt.data.config import Modality
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import read_events

FILES: dict[Modality, str] = {
    "image": "signdigits",
    "audio": "esc10",
    "point": "ldraw",
    "video": "sprites",
}
NEAREST_NEIGHBOURS = {"signdigits": 0.881, "esc10": 0.675, "ldraw": 0.576, "sprites": 0.924}
BASELINES = ("search.trials=1", "search.confirm=0", "search.space={}")


@dataclass(frozen=True)
class Row:
    """One arm. `accuracy` and `validation` are of each seed, 0 to 1; `minutes` of the study."""

    modality: str
    file: str
    arm: str
    accuracy: tuple[float, ...]
    validation: tuple[float, ...]
    nearest_neighbours: float
    minutes: float

    def __str__(self) -> str:
        spread = f" ± {100 * stdev(self.accuracy):4.1f}" if len(self.accuracy) > 1 else 7 * " "
        return (
            f"{self.modality:<8}{self.file:<12}{self.arm:<44.44}{len(self.accuracy):>3}  "
            f"{100 * mean(self.accuracy):5.1f}{spread}  {100 * mean(self.validation):5.1f}  "
            f"{100 * self.nearest_neighbours:5.1f}  {self.minutes:5.1f}"
        )


HEADINGS = (
    f"{'target':<8}{'file':<12}{'arm':<44}{'seeds':>5}  {'test, %':<12}{'val':>5}  {'kNN':>5}  "
    f"{'min':>5}"
)


def study(modality: Modality, overrides: list[str]) -> Iterator[Row]:
    """The arms of one study that were tested, in the order of their planning."""
    name = FILES[modality]
    with tempfile.TemporaryDirectory() as folder:
        words = [f"--set={override}" for override in (f"storage={folder}/store", *overrides)]
        own = {"XDG_STATE_HOME": f"{folder}/state", "XDG_CACHE_HOME": f"{folder}/cache"}
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "orchestrator", "search", name, *words, "--json"],
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            check=True,
        )
        minutes = (time.monotonic() - began) / 60
        events = read_events(Store.open(f"{folder}/store"), name)
    tested = {e["trial"]: e["metrics"]["test/accuracy"] for e in events if e["kind"] == "tested"}
    last = {e["trial"]: e["metrics"]["val/accuracy"] for e in events if e["kind"] == "epoch"}
    arms: dict[str, list[str]] = {}
    for event in events:
        if event["kind"] == "planned" and event["trial"] in tested:
            arms.setdefault(_label(event), []).append(event["trial"])
    for arm, trials in arms.items():
        yield Row(
            modality=modality,
            file=name,
            arm=arm,
            accuracy=tuple(tested[trial] for trial in trials),
            validation=tuple(last[trial] for trial in trials),
            nearest_neighbours=NEAREST_NEIGHBOURS[name],
            minutes=minutes,
        )


def _label(event: dict[str, Any]) -> str:
    control = "control: " * (event["stage"] == "control")
    return f"{control}{event['label']}"


def main() -> None:
    """Run the studies and print a row for each arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=FILES, help="one target modality")
    parser.add_argument("--search", action="store_true", help="whole studies, not baselines alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one object per line")
    parsed = parser.parse_args()
    if not Path("../shared/data").is_dir():
        sys.exit("../shared/data is not there: the real data sets lie beside the repository")
    overrides = [f"search.seeds={parsed.seeds}", *BASELINES * (not parsed.search)]
    if not parsed.json:
        print(HEADINGS)
    for modality in FILES:
        if parsed.only in (None, modality):
            for row in study(modality, overrides):
                print(json.dumps(asdict(row)) if parsed.json else row, flush=True)


if __name__ == "__main__":
    main()

"""docs/experiments.md: the reference of the experiment file, written from the types.

`python -m orchestrator.config.reference > docs/experiments.md` renews it; a test says when.
"""

import sys
from collections.abc import Iterator
from typing import Any

from orchestrator.config.describe import default_text, field_texts, section_text, type_text
from orchestrator.config.experiment import Experiment
from orchestrator.config.paths import (
    UNSEARCHABLE,
    Section,
    keys_of,
    named_sections,
    section_in,
)
from search_spaces.space import Choice, Grid, LogUniform, RandInt, Uniform

EXAMPLE = """\
name: audio-and-shapes-into-digits
data: {source: digits}
auxiliaries:
  audio: {pretrain: {data: {source: tones}}}
  shape: {pretrain: {data: {source: shapes}, tokenizer: {groups: 16, group_size: 8}}}
pathway:
  auxiliary: audio
training: {epochs: 6}
search:
  trials: 12
  space:
    pathway.auxiliary: {grid: [audio, shape]}
    pathway.coverage.blocks: {choice: [all, "first:2", "last:2"]}
    pathway.scale.learned: {choice: [true, false]}
    pathway.scale.init:
      choice: [1e-3, 1e-2, 1e-1]
      when: {pathway.scale.learned: false}
"""
"""A file that the reference shows, and that a test loads."""

_HEAD = """\
# The experiment file

<!-- Written by `python -m orchestrator.config.reference`; change the types, not this file. -->

One YAML file is one experiment: a complete configuration of one arm, plus what a study varies.
Only `name` and `data` are required; every other key has a default, and the defaults of `pathway`
are the paper's setting.

```yaml
{example}```

Numbers are read as YAML 1.2 reads them (`1e-3` is a number; `on` and `12:30` are text). A key may
stand only once. Paths in the file are taken from the folder in which the command runs. What is
wrong is refused before anything is started, with file and line, key, value, rule and the nearest
valid name; no file is ever half accepted.
"""

_TAIL = """\
## What cannot be searched

Every key of the file can be searched, except:

{unsearchable}

## How a search goes

1. The *baseline* (the file with `pathway.auxiliary: null`) runs on the seeds `seed`, `seed + 1`,
   ... (`search.seeds` of them), in turn with the first search trials.
2. `search.trials` different configurations run on `seed`. One that is there already, the baseline
   included, is drawn anew (up to 50 times; a space that can be listed is then gone through), so a
   small space may end with fewer. Values that are valid one by one but exclude each other are
   drawn anew as well.
3. The `search.confirm` best arms that borrow weights (controls left out; trained to the end before
   those stopped early) run on all seeds, and each beside its *matched control*: the same arm with
   each auxiliary X replaced by `random~X`, Gaussian weights of the same norms. The arms of
   `search.rivals`, if there are any, follow on the same seeds.

With an empty space, `trials: 1` and `seeds: 1` a study is one trial of the file's configuration.

`when` holds a path back: it is searched only where all conditions hold, and keeps the file's value
elsewhere. A condition names another searched path, and one value or a list of values of it; one
that can never hold is refused. `none` and null mean the same for `pathway.auxiliary`. The cells of
all grids are visited in turn, in an order drawn with `seed`; cells that are nothing but the
baseline are left out.

## When a budget is spent

`budget` caps a study; `orchestrator plan` foretells whether a cap will be reached. Wall clock and
training hours are looked at every second: once one is spent, trials stop at their next epoch and
keep their checkpoint, as with `orchestrator stop`. The cap on trials interrupts nothing: those that
were started run out, and no other begins. They are started in the order above, but the last places
are kept for baselines that are still missing: what was searched always has something to be compared
with, and it is the search, then the confirmation, that a small cap cuts short. A cap below
`search.seeds` leaves baselines out too; `plan` says so.

A capped study has no verdict yet. It goes on where it stands with a larger cap (null is none): the
same command, or `orchestrator resume NAME --set budget.trials=40`.

## What a trial is

A trial is named by a digest of all that changes its result: content of data and weights, `model`,
`pathway`, `training`, `resources.precision`, `resources.compile` and the seed. `name`, `storage`,
`tracking`, `budget`, the names of auxiliaries, where files lie and the rest of `resources` are
outside it. A study that is run again under its name may change `storage`, `tracking`, `budget`,
`checkpoints` and the rest of `resources`; anything else is refused.
An arm is the same without the seed. Without an auxiliary `pathway` and the learning rates of λ and
of auxiliaries are outside as well, for they have no effect.

## Sizes

`sizes` names other sizes of the same experiment, and `size` chooses one of them; left out, the file
is run as it stands. A size is put over the file before anything is checked, and what comes out is
the experiment: neither key is part of it, so give each size a `name` of its own.

```yaml
name: large
data: {{source: digits}}
model: {{width: 96}}
sizes:
  tiny:
    name: large-tiny
    model.width: 32
    training: {{epochs: 2, warmup_epochs: 1}}
```

Each line of a size replaces the value, or the whole section, at its dotted path. `--set size=tiny`
chooses a size for one run; what `--set` says of other keys holds whatever the size says.

## Changing a value for one run

`--set path=value` replaces one value before the file is checked; the value is read as YAML.

```text
--set training.epochs=3 --set pathway.auxiliary=none
--set 'search.space.training.learning_rate={{loguniform: [1e-4, 1e-2]}}'
--set 'search.space.training.epochs.choice=[2, 4]'
--set search.space.training.epochs=null        # takes a path out of the search
```
"""


def reference() -> str:
    """The text of docs/experiments.md."""
    sections = "\n\n".join("\n".join(lines) for lines in _sections(Experiment, "", {}))
    unsearchable = "\n".join(f"- `{path}`: {why}" for path, why in UNSEARCHABLE.items())
    parts = (
        _HEAD.format(example=EXAMPLE),
        f"{sections}\n",
        "\n".join(_distributions()) + "\n",
        _TAIL.format(unsearchable=unsearchable),
    )
    return "\n".join(parts)


def _sections(section: Section, path: str, written: dict[Section, str]) -> Iterator[list[str]]:
    """One table for each section, parents first; a type that occurs again is written once."""
    written[section] = path
    title = f"## `{path}`" if path else "## Top level"
    yield [title, "", *_paragraphs(section), *_table(section, path, written)]
    for key, annotation in keys_of(section).items():
        inner, named = section_in(annotation), named_sections(annotation)
        below = f"{path}.{key}" if path else key
        if inner is not None and inner not in written:
            yield from _sections(inner, below, written)
        if named is not None and named not in written:
            yield from _sections(named, f"{below}.<name>", written)


def _paragraphs(section: Section) -> Iterator[str]:
    for paragraph in section_text(section):
        yield from (paragraph, "")


def _table(section: Section, path: str, written: dict[Section, str]) -> Iterator[str]:
    texts = field_texts(section)
    yield "| key | value | default | |"
    yield "|---|---|---|---|"
    for key, annotation in keys_of(section).items():
        text = texts.get(key, "")
        inner = section_in(annotation) or named_sections(annotation)
        if inner is not None and inner in written:
            text = f"{text} See `{written[inner]}`.".strip()
        cells = (f"`{key}`", type_text(annotation), default_text(section, key), text)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _distributions() -> Iterator[str]:
    yield "## Distributions of `search.space`"
    yield ""
    yield "A searched path has exactly one of these, and may have `when`:"
    yield ""
    yield "| | | |"
    yield "|---|---|---|"
    examples: dict[type[Any], str] = {
        Choice: "{choice: [all, 'first:2', [0, 3]]}",
        Grid: "{grid: [none, audio, shape]}",
        Uniform: "{uniform: [0.0, 0.3]}",
        LogUniform: "{loguniform: [1e-4, 1e-2]}",
        RandInt: "{randint: [1, 4]}",
    }
    for distribution, example in examples.items():
        words = section_text(distribution)[0]
        yield f"| `{distribution.kind}` | `{example}` | {words} |"


if __name__ == "__main__":
    sys.stdout.write(reference())

"""`sizes`: another size of an experiment is the same as another file, and nothing knows of it."""

import pytest

from orchestrator.config.io import as_text, experiment_sha256, parse_experiment
from orchestrator.config.schema import experiment_schema
from orchestrator.errors import RequestError

PLAIN = """\
name: mine
data: {source: digits}
auxiliaries: {other: {weights: weights/other.pth}}
target: {weights: weights/mine.pth}
pathway: {auxiliary: other}
training: {epochs: 100, warmup_epochs: 5}
"""
SIZED = f"""\
{PLAIN}
sizes:
  tiny:
    name: mine-tiny
    target: null
    auxiliaries.other: {{pretrain: {{data: {{source: tones}}}}}}
    training.epochs: 2
    training.warmup_epochs: 1
    search.space.training.learning_rate: {{loguniform: [1e-4, 1e-2]}}
  broken:
    training:
      epochs: 0
"""


def read(text: str, *overrides: str) -> str:
    return as_text(parse_experiment(text, "file", overrides))


def test_a_file_without_a_size_asked_for_is_as_it_stands() -> None:
    assert read(SIZED) == read(SIZED, "size=null") == read(PLAIN)


def test_a_size_puts_its_values_over_the_file_and_leaves_no_trace() -> None:
    tiny = parse_experiment(SIZED, "file", ["size=tiny"])
    assert (tiny.name, tiny.target, tiny.training.epochs) == ("mine-tiny", None, 2)
    assert tiny.auxiliaries["other"].weights is None
    assert list(tiny.search.space) == ["training.learning_rate"]
    assert "size" not in as_text(tiny).replace("group_size", "").replace("batch_size", "")
    assert experiment_sha256(tiny) == experiment_sha256(parse_experiment(as_text(tiny), "file"))
    assert read(f"{SIZED}\nsize: tiny\n") == as_text(tiny)


def test_what_set_says_holds_whatever_the_size_says() -> None:
    for overrides in (("size=tiny", "training.epochs=7"), ("training.epochs=7", "size=tiny")):
        assert parse_experiment(SIZED, "file", overrides).training.epochs == 7
    added = parse_experiment(PLAIN, "file", ["sizes.mine={training.epochs: 9}", "size=mine"])
    assert added.training.epochs == 9


@pytest.mark.parametrize(
    ("text", "override", "told"),
    [
        (SIZED, "size=tyny", r"--set size=tyny: size: \"tyny\" is none .* did you mean 'tiny'\?"),
        (SIZED, "size=broken", r"file:18:7: training.epochs: must be 1 or more, is 0"),
        (PLAIN, "size=tiny", r"size: \"tiny\" is no size; .* declares no `sizes`"),
        (PLAIN, "sizes=[tiny]", r"sizes: must be a mapping such as .*, is \[\"tiny\"\]"),
        (PLAIN, "sizes={tiny: 3}", "sizes.tiny: must be a mapping such as"),
        (PLAIN, "sizes={tiny: {size: a}}", "'size' is no dotted path of a key that a size can set"),
    ],
)
def test_other_sizes_are_refused(text: str, override: str, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        parse_experiment(text, "file", [override])


def test_editors_know_both_keys() -> None:
    assert {"size", "sizes"} <= experiment_schema()["properties"].keys()

"""The report, its tables and its plots, from made-up studies in every state."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image
from rich.console import Console

from orchestrator.evidence import plots, report
from orchestrator.evidence.findings import findings, tracks_of
from orchestrator.evidence.report import Origin, render
from orchestrator.evidence.series import final_scales, mean_curve, scale_tracks, summarise_scales
from orchestrator.evidence.tables import leaderboard_table, rows
from orchestrator.evidence.wording import Measure
from orchestrator.tracking.record import StudyRecord, fold
from tests.unit.evidence_setup import (
    EPOCHS,
    Planned,
    events_of,
    experiment,
    finished_study,
    half_done_study,
    opening,
    read_on_test,
)

ORIGIN = Origin(versions={"m2pt-orchestrator": "0.1.0"})
STUDIES: dict[str, Callable[[], StudyRecord]] = {
    "half done": half_done_study,
    "empty": lambda: fold([]),
    "baseline alone": lambda: fold(events_of([Planned("baseline", "none")])),
    "pathway alone": lambda: fold(events_of([Planned("search", "audio")])),
    "failed": lambda: fold(events_of([Planned("search", "audio", epochs=1, fails=True)])),
}


@cache
def finished_files() -> dict[str, bytes]:
    """Drawing takes most of the time: once is enough for all who only read."""
    return render(finished_study(), experiment(), ORIGIN)


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_plots", lambda found: {})


class Page(HTMLParser):
    """Tags that are open, text, and every address on a page."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.mark.slow
@pytest.mark.parametrize("study", ["finished", *STUDIES])
def test_every_state_of_a_study_has_a_whole_page(study: str) -> None:
    done = study == "finished"
    files = finished_files() if done else render(STUDIES[study](), experiment(), ORIGIN)
    page = Page(files["report.html"].decode())
    data = json.loads(files["report.json"])
    assert page.open == []
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert len(page.addresses) == len(files) - 2
    assert "http" not in page.text
    assert "None" not in page.text
    assert re.search(r"\bnan\b", page.text) is None
    assert data["verdict"]["text"].replace("-", "\N{MINUS SIGN}") in page.text.replace(
        "-", "\N{MINUS SIGN}"
    )
    assert ("This study is not done" in page.text) == (study != "finished")


@pytest.mark.slow
def test_a_finished_study_shows_what_was_compared() -> None:
    files = finished_files()
    text = Page(files["report.html"].decode()).text
    for words in (
        "Above the baseline and above its control",
        "92.50 ± 0.28 (3)",  # the baseline on test
        "94.26 ± 0.16 (3)",  # the arm
        "92.69 ± 0.43 (3)",  # its control
        "chosen on validation among 5 arms",
        "Over 2 seeds that had no part in choosing the arm",
        "11 finished, 4 stopped, 1 failed",
        "FloatingPointError: train/loss is not finite",
        "gang-0 was lost at attempt 1 (worker 1 of 2 died)",
        "204,234 exported, 204,234 in the plain model",
        "proved",
        "training.learning_rate was searched together with the pathway",
        "orchestrator search experiment.yaml",
    ):
        assert words in text, words
    assert set(files) == {
        "report.html",
        "report.json",
        "learning-curves.svg",
        "scale-trajectories.svg",
        "scale-heat-map.svg",
        "paired-seeds.svg",
    }


@pytest.mark.slow
def test_the_same_record_gives_the_same_bytes() -> None:
    assert render(finished_study(), experiment(), ORIGIN) == finished_files()


def test_the_json_says_what_the_page_says() -> None:
    data = json.loads(finished_files()["report.json"])
    test = data["comparison"]["test"]
    assert data["verdict"]["kind"] == "above_both"
    assert data["verdict"]["claims"] is True
    assert test["values"] == {"0": 0.9417, "1": 0.9444, "2": 0.9417}
    assert test["to_baseline"]["n"] == 3
    assert test["to_control"]["low"] > 0
    assert data["exports"][0]["holds"] is True
    assert data["failures"][0]["attempts"] == 3
    assert [row["role"] for row in data["leaderboard"]][:2] == ["baseline", "best"]


@pytest.mark.usefixtures("without_plots")
def test_a_study_without_test_figures_claims_nothing() -> None:
    record = finished_study()
    for trial in record.trials.values():
        trial.tested = {}
    found = findings(record, experiment())
    assert found.test is None
    assert found.verdict.kind == "not_tested"
    assert not json.loads(render(record, experiment(), ORIGIN)["report.json"])["verdict"]["claims"]


@pytest.mark.usefixtures("without_plots")
def test_a_proof_that_does_not_hold_is_not_called_one() -> None:
    record = finished_study()
    for trial in record.trials.values():
        if trial.proof is not None:
            trial.proof["test"]["relative_difference"] = 2e-5
    text = Page(render(record, experiment(), ORIGIN)["report.html"].decode()).text
    assert "not proved" in text


@pytest.mark.usefixtures("without_plots")
def test_labels_and_errors_are_text_not_markup() -> None:
    record = finished_study()
    for trial in record.trials.values():
        trial.label = f"<script>{trial.label}</script> [bold]"
        trial.error = trial.error and "<b>&"
    html = render(record, experiment(), ORIGIN)["report.html"].decode()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  # closed below
    console.print(leaderboard_table(findings(record, experiment())))
    console.file.close()
    assert "[bold]" in console.export_text().replace("\n", "")


def test_baseline_is_pinned_and_stands_beside_every_arm() -> None:
    found = findings(finished_study(), experiment())
    listed = rows(found)
    assert listed[0]["role"] == "baseline"
    assert [row["rank"] for row in listed if row["rank"]] == [1, 2, 3, 4, 5]
    for row in listed[1:]:
        assert row["baseline_n"] == (row["difference_n"] or 3)  # the same seeds
        if row["difference"] is not None:
            assert row["mean"] - row["baseline_mean"] == pytest.approx(row["difference"])
        assert (row["rank"] is None) == (row["kind"] == "control" or row["mean"] is None)
    best, stopped = listed[1], next(row for row in listed if row["epochs"] == 3)
    assert best["difference_n"] == 3
    assert best["difference_low"] < best["difference"] < best["difference_high"]
    assert best["scale_max_at"] == "3.fc2"
    assert stopped["partial"]
    assert stopped["baseline_mean"] < best["baseline_mean"]  # at the same epoch
    assert json.loads(json.dumps(listed)) == listed


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_the_table_fits_a_terminal(width: int) -> None:
    found = findings(finished_study(), experiment())
    table = leaderboard_table(found, title="study", most=5, width=width)
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    assert max(len(line) for line in lines) <= width
    assert re.search(r"^ *best +audio", capture.get(), re.MULTILINE)
    assert re.search(r" 3/6 *$", capture.get(), re.MULTILINE)
    assert "4 more" in capture.get()
    assert ("|λ|" in capture.get()) == (width >= 120)
    best = next(line for line in lines if line.strip().startswith("best"))
    level = r"\d\d\.\d\d ± \d\.\d\d \(3\)"
    interval = r" .* to [+-]\d\.\d\d\)" if width >= 120 else ""
    assert re.search(rf"{level} +{level} +[+-]\d\.\d\d{interval}", best)  # on one line


def test_a_search_for_the_lowest_loss_is_ranked_and_judged_by_it() -> None:
    lowest = experiment(search={"metric": "val/loss", "mode": "min", "trials": 8})
    found = findings(finished_study(), lowest)
    assert found.measure.on_test() == Measure("test/loss", "min")
    assert found.best is not None
    assert found.best.row.auxiliary == "audio"
    assert found.verdict.kind == "above_both"
    assert "below the baseline on test (lower is better)" in found.verdict.text


def test_the_control_is_the_best_arms_own() -> None:
    found = findings(finished_study(), experiment())
    assert found.control is not None
    assert found.control.row.auxiliary == "random~audio"
    record = finished_study()
    for trial in record.trials.values():
        if trial.stage == "control":
            trial.values["pathway.scale.init"] = 0.1  # now of an arm that was not confirmed
    other = findings(record, experiment())
    assert other.control is None
    assert other.verdict.kind == "no_control"


def test_an_arm_stopped_early_is_not_claimed() -> None:
    trials = [
        *(Planned("baseline", "none", seed) for seed in range(3)),
        *(Planned("search", "audio", seed, epochs=2) for seed in range(3)),
    ]
    found = findings(fold([*opening(), *events_of(trials), *read_on_test()]), experiment())
    assert found.verdict.kind == "partial"
    assert f"no more than 2 of {EPOCHS} epochs" in found.verdict.text


def _plots_of(record: StudyRecord) -> dict[str, bytes]:
    found = findings(record, experiment())
    assert found.best is not None
    tracks = tracks_of(found.best.trials[0])
    dots = [("baseline", {0: 0.9}), ("arm", {0: 0.91, 1: 0.92}), ("control", {})]
    return {
        "curves": plots.learning_curves(found.curves(), found.measure, form="png"),
        "trajectories": plots.scale_trajectories(tracks, form="png"),
        "heat map": plots.scale_heat_map(tracks, form="png"),
        "dots": plots.paired_dots(dots, found.measure, form="png"),
        "no curves": plots.learning_curves([], found.measure, form="png"),
        "no tracks": plots.scale_trajectories([], form="png"),
        "no map": plots.scale_heat_map([], form="png"),
        "no dots": plots.paired_dots([], found.measure, form="png"),
    }


@pytest.mark.slow
def test_plots_are_images_also_of_nothing() -> None:
    for name, image in _plots_of(finished_study()).items():
        with Image.open(BytesIO(image)) as opened:
            assert min(opened.size) > 100, name


def test_scales_are_read_by_block_and_linear() -> None:
    tracks = scale_tracks(
        [
            (1, {"lambda/audio/0.qkv": 0.1, "lambda/audio/blocks.2.mlp.fc2": -0.3, "other": 9.0}),
            (2, {"lambda/audio/0.qkv": 0.2, "lambda/audio/blocks.2.mlp.fc2": -0.6}),
            (2, {"lambda/random~point/1.proj": 0.0}),
        ]
    )
    assert [(t.auxiliary, t.block, t.linear) for t in tracks] == [
        ("audio", 0, "qkv"),
        ("audio", 2, "fc2"),
        ("random~point", 1, "proj"),
    ]
    table = final_scales(tracks, "audio")
    assert table.shape == (3, 4)
    assert table[0, 0] == 0.2
    assert table[2, 3] == -0.6
    summary = summarise_scales(tracks)
    assert summary is not None
    assert summary.max_abs == 0.6
    assert summary.where == "audio 2.fc2"
    assert summarise_scales([]) is None


def test_scales_without_a_name_are_those_of_the_one_auxiliary() -> None:
    (track,) = scale_tracks([(1, {"lambda/3.fc1": 0.5}), (2, {"lambda/3.fc1": 0.25})], "audio")
    assert (track.auxiliary, track.block, track.linear) == ("audio", 3, "fc1")
    summary = summarise_scales([track])
    assert summary is not None
    assert summary.where == "3.fc1"


def test_curves_of_different_length_are_averaged_where_they_are() -> None:
    curve = findings(finished_study(), experiment()).curves()[0]
    short = replace(curve, epochs=curve.epochs[:2], values=(0.0, 0.0))
    epochs, table = mean_curve([curve, short])
    assert epochs == list(range(1, EPOCHS + 1))
    assert (table[1, :2] == 0).all()
    assert bool((table[1, 2:] != table[1, 2:]).all())  # NaN


def test_curves_are_compared_with_the_baseline_of_their_seed() -> None:
    base = findings(finished_study(), experiment()).curves()[:2]
    assert [curve.role for curve in base] == ["baseline", "baseline"]
    ours = replace(base[1], role="arm", values=tuple(value + 0.25 for value in base[1].values))
    strange = replace(ours, seed=9)
    (left,) = plots._minus([*base, ours, strange], base)
    assert left.seed == base[1].seed
    assert left.values == pytest.approx([0.25] * EPOCHS)

"""What may fail, what happens then, and which test shows it: the table of docs/operations.md.

python -m tests.faults.scenarios        writes the table into docs/operations.md
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- made by tests/faults/scenarios.py -->", "<!-- until here -->"


@dataclass(frozen=True)
class Scenario:
    """One row. `proof` is a test, as FILE::FUNCTION under tests/."""

    fails: str
    then: str
    kept: str
    retries: str
    proof: str
    injected: bool = False
    """At a seam in the code, since it cannot be had for real here."""


SCENARIOS = (
    Scenario(
        "a worker of a gang: `kill -9`, idle or in an epoch, any rank",
        "the gang is renewed, its trial goes on from its last checkpoint",
        "every checkpoint; the result is the same to the last bit",
        "Ray Train; twice a trial (`failures.retries.worker`)",
        "faults/test_gangs.py::test_kills_of_workers_cost_no_epoch_and_change_no_bit",
    ),
    Scenario(
        "a worker in the midst of a pre-training, then the driver with everything: `kill -9`",
        "it goes on from its last checkpoint, as a trial does",
        "every checkpoint; the weights are those of a run that nothing happened to",
        "Ray Train; then you: the same command goes on",
        "ray/kept_gang/test_pretraining_killed.py::test_a_pretraining_goes_on_after_a_worker_and_after_everything_was_killed",
    ),
    Scenario(
        "Ray Train's controller",
        "the driver starts the gang's run anew",
        "every checkpoint; the same bits",
        "the driver",
        "faults/test_trials.py::test_a_killed_controller_of_ray_train_costs_no_epoch",
    ),
    Scenario(
        "a trial's process",
        "Tune starts it again; it reads the same reports from the mailbox",
        "every epoch",
        "Tune, three times",
        "faults/test_trial_killed.py::test_kills_of_trials_and_of_a_worker_cost_no_trial_and_no_epoch",
    ),
    Scenario(
        "the study's mailbox",
        "the study ends with exit code 5, and no trial is blamed",
        "every checkpoint",
        "you: the same command goes on",
        "ray/kept_gang/test_lost_mailbox.py::test_a_lost_mailbox_ends_the_study_and_is_held_against_no_trial",
    ),
    Scenario(
        "the driver, with every process on its machine; MLflow's database, caches and spools gone",
        "nothing, until the same command, or `resume`, is given anywhere",
        "finished trials, every checkpoint; MLflow is made anew",
        "you",
        "ray/kept_gang/test_driver_killed.py::test_the_same_command_goes_on_after_everything_was_killed",
    ),
    Scenario(
        "two drivers on one study, started within 100 ms",
        "one runs; the other ends with exit code 2 and says who runs it, since when",
        "the record of one driver, unmixed",
        "nobody has to",
        "faults/test_two_drivers.py::test_of_two_drivers_at_once_one_runs_and_one_is_told_which",
    ),
    Scenario(
        "a driver that is silent, while its workers go on",
        "15 seconds later the same command, elsewhere, takes the study over",
        "every checkpoint and epoch of before",
        "you",
        "faults/test_two_drivers.py::test_a_driver_takes_over_from_one_that_is_silent_and_trains_no_epoch_again",
    ),
    Scenario(
        "a driver that was frozen past its lease, in the midst of a put, and is woken",
        "it ends with exit code 3: lost lease epoch 1 < 2",
        "all that readers see: journal, checkpoints, report, MLflow (a call of MLflow that was"
        " under way arrives late, and says what was true)",
        "nobody has to",
        "faults/test_two_drivers.py::test_a_driver_woken_past_its_lease_changes_nothing_that_anybody_sees",
    ),
    Scenario(
        "a second SIGINT or SIGTERM, while a driver drains",
        "it ends at once, exit code 130, with all that it started",
        "every checkpoint; MLflow shows the study as killed",
        "you",
        "faults/test_two_drivers.py::test_a_second_signal_ends_a_driver_at_once",
    ),
    Scenario(
        "out of memory in a trial",
        "the trial fails, the gang takes the next",
        "the other trials",
        "nobody, unless `failures.retries.out_of_memory` says so",
        "faults/test_trials.py::test_out_of_memory_is_tried_as_often_as_the_file_says",
    ),
    Scenario(
        "a loss that is not a number",
        "the trial fails, the gang takes the next",
        "the other trials",
        "nobody, unless `failures.retries.not_finite` says so",
        "faults/test_trials.py::test_a_loss_that_is_no_number_is_not_tried_again",
    ),
    Scenario(
        "data that cannot be read",
        "the trial fails and says which file",
        "the other trials",
        "nobody, unless `failures.retries.bad_input` says so",
        "faults/test_trials.py::test_bad_data_is_not_tried_again",
    ),
    Scenario(
        "a trial that hangs",
        "after `failures.hang_minutes` its process shows where it stood and leaves",
        "its last checkpoint, the other trials",
        "once (`failures.retries.hang`)",
        "faults/test_trials.py::test_a_hung_trial_is_ended_and_the_gang_renewed",
    ),
    Scenario(
        "a checkpoint that is flipped by a bit, cut short, or gone",
        "it is passed over, named in the log, and the one before is taken",
        "the result: the same bits",
        "the worker",
        "faults/test_trials.py::test_a_damaged_checkpoint_is_passed_over_and_named",
    ),
    Scenario(
        "the storage, for a few seconds",
        "trials wait",
        "everything; no attempt is spent",
        "the worker, for `failures.storage_minutes`",
        "faults/test_trials.py::test_an_outage_costs_time_alone",
    ),
    Scenario(
        "the storage, for two minutes, under a whole study",
        "driver and trials wait; events stay on the driver's disk",
        "everything, to the last bit; no attempt is spent",
        "driver and worker",
        "faults/test_trials.py::test_a_study_outlives_two_minutes_without_its_store_and_more_without_its_mlflow",
    ),
    Scenario(
        "a storage that is overloaded (503), broken (500), full (507), resets connections, or takes"
        " the credentials for expired, for a while",
        "trials wait; new credentials are looked up",
        "everything; no attempt is spent",
        "the worker, for `failures.storage_minutes`",
        "faults/test_trials.py::test_a_spell_of_faults_costs_time_alone",
    ),
    Scenario(
        "a slow storage whose answers get lost",
        "uploads go on while the next epoch trains",
        "everything",
        "the worker",
        "faults/test_trials.py::test_a_slow_store_and_lost_answers_cost_time_alone",
    ),
    Scenario(
        "an upload that is refused (403)",
        "it is never called a checkpoint; the trial fails after its attempts",
        "the checkpoint before",
        "twice a trial (`failures.retries.storage`), then you",
        "faults/test_trials.py::test_a_refused_upload_is_never_called_a_checkpoint",
    ),
    Scenario(
        "MLflow's server: `kill -9`",
        "nothing waits for it; it is filled once it is back",
        "every metric",
        "the driver, in the background",
        "contract/test_mlflow.py::test_a_server_killed_in_the_middle_misses_nothing",
    ),
    Scenario(
        "MLflow that answers 500, 403, nonsense or nothing, loses answers, or has a full disk or a"
        " locked database",
        "nothing waits for it; it is filled once it is well",
        "every metric, each once",
        "the driver, in the background",
        "faults/test_mlflow_faults.py::test_a_fault_costs_the_study_no_time_and_mlflow_nothing",
        injected=True,
    ),
    Scenario(
        "an MLflow that is slow",
        "it is left behind, and catches up",
        "every metric",
        "the driver, in the background",
        "faults/test_mlflow_faults.py::test_a_slow_server_is_left_behind_and_catches_up",
    ),
    Scenario(
        "a node with a worker of a gang on it: announced (a spot machine), then `kill -9` of its"
        " raylet",
        "the trial keeps its state at the next epoch; then the gang is opened on the nodes left",
        "every epoch before the announcement",
        "Ray Train; no attempt is spent",
        "ray/test_two_nodes.py::test_a_gang_spans_nodes_trials_stay_with_the_driver_and_a_leaving_node_costs_no_epoch",
    ),
    Scenario(
        "the supervisor of a Ray job, and the driver with it",
        "`submit` ends with exit code 5",
        "finished trials, every checkpoint",
        "you: hand the job in again",
        "ray/test_jobs.py::test_a_job_whose_supervisor_is_killed_goes_on_when_it_is_handed_in_again",
    ),
    Scenario(
        "the driver, between a checkpoint and the journal's word of it",
        "the manifests say what the journal missed",
        "every epoch that is in a checkpoint",
        "the next driver",
        "unit/test_journal.py::test_a_lost_tail_comes_back_from_manifests",
        injected=True,
    ),
    Scenario(
        "the driver's disk is full",
        "a warning: events go to the storage, without a copy on this disk",
        "every event, as long as the storage is there",
        "nobody has to",
        "faults/test_seams.py::test_a_full_disk_for_spools_costs_a_warning",
        injected=True,
    ),
    Scenario(
        "the wall clock is set by an hour",
        "nothing: times go on as they were",
        "the lease, the order of events, the budget",
        "nobody has to",
        "faults/test_seams.py::test_a_clock_that_jumps_loses_no_lease_and_no_order",
        injected=True,
    ),
    Scenario(
        "all of the above, a random one every few seconds",
        "the study ends as if nothing had been; its driver is started again when it died",
        "every trial; no run, process or placement group is left over",
        "all of the above",
        "faults/test_soak.py::test_trials_are_accounted_for_whatever_happens",
    ),
)


def table() -> str:
    """The rows as Markdown."""
    lines = ["| what fails | what happens | never lost | who tries again |", "|---|---|---|---|"]
    for one in SCENARIOS:
        note = " *(injected)*" if one.injected else ""
        lines.append(f"| {one.fails}{note} | {one.then} | {one.kept} | {one.retries} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with the table as it should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))

"""Once a study is finished: the states of trials that `checkpoints.keep_trials` lets go."""

from orchestrator.config.experiment import Experiment
from orchestrator.evidence.wording import count, size
from orchestrator.storage import layout
from orchestrator.storage.lease import Lease
from orchestrator.storage.removal import remove, states, still_held
from orchestrator.storage.uri import Entry, Store
from orchestrator.study.retention import released
from orchestrator.tracking.record import StudyRecord


def surplus(store: Store, experiment: Experiment, record: StudyRecord) -> list[Entry]:
    """The files of states that are to go and that are still there. Raises StorageError."""
    return states(store, experiment.name, released(record, experiment))


def let_go(store: Store, experiment: Experiment, record: StudyRecord, lease: Lease) -> str:
    """Delete them, for the owner of the study; returns what to tell of it, "" for nothing.

    May be cut short anywhere: the same call goes on. Raises LeaseLost, StorageError.
    """
    gone = surplus(store, experiment, record)
    if not gone:
        return ""
    remove(store, (entry.key for entry in gone), lambda: still_held(lease))
    trials = {at.trial for entry in gone if (at := layout.checkpoint_of(entry.key)) is not None}
    freed = size(sum(entry.size for entry in gone))
    return f"{count(len(trials), 'trial')} let go of their states ({freed}); metrics stay"

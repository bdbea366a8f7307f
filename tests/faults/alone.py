"""What a trial is compared with: the same training in plain Python, without any study."""

import torch

from m2pt.data.load import load
from m2pt.training.loop import Training
from m2pt.training.session import MemorySession, drive
from m2pt.training.state import to_bytes
from orchestrator.promotion.stored import final_state, inputs_from
from orchestrator.storage.checkpoints import TrialCheckpoints
from orchestrator.storage.uri import Store
from orchestrator.tracking.journal import JournalReader
from orchestrator.tracking.record import TrialRecord


def check_it_is_as_if_nothing_had_been(store: Store, study: str, trial: TrialRecord) -> None:
    """The same figures and the same state, to the last bit."""
    accepted = JournalReader(store, study).view().accepted
    meta, state = final_state(TrialCheckpoints(store, study, trial.trial, accepted))
    made = inputs_from(store, meta["inputs"])
    data, session = load(made.config.data), MemorySession(stop_after=len(trial.epochs))
    training = Training(made.config, data, made.auxiliaries)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        drive(training, session)
    finally:
        torch.set_num_threads(threads)
    alone = [(report.epoch, report.metrics) for report in session.reports]
    assert [(epoch.epoch, epoch.metrics) for epoch in trial.epochs] == alone
    assert to_bytes(state) == to_bytes(training.capture())

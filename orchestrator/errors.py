"""What can go wrong, each with the exit code that the command line returns for it."""


class OrchestratorError(Exception):
    """An error that a person can act on: its message says what, where and the remedy."""

    exit_code = 1


class RequestError(OrchestratorError):
    """The request itself is wrong: nothing was started."""

    exit_code = 2


class StorageError(OrchestratorError):
    """The store, or something that should lie in it, cannot be used."""

    exit_code = 3


class TrackingError(OrchestratorError):
    """The MLflow server cannot be used."""

    exit_code = 4


class ClusterError(OrchestratorError):
    """Ray, or the resources that it should provide, cannot be used."""

    exit_code = 5


class NoTrialSucceeded(OrchestratorError):
    """Every trial of the study failed."""

    exit_code = 6


class BudgetSpent(OrchestratorError):
    """A cap of the study was reached before it was done."""

    exit_code = 7


class Stopped(OrchestratorError):
    """Somebody asked the study to stop; it can be resumed."""

    exit_code = 130

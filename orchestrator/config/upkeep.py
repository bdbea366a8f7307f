"""The sections that keep a study going, and what stays of it. What a trial is does not depend on
them, so that they may be changed when a study is resumed."""

from pydantic import BaseModel, ConfigDict, Field


class FrozenSection(BaseModel):
    """A section of the experiment file: unknown keys are refused, and nothing changes later."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class Checkpoints(FrozenSection):
    """How often the resumable state of a trial is stored, and how long it is kept.

    What a trial is does not depend on it. A trial resumes from its newest state, and is measured
    and exported with it. A state goes only once what replaces it is complete; metrics always stay.
    """

    every_epochs: int = Field(default=1, ge=1)
    """A state is stored after every so many epochs, and after the last."""
    keep_last: int = Field(default=2, ge=1)
    """Of each trial, so many of the newest states are kept. With two or more, a newest one that
    turns out to be damaged costs an epoch or so, and not the trial."""
    keep_best: int = Field(default=0, ge=0)
    """Of each trial, the stored states that are best by `search.metric` are kept too, so many."""
    keep_trials: int | None = Field(default=None, ge=0)
    """Once the study is finished, only so many trials keep their states, the best of the
    leaderboard first; those that the verdict compares or that are exported keep them in any case.
    null keeps all. It may be set later, with `orchestrator resume`."""


class Retries(FrozenSection):
    """How often a trial is tried again after each kind of failure; its checkpoint is kept."""

    out_of_memory: int = Field(default=0, ge=0)
    """The worker, or its accelerator, had not enough memory."""
    not_finite: int = Field(default=0, ge=0)
    """A loss was not a finite number."""
    bad_input: int = Field(default=0, ge=0)
    """Data or weights do not suit the trial, such as a label out of range."""
    program: int = Field(default=0, ge=0)
    """Any other error that the training raised."""
    hang: int = Field(default=1, ge=0)
    """No step was made for `failures.hang_minutes`."""
    storage: int = Field(default=2, ge=0)
    """The storage, or the data's server, stayed away for `failures.storage_minutes`."""
    worker: int = Field(default=2, ge=0)
    """A worker's process or machine died, or its accelerator failed."""


class Failures(FrozenSection):
    """What becomes of a trial that fails. What a trial is does not depend on it."""

    retries: Retries = Retries()
    """How often a trial is tried again, by kind of failure."""
    hang_minutes: float | None = Field(default=30.0, gt=0)
    """A trial that makes no step for so long is ended as hung; null waits for ever. Compiling
    and reading the first batch count as well."""
    storage_minutes: float = Field(default=15.0, ge=0)
    """How long a trial waits for a storage that does not answer before its attempt fails."""

"""What becomes of the driver's threads that keep gangs open."""

from typing import Any
from unittest import mock

import pytest

from orchestrator.errors import ClusterError
from orchestrator.ray_backend.gang import Gangs


def test_a_fault_in_the_thread_of_a_gang_is_told() -> None:
    nobody: Any = None
    gangs = Gangs(nobody, 1, nobody, "s", nobody)
    with (
        mock.patch.object(Gangs, "_attempt", return_value=0),
        mock.patch.object(Gangs, "_run", side_effect=AttributeError("no such thing")),
    ):
        gangs._keep_open(0)
    with pytest.raises(ClusterError, match="could be kept open: AttributeError: no such thing"):
        gangs.check()

"""For the tests of this folder: one gang, as long as they last."""

from collections.abc import Iterator

import pytest

from tests.ray.kept_gang.kept import Kept, kept_gang


@pytest.fixture(scope="package")
def kept(ray_head: str) -> Iterator[Kept]:
    with kept_gang(ray_head) as kept:
        yield kept

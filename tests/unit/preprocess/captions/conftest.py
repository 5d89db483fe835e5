"""Pictures that several of these tests share."""

import pytest

from tests.helpers.preparing import noise


@pytest.fixture
def images():
    return [noise(seed=seed) for seed in range(5)]

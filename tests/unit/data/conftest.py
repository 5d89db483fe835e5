"""Fixtures that several of these tests share."""

from tests.helpers.ramps import ramps  # noqa: F401
from tests.helpers.streams import shards, tars  # noqa: F401

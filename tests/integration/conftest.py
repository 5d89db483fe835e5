"""Fixtures of these tests: bases, a stream, and runs with faults."""

from tests.helpers.bases import base_of, original  # noqa: F401
from tests.helpers.fault_runs import config, uninterrupted  # noqa: F401
from tests.helpers.streams import shards  # noqa: F401

"""What several of these tests share: a stream, and runs that faults befall."""

from tests.helpers.fault_runs import config, uninterrupted  # noqa: F401
from tests.helpers.streams import shards  # noqa: F401

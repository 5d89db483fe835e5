"""What several of these tests share: bases, a stream, and runs that faults befall."""

from tests.helpers.bases import base_of, original  # noqa: F401
from tests.helpers.fault_runs import config, uninterrupted  # noqa: F401
from tests.helpers.streams import shards  # noqa: F401

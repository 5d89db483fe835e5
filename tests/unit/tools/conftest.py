"""LoRA files and bases that several of these tests share."""

from tests.helpers.bases import bases  # noqa: F401
from tests.helpers.tools import loras  # noqa: F401

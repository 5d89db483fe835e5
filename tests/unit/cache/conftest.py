"""Pictures that several of these tests share."""

from tests.helpers.caches import pictures  # noqa: F401

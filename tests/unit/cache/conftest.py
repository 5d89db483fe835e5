"""Pictures that several of these tests share."""

from tests.helpers.caches import images  # noqa: F401

"""Streams that several of these tests share."""

from tests.helpers.streams import shards, tars  # noqa: F401

"""Bases that several of these tests share."""

from tests.helpers.bases import base_of, bases, folder, original  # noqa: F401

"""Fixtures of these tests."""

from tests.helpers.poor_file_systems import no_flush_of_folders, no_mapping, no_rename  # noqa: F401

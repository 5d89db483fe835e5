"""A flag that a test changes in its own process, unknown to a process that was started anew. Imports nothing."""

CHANGED = False


def is_changed() -> bool:
    return CHANGED

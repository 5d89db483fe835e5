"""What a test changes in its own process: a process that was started anew does not know of it. Imports nothing."""

CHANGED = False


def is_changed() -> bool:
    return CHANGED

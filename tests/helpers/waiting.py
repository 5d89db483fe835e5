"""Wait for a process, a file or a browser without knowing how long."""

import time


def until(condition, seconds: float = 120):
    """Return the condition's value once it is true; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")

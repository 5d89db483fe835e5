"""Waiting for what a process, a file or a browser is about to do, without knowing when."""

import time


def until(condition, seconds: float = 120):
    """What the condition gives once it is true; `seconds` is when to give up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")

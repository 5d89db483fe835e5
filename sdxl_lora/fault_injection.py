"""Fault injection for tests: makes a real run fail at a chosen point.

    TRAINER_FAULT=kill9@step=31            after step 31, before its checkpoint
    TRAINER_FAULT=kill9@checkpoint_file=2  at the second of the points inside a save (see run/checkpoints.py), counted
                                           over the whole run
    TRAINER_FAULT=nan@step=5,rank=1        only on that process
    TRAINER_FAULT=wait@step=every          each time, as if steps took longer
    actions: kill9, term, int, stop (sends SIGSTOP), oom, nan (of the loss), exit (without a message), wait
    points: loading, caching, rehearsal, step, checkpoint_file, sample

Does nothing while TRAINER_FAULT is unset.
"""

import os
import signal
import time
from collections import Counter

import psutil

SECONDS_OF_A_WAIT = 0.2

_passed: Counter = Counter()


def fault_point(point: str, number: int | None = None) -> bool:
    """Perform the fault that TRAINER_FAULT requests at this point.

    Args:
        number: number of this event; by default the count of calls at this point, from 1.
    Returns:
        True if the caller should corrupt its numbers (nan).
    Raises:
        torch.OutOfMemoryError: if requested.
    """
    wanted = os.environ.get("TRAINER_FAULT")
    if not wanted:
        return False
    _passed[point] += 1
    action, _, place = wanted.partition("@")
    conditions = dict(part.split("=") for part in place.split(","))
    if conditions.get("rank", os.environ.get("RANK", "0")) != os.environ.get("RANK", "0"):
        return False
    if conditions.get(point) not in ("every", str(_passed[point] if number is None else number)):
        return False
    if action == "kill9":
        psutil.Process().kill()
    if action == "stop":
        psutil.Process().suspend()
    if action in ("term", "int"):
        signal.raise_signal(signal.SIGTERM if action == "term" else signal.SIGINT)
    if action == "wait":
        time.sleep(SECONDS_OF_A_WAIT)
    if action == "exit":
        os._exit(1)
    if action == "oom":
        import torch

        raise torch.OutOfMemoryError("TRAINER_FAULT: out of memory")
    return action == "nan"

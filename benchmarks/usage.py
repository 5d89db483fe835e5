"""CPU time and memory of processes, as POSIX counts them: these benchmarks do not run on Windows."""

import resource
import sys

HOW = "Windows does not count what a process has used in this way"


def cpu_of_children() -> float:
    """Return the CPU seconds of the children that have ended."""
    if sys.platform == "win32":
        raise OSError(HOW)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peak_gib() -> float:
    """Return the peak memory of this process."""
    if sys.platform == "win32":
        raise OSError(HOW)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

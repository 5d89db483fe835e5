"""What processes have used, as POSIX counts it: these benchmarks do not run on Windows."""

import resource
import sys

HOW = "Windows does not count what a process has used in this way"


def cpu_of_children() -> float:
    """Seconds of processor time, of the children that have ended."""
    if sys.platform == "win32":
        raise OSError(HOW)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peak_gib() -> float:
    """The most memory that this process has held."""
    if sys.platform == "win32":
        raise OSError(HOW)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

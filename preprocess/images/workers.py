"""Run prepared_or_refused over all images in worker processes."""

import os
import signal
import socket
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from preprocess.images.prepare import Job, Prepared, Refused, prepared_or_refused
from sdxl_lora.config.sections.preprocess import JobConfig
from sdxl_lora.errors import DataError
from sdxl_lora.operating_system import PROCESSES, usable_cpus

Result = list[Prepared] | Refused


def prepare_all(jobs: list[Job], num_workers: int) -> dict[str, Result]:
    """Return the result of each image, by its name.

    Args:
        num_workers: processes that decode and write; 0 for this one alone.
    Raises:
        DataError: a worker was killed; names the images at work.
        OSError: a disk error.
    """
    results = run_in_pool(jobs, num_workers) if num_workers and len(jobs) > 1 else map(prepared_or_refused, jobs)
    names = (job.name for job in jobs)
    return dict(zip(names, tqdm(results, total=len(jobs), desc="images", unit="img"), strict=True))


def workers_of(config: JobConfig, processes: int) -> int:
    """Return the number of workers for each of the `processes` on this machine."""
    if config.num_workers is not None:
        return config.num_workers
    return min(8, max(1, usable_cpus() // processes))


def run_in_pool(jobs: list[Job], num_workers: int) -> Iterator[Result]:
    """Yield results in the order of the jobs; the queue is bounded, so memory does not grow with their number."""
    waiting = iter(jobs)
    pool = ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=PROCESSES, initializer=leave_ctrl_c_to_parent)
    try:
        at_work = deque(pool.submit(prepare_under_name, job) for job in islice(waiting, 4 * num_workers))
        while at_work:
            yield at_work.popleft().result()
            at_work.extend(pool.submit(prepare_under_name, job) for job in islice(waiting, 1))
    except BrokenProcessPool:
        names = ", ".join(
            sorted(note.read_text(encoding="utf-8") for note in under_way(jobs[0]).glob(f"{socket.gethostname()}-*"))
        )
        raise DataError(
            f"a worker process was killed, usually for lack of memory, while it prepared {names or 'an image'}: "
            "start again with --num_workers 1; what is done is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the images at work, not for queued ones


def leave_ctrl_c_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def prepare_under_name(job: Job) -> Result:
    """Prepare an image while a note on disk holds its name, so that the image of a killed worker is known."""
    note = under_way(job) / f"{socket.gethostname()}-{os.getpid()}"
    note.write_text(job.name, encoding="utf-8")
    result = prepared_or_refused(job)
    note.unlink(missing_ok=True)
    return result


def under_way(job: Job) -> Path:
    return job.output / ".preprocess" / "under_way"

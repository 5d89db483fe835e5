"""Every picture through prepared_or_refused, in worker processes."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from tqdm import tqdm

from preprocess.pictures import Job, Prepared, Refused, prepared_or_refused
from sdxl_lora.errors import DataError

Result = list[Prepared] | Refused


def prepare_all(jobs: list[Job], num_workers: int) -> dict[str, Result]:
    """What became of each picture, by its name.

    Args:
        num_workers: processes that decode and write; 0 for this one alone.
    Raises:
        DataError: a worker was killed; names the pictures at work.
        OSError: the disk.
    """
    results = run_in_pool(jobs, num_workers) if num_workers and len(jobs) > 1 else map(prepared_or_refused, jobs)
    names = (job.name for job in jobs)
    return dict(zip(names, tqdm(results, total=len(jobs), desc="pictures", unit="img"), strict=True))


def run_in_pool(jobs: list[Job], num_workers: int) -> Iterator[Result]:
    """Results in the order of the jobs; so few jobs wait at once that memory does not grow with their number."""
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in an unknown state
    waiting = iter(jobs)
    with ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=context) as pool:
        at_work = [(job, pool.submit(prepared_or_refused, job)) for job in islice(waiting, 4 * num_workers)]
        while at_work:
            job, future = at_work.pop(0)
            try:
                yield future.result()
            except BrokenProcessPool:
                names = ", ".join(j.name for j, _ in [(job, future), *at_work][:num_workers])
                raise DataError(
                    f"a worker process was killed, for lack of memory as a rule, while it prepared one of {names}: "
                    "start again with --num_workers 1; what is done is kept"
                ) from None
            at_work += [(job, pool.submit(prepared_or_refused, job)) for job in islice(waiting, 1)]

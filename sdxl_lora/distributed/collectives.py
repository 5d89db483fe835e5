"""Decisions that one process takes for all; waits that last as long as there is life in the others."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswer
from typing import TypeVar

import torch.distributed
from accelerate.utils import broadcast_object_list, gather_object

from sdxl_lora.distributed.rendezvous import timeout_of

Result = TypeVar("Result")
HEARTBEAT_SECONDS = 5.0  # between two signs of life
_blocks = itertools.count()  # every process counts alike, as it takes part in every collective


@contextlib.contextmanager
def patient_barrier(accelerator):
    """A block at whose end all processes wait for all, however long one works in it: an upload, a slow disk, captions.

    Waiting in a collective would end after the timeout. Here a process counts as lost only where none of those that
    are still at work gives a sign of life for that long.

    Raises:
        RuntimeError: such a process is lost.
    """
    if accelerator.num_processes == 1:
        yield
        return
    store = torch.distributed.distributed_c10d._get_default_store()  # its timeout is that of the collectives
    limit, store = timeout_of(store), torch.distributed.PrefixStore(f"block {next(_blocks)}", store)
    done = threading.Event()

    def show_life() -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: the others have ended
            while not done.wait(min(HEARTBEAT_SECONDS, limit / 4)):
                store.add("signs", 1)

    threading.Thread(target=show_life, daemon=True).start()
    try:
        yield
    finally:
        done.set()
    asking = ThreadPoolExecutor(1)  # a store that is cut off never answers

    def ask(key: str, number: int) -> int:
        try:
            return asking.submit(store.add, key, number).result(limit)
        except NoAnswer:
            raise RuntimeError(f"Timed out waiting {limit:.0f} s for an answer of the main process") from None

    try:
        ask("done", 1)
        signs, since, pause = 0, time.monotonic(), 0.01
        while ask("done", 0) < accelerator.num_processes:
            before, signs = signs, ask("signs", 0)
            if signs != before:
                since = time.monotonic()
            elif time.monotonic() - since > limit:
                raise RuntimeError(f"Timed out waiting {limit:.0f} s for a sign of life of another process")
            time.sleep(pause)
            pause = min(2 * pause, 1)
    finally:
        asking.shutdown(wait=False)


@contextlib.contextmanager
def raise_on_all_ranks(accelerator):
    """What the block raises on any process is raised on every one, so that none waits for another that is gone.

    A process may take as long as it works, see `patient_barrier`.
    """
    raised = None
    with patient_barrier(accelerator):
        try:
            yield
        except Exception as error:
            raised = error
    errors = [error for error in gather_object([raised]) if error is not None]
    if errors:
        raise raised or errors[0]


def on_main_and_broadcast(accelerator, decide: Callable[[], Result]) -> Result:
    """Return what `decide` returns on the main process, on every process; what it raises there is raised on every one.

    It may take as long as it works, see `patient_barrier`.
    """
    answer: list = [None, None]
    with patient_barrier(accelerator):
        if accelerator.is_main_process:
            try:
                answer[0] = decide()
            except Exception as error:
                answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def main_process_first(accelerator, make: Callable[[], Result]) -> Result:
    """What `make` returns, by the main process before the others; what it raises there is raised on every one."""
    made: list = []
    on_main_and_broadcast(accelerator, lambda: made.append(make()))
    return made[0] if made else make()

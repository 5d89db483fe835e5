"""Decisions that one process takes for all, and barriers that wait as long as the other processes are alive."""

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
_blocks = itertools.count()  # the same on every process, as each takes part in every collective


@contextlib.contextmanager
def patient_barrier(accelerator):
    """Barrier at the end of a block, however long a process works in it: an upload, a slow disk, captions.

    A collective would time out. Here a process counts as lost only if none of those still at work gives a sign of life
    for as long as the timeout.

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
            raise RuntimeError(f"Timed out waiting {limit:.0f} s for an answer from the main process") from None

    try:
        ask("done", 1)
        signs, since, pause = 0, time.monotonic(), 0.01
        while ask("done", 0) < accelerator.num_processes:
            before, signs = signs, ask("signs", 0)
            if signs != before:
                since = time.monotonic()
            elif time.monotonic() - since > limit:
                raise RuntimeError(f"Timed out waiting {limit:.0f} s for a sign of life from another process")
            time.sleep(pause)
            pause = min(2 * pause, 1)
    finally:
        asking.shutdown(wait=False)


@contextlib.contextmanager
def raise_on_all_ranks(accelerator):
    """Raise on every process the block's error on any of them, so that none waits for a process that is gone.

    A process may work in the block for any time, see `patient_barrier`.
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
    """Run `decide` on the main process and return its result, or raise its error, on every process.

    It may work for any time, see `patient_barrier`.
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
    """Return the result of `make`, called by the main process first, whose errors are raised on every process."""
    made: list = []
    on_main_and_broadcast(accelerator, lambda: made.append(make()))
    return made[0] if made else make()

"""Rendezvous of the processes of one start, in a launcher's store that may still hold entries of dead processes.

torch 2.13's launcher keeps its store when `--max_restarts` restarts the processes, and nothing in their environment
distinguishes one start from another on all machines (https://github.com/pytorch/pytorch/issues/135712): a new process
that is faster than the others reads the address of a dead one. Here they agree on an unused part of the store.
"""

import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from sdxl_lora.errors import LostProcessError

INIT_METHOD = "living://"  # for torch.distributed.init_process_group
ASK_SECONDS = 0.2


def timeout_of(store: Store) -> float:
    """Return a store's timeout in seconds, which torch's stubs lack."""
    return getattr(store, "timeout").total_seconds()  # noqa: B009


def living_only(store: Store, rank: int, world_size: int) -> Store:
    """Return a part of `store` used only by the `world_size` processes that call this.

    The main process (rank 0) chooses its name. The others answer under that name, and the main process confirms each
    answer; a name without confirmation is that of a dead main process.

    Raises:
        LostProcessError: one of them does not come within the store's timeout.
    """
    own, seconds = uuid.uuid4().hex, timeout_of(store)
    if rank == 0:
        store.set("start", own)
        for other in range(1, world_size):
            try:
                theirs = store.get(f"{own}/{other}").decode()
            except RuntimeError as error:
                raise LostProcessError(f"rank {other} did not arrive within {seconds:.0f} s ({error})") from error
            store.set(f"{own}/{theirs}", "welcome")
        return PrefixStore(own, store)
    since, start = time.monotonic(), ""
    while not (start and store.check([f"{start}/{own}"])):
        if time.monotonic() - since > seconds:
            raise LostProcessError(f"the main process did not arrive within {seconds:.0f} s")
        if store.check(["start"]):
            start = store.get("start").decode()
            store.set(f"{start}/{rank}", own)
        time.sleep(ASK_SECONDS)
    return PrefixStore(start, store)


def rendezvous_of_the_living(_url: str, timeout: timedelta, **_) -> Iterator[tuple[Store, int, int]]:
    """Yield torch's rendezvous by environment variables, with the store replaced by `living_only`'s part of it.

    Raises:
        LostProcessError: nobody answers where the main process should be, or its port is taken.
    """
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    except DistError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise LostProcessError(
            f"the processes cannot meet at {place}, MASTER_ADDR and MASTER_PORT in the environment "
            f"({str(error).splitlines()[0]}): it must be the machine of rank 0, and a port that is free there"
        ) from error
    store.set_timeout(timeout)
    yield living_only(store, rank, world_size), rank, world_size


register_rendezvous_handler(INIT_METHOD.removesuffix("://"), rendezvous_of_the_living)

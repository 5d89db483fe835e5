"""Waits of several processes: as long as there is life in the others, and not longer."""

import os
import signal
import time

import pytest

from tests.helpers.forking import CONTEXT
from tests.helpers.launch import free_port

TIMEOUT = 2


def in_process(rank, world_size, port, work, results):
    os.environ.update(
        ACCELERATE_USE_CPU="true", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
    )  # fmt: skip
    from sdxl_lora.config.sections.compute import BatchConfig, ComputeConfig
    from sdxl_lora.config.sections.run import LoggingConfig
    from sdxl_lora.distributed.accelerator import make_accelerator

    compute = ComputeConfig(mixed_precision="no", process_timeout_seconds=TIMEOUT)
    accelerator = make_accelerator(compute, BatchConfig(), LoggingConfig(report_to="none"), "run")
    try:
        results.put((rank, work(accelerator)))
    except Exception as error:
        results.put((rank, f"{type(error).__name__}: {error}"))
    results.close()
    results.join_thread()
    os._exit(0)  # not to wait for what was lost on purpose


def in_processes(work, world_size=2):
    """What `work(accelerator)` gives, or the words of what it raises, in each of some processes; None where it died."""
    results, port = CONTEXT.Queue(), free_port()
    processes = [
        CONTEXT.Process(target=in_process, args=(rank, world_size, port, work, results)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    given = {}
    while not results.empty():
        given |= [results.get()]
    return [given.get(rank) for rank in range(world_size)]


def slow_decision(accelerator):
    from sdxl_lora.distributed.collectives import on_main_and_broadcast

    return on_main_and_broadcast(accelerator, lambda: time.sleep(2.5 * TIMEOUT) or "uploaded")


def slow_share(accelerator):
    from sdxl_lora.distributed.collectives import raise_on_all_ranks

    with raise_on_all_ranks(accelerator):
        time.sleep(2.5 * TIMEOUT * (accelerator.process_index == 1))
    return "both are here"


def failing_decision(accelerator):
    from sdxl_lora.distributed.collectives import main_process_first

    return main_process_first(accelerator, lambda: 1 / 0)


def first_then_others(accelerator):
    from sdxl_lora.distributed.collectives import main_process_first

    return main_process_first(accelerator, time.monotonic)


def hangs(accelerator):
    from sdxl_lora.distributed.collectives import raise_on_all_ranks

    with raise_on_all_ranks(accelerator):
        if accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return "never here"


def in_a_collective(accelerator):
    time.sleep(2.5 * TIMEOUT * accelerator.is_main_process)
    accelerator.wait_for_everyone()
    return "both are here"


@pytest.mark.parametrize("work, given", [(slow_decision, "uploaded"), (slow_share, "both are here")])
def test_a_slow_process_is_waited_for_beyond_the_timeout(work, given):
    assert in_processes(work) == [given, given]


def test_a_collective_does_not_wait_beyond_the_timeout():
    """Which proves that there is one."""
    assert "both are here" not in in_processes(in_a_collective)


def test_what_the_main_process_raises_all_raise():
    assert in_processes(failing_decision) == ["ZeroDivisionError: division by zero"] * 2


def test_the_main_process_is_first():
    first, second = in_processes(first_then_others)
    assert first < second


def test_a_process_that_shows_no_life_is_lost_after_the_timeout():
    waiting, dead = in_processes(hangs)
    assert dead is None and waiting.startswith("RuntimeError: Timed out waiting 2 s for a sign of life")

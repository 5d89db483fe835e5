"""The Accelerator; decisions that one process takes for all; waits that last as long as there is life in the others."""

import contextlib
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswer
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import ProjectConfiguration, broadcast_object_list, gather_object

from sdxl_lora.errors import ConfigError
from sdxl_lora.rendezvous import INIT_METHOD

Result = TypeVar("Result")
SIGN_SECONDS = 5.0  # between two signs of life
_blocks = itertools.count()  # every process counts alike, as it takes part in every collective


def make_accelerator(
    mixed_precision: str, micro_steps: int, report_to: str, run_dir: str, logging_dir: str, timeout_seconds: int = 1800
) -> Accelerator:
    """The Accelerator of a run, its precision and accumulation ours whatever the launcher's config says.

    Raises:
        ConfigError: the precision is not to be had here, or the launched processes do not know of each other.
    """
    trackers = {"all": ["tensorboard", "wandb"], "none": None}.get(report_to, [report_to])
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=micro_steps,
            log_with=trackers,
            project_config=ProjectConfiguration(run_dir, str(Path(run_dir) / logging_dir)),
            # The frozen base has no buffers that change; a view saves a copy of the gradients; every step has the same
            # graph, but torch 2.13 fails an assertion where such a DDP begins with a micro-step that sends nothing.
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=micro_steps == 1
                ),
                InitProcessGroupKwargs(init_method=INIT_METHOD, timeout=timedelta(seconds=timeout_seconds)),
            ],
        )
    except ValueError as error:
        raise ConfigError(f"mixed_precision {mixed_precision} cannot be used here: {error}") from error
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("mixed_precision fp16 cannot be used here: it needs a GPU; without one use no or bf16")
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but each would train alone: there is no GPU for them. "
            "Launch one process, or set ACCELERATE_USE_CPU=true"
        )
    return accelerator


def send_only_what_trains(accelerator, model: torch.nn.Module) -> None:
    """Before `prepare`: let DDP pass over the frozen base, which it would send to all at the start (5 GB for SDXL).

    Raises:
        ConfigError: the processes have not read the same base.
    """
    if accelerator.num_processes == 1:
        return
    frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    frozen |= dict(model.named_buffers())
    sums = [(name, tuple(tensor.shape), sum_of_bytes(tensor)) for name, tensor in frozen.items()]
    of_all = gather_object([hashlib.sha256(str(sums).encode()).hexdigest()])
    if len(set(of_all)) > 1:
        odd = [rank for rank, of_rank in enumerate(of_all) if of_rank != of_all[0]]
        raise ConfigError(f"ranks {odd} have read another base than rank 0: give every machine the same files")
    torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(frozen))


def sum_of_bytes(tensor: torch.Tensor) -> int:
    """Exact and in any order, so that it is the same on every device."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).sum(dtype=torch.int64).item()


def set_arithmetic(allow_tf32: bool, deterministic: bool) -> None:
    """TF32 or full float32 products on CUDA, and only kernels that give the same bits each time, on the CPU too.

    To be called before the first product: libraries read their environment then.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow_tf32
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # else, on Intel's CPUs, bits depend on where operands lie
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic)


@contextlib.contextmanager
def at_own_pace(accelerator):
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
    limit, store = store.timeout.total_seconds(), torch.distributed.PrefixStore(f"block {next(_blocks)}", store)
    done = threading.Event()

    def show_life() -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: the others have ended
            while not done.wait(min(SIGN_SECONDS, limit / 4)):
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
    asking.shutdown()


@contextlib.contextmanager
def all_raise_what_one_raises(accelerator):
    """What the block raises on any process is raised on every one, so that none waits for another that is gone.

    A process may take as long as it works, see `at_own_pace`.
    """
    raised = None
    with at_own_pace(accelerator):
        try:
            yield
        except Exception as error:
            raised = error
    errors = [error for error in gather_object([raised]) if error is not None]
    if errors:
        raise raised or errors[0]


def main_process_decides(accelerator, decide: Callable[[], Result]) -> Result:
    """What `decide` returns on the main process, on every process; what it raises there is raised on every one.

    It may take as long as it works, see `at_own_pace`.
    """
    answer: list = [None, None]
    with at_own_pace(accelerator):
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
    main_process_decides(accelerator, lambda: made.append(make()))
    return made[0] if made else make()

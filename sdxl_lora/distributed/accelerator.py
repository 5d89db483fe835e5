"""Accelerator of a run, its arithmetic, and the tensors that DDP sends."""

import hashlib
import os
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.utils import ProjectConfiguration, gather_object

from sdxl_lora.config.sections.compute import BatchConfig, ComputeConfig
from sdxl_lora.config.sections.run import LoggingConfig
from sdxl_lora.distributed.launcher import YES, set_aside
from sdxl_lora.distributed.rendezvous import INIT_METHOD
from sdxl_lora.errors import ConfigError


def make_accelerator(compute: ComputeConfig, batch: BatchConfig, logging: LoggingConfig, run_dir: str) -> Accelerator:
    """Make the Accelerator of a run with our precision and accumulation, whatever the launcher's config says.

    Also sets the process's arithmetic, see `set_arithmetic`.

    Raises:
        ConfigError: the precision is unavailable here, or the launched processes do not know of each other.
    """
    mixed_precision, micro_steps = compute.mixed_precision, batch.gradient_accumulation_steps
    start_processes(compute, batch)
    trackers = {"all": ["tensorboard", "wandb"], "none": None}.get(logging.report_to, [logging.report_to])
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=micro_steps,
            log_with=trackers,
            project_config=ProjectConfiguration(run_dir, str(Path(run_dir) / logging.logging_dir)),
            # The frozen base has no buffers that change; a view saves a copy of the gradients; all steps share one
            # graph, but torch 2.13 fails an assertion if a static one begins with a micro-step that sends nothing.
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=micro_steps == 1
                ),
                process_group_of(compute),
            ],
        )
    except (ValueError, ImportError) as error:
        is_precision = any(word in str(error).lower() for word in ("precision", "bf16", "fp16", "bfloat"))
        what = f"mixed_precision {mixed_precision} cannot be used here" if is_precision else "accelerate cannot start"
        raise ConfigError(f"{what}: {error}") from error
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("mixed_precision fp16 cannot be used here: it needs a GPU; without one use no or bf16")
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but each would train alone: there is no GPU for them. "
            "Launch one process, or set ACCELERATE_USE_CPU=true"
        )
    set_arithmetic(compute.allow_tf32, compute.deterministic)
    return accelerator


def start_processes(compute: ComputeConfig, batch: BatchConfig) -> PartialState:
    """Connect this process to the others and return its state with its device; `make_accelerator` uses the same.

    Raises:
        ConfigError: the launched processes do not know of each other, or cannot be connected.
    """
    said = set_aside(os.environ, compute.mixed_precision, batch.gradient_accumulation_steps)
    if int(os.environ.get("RANK", 0)) == 0:
        for text in said:
            warnings.warn(text, stacklevel=3)
    check_named_device()
    try:
        return PartialState(is_cpu_asked_for(), **process_group_of(compute).to_kwargs())
    except (ValueError, ImportError) as error:
        raise ConfigError(f"accelerate cannot start: {error}") from error


def process_group_of(compute: ComputeConfig) -> InitProcessGroupKwargs:
    timeout = timedelta(seconds=compute.process_timeout_seconds)
    return InitProcessGroupKwargs(init_method=INIT_METHOD, timeout=timeout)


def check_named_device() -> None:
    """Raise ConfigError if ACCELERATE_TORCH_DEVICE names a device that is not here."""
    if (name := os.environ.get("ACCELERATE_TORCH_DEVICE")) is None:
        return
    try:
        torch.zeros(1, device=name)
    except Exception as error:  # torch raises many kinds
        why = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"ACCELERATE_TORCH_DEVICE is {name!r} in the environment, which is not a device here ({why}): unset it"
        ) from error


def is_cpu_asked_for() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in YES


def device_here() -> torch.device:
    """Return the device that Accelerate will choose for a single process, before there is an Accelerator."""
    if is_cpu_asked_for():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def send_only_what_trains(accelerator, model: torch.nn.Module) -> None:
    """Make DDP ignore the frozen base, which it would send to all at the start (5 GB for SDXL). Call before `prepare`.

    Raises:
        ConfigError: the processes have read different bases.
    """
    if accelerator.num_processes == 1:
        return
    frozen: dict[str, torch.Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad
    }
    frozen |= dict(model.named_buffers())
    sums = [(name, tuple(tensor.shape), sum_of_bytes(tensor)) for name, tensor in frozen.items()]
    of_all = gather_object([hashlib.sha256(str(sums).encode()).hexdigest()])
    if len(set(of_all)) > 1:
        odd = [rank for rank, of_rank in enumerate(of_all) if of_rank != of_all[0]]
        raise ConfigError(f"ranks {odd} have read a different base from rank 0: give every machine the same files")
    torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(frozen))


def sum_of_bytes(tensor: torch.Tensor) -> int:
    """Return the sum of a tensor's bytes, exact in any order and so the same on every device."""
    return int(tensor.detach().contiguous().flatten().view(torch.uint8).sum(dtype=torch.int64))


def set_arithmetic(allow_tf32: bool, deterministic: bool) -> None:
    """Set TF32 or full float32 products on CUDA, and whether all kernels, even on the CPU, are deterministic.

    Call it before the first product, when libraries read their environment.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow_tf32
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # without it, bits depend on memory alignment on Intel's CPUs
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic)

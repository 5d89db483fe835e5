"""Requests of a launcher's config or the environment that this training does not support: ignored, with a line each.

Users have accelerate's config from other work, or start from a notebook, by MPI or in a cluster that sets some of
torch's variables. This training supports one process, or DistributedDataParallel over several. No torch.
"""

import contextlib
import json
import time
from collections.abc import Mapping, MutableMapping

from sdxl_lora.errors import ConfigError

YES, NO = ("true", "1", "yes", "on", "y", "t"), ("false", "0", "no", "off", "n", "f", "none", "")
FLAGS = ("ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY", "FORK_LAUNCHED")
PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's data parallelism",
}
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
OF_MPI = {  # torch's name: those of Intel MPI and MPICH, of OpenMPI and of MVAPICH, as accelerate reads them
    "WORLD_SIZE": ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "RANK": ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "LOCAL_RANK": ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    "LOCAL_WORLD_SIZE": ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
}
HOW_TO = "start it with `accelerate launch` or `torchrun`, which set all of them, or unset them"


def set_aside(environment: MutableMapping[str, str], mixed_precision: str, micro_steps: int) -> list[str]:
    """Remove variables for features of accelerate that this training lacks, and return a line about each.

    Raises:
        ConfigError: the variables do not define the processes of this start.
    """
    said = []
    settle_flags(environment)
    for name, what in PLUGINS.items():
        if environment.pop(name, "").lower() not in NO:
            said.append(f"{what} is not used: each process holds the whole model, and they average their gradients")
    backend = environment.pop("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("no", ""):
        said.append(f"TorchDynamo ({backend}) is not used: --compile compiles the UNet's blocks")
    asked = environment.pop("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", mixed_precision):
        said.append(f"mixed_precision {asked} is not used: --mixed_precision {mixed_precision} applies")
    for name in [name for name in environment if name.startswith("ACCELERATE_FP8_")]:
        del environment[name]
    asked = environment.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if asked not in ("1", str(micro_steps)):
        said.append(
            f"gradient_accumulation_steps {asked} is not used: --gradient_accumulation_steps {micro_steps} applies"
        )
    said = [f"accelerate's config or the environment asks for more than is done here: {text}" for text in said]
    return said + settle_processes(environment)


def settle_flags(environment: MutableMapping[str, str]) -> None:
    """Set accelerate's flags to true or false; raise ConfigError for other words, at which accelerate would fail."""
    for name in FLAGS:
        value = environment.get(name, "no").lower()
        if value not in (*YES, *NO):
            raise ConfigError(f"{name} is {environment[name]!r} in the environment, it must be true or false")
        if name in environment:
            environment[name] = "true" if value in YES else "false"


def settle_processes(environment: MutableMapping[str, str]) -> list[str]:
    """Make torch's variables complete or absent: a single process may have some of them by accident.

    Raises:
        ConfigError: an incomplete set names several processes, or a value is no valid number.
    """
    for name in [name for name in NUMBERS if environment.get(name, "").strip() == "-1"]:
        del environment[name]  # in older scripts -1 means a single process
    take_from_mpi(environment)
    for name in NUMBERS:
        value = environment.get(name)
        if value is not None and not value.strip().isdigit():
            raise ConfigError(f"{name} is {value!r} in the environment, it must be a whole number: {HOW_TO}")
    if not 0 < int(environment.get("MASTER_PORT", 1)) < 2**16:
        raise ConfigError(
            f"MASTER_PORT is {environment['MASTER_PORT']} in the environment, it must be from 1 to 65535: {HOW_TO}"
        )
    numbers = {name: int(environment[name]) for name in NUMBERS if name in environment}
    world_size = numbers.get("WORLD_SIZE", 1)
    if world_size < 1 or ("WORLD_SIZE" in numbers and not 0 <= numbers.get("RANK", 0) < world_size):
        of_rank = f", RANK {numbers['RANK']}" if "RANK" in numbers else ""
        raise ConfigError(f"WORLD_SIZE is {world_size}{of_rank} in the environment, which is impossible: {HOW_TO}")
    ranks = [name for name in ("RANK", "LOCAL_RANK") if name in numbers]
    lacking = [
        name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment
    ]
    if not lacking or (not ranks and world_size == 1):
        return []
    there = ", ".join(f"{name}={numbers[name]}" for name in (*ranks, "WORLD_SIZE") if name in numbers)
    if world_size > 1 or any(numbers[name] > 0 for name in ranks):
        raise ConfigError(
            f"the environment has {there} but not {', '.join(lacking)}: the processes of this training would not find "
            f"each other; {HOW_TO}"
        )
    for name in ranks:
        del environment[name]
    environment.pop("WORLD_SIZE", None)
    return [f"the environment has {there} but not {', '.join(lacking)}: this process trains alone"]


def take_from_mpi(environment: MutableMapping[str, str]) -> None:
    """Set torch's variables for processes started by mpirun, unless they are set already."""
    size = next((environment[name] for name in OF_MPI["WORLD_SIZE"] if name in environment), "1")
    if "RANK" in environment or "WORLD_SIZE" in environment or not size.strip().isdigit() or int(size) < 2:
        return
    for name, theirs in OF_MPI.items():
        if found := next((environment[of_mpi] for of_mpi in theirs if of_mpi in environment), None):
            environment.setdefault(name, found)
    if environment.get("LOCAL_WORLD_SIZE") == size:  # all on this machine
        environment.setdefault("MASTER_ADDR", "127.0.0.1")
        environment.setdefault("MASTER_PORT", "29500")


def tell_launcher(environment: Mapping[str, str], message: str) -> None:
    """Tell torchrun why this process ends, for its table of failed processes, instead of a link to torch's docs."""
    path = environment.get("TORCHELASTIC_ERROR_FILE")
    if path:
        about = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": about}, file)

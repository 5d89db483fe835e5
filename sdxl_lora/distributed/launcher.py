"""What a launcher's config or the environment asks of a training that it does not do: set aside, and said in one line.

People have a config of accelerate's from other work, or start from a notebook, by MPI or in a cluster that sets some of
torch's variables. One process, or DistributedDataParallel over several, is what there is here. No torch.
"""

import contextlib
import json
import time
from collections.abc import Mapping, MutableMapping

from sdxl_lora.errors import ConfigError

YES = ("true", "1", "yes", "on")
PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's data parallelism",
}
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
HOW_TO = "start it by `accelerate launch` or `torchrun`, which set all of them, or unset them"


def set_aside(environment: MutableMapping[str, str], mixed_precision: str, micro_steps: int) -> list[str]:
    """Take out of the environment what accelerate would do and this training does not. Returns what is to be said.

    Raises:
        ConfigError: the processes of a start cannot be told from it.
    """
    said = []
    for name, what in PLUGINS.items():
        if environment.pop(name, "").lower() in YES:
            said.append(f"{what} is not used: each process holds the whole model, and they average their gradients")
    backend = environment.pop("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("no", ""):
        said.append(f"TorchDynamo ({backend}) is not used: --compile compiles the UNet's blocks")
    asked = environment.pop("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", mixed_precision):
        said.append(f"mixed_precision {asked} is not used: --mixed_precision {mixed_precision} counts")
    for name in [name for name in environment if name.startswith("ACCELERATE_FP8_")]:
        del environment[name]
    asked = environment.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if asked not in ("1", str(micro_steps)):
        said.append(
            f"gradient_accumulation_steps {asked} is not used: --gradient_accumulation_steps {micro_steps} counts"
        )
    said = [f"accelerate's config or the environment asks for more than is done here: {text}" for text in said]
    return said + settle_processes(environment)


def settle_processes(environment: MutableMapping[str, str]) -> list[str]:
    """See that torch's variables are all there, or none: a single process may have some that mean nothing.

    Raises:
        ConfigError: they speak of several processes, or hold no numbers.
    """
    for name in [name for name in NUMBERS if environment.get(name, "").strip() == "-1"]:
        del environment[name]  # older scripts' word for not being one of several
    for name in NUMBERS:
        value = environment.get(name)
        if value is not None and not value.strip().isdigit():
            raise ConfigError(f"{name} is {value!r} in the environment, it must be a whole number: {HOW_TO}")
    numbers = {name: int(environment[name]) for name in NUMBERS if name in environment}
    world_size = numbers.get("WORLD_SIZE", 1)
    if world_size < 1 or ("WORLD_SIZE" in numbers and not 0 <= numbers.get("RANK", 0) < world_size):
        of_rank = f", RANK {numbers['RANK']}" if "RANK" in numbers else ""
        raise ConfigError(f"WORLD_SIZE is {world_size}{of_rank} in the environment, which cannot be: {HOW_TO}")
    ranks = [name for name in ("RANK", "LOCAL_RANK") if name in numbers]
    lacking = [
        name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment
    ]
    if not ranks or not lacking:
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


def tell_launcher(environment: Mapping[str, str], message: str) -> None:
    """Give torchrun why this process ends, for its table of failed processes, which would name a page of torch's."""
    path = environment.get("TORCHELASTIC_ERROR_FILE")
    if path:
        about = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": about}, file)

"""Choice of --mixed_precision auto: the former run's precision on a resume, else the best one for the device."""

import torch
from accelerate.utils import gather_object

from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.distributed.accelerator import device_here, start_processes
from sdxl_lora.performance.compute import native_bfloat16
from sdxl_lora.run.resume import facts_before

FROM_LOW_TO_HIGH = ("no", "fp16", "bf16")  # processes on several kinds of devices take the lowest


def settle_precision(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Return the config with its precision settled, and a line that reports the choice of auto. All processes call it.

    Raises:
        ConfigError: see `start_processes`.
    """
    if config.compute.mixed_precision != "auto":
        return config, []
    device = start_processes(config.compute, config.batch).device
    of_all = gather_object([(precision_given(config), precision_of(device))])
    given = of_all[0][0]  # the main process sees the run's folder
    lowest = min((choice for _, choice in of_all), key=lambda choice: FROM_LOW_TO_HIGH.index(choice[0]))
    return settled(config, *(given or lowest))


def planned_precision(config: TrainConfig, is_for_a_gpu: bool) -> tuple[TrainConfig, list[str]]:
    """Settle the precision as `settle_precision` does, for a process that does not train.

    Args:
        is_for_a_gpu: the training needs a GPU, even if this machine has none.
    """
    if config.compute.mixed_precision != "auto":
        return config, []
    device = device_here()
    of_device = (
        ("bf16", "as on a GPU that supports it") if is_for_a_gpu and device.type == "cpu" else precision_of(device)
    )
    return settled(config, *(precision_given(config) or of_device))


def settled(config: TrainConfig, precision: str, why: str) -> tuple[TrainConfig, list[str]]:
    return replace_flat(config, mixed_precision=precision), [f"mixed_precision auto: {precision}, {why}"]


def precision_given(config: TrainConfig) -> tuple[str, str] | None:
    """Return the precision of the former run or of base_precision, and the reason; None without either."""
    if before := precision_before(config):
        return before, "as in the run being resumed"
    asked = config.compute.base_precision
    return (asked, "as base_precision") if asked in ("bf16", "fp16") else None


def precision_of(device: torch.device) -> tuple[str, str]:
    """Return the best precision for a device, and the reason."""
    if device.type == "cpu":
        return "no", "as this machine computes on its CPU"
    if native_bfloat16(device):
        return "bf16", f"which the GPU ({device.type}) computes in natively"
    return "fp16", f"as the GPU ({device.type}) does not compute in bf16 natively"


def precision_before(config: TrainConfig) -> str | None:
    """Return the precision of the checkpoint that the run resumes; None where there is none."""
    return facts_before(config).get("mixed_precision")

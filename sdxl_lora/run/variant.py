"""What --variant auto is: on a resume that of the run before, else the half-precision files where they suffice."""

import contextlib

import yaml

from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.models.downloads import settled_variant
from sdxl_lora.models.loading import base_of
from sdxl_lora.run.resume import checkpoint_before


def settle_variant(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The config with the variant that is loaded, and a line that says so where auto chose.

    To be called with the precision settled, by one process for all: what it chooses depends on this disk.
    """
    if config.model.variant != "auto":
        return config, []
    base, compute = base_of(config.model), config.compute
    if base.is_file:
        return replace_flat(config, variant=None), []
    if before := variant_before(config):
        variant, why = before[0], "as in the run that goes on"
    elif "fp32" in (compute.base_precision, {"no": "fp32"}.get(compute.mixed_precision)):
        variant, why = None, "as the UNet is kept in float32"
    else:
        variant, why = settled_variant(base)
    return replace_flat(config, variant=variant), [f"variant auto: {variant or 'full precision'}, {why}"]


def variant_before(config: TrainConfig) -> tuple[str | None] | None:
    """Return the variant by config.yaml of the run that goes on, which may be None; None where no run goes on."""
    checkpoint = checkpoint_before(config)
    if checkpoint is None or not checkpoint.is_dir():
        return None
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        before = yaml.safe_load((checkpoint.absolute().parent / "config.yaml").read_text(encoding="utf-8"))
        if isinstance(before, dict) and "variant" in before:
            return (before["variant"],)
    return (None,)  # as all runs before there was a choice

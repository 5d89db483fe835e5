"""Defaults for the trained modules, the length and the base's variant where the settings leave them open.

A resumed run keeps the values it began with, whatever today's default or the disk's contents. A new run gets the
default, and for --variant auto the half-precision files where they suffice.
"""

from sdxl_lora.config.fields import replace_flat
from sdxl_lora.config.sections.adapter import AUTO, DEFAULT_TARGETS
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.models.downloads import settled_variant
from sdxl_lora.models.loading import base_of
from sdxl_lora.run.resume import facts_before, settings_before

LENGTHS = ("max_train_steps", "num_train_epochs")  # the first overrides the second


def settle_defaults(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Return the config with target modules, and the former run's length, settled; and a line for each that was open.

    Call it on one process for all, one that sees the run's folder.
    """
    config, of_targets = settle_targets(config)
    config, of_length = settle_length(config)
    return config, [*of_targets, *of_length]


def settle_targets(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    if config.adapter.target_modules != AUTO:
        return config, []
    if config.adapter.init_lora is not None:  # it determines the modules
        return replace_flat(config, target_modules=DEFAULT_TARGETS), []
    facts = facts_before(config)
    before = None if facts.get("init_lora") else facts.get("target_modules")  # then the modules were that file's
    targets, why = (before, "as in the run being resumed") if before else (DEFAULT_TARGETS, "the default")
    return replace_flat(config, target_modules=targets), [f"target_modules auto: {targets}, {why}"]


def settle_length(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Give a resumed run its original length; that of a new run depends on its images."""
    if any(getattr(config.batch, name) is not None for name in LENGTHS):
        return config, []
    before = settings_before(config) or {}
    for name in LENGTHS:
        if isinstance(before.get(name), int):
            said = f"length: {name} {before[name]}, as in the run being resumed; another can be given"
            return replace_flat(config, **{name: before[name]}), [said]
    return config, []


def settle_variant(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Return the config with the variant to load, and a line that reports the choice of auto.

    Call it after settling the precision, on one process for all: the choice depends on the machine's disk.
    """
    if config.model.variant != "auto":
        return config, []
    base, compute = base_of(config.model), config.compute
    if base.is_file:
        return replace_flat(config, variant=None), []
    if before := variant_before(config):
        variant, why = before[0], "as in the run being resumed"
    elif "fp32" in (compute.base_precision, {"no": "fp32"}.get(compute.mixed_precision)):
        variant, why = None, "as the UNet is kept in float32"
    else:
        variant, why = settled_variant(base)
    return replace_flat(config, variant=variant), [f"variant auto: {variant or 'full precision'}, {why}"]


def variant_before(config: TrainConfig) -> tuple[str | None] | None:
    """Return the variant (or None) from config.yaml of the resumed run in a tuple; None for a new run."""
    before = settings_before(config)
    return None if before is None else (before.get("variant"),)  # absent in old runs, which had no choice

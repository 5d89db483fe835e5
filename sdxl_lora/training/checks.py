"""What would fail at the end of the night, checked before any work."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import torch

from sdxl_lora.config.names import check_name
from sdxl_lora.config.sample_prompt import SamplePrompt, parse_prompt, read_prompts_file, with_defaults, with_partners
from sdxl_lora.config.sections.adapter import AdapterConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.data.dataset import trigger_words_of
from sdxl_lora.distributed.accelerator import device_here, is_cpu_asked_for
from sdxl_lora.distributed.collectives import on_main_and_broadcast
from sdxl_lora.errors import ConfigError
from sdxl_lora.graphics_cards import why_no_gpu
from sdxl_lora.io.hub_files import announce
from sdxl_lora.lora.warm_start import layers_of
from sdxl_lora.models.base_report import BaseReport
from sdxl_lora.models.base_source import Base, models_without_weights
from sdxl_lora.models.downloads import downloads_of
from sdxl_lora.models.loading import base_of, check_base, load_schedulers
from sdxl_lora.optimizers.optimizers import optimizer_of
from sdxl_lora.optimizers.trial import CONVOLUTION, LINEAR, MAGNITUDE, try_optimizer
from sdxl_lora.publish.hub import check_hub, claim_repository
from sdxl_lora.run.checkpoints import checkpoints
from sdxl_lora.run.session import Run
from sdxl_lora.run.trackers import check_wandb
from sdxl_lora.run.variant import settle_variant
from sdxl_lora.sampling.similarity import Similarity, check_similarity_model
from sdxl_lora.training.model import trained_names, warm_start_of

FULL_SIZE = 500e6  # parameters of a UNet; SDXL has 2.6 billion, the smallest of its distillations 740 million


def check_inputs(config: TrainConfig, accelerator, info: Callable[[str], None]) -> tuple[TrainConfig, Base]:
    """Look at everything that a training will need: base, names, folders, prompts, the device.

    Every process calls this, and raises what the main one raises.

    Returns:
        The config with the base's variant settled, and the base.
    Raises:
        ConfigError: what cannot be had, and what to do.
    """
    check_device(config, accelerator.num_processes, accelerator.device.type)
    config, said = on_main_and_broadcast(accelerator, lambda: settle_variant(config))
    base = base_of(config.model)
    for line in (*said, *config.notes_on_name()):
        info(line)

    def check() -> None:
        announce(downloads_of(base))
        problem = lack_of_gpu(config, check_names(config, base), accelerator.device)
        if problem:
            raise ConfigError(problem)

    on_main_and_broadcast(accelerator, check)
    return config, base


def lack_of_gpu(config: TrainConfig, report: BaseReport, device: torch.device) -> str | None:
    """Return why a base of full size should not train here, and what to do; None where nothing is against it."""
    size = report.parts["unet"].values
    if device.type != "cpu" or config.compute.allow_cpu or size < FULL_SIZE:
        return None
    if is_cpu_asked_for():
        what, remedy = "ACCELERATE_USE_CPU, or accelerate's own config, asks for the CPU", "leave it out"
    else:
        what, remedy = why_no_gpu(torch)
    return (
        f"{what}: on the CPU, a step of this base ({size / 1e9:.1f} billion parameters) would take minutes. "
        f"{remedy[0].upper()}{remedy[1:]}; or go on with --allow_cpu"
    )


def check_device(config: TrainConfig, processes: int, device_type: str) -> None:
    """Raises ConfigError for a setting that these processes, or this device, cannot have."""
    adapter = config.adapter
    if config.compute.cuda_graphs == "on" and (processes > 1 or device_type != "cuda"):
        raise ConfigError(
            f"cuda_graphs is for one process with a CUDA GPU, here are {processes} on {device_type}: leave it out"
        )
    if device_type == "mps" and config.compute.base_precision == "fp8":
        raise ConfigError("base_precision fp8 cannot be used on Apple's GPUs, which have no such numbers: use int8")
    # PEFT leaves LoHa and LoKr layers out by a branch. They have no gradient then, for which others would wait.
    if adapter.module_dropout and adapter.adapter != "lora" and processes > 1:
        raise ConfigError(
            f"module_dropout of a {adapter.adapter} is for one process: use rank_dropout, or adapter lora"
        )


def check_names(config: TrainConfig, base: Base, needs_weights: bool = True) -> BaseReport:
    """Return what the base is. Raises ConfigError for what the settings name and is not there or cannot be."""
    check_optimizer(config)
    report = check_base(base, needs_weights)
    load_schedulers(base, config.objective.prediction_type, config.objective.zero_terminal_snr)
    if config.evaluation.similarity_model is not None:
        check_similarity_model(config.evaluation.similarity_model)
    trigger_words_of(config.data)  # read again for each LoRA file
    sample_prompts_of(config)
    config.evaluation.warn_of_lost_quotes()
    check_start(config.adapter, base)
    try:
        check_name(config.lora_name)
    except ValueError as error:
        raise ConfigError(f"{error} Choose it with --output_name.") from None
    if config.logging.report_to == "trackio" and importlib.util.find_spec("trackio") is None:
        raise ConfigError("report_to trackio needs a library that is not here: pip install trackio==0.43.0")
    if config.logging.report_to in ("wandb", "all"):
        check_wandb(os.environ)
    if config.output.loras_dir is not None and not Path(config.output.loras_dir).is_dir():
        raise ConfigError(f"loras_dir {config.output.loras_dir} is not a folder: make it first")
    return report


def check_optimizer(config: TrainConfig) -> None:
    """Try it on tiny parameters of the shapes that train: ConfigError where it cannot."""
    shapes: list[tuple[int, ...]] = [LINEAR]
    shapes += [CONVOLUTION] if "conv" in config.adapter.target_modules else []
    shapes += [MAGNITUDE] if config.adapter.use_dora else []
    try_optimizer(config.optimizer.name, lambda groups: optimizer_of(config.optimizer, groups), shapes, device_here())


def check_start(adapter: AdapterConfig, base: Base) -> None:
    """Raises ConfigError where init_lora cannot be read, or does not fit the base's models."""
    start = warm_start_of(adapter, trained_names(adapter))
    models = models_without_weights(base) if start.adapters else {}
    try:
        for component, adapters in start.adapters.items():
            layers_of(models[component], component, adapters)
    except ValueError as error:
        raise ConfigError(f"init_lora: {error}") from None


def sample_prompts_of(config: TrainConfig, size: tuple[int, int] = (0, 0)) -> list[SamplePrompt]:
    """The prompts of samples, with nothing left open.

    Args:
        size: height and width of those that name none.
    """
    evaluation = config.evaluation
    lines = list(evaluation.validation_prompt)
    if evaluation.validation_prompts_file:
        lines += read_prompts_file(evaluation.validation_prompts_file)
    prompts = [
        with_defaults(
            parse_prompt(line),
            height=size[0],
            width=size[1],
            seed=config.seed,
            guidance_scale=evaluation.validation_guidance_scale,
            steps=evaluation.validation_inference_steps,
        )
        for line in lines
    ]
    return with_partners(prompts, trigger_words_of(config.data)) if evaluation.validation_without_trigger else prompts


def load_similarity(config: TrainConfig, accelerator) -> Similarity | None:
    """The model that compares samples with training images, on the main process; None where there is none."""
    model = config.evaluation.similarity_model
    loaded: list[Similarity] = []
    on_main_and_broadcast(accelerator, lambda: loaded.append(Similarity(model)) if model else None)
    return loaded[0] if loaded else None


def claim_hub_repository(config: TrainConfig, accelerator, run: Run, info: Callable[[str], None]) -> str | None:
    """The Hub's repository to upload to, there for us to write to; None where nothing is to be uploaded.

    A run that goes on is not kept from it by a Hub that it needs at the end.

    Raises:
        ConfigError: a new run may not upload.
    """
    publish = config.publish

    def claim() -> str | None:
        if not publish.push_to_hub:
            return None
        try:
            repository = check_hub(publish.hub_model_id or config.lora_name, "hub_model_id")
            claim_repository(repository, publish.hub_private)
            return repository
        except ConfigError as error:
            if not checkpoints(run.folder):
                raise
            info(f"{error}. Going on; the upload is tried at the end")
            return publish.hub_model_id or config.lora_name

    return on_main_and_broadcast(accelerator, claim)

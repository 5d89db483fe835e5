"""Checks before any work of everything that could fail hours later."""

import importlib.util
import os
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from sdxl_lora.config.checks import raise_all
from sdxl_lora.config.fields import idle_settings
from sdxl_lora.config.names import check_name
from sdxl_lora.config.sample_prompt import SamplePrompt, parse_prompt, read_prompts_file, with_defaults, with_partners
from sdxl_lora.config.sections.adapter import AdapterConfig
from sdxl_lora.config.sections.objective import flow_problems
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.data.captions import preservation_of
from sdxl_lora.data.collate import Augmentation, collate
from sdxl_lora.data.dataset import trigger_words_of
from sdxl_lora.diffusion.flow import FLOW
from sdxl_lora.distributed.accelerator import device_here, is_cpu_asked_for
from sdxl_lora.distributed.collectives import on_main_and_broadcast
from sdxl_lora.errors import ConfigError
from sdxl_lora.graphics_cards import why_no_gpu
from sdxl_lora.io.file_system import weights_sha256
from sdxl_lora.io.hub_files import announce
from sdxl_lora.io.memo import NO_MEMO, FileMemo
from sdxl_lora.lora.warm_start import layers_of
from sdxl_lora.models.base_report import BaseReport
from sdxl_lora.models.base_source import Base, models_without_weights, weight_files
from sdxl_lora.models.downloads import downloads_of
from sdxl_lora.models.loading import base_of, check_base, load_schedulers, what_it_says
from sdxl_lora.models.prediction import (
    IMAGES,
    IMAGES_FOR_V,
    MARGIN_FOR_V,
    ZERO_SNR,
    V,
    facts_of_trial,
    try_readings,
    winner,
)
from sdxl_lora.optimizers.optimizers import optimizer_of
from sdxl_lora.optimizers.trial import CONVOLUTION, LINEAR, MAGNITUDE, try_optimizer
from sdxl_lora.performance.device_memory import free_memory
from sdxl_lora.publish.hub import check_hub, claim_repository
from sdxl_lora.run.checkpoints import checkpoints
from sdxl_lora.run.defaults import settle_defaults, settle_variant
from sdxl_lora.run.resume import check_settings_before
from sdxl_lora.run.session import Run
from sdxl_lora.run.trackers import check_wandb
from sdxl_lora.sampling.similarity import Similarity, check_similarity_model
from sdxl_lora.training.model import LoraModel, trained_names, warm_start_of

FULL_SIZE = 500e6  # parameters of a UNet; SDXL has 2.6 billion, the smallest of its distillations 740 million


def check_inputs(config: TrainConfig, accelerator, info: Callable[[str], None]) -> tuple[TrainConfig, Base]:
    """Check everything that a training will need: base, names, folders, prompts, device.

    Every process calls this, and raises the errors of the main process.

    Returns:
        The config with the base's variant and open defaults settled, and the base.
    Raises:
        ConfigError: what is missing or impossible, and what to do.
        CheckpointError: the run's folder holds a run with other settings.
    """
    check_device(config, accelerator.num_processes, accelerator.device.type)
    config, of_variant = on_main_and_broadcast(accelerator, lambda: settle_variant(config))
    config, of_defaults = on_main_and_broadcast(accelerator, lambda: settle_defaults(config))
    base = base_of(config.model)
    for line in (*of_variant, *of_defaults, *config.notes_on_name(), *idle_settings(config)):
        info(line)

    def check() -> None:
        check_settings_before(config)
        announce(downloads_of(base))
        problem = lack_of_gpu(config, check_names(config, base), accelerator.device)
        if problem:
            raise ConfigError(problem)

    on_main_and_broadcast(accelerator, check)
    return config, base


def lack_of_gpu(config: TrainConfig, report: BaseReport, device: torch.device) -> str | None:
    """Return the reason why a full-size base should not train on this CPU, and the remedy; None where it may."""
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
    """Raise ConfigError for a setting that this number of processes or this device does not support."""
    adapter = config.adapter
    if config.compute.cuda_graphs == "on" and device_type != "cuda":
        raise ConfigError(f"cuda_graphs is for CUDA GPUs, this process is on {device_type}: leave it out")
    if device_type == "mps" and config.compute.base_precision == "fp8":
        raise ConfigError("base_precision fp8 cannot be used on Apple's GPUs, which do not support it: use int8")
    # PEFT skips dropped LoHa and LoKr layers by a branch. They then have no gradient, and other processes would wait.
    if adapter.module_dropout and adapter.adapter != "lora" and processes > 1:
        raise ConfigError(
            f"module_dropout of a {adapter.adapter} is for one process: use rank_dropout, or adapter lora"
        )


def check_names(config: TrainConfig, base: Base, needs_weights: bool = True) -> BaseReport:
    """Return a report of the base; raise ConfigError for anything in the settings that is missing or impossible."""
    check_optimizer(config)
    report = check_base(base, needs_weights)
    warn_of_contradiction(config.objective.prediction_type, base)
    schedule, _ = load_schedulers(base, config.objective)
    if schedule.config.prediction_type == FLOW:
        raise_all(flow_problems(config.objective, config.noise))
    if config.evaluation.similarity_model is not None:
        check_similarity_model(config.evaluation.similarity_model)
    trigger_words_of(config.data)  # read again for each LoRA file
    preservation_of(config.objective, config.data)
    sample_prompts_of(config)
    config.evaluation.warn_of_lost_quotes()
    check_start(config.adapter, base)
    try:
        check_name(config.lora_name)
    except ValueError as error:
        raise ConfigError(f"{error} Choose it with --output_name.") from None
    if config.logging.report_to == "trackio" and importlib.util.find_spec("trackio") is None:
        raise ConfigError("report_to trackio needs a library that is not installed: pip install trackio==0.43.0")
    if config.logging.report_to in ("wandb", "all"):
        check_wandb(os.environ)
    if config.output.loras_dir is not None and not Path(config.output.loras_dir).is_dir():
        raise ConfigError(f"loras_dir {config.output.loras_dir} is not a folder: make it first")
    return report


def warn_of_contradiction(wanted: str | None, base: Base) -> None:
    """Warn where settings and file name different predictions; the settings win."""
    told, _, by = what_it_says(base)
    if wanted and told and wanted != told:
        warnings.warn(
            f"{base.path} says in its {by} that it predicts {told}, but prediction_type says {wanted}: it is trained "
            f"as {wanted}; leave out --prediction_type to train it as the file says",
            stacklevel=2,
        )


def confirm_prediction(
    config: TrainConfig, base: Base, base_hash: str, model: LoraModel, data, accelerator, run: Run, info
) -> None:
    """Find out what the base predicts by a trial, once, unless a tensor of its file says so (models/prediction.py).

    Every process calls this, and raises the errors of the main process. A resumed run, or one whose settings name the
    prediction_type, only gets a warning.

    Args:
        base_hash: SHA-256 of its weights; "" for a base on the Hub.
        data: the TrainingData, whose first images are tried.
    Raises:
        ConfigError: the base clearly predicts something else than it would be trained for.
    """
    if what_it_says(base)[2].startswith("tensor"):
        return
    if data.stream:
        info("what the base predicts is not tested: the images are a stream")
        return

    def decide() -> None:
        memo = NO_MEMO if config.adapter.init_lora else FileMemo(config.cache_folder / "memo.json")
        weights = base_hash or weights_sha256(*weight_files(base, "unet"))
        errors = memo.get_or_compute(facts_of_trial(weights), lambda: try_base(config, model, data, accelerator))
        memo.save()
        if errors is None:
            info("out of memory while testing what the base predicts, going on")
            return
        schedule = model.scheduler.config
        found, listed = winner(errors["readings"]), ", ".join(f"{n} {e:.3g}" for n, e in errors["readings"].items())
        if found is None:
            info(f"a test does not show what the base predicts ({listed}): trained as {schedule.prediction_type}")
        elif found == schedule.prediction_type:
            info(f"tested on {IMAGES} images, the base predicts {found} (errors: {listed})")
            if found == V:
                compare_schedules(errors["schedules"], bool(schedule.rescale_betas_zero_snr), base.path)
        else:
            wrong, remedy = schedule.prediction_type, f"give --prediction_type {found}"
            said = f"{base.path} predicts {found}, tested on {IMAGES} images (errors: {listed}), not {wrong}"
            if config.objective.prediction_type is None and not checkpoints(run.folder):
                raise ConfigError(f"{said}: {remedy}, or --prediction_type {wrong} to train it as that all the same")
            warnings.warn(f"{said}, but it is trained as {wrong}: {remedy}", stacklevel=2)

    on_main_and_broadcast(accelerator, decide)


def compare_schedules(errors: dict[str, float], is_zero_snr: bool, name: str) -> None:
    """Warn if a base that predicts v was clearly trained with the other noise schedule."""
    found = winner(errors, MARGIN_FOR_V)
    if found is None or (found == ZERO_SNR) == is_zero_snr:
        return
    listed = ", ".join(f"{schedule} {error:.3g}" for schedule, error in errors.items())
    if is_zero_snr:
        said, remedy = "without zero terminal SNR", "leave it out of the settings and the scheduler's config"
    else:
        said, remedy = "with zero terminal SNR", "give --zero_terminal_snr"
    warnings.warn(f"{name} was trained {said}, as tested on {IMAGES_FOR_V} images ({listed}): {remedy}", stacklevel=2)


def try_base(config: TrainConfig, model: LoraModel, data, accelerator) -> dict[str, dict[str, float]] | None:
    """Return `try_readings` of the first training images; None where memory does not suffice."""
    augmentation = Augmentation(config.data.random_flip, captions=config.captions)
    samples = islice((sample for _, of_step in data.samples_from(0) for sample in of_step if sample), IMAGES_FOR_V)
    batches = (
        collate([sample], data.examples, data.latents, model.text, config.seed, model.num_train_timesteps, augmentation)
        for sample in samples
    )
    device = accelerator.device
    on_device = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches]
    try:
        with accelerator.autocast():
            return try_readings(model.unet, on_device)
    except torch.OutOfMemoryError:
        free_memory()
        return None


def check_optimizer(config: TrainConfig) -> None:
    """Try the optimizer on tiny parameters of the trained shapes; ConfigError where it cannot train them."""
    shapes: list[tuple[int, ...]] = [LINEAR]
    shapes += [CONVOLUTION] if "conv" in config.adapter.targets else []
    shapes += [MAGNITUDE] if config.adapter.use_dora else []
    try_optimizer(config.optimizer.name, lambda groups: optimizer_of(config.optimizer, groups), shapes, device_here())


def check_start(adapter: AdapterConfig, base: Base) -> None:
    """Raise ConfigError where init_lora cannot be read, or does not fit the base's models."""
    start = warm_start_of(adapter, trained_names(adapter))
    models = models_without_weights(base) if start.adapters else {}
    try:
        for component, adapters in start.adapters.items():
            layers_of(models[component], component, adapters)
    except ValueError as error:
        raise ConfigError(f"init_lora: {error}") from None


def sample_prompts_of(config: TrainConfig, size: tuple[int, int] = (0, 0)) -> list[SamplePrompt]:
    """Return the prompts of samples with all defaults filled in.

    Args:
        size: height and width for prompts that name none.
    """
    evaluation = config.evaluation
    lines = list(evaluation.validation_prompt)
    if evaluation.validation_prompts_file:
        lines += read_prompts_file(evaluation.validation_prompts_file)
    prompts = [with_defaults(parse_prompt(line), **config.sample_defaults(size)) for line in lines]
    return with_partners(prompts, trigger_words_of(config.data)) if evaluation.validation_without_trigger else prompts


def load_similarity(config: TrainConfig, accelerator) -> Similarity | None:
    """Return the model that compares samples with training images, on the main process; None elsewhere or unset."""
    model = config.evaluation.similarity_model
    loaded: list[Similarity] = []
    on_main_and_broadcast(accelerator, lambda: loaded.append(Similarity(model)) if model else None)
    return loaded[0] if loaded else None


def claim_hub_repository(config: TrainConfig, accelerator, run: Run, info: Callable[[str], None]) -> str | None:
    """Return the Hub repository to upload to, after claiming it; None where nothing will be uploaded.

    A resumed run goes on even if the Hub fails now, since the upload comes at the end.

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
            info(f"{error}. Going on; the upload is tried again at the end")
            return publish.hub_model_id or config.lora_name

    return on_main_and_broadcast(accelerator, claim)

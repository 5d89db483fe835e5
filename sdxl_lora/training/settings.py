"""From a TrainConfig to the plain values that other modules take. Only this, parts.py and the entry script read it."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from datasets import IterableDataset
from torch.optim import Optimizer

from sdxl_lora.config.dataset_spec import DatasetEntry, parse_entries
from sdxl_lora.config.fields import SAME, flat_fields, flat_values, replace_flat
from sdxl_lora.config.names import check_name
from sdxl_lora.config.sample_prompt import SamplePrompt, parse_prompt, read_prompts_file, with_defaults, with_partners
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.config.unet_blocks import check_blocks, parse_blocks, value_of
from sdxl_lora.data.captions import CaptionVariants
from sdxl_lora.data.collate import Chance
from sdxl_lora.data.concat_dataset import JoinedPictures
from sdxl_lora.data.dataset import open_dataset, trigger_word_of
from sdxl_lora.data.image_dataset import TrainingPictures, content_key
from sdxl_lora.data.stream_dataset import Rows
from sdxl_lora.data.stream_reader import open_stream
from sdxl_lora.diffusion.noise import NoiseShape
from sdxl_lora.diffusion.objective import Objective
from sdxl_lora.diffusion.timesteps import TimestepDensity, bias_range
from sdxl_lora.errors import ConfigError
from sdxl_lora.io.memo import NO_MEMO, Memo
from sdxl_lora.lora.warm_start import Start, read_start
from sdxl_lora.models.loading import Base, check_base
from sdxl_lora.performance.memory_budget import Rung, ladder
from sdxl_lora.performance.quantization import KINDS
from sdxl_lora.publish.hub import check_hub, claim_repository
from sdxl_lora.rng import keyed_seed
from sdxl_lora.training.optim import learning_rate_at, make_optimizer


def same_on_resume(config: TrainConfig) -> dict:
    """Settings that a resumed run shares with the run before, as JSON values."""
    fields, values = flat_fields(TrainConfig), flat_values(config)
    values = {name: value for name, value in values.items() if fields[name].resume_rule is SAME}
    values["optimizer_name"] = config.optimizer.name
    if config.adapter.init_lora is not None:
        values |= dict.fromkeys(
            ("rank", "lora_alpha", "target_modules"), f"as in {Path(config.adapter.init_lora).name}"
        )
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def settings_to_show(config: TrainConfig) -> dict:
    """What a person wants to know of a LoRA: the main settings, and of the others what is not as usual."""
    main = ("resolution", "rank", "lora_alpha", "learning_rate", "optimizer_name", "lr_scheduler", "mixed_precision")
    fields, values = flat_fields(TrainConfig), flat_values(config) | {"optimizer_name": config.optimizer.name}
    shown = {name: values[name] for name in main} | same_on_resume(config)
    shown["lora_alpha"] = shown["lora_alpha"] or shown["rank"]
    return {
        name: value
        for name, value in shown.items()
        if name in main or (name in fields and values[name] != fields[name].default)
    }


def repository_of(config: TrainConfig) -> str | None:
    """The Hub's repository for the LoRA, there for us to write to; None where it is not to be uploaded."""
    if not config.publish.push_to_hub:
        return None
    repository = check_hub(config.publish.hub_model_id or config.lora_name, "hub_model_id")
    claim_repository(repository, config.publish.hub_private)
    return repository


DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def base_dtype(config: TrainConfig) -> torch.dtype:
    """What the frozen UNet is loaded in; where it is quantized, that of the layers that are not."""
    return torch.float32 if config.compute.base_precision == "fp32" else DTYPES[config.compute.mixed_precision]


def rung_of(config: TrainConfig) -> Rung:
    """Where the settings stand on the ladder from fast to small."""
    recomputed = " ".join(config.compute.gradient_checkpointing_blocks) or "all"
    base_precision = config.compute.base_precision if config.compute.base_precision in ("fp32", *KINDS) else None
    return Rung(recomputed if config.compute.gradient_checkpointing else "none", config.optimizer.name, base_precision)


def smaller_settings(config: TrainConfig) -> list[str]:
    """What to try when memory does not suffice, the gentlest first."""
    if config.compute.memory_budget is not None:
        return [f"a --memory_budget below {config.compute.memory_budget}"]
    return [rung.flags() for rung in ladder(rung_of(config))[1:]]


def on_rung(config: TrainConfig, rung: Rung) -> TrainConfig:
    return replace_flat(
        config,
        gradient_checkpointing=rung.recomputed != "none",
        gradient_checkpointing_blocks=() if rung.recomputed in ("none", "all") else tuple(rung.recomputed.split()),
        optimizer=rung.optimizer,
        use_8bit_adam=False,
        base_precision=rung.base_precision,
    )


def base_of(config: TrainConfig) -> Base:
    return Base(
        config.model.pretrained_model_name_or_path,
        config.model.pretrained_vae_model_name_or_path,
        config.model.pretrained_config_name_or_path,
        config.model.revision,
        config.model.variant,
    )


def open_pictures(config: TrainConfig, memo: Memo = NO_MEMO) -> TrainingPictures | JoinedPictures:
    parts = [
        TrainingPictures(
            open_dataset(
                entry.train_data_dir, entry.dataset_name, entry.dataset_config_name, config.data.max_train_samples, memo
            ),
            config.data.image_column,
            config.data.caption_column,
            config.data.resolution,
            config.data.center_crop,
            config.seed,
            config.objective.masked_loss,
            memo,
        )
        for entry in entries_of(config)
    ]
    return JoinedPictures(parts, entries_of(config)) if config.data.datasets else parts[0]


def open_rows_of(config: TrainConfig) -> Callable[[Rows], TrainingPictures]:
    """Rows of a stream as training pictures; where to crop at random is decided by the picture's bytes."""

    def open_rows(rows: Rows) -> TrainingPictures:
        data = rows[0].get(config.data.image_column, {}).get("bytes", b"")
        return TrainingPictures(
            rows,
            config.data.image_column,
            config.data.caption_column,
            config.data.resolution,
            config.data.center_crop,
            keyed_seed(config.seed, content_key(data)),
            config.objective.masked_loss,
        )

    return open_rows


def stream_of(config: TrainConfig) -> IterableDataset:
    return open_stream(
        config.data.train_data_dir,
        config.data.dataset_name,
        config.data.dataset_config_name,
        config.data.max_train_samples,
    )


def entries_of(config: TrainConfig) -> list[DatasetEntry]:
    """The datasets, also where it is one."""
    one = DatasetEntry(config.data.train_data_dir, config.data.dataset_name, config.data.dataset_config_name)
    return parse_entries(config.data.datasets) or [one]


def trigger_words_of(config: TrainConfig) -> list[str]:
    """Those of the datasets, each once: as the settings say, else as preprocess wrote into a dataset's card."""
    words = [entry.trigger_word or trigger_word_of(entry.train_data_dir) for entry in entries_of(config)]
    return [word for word in dict.fromkeys(words) if word]


def objective_of(config: TrainConfig) -> Objective:
    return Objective(
        config.objective.loss_type,
        config.objective.huber_c,
        config.objective.huber_schedule,
        config.objective.snr_gamma,
        config.objective.debiased_estimation,
    )


def chance_of(config: TrainConfig, num_train_timesteps: int) -> Chance:
    noise = NoiseShape(
        config.noise.noise_offset,
        config.noise.multires_noise_iterations,
        config.noise.multires_noise_discount,
        config.noise.input_perturbation,
    )
    return Chance(config.data.random_flip, noise, timestep_density_of(config, num_train_timesteps), captions_of(config))


def captions_of(config: TrainConfig) -> CaptionVariants:
    return CaptionVariants(
        config.captions.proportion_empty_prompts,
        config.captions.enable_wildcard,
        config.captions.shuffle_caption,
        config.captions.caption_tag_dropout_rate,
        config.captions.keep_tokens,
        config.captions.caption_separator,
        config.captions.keep_tokens_separator,
    )


def timestep_density_of(config: TrainConfig, num_train_timesteps: int) -> TimestepDensity:
    first, end = config.timesteps.min_timestep, config.timesteps.max_timestep or num_train_timesteps
    if not first < end <= num_train_timesteps:
        raise ConfigError(
            f"min_timestep {first} and max_timestep {end} must lie in order among the base's {num_train_timesteps}"
        )
    density = TimestepDensity(
        config.timesteps.timestep_sampling,
        first,
        config.timesteps.max_timestep,
        config.timesteps.logit_mean,
        config.timesteps.logit_std,
        config.timesteps.timestep_beta_alpha,
        config.timesteps.timestep_beta_beta,
    )
    if config.timesteps.timestep_bias_strategy == "none":
        return density
    places = [
        (timestep - first) / (end - first)
        for timestep in (config.timesteps.timestep_bias_begin, config.timesteps.timestep_bias_end)
    ]
    begin, end = bias_range(config.timesteps.timestep_bias_strategy, config.timesteps.timestep_bias_portion, *places)
    return replace(
        density,
        kind="biased",
        bias_begin=begin,
        bias_end=end,
        bias_multiplier=config.timesteps.timestep_bias_multiplier,
    )


def start_of(config: TrainConfig, components: Iterable[str]) -> Start:
    """What init_lora has for the models that train; ConfigError where it cannot be used."""
    if config.adapter.init_lora is None:
        return Start()
    try:
        return read_start(
            config.adapter.init_lora, "dora" if config.adapter.use_dora else config.adapter.adapter, components
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"init_lora: {error}") from error


def optimizer_of(config: TrainConfig, groups: list[dict]) -> Optimizer:
    return make_optimizer(
        config.optimizer.name,
        groups,
        config.optimizer.learning_rate,
        (config.optimizer.adam_beta1, config.optimizer.adam_beta2),
        config.optimizer.adam_weight_decay,
        config.optimizer.adam_epsilon,
        config.optimizer.arguments,
    )


def learning_rate_factors(config: TrainConfig, total_steps: int) -> dict[str, dict]:
    """What the models' parameter groups make of the learning rate of a step: a factor, and the step that ends it."""
    end_step = None
    if config.optimizer.stop_text_encoder_training is not None:
        end_step = round(config.optimizer.stop_text_encoder_training * total_steps)
    first = (
        config.optimizer.learning_rate if config.optimizer.text_encoder_lr is None else config.optimizer.text_encoder_lr
    )
    second = first if config.optimizer.text_encoder_2_lr is None else config.optimizer.text_encoder_2_lr
    base = config.optimizer.learning_rate or 1.0
    return {
        "unet": {"lr_factor": 1.0, "end_step": None},
        "text_encoder": {"lr_factor": first / base, "end_step": end_step},
        "text_encoder_2": {"lr_factor": second / base, "end_step": end_step},
    }


def check_dropout(config: TrainConfig, processes: int) -> None:
    """PEFT leaves LoHa and LoKr layers out by a branch; they have no gradient then, for which the processes would wait.

    A CUDA graph would take the same branch for ever.

    Raises:
        ConfigError
    """
    if (
        config.adapter.module_dropout
        and config.adapter.adapter != "lora"
        and (processes > 1 or config.compute.cuda_graphs)
    ):
        raise ConfigError(
            f"module_dropout of a {config.adapter.adapter} is for one process without cuda_graphs: use rank_dropout, "
            "or adapter lora"
        )


def check_graphs(config: TrainConfig, processes: int, device: torch.device) -> None:
    """Raises ConfigError where cuda_graphs cannot be had."""
    if config.compute.cuda_graphs and (processes > 1 or device.type != "cuda"):
        raise ConfigError(
            f"cuda_graphs is for one process with a CUDA GPU, here are {processes} on {device.type}: leave it out"
        )


def block_factors(config: TrainConfig, modules: Iterable[str]) -> dict[str, float]:
    """Factor of the learning rate of each of the UNet's parameters, by its name; ConfigError for an empty block."""
    factors, modules = parse_blocks(config.optimizer.block_lr_factors, float), list(modules)
    try:
        check_blocks(factors, modules)
    except ValueError as error:
        raise ConfigError(f"block_lr_factors: {error}") from None
    return {module: value_of(module, factors, 1.0) for module in modules}


def learning_rate_of(config: TrainConfig, step: int, total_steps: int, images_per_step: int) -> float:
    """Of step `step`, 0 being the first; the groups' factors come on top."""
    return learning_rate_at(
        step,
        total_steps,
        config.optimizer.learning_rate * (images_per_step if config.optimizer.scale_lr else 1),
        config.optimizer.lr_scheduler,
        config.optimizer.lr_warmup_steps,
        config.optimizer.lr_num_cycles,
        config.optimizer.lr_power,
    )


def sample_prompts_of(config: TrainConfig, size: tuple[int, int] = (0, 0)) -> list[SamplePrompt]:
    """What is drawn, with nothing left open.

    Args:
        size: height and width of those that name none.
    """
    lines = list(config.evaluation.validation_prompt)
    if config.evaluation.validation_prompts_file:
        lines += read_prompts_file(config.evaluation.validation_prompts_file)
    prompts = [
        with_defaults(
            parse_prompt(line),
            height=size[0],
            width=size[1],
            seed=config.seed,
            guidance_scale=config.evaluation.validation_guidance_scale,
            steps=config.evaluation.validation_inference_steps,
        )
        for line in lines
    ]
    return with_partners(prompts, trigger_words_of(config)) if config.evaluation.validation_without_trigger else prompts


def guidance_rescale_of(config: TrainConfig, schedule_config) -> float:
    """0.7 is the paper's for a schedule that ends in noise alone (arXiv:2305.08891, section 3.4)."""
    if config.evaluation.validation_guidance_rescale is not None:
        return config.evaluation.validation_guidance_rescale
    return 0.7 if schedule_config.get("rescale_betas_zero_snr") else 0.0


def check_names(config: TrainConfig, base: Base) -> None:
    """What would fail at the end of the night is said at its start: ConfigError."""
    check_base(base)
    sample_prompts_of(config)
    start_of(config, ["unet", *(["text_encoder", "text_encoder_2"] if config.adapter.train_text_encoder else [])])
    try:
        check_name(config.lora_name)
    except ValueError as error:
        raise ConfigError(f"{error} Choose it with --output_name.") from None
    if config.logging.report_to == "trackio" and importlib.util.find_spec("trackio") is None:
        raise ConfigError("report_to trackio needs a library that is not here: pip install trackio==0.43.0")
    if config.output.loras_dir is not None and not Path(config.output.loras_dir).is_dir():
        raise ConfigError(f"loras_dir {config.output.loras_dir} is not a folder: make it first")

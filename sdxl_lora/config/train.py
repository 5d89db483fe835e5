"""Every setting of both commands: its name, type, default and help, and where a value comes from.

A field is at once a flag, a key of the YAML file, a line of a run's config.yaml and a widget of the web page.
Imports no torch, so that --help and a typo answer at once.
"""

import dataclasses
import difflib
import math
import re
from pathlib import Path
from typing import Any, Literal

from sdxl_lora.config.checks import (
    OPTIMIZERS,
    keyword_argument,
    multiple_of_8_problem,
    number_problems,
    part_problems,
    raise_all,
)
from sdxl_lora.config.dataset_spec import parse_entries
from sdxl_lora.config.sample_prompt import parse_prompt
from sdxl_lora.config.unet_blocks import parse_blocks
from sdxl_lora.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a LoRA of Stable Diffusion XL."""

    # --- what is trained, on what ---
    output_dir: str
    """Folder of the run: config.yaml, events.jsonl, checkpoint-<step>/, samples/ and the LoRA files."""
    pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-xl-base-1.0"
    """Base model: a diffusers folder, a Hub id, or one .safetensors file in the original layout."""
    pretrained_vae_model_name_or_path: str | None = None
    """VAE to use instead of the base's: a diffusers folder or a Hub id."""
    pretrained_config_name_or_path: str | None = None
    """For a base in one .safetensors file: diffusers folder or Hub id with its configs and tokenizers.
    Default: the Hub's stabilityai/stable-diffusion-xl-base-1.0."""
    revision: str | None = None
    """Git revision of a base on the Hub."""
    variant: str | None = None
    """Weights variant of a diffusers base, e.g. "fp16"."""
    train_data_dir: str | None = None
    """Folder of pictures: what `python -m preprocess` wrote, or pictures with .txt captions beside them."""
    dataset_name: str | None = None
    """Instead of train_data_dir: dataset on the Hub, or a folder written by datasets' save_to_disk."""
    dataset_config_name: str | None = None
    """Configuration of the dataset on the Hub."""
    datasets: tuple[str, ...] = ()
    """Instead of both: several datasets, each a folder such as data/cat, with repeats per epoch data/cat:3, or
    "{train_data_dir: data/cat, repeats: 3}" with further keys dataset_name, dataset_config_name, trigger_word (put in
    front of captions), is_class_images, and instead of repeats weight, the share of the turns."""
    image_column: str = "image"
    """Dataset column with the pictures."""
    caption_column: str = "text"
    """Dataset column with the captions."""
    max_train_samples: int | None = None
    """Use only the first N pictures of each dataset."""
    dataset_streaming: bool = False
    """Read pictures as they come, however many there are, from .tar (WebDataset) or .parquet files in train_data_dir or
    from the Hub, and encode them in every turn. Needs max_train_steps."""
    shuffle_buffer_size: int = 256
    """A stream's pictures are shuffled so many at a time in each process; 1 leaves them as they are stored. Up to twice
    as many wait in memory, as the files have them."""
    resolution: int = 1024
    """Pictures that preprocess has not sized are cropped to this square, in pixels; a multiple of 8."""
    center_crop: bool = True
    """Crop such pictures at their centre; else at a place drawn once per picture from the seed."""
    random_flip: bool = False
    """Mirror a picture left to right in half of its turns."""

    # --- the LoRA ---
    rank: int = 16
    """Rank of the LoRA matrices."""
    lora_alpha: float | None = None
    """The LoRA is scaled by alpha / rank. Default: alpha = rank."""
    lora_dropout: float = 0.0
    """Share of a LoRA layer's inputs that is zeroed in training."""
    rank_dropout: float = 0.0
    """Share of a LoRA layer's ranks that is zeroed in training, others for each picture; of LoHa's and LoKr's rows."""
    module_dropout: float = 0.0
    """Share of the layers whose adapter does nothing, others in every forward pass."""
    init_lora_weights: str = "kaiming"
    """How the LoRA begins: kaiming, gaussian or orthogonal, as no change; pissa, pissa_niter_4 (quicker) or olora, as
    the main directions of the base's weights, which learn faster. The file holds the change of the original base, at
    twice the rank then, exactly where the base is in float32, else to its rounding."""
    init_lora: str | None = None
    """Go on training this LoRA, a file of any layout or a PEFT folder: its modules, ranks and alphas are taken in place
    of rank, lora_alpha and target_modules."""
    adapter: Literal["lora", "loha", "lokr"] = "lora"
    """Kind of adapter. LoHa and LoKr go whole to ComfyUI, A1111, Forge and InvokeAI, to diffusers as their nearest
    LoRA."""
    use_dora: bool = False
    """DoRA: a LoRA whose magnitudes train too. Whole in the diffusers file, its nearest LoRA in the other."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps large ranks learning."""
    target_modules: str = "attention"
    """UNet modules that get a LoRA: attention, attention+ff, all-linear, all-linear+conv, or a regular expression."""
    block_ranks: tuple[str, ...] = ()
    """Other ranks for blocks of the UNet, e.g. down=4 up.0=32 up.0.2=0; 0 leaves a block out, alpha / rank stays.
    Blocks are down, mid, up, a level such as down.1, or one of its blocks such as up.0.2; the longest name counts."""
    block_lr_factors: tuple[str, ...] = ()
    """Factors of the learning rate for blocks of the UNet, named likewise, e.g. down=0.5 mid=1 up.1=2."""

    # --- what is learned ---
    train_text_encoder: bool = False
    """Also train a LoRA on both text encoders; captions are then encoded anew in every step."""
    text_encoder_lr: float | None = None
    """Peak learning rate of the text encoders. Default: learning_rate."""
    text_encoder_2_lr: float | None = None
    """Peak learning rate of the second text encoder. Default: text_encoder_lr."""
    stop_text_encoder_training: float | None = None
    """After this share of the steps, 0 to 1, the text encoders stay as they are."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the UNet predicts. Default: as the base says."""
    loss_type: Literal["l2", "huber", "smooth_l1"] = "l2"
    """Squared error, or one that grows linearly from huber_c on, so that odd pictures pull less."""
    huber_c: float = 0.1
    """Error from which huber and smooth_l1 grow linearly."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "constant"
    """huber_c at every timestep, or larger where there is less noise."""
    snr_gamma: float | None = None
    """min-SNR weights of timesteps: less noisy ones count less; 5 is usual. Right for epsilon and v-prediction."""
    debiased_estimation: bool = False
    """Instead of snr_gamma: weights that make noisy timesteps count more for epsilon."""
    zero_terminal_snr: bool = False
    """The last timestep is noise alone, in training and in samples. For bases that predict v and were trained so."""
    noise_offset: float = 0.0
    """Add one random number per channel times this to the noise, to learn dark and bright pictures; 0.03 to 0.1."""
    input_perturbation: float = 0.0
    """Strength of more noise in what the UNet sees, which it is not to predict; 0.1 is usual."""
    multires_noise_iterations: int = 0
    """Add this many coarser noises (pyramid noise), for the same purpose as noise_offset; 6 is usual."""
    multires_noise_discount: float = 0.3
    """Strength of each coarser noise relative to the one before."""
    masked_loss: bool = False
    """Count the loss only where the dataset's masks are white, per white area; pictures without a mask count whole."""
    prior_loss_weight: float = 1.0
    """Weight of the pictures that are marked in the column is_class_image (prior preservation)."""
    min_timestep: int = 0
    """Train on timesteps from here on; 0 is nearly the picture."""
    max_timestep: int | None = None
    """Train on timesteps below this. Default: the base's number of timesteps, 1000, nearly noise."""
    timestep_sampling: Literal["uniform", "logit_normal", "beta"] = "uniform"
    """How often which timestep is drawn; docs/timestep_densities.png shows it."""
    logit_mean: float = 0.0
    """Mean of logit_normal; above 0 draws noisier timesteps more often."""
    logit_std: float = 1.0
    """Standard deviation of logit_normal; above 0."""
    timestep_beta_alpha: float = 1.0
    """First parameter of beta; larger draws noisier timesteps more often."""
    timestep_beta_beta: float = 1.0
    """Second parameter of beta; larger draws less noisy timesteps more often."""
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = "none"
    """Draw the least noisy timesteps, the noisiest ones, or a range of them more often."""
    timestep_bias_multiplier: float = 1.0
    """How many times as often."""
    timestep_bias_portion: float = 0.25
    """Share of the timesteps that earlier and later mean."""
    timestep_bias_begin: int = 0
    """First timestep of the range."""
    timestep_bias_end: int = 1000
    """End of the range, not included."""

    # --- captions ---
    proportion_empty_prompts: float = 0.0
    """Share of turns with the empty prompt in place of the caption, for classifier-free guidance; 0.1 is usual."""
    shuffle_caption: bool = False
    """Put the tags of a caption, what stands between commas, in another order in every turn."""
    keep_tokens: int = 0
    """So many tags at the beginning are neither moved nor left out: 1 for a trigger word in front."""
    keep_tokens_separator: str | None = None
    """If this text stands in a caption, all tags before it are kept instead, and it is taken out; e.g. "|||"."""
    caption_separator: str = ","
    """What stands between tags."""
    caption_tag_dropout_rate: float = 0.0
    """Share of tags left out, others in every turn."""
    enable_wildcard: bool = False
    """Choose one of {red|green|blue} in a caption anew in every turn; choices may hold further ones."""
    max_caption_chunks: int = 1
    """Captions and sample prompts are read as this many chunks of 75 tokens; 3 for up to 225 tokens."""
    cache_latents: bool = True
    """Encode each picture once and keep its latents on the disk. Without it the VAE stays in GPU memory and encodes
    pictures in every turn."""
    cache_text_embeddings: bool = True
    """Encode each caption once and keep its embeddings. Without it, or where captions vary too much, the text encoders
    stay; where they train, captions are encoded in every turn in any case."""
    max_cached_captions: int = 4000
    """If captions vary, cache the embeddings of all that will occur up to this number (about 0.3 MB each and chunk);
    with more, keep the text encoders (1.5 GiB of GPU memory) and encode in every turn."""

    # --- how long, how fast ---
    dry_run: bool = False
    """Print what would be trained (pictures, steps, parameters, memory, cache, warnings) and write nothing."""
    train_batch_size: int | Literal["auto"] = 1
    """Pictures per process and micro-step. auto: learns what 1 does with the same gradient_accumulation_steps, with as
    many of a step's pictures at once as fit into the GPU's memory, or into memory_budget."""
    gradient_accumulation_steps: int = 1
    """Micro-steps per optimizer step. A step is an optimizer step, here and everywhere."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more time for far less memory."""
    gradient_checkpointing_blocks: tuple[str, ...] = ()
    """With gradient_checkpointing: only these of the UNet's blocks, e.g. down_blocks.1 up_blocks.1. Default: all."""
    compile: bool = False
    """Compile the UNet's repeated blocks: a minute at the start for faster steps. Goes on without where that fails."""
    cuda_graphs: bool = False
    """Record a micro-step for each size of pictures and replay it: far faster steps where a GPU waits for its host, as
    an H100 does at batch 1. For one process, without train_text_encoder. Goes on without where that fails."""
    num_train_epochs: int = 10
    """Passes over the dataset."""
    max_train_steps: int | None = None
    """Steps to train; overrides num_train_epochs."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    scale_lr: bool = False
    """Multiply the learning rate by batch size, micro-steps and processes."""
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant"
    """Course of the learning rate over the steps."""
    lr_warmup_steps: int = 0
    """Steps in which the learning rate rises from 0 (every schedule but "constant")."""
    lr_num_cycles: int = 1
    """Restarts of cosine_with_restarts."""
    lr_power: float = 1.0
    """Exponent of polynomial."""
    optimizer: str = "adamw"
    """adamw, adamw8bit, paged_adamw8bit, lion, lion8bit, prodigy, adafactor, schedule_free_adamw; or a module.Class."""
    use_8bit_adam: bool = False
    """The same as --optimizer adamw8bit."""
    optimizer_args: tuple[str, ...] = ()
    """More of the optimizer's own arguments, as name=value with Python's values, e.g. d_coef=2.0 betas=(0.9,0.99)."""
    lora_plus_ratio: float | None = None
    """LoRA+: the second matrix of each LoRA learns this many times faster; 16 is usual."""
    adam_beta1: float = 0.9
    """Decay of the optimizer's first moment."""
    adam_beta2: float = 0.999
    """Decay of the optimizer's second moment."""
    adam_weight_decay: float = 1e-2
    """Decoupled weight decay."""
    adam_epsilon: float = 1e-8
    """Term that keeps Adam's division finite."""
    ema_decay: float | None = None
    """Draw and publish a moving average of the weights that keeps this share in each step, e.g. 0.999."""
    prodigy_beta3: float | None = None
    """Decay of Prodigy's estimate of the learning rate. Default: the square root of adam_beta2."""
    prodigy_decouple: bool = True
    """Weight decay as in AdamW."""
    prodigy_use_bias_correction: bool = True
    """Adam's correction of the first steps, in Prodigy."""
    prodigy_safeguard_warmup: bool = True
    """Keep Prodigy's estimate from growing too far while the learning rate warms up."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 for no clipping."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "bf16"
    """Precision of the base and of the computation; LoRA weights are float32 in every one."""
    base_precision: Literal["bf16", "fp16", "fp32", "int8", "nf4", "fp8"] | None = None
    """Precision of the frozen UNet; in int8, fp8 and nf4 its transformers' linear layers, most of it, are packed.
    Default: mixed_precision."""
    memory_budget: str | None = None
    """GPU memory to live within, e.g. 8GB: chooses what is recomputed, an 8-bit optimizer and the base's precision by
    counting what this model needs, and says what to expect."""
    allow_tf32: bool = False
    """Let Ampere and newer GPUs round float32 matrix products to TF32."""
    seed: int = 0
    """Fixes initial weights, order, noise, timesteps and flips."""
    process_timeout_seconds: int = 1800
    """With several processes: how long one may keep the others waiting before they end and say so."""
    deterministic: bool = False
    """Only deterministic kernels: the same machine gives the same weights bit for bit, at some cost in speed."""
    dataloader_num_workers: int = 0
    """Processes that decode pictures while the caches are filled."""
    cache_dir: str | None = None
    """Folder of cached latents and text embeddings, shared between runs. Default: <output_dir>/cache."""
    cache_part: str | None = None
    """Fill only this part of the caches, e.g. 3/16, and end: for as many jobs at once as you like, before a training
    that finds all of it there."""

    # --- checkpoints and LoRA files ---
    checkpointing_steps: int | None = 500
    """Save a checkpoint every N steps."""
    checkpointing_epochs: int | None = None
    """Save a checkpoint every N epochs."""
    checkpoints_total_limit: int | None = None
    """Keep the newest N checkpoints, two at least."""
    resume_from_checkpoint: str | None = "latest"
    """"latest" (start anew where there is none), a checkpoint-<step> folder, or None to refuse a used output_dir."""

    output_name: str | None = None
    """Name of the LoRA file for ComfyUI, A1111 and Forge, without .safetensors. Default: output_dir's name."""
    save_precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Precision of the LoRA files; fp32 is taken where values would be lost."""
    loras_dir: str | None = None
    """Folder that gets a copy of <output_name>.safetensors, e.g. ComfyUI's models/loras; it must be there."""

    save_side_files: bool = False
    """Also write <output_name>.json and .png, which A1111, Forge and InvokeAI show beside a LoRA."""

    # --- watching it ---
    validation_prompt: tuple[str, ...] = ()
    """Prompts drawn with the LoRA while it trains; each may have options of its own behind it, as in kohya's,
    for width, height, seed, guidance, steps and negative: "a cat --w 1024 --h 768 --d 42 --l 7.5 --s 30 --n blurry"."""
    validation_prompts_file: str | None = None
    """Text file with more such prompts, one a line."""
    validation_without_trigger: bool = False
    """Draw each prompt that has the dataset's trigger word also without it, to see what leaks."""
    num_validation_images: int = 4
    """Pictures per prompt."""
    validation_epochs: int = 1
    """Draw before the first step, every N epochs, and at the end."""
    validation_steps: int | None = None
    """Draw every N steps instead of every validation_epochs."""
    validation_inference_steps: int = 25
    """Denoising steps of such a picture."""
    validation_guidance_scale: float = 5.0
    """Classifier-free guidance of such a picture."""
    validation_guidance_rescale: float | None = None
    """How far guidance is kept from overexposing, 0 to 1. Default: 0.7 with a zero-terminal-SNR schedule, else 0."""
    similarity_model: str | None = None
    """Report how much such pictures resemble the training pictures (cosine of embeddings, 1 is the same), by any vision
    model of transformers: a folder or a Hub id, e.g. facebook/dinov2-base or openai/clip-vit-large-patch14."""
    validation_split: float = 0.0
    """Hold this share of the pictures out of training and report the loss on them, at fixed timesteps with fixed noise,
    as validation_loss: as often as samples are drawn. The checkpoint where it is lowest is kept, its LoRA file too."""
    early_stopping_patience: int | None = None
    """End the training after this many validations in a row that did not lower validation_loss."""
    early_stopping_min_delta: float = 0.0
    """It is lower only if it is so by more than this."""
    loss_bins: int = 4
    """Report the loss also for each of this many equal ranges of timesteps; 0 for not."""
    logging_steps: int = 1
    """Report every N steps, the mean of the loss over them; between reports a GPU never waits for the host."""
    report_to: Literal["tensorboard", "wandb", "trackio", "all", "none"] = "tensorboard"
    """Where metrics and pictures go, beside events.jsonl; all is TensorBoard and W&B."""
    logging_dir: str = "logs"
    """Folder of TensorBoard's files, inside output_dir."""
    tracker_project_name: str = "sdxl-lora"
    """Project in the tracker."""
    tracker_run_name: str | None = None
    """Name of the run in the tracker. Default: output_dir's name."""

    # --- publishing it ---
    push_to_hub: bool = False
    """Upload the LoRA files, the model card and its pictures to the Hub at the end."""
    hub_model_id: str | None = None
    """Repository to upload to, user/name. Default: output_name, under the account that is logged in."""
    hub_private: bool = True
    """Create that repository as private."""

    @property
    def optimizer_name(self) -> str:
        return "adamw8bit" if self.use_8bit_adam else self.optimizer

    @property
    def optimizer_arguments(self) -> dict[str, Any]:
        """What the optimizer's class gets beside Adam's settings."""
        flags = ("beta3", "decouple", "use_bias_correction", "safeguard_warmup")
        own = {flag: getattr(self, f"prodigy_{flag}") for flag in flags} if self.optimizer_name == "prodigy" else {}
        return own | dict(keyword_argument(text) for text in self.optimizer_args)

    @property
    def pictures_per_process(self) -> int:
        """In a step, in all its micro-steps together."""
        at_once = 1 if self.train_batch_size == "auto" else self.train_batch_size
        return at_once * self.gradient_accumulation_steps

    @property
    def run_dir(self) -> Path:
        """The run's folder: output_dir, or one in it for a job that only fills a part of the caches."""
        if self.cache_part is None:
            return Path(self.output_dir)
        return Path(self.output_dir) / f"cache-part-{self.cache_part.replace('/', '-of-')}"

    @property
    def cache_folder(self) -> Path:
        """Where caches lie: cache_dir, or one in output_dir."""
        return Path(self.cache_dir or Path(self.output_dir) / "cache")

    @property
    def lora_name(self) -> str:
        return self.output_name or Path(self.output_dir).resolve().name

    def __post_init__(self) -> None:
        problems = number_problems(
            self,
            positive=[
                "rank", "lora_alpha", "gradient_accumulation_steps", "num_train_epochs",
                "max_train_steps", "max_train_samples", "resolution", "lr_num_cycles", "lr_power", "adam_epsilon",
                "checkpointing_steps", "checkpointing_epochs", "checkpoints_total_limit", "num_validation_images",
                "validation_epochs", "validation_steps", "validation_inference_steps", "process_timeout_seconds",
                "early_stopping_patience", "logging_steps", "shuffle_buffer_size",
                "huber_c", "snr_gamma", "max_timestep", "logit_std", "timestep_beta_alpha", "timestep_beta_beta",
                "timestep_bias_multiplier", "timestep_bias_portion",
            ],
            not_negative=[
                "learning_rate", "lr_warmup_steps", "adam_weight_decay", "max_grad_norm", "seed",
                "dataloader_num_workers", "validation_guidance_scale",
                "noise_offset", "input_perturbation", "multires_noise_iterations", "multires_noise_discount",
                "prior_loss_weight", "min_timestep", "timestep_bias_begin", "text_encoder_lr", "text_encoder_2_lr",
                "validation_guidance_rescale", "early_stopping_min_delta",
            ],
            below_one=[
                "lora_dropout", "rank_dropout", "module_dropout", "adam_beta1", "adam_beta2",
                "stop_text_encoder_training",
            ],
        )  # fmt: skip
        if self.resolution > 0 and self.resolution % 8:
            problems.append(multiple_of_8_problem(self.resolution))
        if [self.train_data_dir is None, self.dataset_name is None, not self.datasets].count(False) != 1:
            problems.append(
                "give one of train_data_dir (a folder), dataset_name (the Hub, or save_to_disk) and datasets (several)"
            )
        try:
            parse_entries(self.datasets)
        except ConfigError as error:
            problems.append(f"datasets: {error}")
        of_text = ("text_encoder_lr", "text_encoder_2_lr", "stop_text_encoder_training")
        if not self.train_text_encoder and any(getattr(self, name) is not None for name in of_text):
            problems.append(f"{', '.join(of_text)} need train_text_encoder")
        problems += part_problems("cache_part", self.cache_part)
        if self.cache_part is not None and not self.cache_latents:
            problems.append("cache_part fills the caches: leave out no_cache_latents")
        if self.dataset_streaming:
            problems += streaming_problems(self)
        problems += memory_problems(self)
        problems += objective_problems(self) + adapter_problems(self)
        problems += optimizer_problems(self) + caption_problems(self) + watching_problems(self)
        raise_all(problems)


def objective_problems(config: TrainConfig) -> list[str]:
    """A sentence for each pair of the settings of what is learned that do not go together."""
    problems = []
    if config.snr_gamma is not None and config.debiased_estimation:
        problems.append("snr_gamma and debiased_estimation exclude each other: choose one")
    if config.max_timestep is not None and config.min_timestep >= config.max_timestep:
        problems.append(f"min_timestep {config.min_timestep} must be below max_timestep {config.max_timestep}")
    if not math.isfinite(config.logit_mean):
        problems.append(f"logit_mean is {config.logit_mean}, it must be a number")
    strategy = config.timestep_bias_strategy
    if strategy == "none":
        if config.timestep_bias_multiplier != 1:
            problems.append("timestep_bias_multiplier needs a timestep_bias_strategy: earlier, later or range")
        return problems
    if config.timestep_bias_multiplier == 1:
        problems.append(f"timestep_bias_strategy {strategy} needs a timestep_bias_multiplier other than 1")
    if config.timestep_sampling != "uniform":
        problems.append(f"timestep_bias_strategy needs timestep_sampling uniform, not {config.timestep_sampling}")
    if config.timestep_bias_portion > 1:
        problems.append(f"timestep_bias_portion is {config.timestep_bias_portion}, it must be at most 1")
    first, end = config.min_timestep, config.max_timestep or 1000
    if strategy == "range" and max(first, config.timestep_bias_begin) >= min(end, config.timestep_bias_end):
        problems.append(
            f"timestep_bias_begin {config.timestep_bias_begin} and timestep_bias_end {config.timestep_bias_end} must "
            f"include some of the timesteps {first} to {end}"
        )
    return problems


def adapter_problems(config: TrainConfig) -> list[str]:
    """A sentence for each setting of the adapter that cannot be."""
    problems = []
    for name, number in (("block_ranks", int), ("block_lr_factors", float)):
        try:
            parse_blocks(getattr(config, name), number)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    starts = "kaiming, gaussian, orthogonal, pissa, pissa_niter_<number> or olora"
    if not re.fullmatch(r"kaiming|gaussian|orthogonal|pissa(_niter_[1-9]\d*)?|olora", config.init_lora_weights):
        problems.append(f"init_lora_weights is {config.init_lora_weights!r}, it must be {starts}")
    of_lora = {
        "lora_dropout (use rank_dropout)": config.lora_dropout > 0,
        "init_lora_weights": config.init_lora_weights != "kaiming",
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
    }
    if config.adapter != "lora" and any(of_lora.values()):
        names = ", ".join(name for name, given in of_lora.items() if given)
        problems.append(f"{names} belong to adapter lora: leave them out with {config.adapter}")
    if config.use_dora and config.init_lora_weights.startswith(("pissa", "olora")):
        problems.append(f"init_lora_weights {config.init_lora_weights} does not go with use_dora")
    of_file = {
        "block_ranks": bool(config.block_ranks),
        "use_rslora": config.use_rslora,
        "init_lora_weights": config.init_lora_weights != "kaiming",
    }
    if config.init_lora is not None and any(of_file.values()):
        names = ", ".join(name for name, given in of_file.items() if given)
        problems.append(f"init_lora brings its own ranks, strengths and weights: leave out {names}")
    return problems


def streaming_problems(config: TrainConfig) -> list[str]:
    """A sentence for each setting that a stream cannot have, as nobody knows how many pictures it brings."""
    problems = [
        f"dataset_streaming does not go with {name}: nobody knows which pictures will come"
        for name, is_set in {
            "datasets": bool(config.datasets),
            "validation_split": config.validation_split > 0,
            "similarity_model": config.similarity_model is not None,
            "dry_run": config.dry_run,
            "cache_part": config.cache_part is not None,
            "checkpointing_epochs": config.checkpointing_epochs is not None,
        }.items()
        if is_set
    ]
    if config.max_train_steps is None:
        problems.append("dataset_streaming needs max_train_steps: nobody knows how long an epoch is")
    return problems


def drops(config: TrainConfig) -> bool:
    """Whether the adapter has dropout."""
    return bool(config.lora_dropout or config.rank_dropout or config.module_dropout)


def memory_problems(config: TrainConfig) -> list[str]:
    """A sentence for each setting of precision and memory that cannot be."""
    problems = batch_problems(config)
    if config.base_precision in ("bf16", "fp16") and config.base_precision != config.mixed_precision:
        problems.append(
            f"base_precision {config.base_precision} needs mixed_precision {config.base_precision}, "
            f"not {config.mixed_precision}"
        )
    if config.base_precision in ("int8", "nf4", "fp8") and config.init_lora_weights.startswith(("pissa", "olora")):
        problems.append(f"init_lora_weights {config.init_lora_weights} changes the base: leave out base_precision")
    if config.memory_budget is not None:
        if not re.fullmatch(r"\s*\d*\.?\d+\s*(G|GB|GiB)?\s*", config.memory_budget, re.IGNORECASE):
            problems.append(f"memory_budget is {config.memory_budget!r}, it must be gibibytes such as 8GB")
        if config.init_lora_weights.startswith(("pissa", "olora")):
            problems.append(f"memory_budget does not go with init_lora_weights {config.init_lora_weights}")
    if config.cuda_graphs and config.train_text_encoder:
        problems.append("cuda_graphs does not go with train_text_encoder, whose prompts are read outside of a graph")
    if config.cuda_graphs and config.gradient_checkpointing and drops(config):
        problems.append("cuda_graphs does not go with gradient_checkpointing and dropout: a graph cannot draw it again")
    if config.gradient_checkpointing_blocks and not config.gradient_checkpointing:
        problems.append("gradient_checkpointing_blocks needs gradient_checkpointing")
    return problems


def batch_problems(config: TrainConfig) -> list[str]:
    """A sentence for what train_batch_size cannot be."""
    batch = config.train_batch_size
    if batch != "auto":
        is_number = isinstance(batch, int) and batch > 0
        return [] if is_number else [f"train_batch_size is {batch!r}, it must be a whole number above 0, or auto"]
    problems = []
    if config.gradient_accumulation_steps == 1:
        problems.append(
            "train_batch_size auto takes as many of a step's gradient_accumulation_steps pictures at once as fit: "
            "say how many a step has, e.g. --gradient_accumulation_steps 8"
        )
    if config.dataset_streaming:
        problems.append("train_batch_size auto does not go with dataset_streaming: give a number")
    return problems


def caption_problems(config: TrainConfig) -> list[str]:
    """A sentence for each setting of captions that cannot be."""
    problems = number_problems(
        config,
        positive=["max_caption_chunks"],
        not_negative=["keep_tokens", "max_cached_captions"],
        below_one=["proportion_empty_prompts", "caption_tag_dropout_rate"],
    )
    for name in ("caption_separator", "keep_tokens_separator"):
        if getattr(config, name) == "":
            problems.append(f"{name} is empty, it must be some text")
    return problems


def watching_problems(config: TrainConfig) -> list[str]:
    """A sentence for each setting of samples, validation and publishing that cannot be."""
    problems = []
    for prompt in config.validation_prompt:
        try:
            parse_prompt(prompt)
        except ConfigError as error:
            problems.append(str(error))
    has_prompts = config.validation_prompt or config.validation_prompts_file
    for name in ("validation_without_trigger", "similarity_model"):
        if getattr(config, name) and not has_prompts:
            problems.append(f"{name} needs a validation_prompt")
    if config.hub_model_id is not None and not config.push_to_hub:
        problems.append("hub_model_id needs push_to_hub")
    if config.early_stopping_patience is not None and not config.validation_split:
        problems.append("early_stopping_patience needs a validation_split: pictures whose loss tells when to stop")
    if config.validation_guidance_rescale is not None and config.validation_guidance_rescale > 1:
        problems.append(f"validation_guidance_rescale is {config.validation_guidance_rescale}, it must be from 0 to 1")
    return problems


def optimizer_problems(config: TrainConfig) -> list[str]:
    """A sentence for each setting of the optimizer that cannot be."""
    problems = number_problems(
        config,
        positive=["lora_plus_ratio"],
        not_negative=["loss_bins"],
        below_one=["prodigy_beta3", "ema_decay", "validation_split"],
    )
    if config.ema_decay is not None and config.optimizer_name == "schedule_free_adamw":
        problems.append("ema_decay does not go with schedule_free_adamw, which keeps an average of its own")
    if config.optimizer not in OPTIMIZERS and "." not in config.optimizer.strip("."):
        near = difflib.get_close_matches(config.optimizer, OPTIMIZERS, n=1)
        question = f", did you mean {near[0]}?" if near else ""
        problems.append(
            f"optimizer is {config.optimizer!r}, it must be one of {', '.join(OPTIMIZERS)}, or module.Class{question}"
        )
    if config.use_8bit_adam and config.optimizer not in ("adamw", "adamw8bit"):
        problems.append(f"use_8bit_adam means adamw8bit, but optimizer is {config.optimizer}: leave one of them out")
    if config.lora_plus_ratio is not None and config.optimizer_name == "prodigy":
        problems.append("lora_plus_ratio does not go with prodigy, which finds one learning rate for all weights")
    factors = [text.rpartition("=")[2].strip() for text in config.block_lr_factors]
    rates = (config.text_encoder_lr, config.text_encoder_2_lr)
    if config.optimizer_name == "prodigy" and (
        any(factor not in ("0", "0.0", "1", "1.0") for factor in factors)
        or any(rate not in (None, 0, config.learning_rate) for rate in rates)
    ):
        problems.append("prodigy finds one learning rate for all weights: factors may be 0 or 1, other rates 0")
    for text in config.optimizer_args:
        try:
            name, _ = keyword_argument(text)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if name in ("lr", "params"):
            problems.append(f"optimizer_args may not set {name}" + (": use learning_rate" if name == "lr" else ""))
    return problems

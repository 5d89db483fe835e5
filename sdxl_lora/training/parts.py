"""What a training is made of: pictures and their caches, the plan of its steps, models with adapters, the optimizer.

Reads the config, as settings.py does; the loop over these parts is train_sdxl_lora.py.
"""

import time
from collections import Counter
from collections.abc import Callable
from itertools import islice

import torch
from accelerate import Accelerator

from sdxl_lora.cache.fill import fill_caches, weights_key
from sdxl_lora.cache.records import workers_of
from sdxl_lora.cache.text_embeddings import TextCache
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.config.unet_blocks import parse_blocks
from sdxl_lora.data.captions import AS_WRITTEN, prompts_of
from sdxl_lora.data.collate import Collator
from sdxl_lora.data.concat_dataset import JoinedPictures
from sdxl_lora.data.image_dataset import TrainingPictures, check_class_images
from sdxl_lora.data.sampler import Batches
from sdxl_lora.data.split import held_out
from sdxl_lora.data.stream_dataset import StreamedBatches, StreamedPictures
from sdxl_lora.diffusion.noise import draw_flip
from sdxl_lora.distributed.accelerator import send_only_what_trains
from sdxl_lora.distributed.collectives import all_raise_what_one_raises, main_process_first
from sdxl_lora.errors import ConfigError
from sdxl_lora.fault_injection import fault_point
from sdxl_lora.io.memo import Memo
from sdxl_lora.lora.inject import add_lora, changes_base
from sdxl_lora.lora.state import adapter_parameters
from sdxl_lora.lora.targets import exactly, layers_with_ranks, target_modules, text_encoder_targets
from sdxl_lora.lora.warm_start import layers_of, load_adapters, lokr_factor, without_unread
from sdxl_lora.models.loading import load_schedulers, load_text_parts, load_unet, load_vae
from sdxl_lora.models.text_encoders import PresentTexts, TextEncoders
from sdxl_lora.performance.compute import checkpoint_blocks, compile_blocks, without_autocast
from sdxl_lora.performance.cuda_graphs import RecordedMicroStep
from sdxl_lora.performance.frozen_layers import keep_less
from sdxl_lora.performance.fused_lora import fuse_lora
from sdxl_lora.performance.quantization import KINDS, quantize_linears
from sdxl_lora.run.session import Run
from sdxl_lora.run.stop import StopRequest
from sdxl_lora.training.ema import Ema
from sdxl_lora.training.optim import parameter_groups
from sdxl_lora.training.settings import (
    DTYPES,
    base_dtype,
    base_of,
    block_factors,
    captions_of,
    chance_of,
    check_dropout,
    guidance_rescale_of,
    learning_rate_factors,
    objective_of,
    open_pictures,
    open_rows_of,
    optimizer_of,
    sample_prompts_of,
    start_of,
    stream_of,
)


class Parts:
    """Made in two steps, so that the encoders are gone before the UNet arrives: pictures, then models."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, run: Run, stop: StopRequest):
        self.config, self.accelerator, self.run, self.stop = config, accelerator, run, stop
        check_dropout(config, accelerator.num_processes)
        self.base = base_of(config)
        self.share_step(1 if config.batch.train_batch_size == "auto" else config.batch.train_batch_size)
        self.notes: list[str] = []  # said once the journal is open

    def share_step(self, micro_batch: int) -> None:
        """Let a process do its pictures of a step so many at once."""
        self.micro_batch = micro_batch
        self.micro_steps = self.accelerator.gradient_accumulation_steps = (
            self.config.batch.images_per_process // micro_batch
        )

    def prepare_pictures(self) -> None:
        """Encode pictures and captions once; the encoders are gone before the UNet arrives. Plan the steps."""
        config, accelerator = self.config, self.accelerator
        if config.data.dataset_streaming:
            self.prepare_stream()
            return
        memo = Memo(config.cache_folder / "memo.json")
        self.plan(main_process_first(accelerator, lambda: open_pictures(config, memo)))
        captions, shown = self.captions_that_will_occur(), self.prompts_to_show()
        self.run.update(state="caching")
        began = time.perf_counter()
        with all_raise_what_one_raises(accelerator):
            self.latents, self.texts = fill_caches(
                config.cache_folder,
                self.base,
                self.pictures,
                prompts=[] if config.adapter.train_text_encoder else shown,
                flips=(False, True) if config.data.random_flip else (False,),
                device=accelerator.device,
                text_dtype=DTYPES[config.compute.mixed_precision],
                num_workers=config.cache.dataloader_num_workers,
                workers=workers_of(
                    config.cache.cache_part, accelerator.process_index, accelerator.num_processes, self.stop.reason
                ),
                captions=captions or (),
                chunks=config.captions.max_caption_chunks,
                latents_live=not config.cache.cache_latents,
                encode_live=captions is None,
                read_live=[] if captions is not None else [*shown, *(example.caption for example in self.examples)],
                memo=memo,
            )
        if accelerator.is_main_process:
            memo.save()
        self.run.event("cached", pictures=len(self.examples), seconds=round(time.perf_counter() - began, 3))

    def prepare_stream(self) -> None:
        """In place of all that for pictures that come one by one: the encoders stay."""
        config, accelerator = self.config, self.accelerator
        stream = main_process_first(accelerator, lambda: stream_of(config))
        vae = load_vae(self.base).to(accelerator.device)
        self.examples = self.latents = StreamedPictures(
            open_rows_of(config),
            vae,
            weights_key(vae),
            lambda turn: config.data.random_flip and draw_flip(config.seed, turn),
        )
        self.held_out, self.total_steps = [], config.batch.max_train_steps
        self.images_per_step = config.batch.images_per_process * accelerator.num_processes
        self.batches = StreamedBatches(
            stream,
            self.examples,
            config.data.image_column,
            config.data.caption_column,
            self.micro_batch,
            self.micro_steps,
            accelerator.process_index,
            accelerator.num_processes,
            config.data.shuffle_buffer_size,
            config.seed,
        )
        self.prompts = sample_prompts_of(config, self.sample_size())
        tokenizers, encoders = load_text_parts(self.base, DTYPES[config.compute.mixed_precision])
        encoders = [encoder.to(accelerator.device) for encoder in encoders]
        encoders_key = "".join(map(weights_key, encoders))
        self.texts = TextCache(
            config.cache_folder, encoders_key, config.captions.max_caption_chunks, (tokenizers, encoders)
        )
        self.notes.append("the pictures are a stream: they and their captions are encoded live")

    def plan(self, pictures: TrainingPictures | JoinedPictures) -> None:
        """Which pictures train, in which steps, and what samples show."""
        config = self.config
        self.pictures, self.examples = pictures, pictures.examples
        check_class_images(self.examples, config.objective.prior_loss_weight)
        self.held_out = (
            held_out(self.examples, config.evaluation.validation_split, config.seed)
            if config.evaluation.validation_split
            else []
        )
        self.plan_steps()
        self.prompts = sample_prompts_of(config, self.sample_size())

    def plan_steps(self) -> None:
        config = self.config
        self.images_per_step = config.batch.images_per_process * self.accelerator.num_processes
        num_epochs = None if config.batch.max_train_steps else config.batch.num_train_epochs
        sizes = [example.target_size for example in self.examples]
        for index in self.held_out:
            sizes[index] = None
        repeats = [example.repeats for example in self.examples]
        self.batches = Batches(sizes, self.images_per_step, config.seed, num_epochs, repeats)
        self.total_steps = config.batch.max_train_steps or self.batches.first_step(config.batch.num_train_epochs)

    def prompts_to_show(self) -> list[str]:
        """What samples and validation read beside the captions that train."""
        drawn = [text for prompt in self.prompts for text in (prompt.text, prompt.negative)]
        return [*drawn, *(self.examples[index].caption for index in self.held_out)]

    def captions_that_will_occur(self) -> set[str] | None:
        """All prompts that the turns of this run train with; None if they are to be encoded in every turn."""
        config, variants = self.config, captions_of(self.config)
        if config.adapter.train_text_encoder:
            self.notes.append("the text encoders train: captions are encoded live")
            return None
        if not config.cache.cache_text_embeddings:
            return None
        written, limit = [example.caption for example in self.examples], config.cache.max_cached_captions
        turns = (turn for _, turns in islice(self.batches.from_step(0), self.total_steps) for turn in turns)
        captions = prompts_of(written, config.seed, turns, variants, limit)
        if captions is None:
            self.notes.append(f"captions vary in more than {limit} ways: the text encoders stay and encode them live")
        elif variants != AS_WRITTEN:
            self.notes.append(f"captions vary: all {len(captions)} that will occur are cached")
        return captions

    def prepare_model(self) -> None:
        """The models with their adapters, and the optimizer over the adapters."""
        config = self.config
        self.schedule, self.sampling_schedule = load_schedulers(
            self.base, config.objective.prediction_type, config.objective.zero_terminal_snr
        )
        self.guidance_rescale = guidance_rescale_of(config, self.sampling_schedule.config)
        self.objective, self.chance = objective_of(config), chance_of(config, len(self.schedule.betas))
        self.collator = self.make_collator()
        fault_point("loading")
        self.bare_unet = self.load_base_unet()
        self.models = {"unet": self.bare_unet, **self.text_encoders()}
        self.start = start_of(config, self.models)
        self.notes += self.start.notes
        factors = learning_rate_factors(config, self.total_steps)
        self.groups = []
        for name, model in self.models.items():
            self.add_adapter(name, model, config.adapter.init_lora_weights)
            if name == "unet":
                self.set_computation(model)
            elif config.compute.gradient_checkpointing:
                model.gradient_checkpointing_enable()
            model.train()
            parameters = adapter_parameters(model)
            of_blocks = block_factors(config, parameters) if name == "unet" else None
            for group in parameter_groups(parameters, config.optimizer.lora_plus_ratio, of_blocks):
                factor = group["lr_factor"] * factors[name]["lr_factor"]
                self.groups.append({**group, **factors[name], "lr_factor": factor})
        self.parameters = [parameter for group in self.groups for parameter in group["params"]]
        optimizer = optimizer_of(config, [dict(group) for group in self.groups])
        bare = [self.bare_unet, *([self.texts.encoders] if config.adapter.train_text_encoder else [])]
        for model in bare:
            send_only_what_trains(self.accelerator, model)
        *self.wrapped, self.optimizer = self.accelerator.prepare(*bare, optimizer)
        self.optimizer.train()
        # Only torch's fused optimizers leave out a step by what the device finds; fp16's scaler tells them itself.
        self.sees_found_inf = config.optimizer.name == "adamw" and self.accelerator.scaler is None
        self.ema = (
            Ema(self.adapter_parameters(), config.optimizer.ema_decay)
            if config.optimizer.ema_decay is not None
            else None
        )
        self.vae = load_vae(self.base) if self.prompts else None

    def text_encoders(self) -> dict[str, torch.nn.Module]:
        """Those that train. From here on prompts are read through them as they are at the time."""
        if not self.config.adapter.train_text_encoder:
            return {}
        tokenizers, encoders = self.texts.live_parts
        self.texts = PresentTexts(
            tokenizers, TextEncoders(*encoders), self.texts.encoders_key, self.config.captions.max_caption_chunks
        )
        return {"text_encoder": encoders[0], "text_encoder_2": encoders[1]}

    def add_adapter(self, name: str, model: torch.nn.Module, init: str) -> None:
        config = self.config
        start, note = without_unread(model, name, self.start.adapters.get(name, {}))
        self.notes += [note] if note else []
        if changes_base(init):
            model.to(self.accelerator.device)  # a GPU decomposes weights a hundred times faster
            if model.dtype != torch.float32:
                rounded = f"{name}: what {init} leaves of the base is rounded to {model.dtype}"
                self.notes.append(f"{rounded}, which no file tells: 0.2 % of its weights; none in float32")
        try:
            add_lora(
                model,
                **(exactly(layers_of(model, name, start)) if start else self.ranks_and_targets(name, model)),
                dropout=config.adapter.lora_dropout,
                seed=config.seed,
                kind=config.adapter.adapter,
                init=init,
                rank_dropout=config.adapter.rank_dropout,
                module_dropout=config.adapter.module_dropout,
                lokr_factor=lokr_factor(start.values()),
                use_rslora=config.adapter.use_rslora,
                use_dora=config.adapter.use_dora,
            )
            if start:
                load_adapters(model, name, start)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def ranks_and_targets(self, name: str, model: torch.nn.Module) -> dict:
        """`add_lora`'s arguments that say which modules train, and at what rank and alpha."""
        config = self.config
        rank, targets = config.adapter.rank, config.adapter.target_modules
        alpha = config.adapter.lora_alpha or rank
        if name != "unet":
            targets = text_encoder_targets(model, name, targets)
        elif config.adapter.block_ranks:
            names, block_ranks = target_modules(model, targets), parse_blocks(config.adapter.block_ranks, int)
            return exactly(layers_with_ranks(names, rank, alpha, block_ranks, config.adapter.use_rslora))
        return {"rank": rank, "alpha": alpha, "targets": targets}

    def load_base_unet(self) -> torch.nn.Module:
        """Frozen, in the base's precision; the products stay in that of the computation."""
        config = self.config
        torch.backends.cudnn.benchmark = (
            not config.compute.deterministic
        )  # not before the VAE is gone, whose sizes are many
        unet = load_unet(self.base, base_dtype(config))
        if config.compute.base_precision in KINDS:
            count = quantize_linears(unet, config.compute.base_precision, self.accelerator.device)
            self.notes.append(f"base in {config.compute.base_precision}: {count} linear layers are packed")
        return unet

    def set_computation(self, unet: torch.nn.Module) -> None:
        """How the UNet with its adapter computes."""
        config, dtype = self.config, DTYPES[self.config.compute.mixed_precision]
        keep_less(unet, config.compute.compile)
        if self.computes_in_half(unet, fuse_lora(unet)):
            without_autocast(unet, dtype)
        try:
            if config.compute.gradient_checkpointing:
                checkpoint_blocks(unet, config.compute.gradient_checkpointing_blocks, config.adapter.has_dropout)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if config.compute.compile:
            compile_blocks(unet, lambda text: self.journal.say(text))

    def computes_in_half(self, unet: torch.nn.Module, not_fused: dict) -> bool:
        """Whether the UNet can do without autocast."""
        return self.config.compute.mixed_precision == "bf16" and unet.dtype == torch.bfloat16 and not not_fused

    def recorded(self, compute: Callable[[dict], torch.Tensor]) -> RecordedMicroStep:
        return RecordedMicroStep(compute, self.parameters, lambda text: self.journal.say(text))

    def make_collator(self) -> Collator:
        config, accelerator = self.config, self.accelerator
        settings = {
            "examples": self.examples,
            "latents": self.latents,
            "texts": None if config.adapter.train_text_encoder else self.texts,
            "seed": config.seed,
            "num_train_timesteps": self.schedule.config.num_train_timesteps,
            "chance": self.chance,
            "prior_loss_weight": config.objective.prior_loss_weight,
        }
        rank, world, pin = accelerator.process_index, accelerator.num_processes, accelerator.device.type == "cuda"
        return Collator(settings, rank, world, self.micro_steps, pin)

    @property
    def texts_are_live(self) -> bool:
        """Whether models that must not work beside the UNet's step read the captions."""
        return self.config.adapter.train_text_encoder or bool(self.texts.live_parts)

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Of all models, by model and name."""
        return {
            f"{name}.{key}": parameter
            for name, model in self.models.items()
            for key, parameter in adapter_parameters(model).items()
        }

    def sample_size(self) -> tuple[int, int]:
        """Height and width that most pictures have; of a stream, the square."""
        if self.config.data.dataset_streaming:
            return self.config.data.resolution, self.config.data.resolution
        return Counter(example.target_size for example in self.examples).most_common(1)[0][0]

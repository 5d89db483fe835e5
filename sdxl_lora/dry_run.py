"""--dry_run: what a training would do, from configs and pictures alone. Reads no weights and writes nothing.

It is the training's own planning (parts.py) over models on the meta device, so its numbers are those of the run.
"""

import os
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from sdxl_lora.blocks import block_of
from sdxl_lora.cache import warn_of_long_prompts
from sdxl_lora.checkpoint import checkpoints
from sdxl_lora.config import TrainConfig
from sdxl_lora.footprint import (
    CUDA_CONTEXT,
    GIB,
    VAE_ACTIVATIONS,
    activation_bytes,
    frozen_bytes,
    latent_record,
    text_record,
    training_bytes,
)
from sdxl_lora.lora_state import adapter_layers, adapter_parameters
from sdxl_lora.models import load_schedulers, load_tokenizers, models_without_weights
from sdxl_lora.optim import parameter_groups
from sdxl_lora.parts import Parts
from sdxl_lora.settings import (
    DTYPES,
    base_dtype,
    block_factors,
    chance_of,
    check_names,
    open_pictures,
    optimizer_of,
    start_of,
)


def dry_run(config: TrainConfig) -> str:
    """The plan, as lines for a person.

    Raises:
        ConfigError, DataError: what would end the training itself.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        plan = DryRun(config)
    return described(plan, [str(warning.message) for warning in warned if warning.category is UserWarning])


def described(plan: "DryRun", warned: list[str]) -> str:
    rows = [("pictures", plan.of_pictures()), ("steps", plan.of_steps()), ("trains", plan.of_parameters())]
    rows += [("would cache", plan.of_caches()), ("GPU memory", plan.of_memory()), ("output", plan.of_output())]
    rows += [("notes", list(dict.fromkeys(plan.notes))), ("warnings", warned)]
    lines = ["dry run: nothing is trained or written"]
    for heading, texts in rows:
        lines += [f"{heading if number == 0 else '':12} {text}" for number, text in enumerate(texts)]
    return "\n".join(lines)


class DryRun(Parts):
    """The parts of a training as far as they exist without weights."""

    def __init__(self, config: TrainConfig):
        # what depends on weights' values is left out: it changes no number that is shown
        processes = SimpleNamespace(num_processes=int(os.environ.get("WORLD_SIZE", 1)))
        super().__init__(replace(config, init_lora_weights="kaiming", compile=False), processes, None, None)
        check_names(config, self.base)
        self.plan(open_pictures(config))
        self.captions = self.captions_that_will_occur()
        everything = models_without_weights(self.base)
        self.values = {name: sum(p.numel() for p in model.parameters()) for name, model in everything.items()}
        self.frozen_bytes = frozen_bytes(everything["unet"], base_dtype(config), config.base_precision)
        self.vae = everything.pop("vae")
        self.encoders = {name: model for name, model in everything.items() if name != "unet"}
        self.models = everything if config.train_text_encoder else {"unet": everything["unet"]}
        self.start = start_of(config, self.models)
        self.notes += self.start.notes
        with torch.device("meta"):
            for name, model in self.models.items():
                self.add_adapter(name, model)
        self.check_rest()
        written = [example.caption for example in self.examples]
        warn_of_long_prompts(
            [*(written if self.captions is None else self.captions), *self.prompts_to_show()],
            load_tokenizers(self.base)[0],
            config.max_caption_chunks,
        )

    def check_rest(self) -> None:
        """What the training asks of its settings on the way, beside what is planned here."""
        config = self.config
        schedule, _ = load_schedulers(self.base, config.prediction_type, config.zero_terminal_snr)
        chance_of(config, len(schedule.betas))
        parameters = adapter_parameters(self.models["unet"])
        groups = parameter_groups(parameters, config.lora_plus_ratio, block_factors(config, parameters))
        optimizer_of(config, [{**group, "params": [torch.nn.Parameter(torch.zeros(1))]} for group in groups])

    def of_pictures(self) -> list[str]:
        count = Counter(example.target_size for example in self.examples)
        sizes = [f"{number} of {width}x{height}" for (height, width), number in count.most_common()]
        shown = sizes[:8] + ([f"{len(sizes) - 8} more sizes"] if len(sizes) > 8 else [])
        lines = [f"{len(self.examples)}, {len(self.held_out)} held out; {', '.join(shown)}"]
        if class_images := sum(example.is_class_image for example in self.examples):
            lines.append(f"{class_images} of them are class images")
        for repeats, number in Counter(example.repeats for example in self.examples).items():
            if repeats != 1:
                lines.append(f"{number} of them {float(repeats):g} times per epoch")
        return lines

    def of_steps(self) -> list[str]:
        config, per_epoch = self.config, float(self.batches.turns_per_epoch / self.images_per_step)
        epochs = self.batches.passes(self.total_steps)
        lines = [
            f"{self.total_steps} of {self.images_per_step} pictures ({config.train_batch_size} x "
            f"{config.gradient_accumulation_steps} micro-steps x {self.accelerator.num_processes} processes); "
            f"{per_epoch:g} per epoch, {epochs:g} epochs"
        ]
        small = [rows for rows in self.batches.members.values() if sum(map(len, rows.values())) < self.images_per_step]
        if small:
            lines.append(f"{len(small)} sizes have fewer pictures than a step: they wait for the next epoch to fill it")
        return lines

    def of_parameters(self) -> list[str]:
        """Numbers of values and modules, for the UNet by its three parts."""
        lines = []
        for name, model in self.models.items():
            values, modules = Counter(), Counter()
            for key, parameter in adapter_parameters(model).items():
                values[part_of(name, key)] += parameter.numel()
            for key in adapter_layers(model, name):
                modules[part_of(name, key)] += 1
            lines += [f"{part:16} {values[part]:>12,} parameters in {modules[part]} modules" for part in values]
        return [*lines, f"{'together':16} {sum(p.numel() for p in self.adapter_parameters().values()):>12,} parameters"]

    def cached_bytes(self) -> tuple[int, int, int, int]:
        """Numbers of pictures' and of prompts' records, and bytes of either."""
        config, vae = self.config, self.vae.config
        flips = 1 + config.random_flip
        sizes = {example.key: example.target_size for example in self.examples}
        factor = 2 ** (len(vae.block_out_channels) - 1)
        of_size = {
            size: latent_record(size, vae.latent_channels, factor, config.masked_loss) for size in sizes.values()
        }
        prompts = set(self.captions or ()) | set(() if config.train_text_encoder else self.prompts_to_show())
        widths = tuple(encoder.config.hidden_size for encoder in self.encoders.values())
        pooled = self.encoders["text_encoder_2"].config.projection_dim
        of_prompt = text_record(widths, pooled, config.max_caption_chunks, DTYPES[config.mixed_precision])
        latents = sum(of_size[size] for size in sizes.values()) * flips
        return len(sizes) * flips, len(prompts), latents, len(prompts) * of_prompt

    def of_caches(self) -> list[str]:
        pictures, prompts, latents, texts = self.cached_bytes()
        folder = Path(self.config.cache_dir or Path(self.config.output_dir) / "cache")
        live = "" if self.captions is not None else "; captions are encoded live"
        return [
            f"{pictures} pictures, {latents:,} bytes; {prompts} prompts, {texts:,} bytes{live}",
            f"into {folder}, but for what is there already" if folder.is_dir() else f"into {folder}",
        ]

    def of_memory(self) -> list[str]:
        """While training, by what takes it; and while the cache is filled, where that is more."""
        config = self.config
        size = DTYPES[config.mixed_precision].itemsize
        pixels = max(height * width for height, width in (example.target_size for example in self.examples))
        trained = self.adapter_parameters().values()
        encoders = sum(self.values[name] for name in self.encoders) if self.captions is None else 0
        recomputes = config.gradient_checkpointing and not config.gradient_checkpointing_blocks
        parts = {
            "UNet": self.frozen_bytes,
            "text encoders": encoders * size,
            "VAE for samples": self.values["vae"] * 4 if self.prompts else 0,
            "adapter and optimizer": training_bytes(trained, config.optimizer_name, config.ema_decay is not None),
            "activations": activation_bytes(pixels, config.train_batch_size, size == 2, recomputes),
            "CUDA": round(CUDA_CONTEXT * GIB),
        }
        caching = self.values["vae"] * 4 / GIB + VAE_ACTIVATIONS * pixels / 1024**2 + CUDA_CONTEXT
        listed = ", ".join(f"{name} {amount / GIB:.2f}" for name, amount in parts.items() if amount)
        return [
            f"about {sum(parts.values()) / GIB:.1f} GiB while training ({listed})",
            f"about {caching:.1f} GiB while pictures are encoded; activations are estimated, the rest is counted",
        ]

    def of_output(self) -> list[str]:
        folder = Path(self.config.output_dir)
        if not folder.is_dir():
            return [f"{folder}, which is new"]
        newest = checkpoints(folder)[-1:]
        return [f"{folder}, which is there" + (f" and holds {newest[0].name}, the newest" if newest else "")]


def part_of(component: str, module: str) -> str:
    return f"unet {block_of(module).split('.')[0]}" if component == "unet" else component

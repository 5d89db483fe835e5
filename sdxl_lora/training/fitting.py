"""Settings that are left to the device's memory: --memory_budget and --train_batch_size auto. Counted, then tried.

Reads the config, as parts.py does.
"""

import contextlib
import functools
import math
from itertools import islice

import torch
from accelerate.utils import gather_object
from torch import nn

from sdxl_lora.fault_injection import fault_point
from sdxl_lora.models.loading import models_without_weights
from sdxl_lora.models.text_encoders import TextEncoders
from sdxl_lora.performance.activation_memory import encoding_bytes
from sdxl_lora.performance.device_memory import free_memory, usable_bytes
from sdxl_lora.performance.frozen_layers import keep_less
from sdxl_lora.performance.fused_lora import fuse_lora
from sdxl_lora.performance.memory_budget import MemoryCount, bytes_of, choose, ladder, largest_batch, next_smaller
from sdxl_lora.performance.memory_estimate import GIB
from sdxl_lora.training.parts import Parts
from sdxl_lora.training.settings import DTYPES, base_dtype, on_rung, rung_of, start_of

ENCODERS = ("text_encoder", "text_encoder_2")


class Fitted(Parts):
    """Parts whose pictures are planned already."""

    def fit_into_memory(self) -> None:
        """Settle what is left open, the same on every process."""
        config = self.config
        if config.compute.memory_budget is None and config.batch.train_batch_size != "auto":
            return
        budget = config.compute.memory_budget and bytes_of(config.compute.memory_budget)
        if budget is None:
            budget = min(gather_object([usable_bytes(self.accelerator.device)]))
        self.settle(self.memory_count(models_without_weights(self.base)), budget)

    def settle(self, count: MemoryCount, budget: int) -> None:
        """First the highest rung that fits with the fewest pictures at once, then as many as that rung has room for."""
        config, rung, said = self.config, rung_of(self.config), []
        if config.compute.memory_budget is not None:
            rung, _ = choose(ladder(rung), lambda rung: count(rung, self.micro_batch), budget)
            self.config = on_rung(config, rung)
            said.append(f"memory_budget {config.compute.memory_budget}: {rung.flags()}")
        if config.batch.train_batch_size == "auto":
            self.share_step(largest_batch(config.batch.images_per_process, functools.partial(count, rung), budget))
            said.append(f"train_batch_size auto: {self.micro_batch} at once, {self.micro_steps} micro-steps")
        self.notes.append(f"{'; '.join(said)}; expects {count(rung, self.micro_batch) / GIB:.1f} GiB")

    def memory_count(self, models: dict[str, nn.Module]) -> MemoryCount:
        """Of this training, by its models without weights, of which those that train get their adapters."""
        config, dtype = self.config, DTYPES[self.config.compute.mixed_precision]
        values = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
        encoders_stay = self.texts_are_live
        self.models = {"unet": models["unet"]}
        self.models |= {name: models[name] for name in ENCODERS} if config.adapter.train_text_encoder else {}
        self.start = start_of(config, self.models)
        for name, model in self.models.items():
            nn.Module.to(model, base_dtype(config) if name == "unet" else dtype)  # diffusers' own warns
            with torch.device("meta"):
                self.add_adapter(name, model, init="kaiming")  # how it begins changes no size
            model.train()
        left = fuse_lora(models["unet"])
        keep_less(models["unet"], config.compute.compile)
        size = max((e.target_size for e in self.examples), default=(config.data.resolution,) * 2, key=math.prod)
        return MemoryCount(
            unet=models["unet"],
            encoders=TextEncoders(*(models[name] for name in ENCODERS)) if config.adapter.train_text_encoder else None,
            trained=list(self.adapter_parameters().values()),
            has_average=config.optimizer.ema_decay is not None,
            dtype=dtype,
            autocast=dtype != torch.float32 and not self.computes_in_half(models["unet"], left),
            size=size,
            chunks=config.captions.max_caption_chunks,
            others={
                "text encoders": sum(values[name] for name in ENCODERS) * dtype.itemsize * encoders_stay,
                "VAE for samples": values["vae"] * 4 * bool(self.prompts),
                "VAE": 0 if config.cache.cache_latents else values["vae"] * 4 + encoding_bytes(models["vae"], size),
            },
        )  # fmt: skip

    def rehearse(self) -> None:
        """Try what was counted on the largest picture to come, and fewer of it at once where the count erred.

        Changes no weight, and no draw: what chance gives depends on no state.
        """
        to_do = islice(self.batches.from_step(self.done_steps), max(0, self.total_steps - self.done_steps))
        turns = (turn for _, turns in to_do for turn in turns)
        largest = max(turns, key=lambda turn: math.prod(self.examples[turn.example].target_size), default=None)
        while largest and not all(gather_object([self.fits([largest] * self.micro_batch)])):
            if self.micro_batch == 1:
                raise torch.OutOfMemoryError("not even one picture at once fits")
            before = self.micro_batch
            self.share_step(next_smaller(self.config.batch.images_per_process, before))
            self.collator = self.make_collator()
            self.journal.say(f"out of memory with {before} pictures at once: going on with {self.micro_batch}")
        self.journal.skip_time()

    def fits(self, turns: list) -> bool:
        """Whether a forward and a backward of these turns do."""
        fits = True
        try:
            fault_point("rehearsal")
            with contextlib.ExitStack() as alone:
                for model in self.wrapped:
                    alone.enter_context(self.accelerator.no_sync(model))
                share = torch.zeros((), device=self.accelerator.device)
                self.compute({**self.on_device(self.collator(turns)), "share": share})
        except torch.OutOfMemoryError:
            fits = False
        self.optimizer.zero_grad()
        free_memory()
        return fits

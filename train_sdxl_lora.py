"""Train a LoRA of Stable Diffusion XL.

    accelerate launch train_sdxl_lora.py --train_data_dir data/cat --output_dir runs/cat --max_train_steps 1500

Reads top to bottom: what is prepared, the loop, what is left behind. The only module that sees everything.
"""

import sys

from sdxl_lora.config import TrainConfig, load_config, to_yaml
from sdxl_lora.quiet import quiet_libraries

if __name__ == "__main__":  # --help and a typo are answered before the imports below take their ten seconds
    CONFIG = load_config(TrainConfig, sys.argv[1:])
    quiet_libraries()

import math
import os
from collections import Counter
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image

from sdxl_lora.averages import Ema, schedule_free_average
from sdxl_lora.base_weights import base_sha256
from sdxl_lora.batches import Batches, Turn, keyed_seed, share
from sdxl_lora.cache import Workers, fill_caches
from sdxl_lora.captions import AS_WRITTEN, prompts_of
from sdxl_lora.checkpoint import disk_errors
from sdxl_lora.collate import collate
from sdxl_lora.data import check_class_images, dataset_key, trigger_word_of
from sdxl_lora.errors import RUN_ERRORS, ConfigError, LostProcessError, NonFiniteError, Stopped
from sdxl_lora.faults import fault_point
from sdxl_lora.journal import Journal, start_trackers
from sdxl_lora.lora import adapter_parameters, add_lora
from sdxl_lora.lora_files import check_name, copy_lora, thumbnail_jpeg, write_lora_files, write_side_files
from sdxl_lora.lora_metadata import lora_metadata, public_name, usage_lines
from sdxl_lora.measures import means_by_timestep, sums_by_timestep
from sdxl_lora.memory import free_memory, out_of_memory_advice
from sdxl_lora.model_card import model_card
from sdxl_lora.models import check_base, load_schedulers, load_unet, load_vae
from sdxl_lora.objective import noise_prediction_loss
from sdxl_lora.optim import learning_rate_at, make_optimizer, parameter_groups, set_learning_rate
from sdxl_lora.processes import all_raise_what_one_raises, main_process_decides, make_accelerator, set_arithmetic
from sdxl_lora.run import Run, StopRequest, naming_lost_processes, open_run, replace_text
from sdxl_lora.samples import draw_samples, read_samples, sample_path
from sdxl_lora.settings import (
    SAME_ON_RESUME,
    base_of,
    captions_of,
    chance_of,
    learning_rate_factors,
    objective_of,
    open_pictures,
)
from sdxl_lora.text import PresentTexts, TextEncoders, text_encoder_targets
from sdxl_lora.training_state import register_hooks, restore, save_checkpoint
from sdxl_lora.validation import held_out, validation_batch, validation_sums

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def train(config: TrainConfig) -> None:
    """One run, from pictures to LoRA files; goes on where an earlier one stopped. Every process calls this.

    Raises:
        the exceptions of sdxl_lora/errors.py.
    """
    accelerator = make_accelerator(
        config.mixed_precision,
        config.gradient_accumulation_steps,
        config.report_to,
        config.output_dir,
        config.logging_dir,
        config.process_timeout_seconds,
    )
    set_arithmetic(config.allow_tf32, config.deterministic)
    folder = Path(config.output_dir)
    with (
        open_run(accelerator, folder) as run,
        StopRequest(folder) as stop,
        disk_errors(folder),
        naming_lost_processes(accelerator, run),
        out_of_memory_advice(
            accelerator.device,
            config.resolution,
            config.train_batch_size,
            config.gradient_checkpointing,
            config.optimizer,
        ),
    ):
        training = Training(config, accelerator, run, stop)
        training.loop()
        training.finish()
    accelerator.end_training()


class Training:
    """What a run is made of, and its loop. A step is an optimizer step: `done_steps` of `total_steps` are done."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, run: Run, stop: StopRequest):
        self.config, self.accelerator, self.run, self.stop = config, accelerator, run, stop
        self.started_at = datetime.now(timezone.utc)
        self.base = base_of(config)
        self.notes: list[str] = []  # said once the journal is open
        main_process_decides(accelerator, self.check_names)
        self.base_hash = main_process_decides(accelerator, lambda: base_sha256(self.base.path))
        self.newest_sample: Image.Image | None = None
        self.prepare_pictures()
        self.end_if_asked_to("while caching")
        self.prepare_model()
        self.open_journal(self.resume())

    def check_names(self) -> None:
        """What would fail at the end of the night is said at its start."""
        check_base(self.base)
        loras_dir = self.config.loras_dir
        try:
            check_name(self.config.lora_name)
        except ValueError as error:
            raise ConfigError(f"{error} Choose it with --output_name.") from None
        if loras_dir is not None and not Path(loras_dir).is_dir():
            raise ConfigError(f"loras_dir {loras_dir} is not a folder: make it first")

    def prepare_pictures(self) -> None:
        """Encode pictures and captions once; the encoders are gone before the UNet arrives. Plan the steps."""
        config, accelerator = self.config, self.accelerator
        with accelerator.main_process_first():
            self.pictures = open_pictures(config)
        self.examples = self.pictures.examples
        check_class_images(self.examples, config.prior_loss_weight)
        self.held_out = held_out(self.examples, config.validation_split, config.seed) if config.validation_split else []
        self.plan_steps()
        captions = self.captions_that_will_occur()
        self.run.update(state="caching")
        with all_raise_what_one_raises(accelerator):
            self.latents, self.texts = fill_caches(
                Path(config.cache_dir or self.run.folder / "cache"),
                self.base,
                self.pictures,
                prompts=[] if config.train_text_encoder else self.prompts_to_show(),
                flips=(False, True) if config.random_flip else (False,),
                device=accelerator.device,
                text_dtype=DTYPES[config.mixed_precision],
                num_workers=config.dataloader_num_workers,
                workers=Workers(accelerator.process_index, accelerator.num_processes, self.stop.reason),
                captions=captions or (),
                chunks=config.max_caption_chunks,
                encode_live=captions is None,
            )

    def plan_steps(self) -> None:
        config = self.config
        processes = self.accelerator.num_processes
        self.images_per_step = config.train_batch_size * config.gradient_accumulation_steps * processes
        num_epochs = None if config.max_train_steps else config.num_train_epochs
        sizes = [example.target_size for example in self.examples]
        for index in self.held_out:
            sizes[index] = None
        self.batches = Batches(sizes, self.images_per_step, config.seed, num_epochs)
        self.total_steps = config.max_train_steps or self.batches.first_step(config.num_train_epochs)

    def prompts_to_show(self) -> list[str]:
        """What samples and validation read beside the captions that train."""
        return [*self.config.validation_prompt, "", *(self.examples[index].caption for index in self.held_out)]

    def captions_that_will_occur(self) -> set[str] | None:
        """All prompts that the turns of this run train with; None if they are to be encoded in every turn."""
        config, variants = self.config, captions_of(self.config)
        if config.train_text_encoder:
            self.notes.append("the text encoders train: captions are encoded live")
            return None
        written, limit = [example.caption for example in self.examples], config.max_cached_captions
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
            self.base, config.prediction_type, config.zero_terminal_snr
        )
        self.objective, self.chance = objective_of(config), chance_of(config, len(self.schedule.betas))
        self.bare_unet = load_unet(self.base, DTYPES[config.mixed_precision])
        self.models = {"unet": self.bare_unet, **self.text_encoders()}
        factors = learning_rate_factors(config, self.total_steps)
        self.groups = []
        for name, model in self.models.items():
            self.add_adapter(name, model)
            for group in parameter_groups(adapter_parameters(model), config.lora_plus_ratio):
                factor = group["lr_factor"] * factors[name]["lr_factor"]
                self.groups.append({**group, **factors[name], "lr_factor": factor})
        self.parameters = [parameter for group in self.groups for parameter in group["params"]]
        self.peak_learning_rate = config.learning_rate * (self.images_per_step if config.scale_lr else 1)
        optimizer = make_optimizer(
            config.optimizer_name,
            [dict(group) for group in self.groups],
            self.peak_learning_rate,
            (config.adam_beta1, config.adam_beta2),
            config.adam_weight_decay,
            config.adam_epsilon,
            config.optimizer_arguments,
        )
        bare = [self.bare_unet, *([self.texts.encoders] if config.train_text_encoder else [])]
        *self.wrapped, self.optimizer = self.accelerator.prepare(*bare, optimizer)
        self.optimizer.train()
        self.ema = Ema(self.adapter_parameters(), config.ema_decay) if config.ema_decay is not None else None
        self.vae = load_vae(self.base) if config.validation_prompt else None

    def text_encoders(self) -> dict[str, torch.nn.Module]:
        """Those that train. From here on prompts are read through them as they are at the time."""
        if not self.config.train_text_encoder:
            return {}
        tokenizers, encoders = self.texts.live_parts
        self.texts = PresentTexts(
            tokenizers, TextEncoders(*encoders), self.texts.encoders_key, self.config.max_caption_chunks
        )
        return {"text_encoder": encoders[0], "text_encoder_2": encoders[1]}

    def add_adapter(self, name: str, model: torch.nn.Module) -> None:
        config = self.config
        targets = config.target_modules if name == "unet" else text_encoder_targets(model, name, config.target_modules)
        try:
            add_lora(model, config.rank, config.lora_alpha or config.rank, config.lora_dropout, targets, config.seed)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing() if name == "unet" else model.gradient_checkpointing_enable()
        model.train()

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Of all models, by model and name."""
        return {
            f"{name}.{key}": parameter
            for name, model in self.models.items()
            for key, parameter in adapter_parameters(model).items()
        }

    def resume(self) -> list[str]:
        """Go to where the newest valid checkpoint stands. Returns what is to be said of it."""
        register_hooks(self.accelerator, self.models, self.export)
        if self.ema:
            self.ema.register_hooks(self.accelerator)
        self.facts = {
            **{name: getattr(self.config, name) for name in SAME_ON_RESUME},
            "optimizer_arguments": repr(self.config.optimizer_arguments),
            "base": self.base_hash or public_name(self.base.path),
            "vae": self.latents.vae_key,
            "text_encoders": self.texts.encoders_key,
            "dataset": dataset_key(self.examples),
            "images_per_step": self.images_per_step,
        }
        wanted = self.config.resume_from_checkpoint
        notes = self.notes
        self.done_steps = restore(self.accelerator, self.run.folder, wanted, self.facts, notes.append)
        for group, now in zip(self.optimizer.param_groups, self.groups, strict=True):  # rates may change on resume
            group.update(lr_factor=now["lr_factor"], end_step=now["end_step"])
        return [*notes, f"going on after step {self.done_steps}" if self.done_steps else "starting at step 0"]

    def open_journal(self, notes: list[str]) -> None:
        """Record the settings, open the trackers, say the notes and what will be trained."""
        config, folder = self.config, self.run.folder
        if self.accelerator.is_main_process:
            replace_text(folder / "config.yaml", to_yaml(config))
        run_name = config.tracker_run_name or folder.resolve().name
        start_trackers(self.accelerator, config.tracker_project_name, run_name, folder, asdict(config), notes.append)
        self.journal = Journal(self.accelerator, self.run, self.done_steps, self.total_steps)
        plan = {
            "processes": self.accelerator.num_processes,
            "device": str(self.accelerator.device),
            "step": self.done_steps,
            "total_steps": self.total_steps,
            "pictures": self.batches.pictures,
            "held_out": len(self.held_out),
            "sizes": len(self.batches.members),
            "images_per_step": self.images_per_step,
            "parameters": sum(parameter.numel() for parameter in self.parameters),
        }
        self.run.event("started", **plan)
        for note in [*notes, ", ".join(f"{name} {value}" for name, value in plan.items())]:
            self.journal.say(note)

    def loop(self) -> None:
        """Step, report, save, draw, until all steps are done or someone asks to stop."""
        config = self.config
        if self.held_out and self.done_steps == 0:
            self.validate()
        for epochs_before, turns in self.batches.from_step(self.done_steps):
            if self.done_steps >= self.total_steps:
                break
            learning_rate = self.learning_rate()
            set_learning_rate(self.optimizer, learning_rate, self.done_steps)
            loss, grad_norm = self.step(turns)
            self.done_steps += 1
            if self.ema:
                self.ema.update(self.done_steps)
            by_timestep = means_by_timestep(self.loss_sums, len(self.schedule.betas))
            self.journal.step(self.done_steps, len(turns), self.passes(), loss, learning_rate, grad_norm, **by_timestep)

            is_stopping = self.is_asked_to_stop()
            passed = epochs_before, self.batches.epoch_of(self.done_steps)
            if is_stopping or self.is_due(passed, config.checkpointing_epochs, config.checkpointing_steps):
                self.save()
            if is_stopping:
                self.end(f"at step {self.done_steps}, saved {self.run.status['last_checkpoint']}")
            if self.held_out and self.is_due(passed, config.validation_epochs):
                self.validate()
            if config.validation_prompt and self.is_due(passed, config.validation_epochs):
                self.draw()

    def is_asked_to_stop(self) -> bool:
        """The same answer on every process: whether any of them was asked to."""
        if self.stop.reason():
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def end_if_asked_to(self, where: str) -> None:
        if self.is_asked_to_stop():
            self.end(where)

    def end(self, where: str) -> None:
        """Raises Stopped, after a line that says so."""
        words = f"stopped {where} ({self.stop.reason() or 'another process was asked to'})"
        if self.accelerator.is_main_process:
            print(f"{words}; the same command goes on from there", file=sys.stderr)
        raise Stopped(words)

    def is_due(self, epochs: tuple[int, int], every_n_epochs: int | None, every_n_steps: int | None = None) -> bool:
        """After the step that took the number of finished epochs from epochs[0] to epochs[1]; always at the end."""
        by_steps = every_n_steps is not None and self.done_steps % every_n_steps == 0
        by_epochs = every_n_epochs is not None and epochs[1] // every_n_epochs > epochs[0] // every_n_epochs
        return by_steps or by_epochs or self.done_steps == self.total_steps

    def passes(self) -> float:
        """How often every picture was seen so far, on average."""
        passes = self.done_steps * self.images_per_step / self.batches.pictures
        return round(min(passes, self.batches.num_epochs or passes), 3)

    def learning_rate(self) -> float:
        """Of the step that comes next."""
        config = self.config
        return learning_rate_at(
            self.done_steps,
            self.total_steps,
            self.peak_learning_rate,
            config.lr_scheduler,
            config.lr_warmup_steps,
            config.lr_num_cycles,
            config.lr_power,
        )

    def step(self, turns: list[Turn]) -> tuple[float, float]:
        """One optimizer step over the turns, this process doing its share. Returns the mean loss and gradient norm.

        Raises:
            NonFiniteError: NaN or infinity, seen by every process before any weight changes.
        """
        accelerator, config = self.accelerator, self.config
        rank, world, micro_steps = (
            accelerator.process_index,
            accelerator.num_processes,
            config.gradient_accumulation_steps,
        )
        loss_sum = torch.zeros((), device=accelerator.device)
        loss_sums = torch.zeros(2, config.loss_bins, device=accelerator.device)
        for micro_step, micro_turns in enumerate(share(turns, rank, world, micro_steps)):
            with accelerator.accumulate(*self.wrapped):
                torch.manual_seed(keyed_seed(config.seed, "dropout", self.done_steps, micro_step, rank))
                batch = self.batch(micro_turns or turns[:1])
                losses = noise_prediction_loss(
                    self.wrapped[0],
                    self.schedule,
                    batch["latents"],
                    batch,
                    batch["noise"],
                    batch["timesteps"],
                    self.objective,
                )
                # Where there are too few turns for all, one that counts nothing keeps the processes in step.
                loss = losses.sum() * bool(micro_turns)
                loss_sum += loss.detach()
                if micro_turns:
                    loss_sums += sums_by_timestep(
                        losses, batch["timesteps"], len(self.schedule.betas), config.loss_bins
                    )
                # The mean over the step's pictures: backward divides by micro_steps, DDP by world.
                accelerator.backward(loss * (micro_steps * world / len(turns)))
                if accelerator.sync_gradients:
                    if fault_point("step", self.done_steps + 1):
                        loss_sum += torch.nan
                    mean_loss = accelerator.reduce(loss_sum, "sum").item() / len(turns)
                    grad_norm = accelerator.clip_grad_norm_(self.parameters, config.max_grad_norm or math.inf).item()
                    self.check_finite(mean_loss, grad_norm, turns)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.loss_sums = accelerator.reduce(loss_sums, "sum")
        return mean_loss, grad_norm

    def batch(self, turns: list[Turn]) -> dict[str, torch.Tensor]:
        batch = collate(
            turns,
            self.examples,
            self.latents,
            None if self.config.train_text_encoder else self.texts,
            self.config.seed,
            self.schedule.config.num_train_timesteps,
            self.chance,
            self.config.prior_loss_weight,
        )
        prompts = batch.pop("prompts", None)
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        return batch if prompts is None else {**batch, **self.texts.encode(prompts, self.wrapped[1])}

    def check_finite(self, loss: float, grad_norm: float, turns: list[Turn]) -> None:
        """fp16's scaler expects infinite gradients now and then, and skips such a step itself."""
        if math.isfinite(loss) and (math.isfinite(grad_norm) or self.accelerator.scaler is not None):
            return
        names = ", ".join(sorted({self.examples[turn.example].name for turn in turns}))
        raise NonFiniteError(
            f"step {self.done_steps + 1}: loss {loss}, gradient norm {grad_norm}; the weights were not changed. "
            f"Pictures of this step: {names}. Lower the learning rate, or look at these pictures; "
            f"the newest checkpoint is {self.run.status['last_checkpoint'] or 'none yet'}."
        )

    def save(self) -> None:
        keep = self.config.checkpoints_total_limit
        checkpoint = save_checkpoint(self.accelerator, self.run.folder, self.done_steps, self.facts, keep)
        self.run.event("checkpoint", step=self.done_steps, path=str(checkpoint))
        self.run.update(last_checkpoint=checkpoint.name)
        self.journal.skip_time()

    def export(self, folder: Path) -> list[Path]:
        """Write the LoRA files of the present weights."""
        config = self.config
        captions = [example.caption for example in self.examples]
        about = lora_metadata(
            config.lora_name,
            started_at=self.started_at,
            finished_at=datetime.now(timezone.utc),
            trigger_phrase=trigger_word_of(config.train_data_dir),
            resolution=self.sample_size()[::-1],
            rank=config.rank,
            alpha=config.lora_alpha or config.rank,
            base_model=self.base.path,
            base_model_sha256=self.base_hash,
            thumbnail_jpeg=thumbnail_jpeg(self.newest_sample) if self.newest_sample else b"",
            epochs=self.batches.epoch_of(self.done_steps),
            steps=self.done_steps,
            seed=config.seed,
            learning_rate=config.learning_rate,
            images=self.batches.pictures,
            tag_frequency=Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip()),
            prediction_type=self.schedule.config.prediction_type,
        )
        with self.weights_to_show():
            return write_lora_files(folder, config.lora_name, self.models, config.save_precision, about)

    def weights_to_show(self):
        """A context in which the adapter holds the weights that samples and LoRA files are made of."""
        return self.ema.shown() if self.ema else schedule_free_average(self.optimizer.optimizer, self.parameters)

    def draw(self) -> None:
        """Draw the validation prompts with the LoRA as it is, the processes sharing the work."""
        config, accelerator = self.config, self.accelerator
        self.run.update(state="sampling")
        folder = self.run.folder / "samples"
        try:
            with accelerator.autocast(), self.weights_to_show():
                draw_samples(
                    self.bare_unet,
                    self.vae,
                    self.sampling_schedule,
                    [self.texts.read(prompt) for prompt in config.validation_prompt],
                    self.texts.read(""),
                    self.sample_size(),
                    config.validation_inference_steps,
                    config.validation_guidance_scale,
                    config.seed,
                    config.num_validation_images,
                    folder,
                    self.done_steps,
                    accelerator.process_index,
                    accelerator.num_processes,
                    self.stop.reason,
                )
        except torch.OutOfMemoryError as error:  # a picture is not worth a training
            free_memory()
            self.journal.say(f"out of memory while drawing samples at step {self.done_steps}, going on ({error})")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            pictures = read_samples(
                folder, self.done_steps, len(config.validation_prompt), config.num_validation_images
            )
            self.newest_sample = next((image for of_prompt in pictures for image in of_prompt), None)
            self.journal.pictures(self.done_steps, dict(zip(config.validation_prompt, pictures, strict=True)))
            self.run.event("samples", step=self.done_steps, folder=str(folder))
        self.journal.skip_time()

    def validate(self) -> None:
        """Report the loss on the held-out pictures, the processes sharing the work; not if asked to stop meanwhile."""
        accelerator, steps = self.accelerator, len(self.schedule.betas)

        def batches():
            for index in self.held_out[accelerator.process_index :: accelerator.num_processes]:
                if self.stop.reason():
                    return
                batch = validation_batch(index, self.examples, self.latents, self.texts, self.config.seed, steps)
                yield {name: tensor.to(accelerator.device) for name, tensor in batch.items()}

        with accelerator.autocast(), self.weights_to_show():
            sums = accelerator.reduce(validation_sums(self.bare_unet, self.schedule, batches()), "sum")
        if sums[1].min() == len(self.held_out):
            self.journal.validation(self.done_steps, (sums[0] / sums[1]).mean().item(), means_by_timestep(sums, steps))
        self.journal.skip_time()

    def sample_size(self) -> tuple[int, int]:
        """Height and width that most pictures have."""
        return Counter(example.target_size for example in self.examples).most_common(1)[0][0]

    def finish(self) -> None:
        """Write the LoRA files and say where they are."""
        if not self.accelerator.is_main_process:
            return
        config = self.config
        trigger_word = trigger_word_of(config.train_data_dir)
        files = self.export(self.run.folder)
        if config.save_side_files:
            picture = sample_path(self.run.folder / "samples", self.done_steps, 0, 0)
            png = picture.read_bytes() if self.newest_sample else b""
            files += write_side_files(files[0], trigger_word, f"LoRA of {public_name(self.base.path)}", png)
        if config.loras_dir:
            files.append(copy_lora(files[0], config.loras_dir))
        self.write_card(trigger_word)
        self.run.event("finished", step=self.done_steps, files=[str(path) for path in files])
        self.journal.bar.close()
        for_diffusers, for_others = usage_lines(config.lora_name, trigger_word)
        print("LoRA files:", *files, sep="\n  ")
        if config.validation_prompt:
            print(f"samples: {self.run.folder / 'samples'}")
        print(
            f"trigger word: {trigger_word or 'none'}\ndiffusers: {for_diffusers}\nComfyUI, A1111, Forge: {for_others}"
        )

    def write_card(self, trigger_word: str) -> None:
        """README.md in the run's folder: what the Hub shows of a LoRA."""
        config = self.config
        samples = [
            (prompt, str(sample_path(Path("samples"), self.done_steps, number, 0)))
            for number, prompt in enumerate(config.validation_prompt)
            if sample_path(self.run.folder / "samples", self.done_steps, number, 0).exists()
        ]
        settings = {name: getattr(config, name) for name in SAME_ON_RESUME}
        settings |= {"steps": self.done_steps, "pictures": len(self.examples), "learning_rate": config.learning_rate}
        prompt = config.validation_prompt[0] if config.validation_prompt else ""
        card = model_card(config.lora_name, self.base.path, trigger_word, prompt, samples, settings)
        replace_text(self.run.folder / "README.md", card)


def main(config: TrainConfig) -> int:
    """The exit code of a run; 0 for one that is done or was stopped on request. What a person can cause is one line."""
    try:
        train(config)
        return 0
    except RUN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, LostProcessError):
            os._exit(error.exit_code)  # leaving in good order would wait for the lost process
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(CONFIG))

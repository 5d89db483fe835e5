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
from dataclasses import asdict

import torch
from accelerate import Accelerator

from sdxl_lora.base_weights import base_sha256
from sdxl_lora.batches import Turn, keyed_seed, share
from sdxl_lora.checkpoint import disk_errors
from sdxl_lora.collate import collate
from sdxl_lora.data import dataset_key
from sdxl_lora.dry_run import dry_run
from sdxl_lora.errors import RUN_ERRORS, LostProcessError, NonFiniteError, Stopped
from sdxl_lora.faults import fault_point
from sdxl_lora.journal import Journal
from sdxl_lora.lora_metadata import public_name
from sdxl_lora.measures import means_by_timestep, sums_by_timestep
from sdxl_lora.memory import out_of_memory_advice
from sdxl_lora.objective import noise_prediction_loss
from sdxl_lora.optim import set_learning_rate
from sdxl_lora.processes import main_process_decides, make_accelerator, set_arithmetic
from sdxl_lora.run import Run, StopRequest, naming_lost_processes, open_run, replace_text
from sdxl_lora.settings import (
    check_names,
    learning_rate_of,
    same_on_resume,
)
from sdxl_lora.trackers import start_trackers
from sdxl_lora.training_state import register_hooks, restore, save_checkpoint
from sdxl_lora.watching import Watched


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
    folder = config.run_dir
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
        main_process_decides(accelerator, training.finish)
    accelerator.end_training()


class Training(Watched):
    """A run and its loop. A step is an optimizer step: `done_steps` of `total_steps` are done."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, run: Run, stop: StopRequest):
        super().__init__(config, accelerator, run, stop)
        main_process_decides(accelerator, lambda: check_names(config, self.base))
        main_process_decides(accelerator, self.load_similarity)
        self.repository = main_process_decides(accelerator, self.claim_repository)
        self.base_hash = main_process_decides(accelerator, lambda: base_sha256(self.base.path))
        self.prepare_pictures()
        self.end_if_asked_to("while caching")
        if config.cache_part:
            raise Stopped(f"part {config.cache_part} of the caches is filled")
        self.prepare_model()
        self.end_if_asked_to("while loading")
        self.open_journal(self.resume())

    def resume(self) -> list[str]:
        """Go to where the newest valid checkpoint stands. Returns what is to be said of it."""
        register_hooks(self.accelerator, self.models, self.export)
        if self.ema:
            self.ema.register_hooks(self.accelerator)
        if self.held_out:
            self.best.register_hooks(self.accelerator)
        if self.config.dataset_streaming:
            self.batches.register_hooks(self.accelerator, lambda: self.done_steps)
        self.facts = {
            **same_on_resume(self.config),
            "optimizer_arguments": repr(self.config.optimizer_arguments),
            "init_lora": self.start.sha256,
            "base": self.base_hash or public_name(self.base.path),
            "vae": self.latents.vae_key,
            "text_encoders": self.texts.encoders_key,
            "dataset": self.batches.key if self.config.dataset_streaming else dataset_key(self.examples),
            "images_per_step": self.images_per_step,
        }
        wanted = self.config.resume_from_checkpoint
        notes = self.notes
        self.done_steps = restore(self.accelerator, self.run.folder, wanted, self.facts, notes.append)
        self.run.update(best_checkpoint=self.best.checkpoint)
        for group, now in zip(self.optimizer.param_groups, self.groups, strict=True):  # rates may change on resume
            group.update(lr_factor=now["lr_factor"], end_step=now["end_step"])
        return [*notes, f"going on after step {self.done_steps}" if self.done_steps else "starting at step 0"]

    def open_journal(self, notes: list[str]) -> None:
        """Record the settings, open the trackers, say the notes and what will be trained."""
        config, folder = self.config, self.run.folder
        if self.accelerator.is_main_process:
            replace_text(folder / "config.yaml", to_yaml(config))
        run_name = config.tracker_run_name or folder.resolve().name
        start_trackers(
            self.accelerator,
            config.tracker_project_name,
            run_name,
            folder,
            asdict(config),
            self.done_steps,
            notes.append,
        )
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
        """Step, report, save, draw, until all steps are done, nothing gets better, or someone asks to stop."""
        config = self.config
        self.look_again()
        self.end_if_asked_to(f"before step {self.done_steps + 1}")
        for epochs_before, turns in self.batches.from_step(self.done_steps):
            if self.done_steps >= self.total_steps or self.best.is_given_up:
                break
            learning_rate = learning_rate_of(config, self.done_steps, self.total_steps, self.images_per_step)
            set_learning_rate(self.optimizer, learning_rate, self.done_steps)
            loss, grad_norm = self.step(turns)
            self.done_steps += 1
            if self.ema:
                self.ema.update(self.done_steps)
            by_timestep = means_by_timestep(self.loss_sums, len(self.schedule.betas))
            self.journal.step(
                self.done_steps,
                len(turns),
                self.batches.passes(self.done_steps),
                loss,
                learning_rate,
                grad_norm,
                **by_timestep,
            )

            passed = epochs_before, self.batches.epoch_of(self.done_steps)
            is_time_to_look = self.is_time_to_look(passed)
            is_best = is_time_to_look and not self.is_asked_to_stop() and self.validate()
            is_stopping = self.is_asked_to_stop()  # perhaps while validating: the next start does that again
            is_due = is_stopping or self.is_due(passed, config.checkpointing_epochs, config.checkpointing_steps)
            if is_due or is_best or self.best.is_given_up:
                self.save(is_due)
            if is_stopping:
                self.end(f"at step {self.done_steps}, saved {self.run.status['last_checkpoint']}")
            if is_time_to_look:
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
        names = ", ".join(sorted({self.examples[turn.example].name for turn in turns if turn}))
        raise NonFiniteError(
            f"step {self.done_steps + 1}: loss {loss}, gradient norm {grad_norm}; the weights were not changed. "
            f"Pictures of this step: {names}. Lower the learning rate, or look at these pictures; "
            f"the newest checkpoint is {self.run.status['last_checkpoint'] or 'none yet'}."
        )

    def save(self, is_due: bool) -> None:
        """A checkpoint that is not due was saved as the best one, and goes when there is a better one."""
        keep, best = self.config.checkpoints_total_limit, self.best.checkpoint
        checkpoint = save_checkpoint(self.accelerator, self.run.folder, self.done_steps, self.facts, keep, best, is_due)
        self.run.event("checkpoint", step=self.done_steps, path=str(checkpoint))
        self.run.update(last_checkpoint=checkpoint.name)
        self.journal.skip_time()


def main(config: TrainConfig) -> int:
    """The exit code of a run; 0 for one that is done or was stopped on request. What a person can cause is one line."""
    try:
        if config.dry_run:
            said = dry_run(config)
            print(said * (int(os.environ.get("RANK", 0)) == 0))
        else:
            train(config)
        return 0
    except RUN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, LostProcessError):
            os._exit(error.exit_code)  # leaving in good order would wait for the lost process
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(CONFIG))

"""Train a LoRA of Stable Diffusion XL.

    accelerate launch train_sdxl_lora.py --train_data_dir data/cat --output_dir runs/cat --max_train_steps 1500

Reads top to bottom: what is prepared, the loop, what is left behind. The only module that sees everything.
"""

import gc
import sys

from sdxl_lora.config.cli import load_config, to_yaml
from sdxl_lora.config.fields import flat_values
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.startup import quiet_libraries

if __name__ == "__main__":  # --help and a typo are answered before the imports below take their five seconds
    CONFIG = load_config(TrainConfig, sys.argv[1:])
    quiet_libraries()
    gc.disable()  # else the imports take seven: collections walk through all that is there so far, again and again

import math
import os
from contextlib import closing
from itertools import islice

import torch
from accelerate import Accelerator

from sdxl_lora.data.image_dataset import dataset_key
from sdxl_lora.data.prefetch import ahead, meanwhile
from sdxl_lora.diffusion.objective import noise_prediction_loss
from sdxl_lora.distributed.accelerator import make_accelerator, set_arithmetic
from sdxl_lora.distributed.collectives import main_process_decides
from sdxl_lora.errors import RUN_ERRORS, LostProcessError, NonFiniteError, Stopped
from sdxl_lora.fault_injection import fault_point
from sdxl_lora.lora.formats.base_weights import base_sha256
from sdxl_lora.lora.formats.metadata import public_name
from sdxl_lora.performance.device_memory import out_of_memory_advice
from sdxl_lora.rng import Turn, keyed_seed
from sdxl_lora.run.checkpoints import disk_errors
from sdxl_lora.run.logger import Journal
from sdxl_lora.run.lost_processes import naming_lost_processes
from sdxl_lora.run.session import Run, open_run, replace_text
from sdxl_lora.run.stop import StopRequest
from sdxl_lora.run.trackers import start_trackers
from sdxl_lora.training.checkpointer import register_hooks, restore, save_checkpoint
from sdxl_lora.training.dry_run import dry_run
from sdxl_lora.training.metrics import Numbers, Tally
from sdxl_lora.training.optim import set_learning_rate
from sdxl_lora.training.settings import check_graphs, check_names, learning_rate_of, same_on_resume, smaller_settings
from sdxl_lora.training.watching import Watched


def train(config: TrainConfig) -> None:
    """One run, from pictures to LoRA files; goes on where an earlier one stopped. Every process calls this.

    Raises:
        the exceptions of sdxl_lora/errors.py.
    """
    accelerator = make_accelerator(
        config.compute.mixed_precision,
        config.batch.gradient_accumulation_steps,
        config.logging.report_to,
        config.output_dir,
        config.logging.logging_dir,
        config.compute.process_timeout_seconds,
    )
    set_arithmetic(config.compute.allow_tf32, config.compute.deterministic)
    folder = config.run_dir
    with (
        open_run(accelerator, folder) as run,
        StopRequest(folder) as stop,
        disk_errors(folder),
        naming_lost_processes(accelerator, run),
        out_of_memory_advice(
            accelerator.device,
            config.data.resolution,
            config.batch.train_batch_size,
            smaller_settings(config),
        ),
    ):
        training = Training(config, accelerator, run, stop)
        training.loop()
        main_process_decides(accelerator, training.finish)
    accelerator.end_training()


class Training(Watched):
    """A run and its loop. A step is an optimizer step: `done_steps` of `total_steps` are done."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, run: Run, stop: StopRequest):
        check_graphs(config, accelerator.num_processes, accelerator.device)
        super().__init__(config, accelerator, run, stop)
        main_process_decides(accelerator, lambda: check_names(config, self.base))
        main_process_decides(accelerator, self.load_similarity)
        self.repository = main_process_decides(accelerator, self.claim_repository)
        hashed = meanwhile(lambda: base_sha256(self.base.path)) if accelerator.is_main_process else None
        self.prepare_pictures()
        self.end_if_asked_to("while caching")
        if config.cache.cache_part:
            raise Stopped(f"part {config.cache.cache_part} of the caches is filled")
        self.fit_into_memory()
        self.prepare_model()
        self.micro_step = self.recorded(self.compute) if config.compute.cuda_graphs else self.compute
        self.end_if_asked_to("while loading")
        self.base_hash = main_process_decides(accelerator, hashed)
        self.open_journal(self.resume())

    def resume(self) -> list[str]:
        """Go to where the newest valid checkpoint stands. Returns what is to be said of it."""
        register_hooks(self.accelerator, self.models, self.export)
        if self.ema:
            self.ema.register_hooks(self.accelerator)
        if self.held_out:
            self.best.register_hooks(self.accelerator)
        if self.config.data.dataset_streaming:
            self.batches.register_hooks(self.accelerator, lambda: self.done_steps)
        self.facts = {
            **same_on_resume(self.config),
            "optimizer_arguments": repr(self.config.optimizer.arguments),
            "init_lora": self.start.sha256,
            "base": self.base_hash or public_name(self.base.path),
            "vae": self.latents.vae_key,
            "text_encoders": self.texts.encoders_key,
            "dataset": self.batches.key if self.config.data.dataset_streaming else dataset_key(self.examples),
            "images_per_step": self.images_per_step,
        }
        wanted = self.config.checkpoint.resume_from_checkpoint
        notes = list(dict.fromkeys(self.notes))
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
        run_name = config.logging.tracker_run_name or folder.resolve().name
        start_trackers(
            self.accelerator,
            config.logging.tracker_project_name,
            run_name,
            folder,
            flat_values(config),
            self.done_steps,
            notes.append,
        )
        self.journal = Journal(self.accelerator, self.run, self.done_steps, self.total_steps)
        self.tally = Tally(self.accelerator.device, config.logging.loss_bins, len(self.schedule.betas))
        self.since_report: list[tuple[int, set[str]]] = []  # pictures of each step: their number, names of ours
        self.reported_steps = self.done_steps
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
        if config.batch.train_batch_size == "auto":
            self.rehearse()
        self.look_again()
        self.end_if_asked_to(f"before step {self.done_steps + 1}")
        to_do = islice(self.batches.from_step(self.done_steps), max(0, self.total_steps - self.done_steps))
        with closing(
            ahead(self.collator.steps(to_do), 0 if self.texts_are_live or not config.cache.cache_latents else 2)
        ) as steps:
            for epochs_before, turns, micro_batches in steps:
                if self.best.is_given_up:
                    break
                learning_rate = learning_rate_of(config, self.done_steps, self.total_steps, self.images_per_step)
                set_learning_rate(self.optimizer, learning_rate, self.done_steps)
                self.step(turns, micro_batches)
                self.done_steps += 1
                if self.ema:
                    self.ema.update(self.done_steps)
                passed = epochs_before, self.batches.epoch_of(self.done_steps)
                is_due = self.is_due(
                    passed, config.checkpoint.checkpointing_epochs, config.checkpoint.checkpointing_steps
                )
                is_time_to_look = self.is_time_to_look(passed)
                if not (is_due or is_time_to_look or self.is_time_to_report(passed)):
                    continue

                is_stopping = self.report(learning_rate)
                is_best = is_time_to_look and not is_stopping and self.validate()
                if is_time_to_look:  # perhaps asked to stop while validating: the next start does that again
                    is_stopping = self.is_asked_to_stop() or is_stopping
                if is_due or is_stopping or is_best or self.best.is_given_up:
                    self.save(is_due or is_stopping)
                if is_stopping:
                    self.end(f"at step {self.done_steps}, saved {self.run.status['last_checkpoint']}")
                if is_time_to_look:
                    self.draw()

    def is_time_to_report(self, epochs: tuple[int, int]) -> bool:
        """Alone, a process heeds a request to stop at once; among others at a step in which all report."""
        return self.is_alone_and_asked_to_stop() or self.is_due(epochs, None, self.config.logging.logging_steps)

    def is_alone_and_asked_to_stop(self) -> bool:
        return self.accelerator.num_processes == 1 and bool(self.stop.reason())

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

    def step(self, turns: list[Turn], micro_batches: list[tuple[bool, dict]]) -> None:
        """One optimizer step over the turns, this process doing its share.

        NaN or infinity changes no weight: an optimizer that sees it on the device goes on without effect until
        `report` says so, for others the host looks in every step.
        """
        accelerator, config, tally = self.accelerator, self.config, self.tally
        rank, world = accelerator.process_index, accelerator.num_processes
        names = {self.examples[turn.example].name for turn in turns if turn}  # a stream forgets its pictures
        self.since_report.append((len(turns), names))
        for micro_step, (counts, batch) in enumerate(micro_batches):
            with accelerator.accumulate(*self.wrapped):
                torch.manual_seed(keyed_seed(config.seed, "dropout", self.done_steps, micro_step, rank))
                batch = self.on_device(batch)
                # The mean over the step's pictures: backward divides by micro_steps, DDP by world.
                share = counts * self.micro_steps * world / len(turns)
                losses = self.micro_step({**batch, "share": torch.full((), share, device=accelerator.device)})
                if counts:
                    tally.add(losses, batch["timesteps"])
                if accelerator.sync_gradients:
                    is_spoilt = fault_point("step", self.done_steps + 1)
                    tally.close(accelerator, len(turns), bool(self.stop.reason()), is_spoilt)
                    grad_norm = accelerator.clip_grad_norm_(self.parameters, config.optimizer.max_grad_norm or math.inf)
                    tally.guard(grad_norm, accelerator.scaler is not None)
                    if self.sees_found_inf:
                        self.optimizer.optimizer.found_inf = tally.found_inf
                    else:
                        self.check_finite(tally.look(forget=False))
                self.optimizer.step()
                self.optimizer.zero_grad(**({"set_to_none": False} if config.compute.cuda_graphs else {}))

    def compute(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The losses (B,) of a micro-batch, whose gradients, times its share, are added to those of the parameters."""
        losses = noise_prediction_loss(
            self.wrapped[0],
            self.schedule,
            batch["latents"],
            batch,
            batch["noise"],
            batch["timesteps"],
            self.objective,
        )
        self.accelerator.backward(losses.sum() * batch["share"])
        return losses

    def on_device(self, batch: dict[str, torch.Tensor | list[str]]) -> dict[str, torch.Tensor]:
        prompts = batch.get("prompts")
        tensors = {name: tensor for name, tensor in batch.items() if name != "prompts"}
        tensors = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in tensors.items()}
        return tensors if prompts is None else {**tensors, **self.texts.encode(prompts, self.wrapped[1])}

    def report(self, learning_rate: float) -> bool:
        """Write down the steps since the last report. Returns, the same on every process, whether one is to stop.

        Raises:
            NonFiniteError: NaN or infinity in one of them; no weight has changed since.
        """
        numbers = self.tally.look()
        self.check_finite(numbers)
        self.journal.step(
            self.done_steps,
            sum(pictures for pictures, _ in self.since_report),
            self.batches.passes(self.done_steps),
            numbers.loss,
            learning_rate,
            numbers.grad_norm,
            **numbers.by_timestep,
        )
        self.since_report, self.reported_steps = [], self.done_steps
        return numbers.is_asked_to_stop or self.is_alone_and_asked_to_stop()

    def check_finite(self, numbers: Numbers) -> None:
        """Raises NonFiniteError where a step since the last report was not."""
        if numbers.finite_steps == numbers.steps:
            return
        step = self.reported_steps + numbers.finite_steps + 1
        names = ", ".join(sorted(self.since_report[numbers.finite_steps][1]))
        raise NonFiniteError(
            f"step {step}: loss {numbers.loss}, gradient norm {numbers.grad_norm}; the weights were not changed. "
            f"Pictures of this step: {names}. Lower the learning rate, or look at these pictures; "
            f"the newest checkpoint is {self.run.status['last_checkpoint'] or 'none yet'}."
        )

    def save(self, is_due: bool) -> None:
        """A checkpoint that is not due was saved as the best one, and goes when there is a better one."""
        keep, best = self.config.checkpoint.checkpoints_total_limit, self.best.checkpoint
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
    gc.freeze()  # what is imported stays: collections of the run need not walk through it, which takes half a second
    gc.enable()
    sys.exit(main(CONFIG))

"""Train a LoRA of Stable Diffusion XL.

    python train_sdxl_lora.py --train_data_dir data/cat --output_dir runs/cat --max_train_steps 1500

`train` reads top to bottom: preparation, models, evaluation and checkpoints, the loop, results.
"""

import gc
import sys

from sdxl_lora.config.cli import load_config
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.startup import quiet_libraries

if __name__ == "__main__":  # --help and a typo are answered before the imports below, which take seconds
    CONFIG = load_config(TrainConfig, sys.argv[1:])
    quiet_libraries()
    gc.disable()  # imports create so many objects that repeated collections would slow them down

import os
from contextlib import closing
from dataclasses import dataclass
from typing import NoReturn

from sdxl_lora.data.prefetch import run_in_background
from sdxl_lora.distributed.accelerator import make_accelerator
from sdxl_lora.distributed.collectives import on_main_and_broadcast
from sdxl_lora.distributed.launcher import tell_launcher
from sdxl_lora.doctor.short import in_short
from sdxl_lora.errors import RUN_ERRORS, LostProcessError, Stopped
from sdxl_lora.lora.formats.metadata import public_name
from sdxl_lora.models.base_source import Base
from sdxl_lora.models.base_weights import base_sha256
from sdxl_lora.optimizers.optimizers import build_optimizer, learning_rate_of, own_learning_rate, rates_kept
from sdxl_lora.run.logger import RunLogger
from sdxl_lora.run.precision import settle_precision
from sdxl_lora.run.session import Run, open_run
from sdxl_lora.training.batch_shape import choose_batch_shape
from sdxl_lora.training.checkpointer import AdapterState, Checkpointable, Checkpointer
from sdxl_lora.training.checks import check_inputs, claim_hub_repository, confirm_prediction, load_similarity
from sdxl_lora.training.data import TrainingData, prepare_data
from sdxl_lora.training.dry_run import dry_run
from sdxl_lora.training.ema import published_weights
from sdxl_lora.training.evaluator import Evaluator
from sdxl_lora.training.export import LoraExporter
from sdxl_lora.training.finish import end_if_finished, finish
from sdxl_lora.training.metrics import StepMetrics, check_finite
from sdxl_lora.training.model import LoraModel, build_model
from sdxl_lora.training.samples import SampleWriter
from sdxl_lora.training.schedule import Cadence
from sdxl_lora.training.train_step import TrainStep


@dataclass
class Trained:
    """Parts of a training after its last step, as `train` returns them."""

    config: TrainConfig
    run: Run
    data: TrainingData
    train_step: TrainStep
    model: LoraModel
    optimizer: object
    evaluator: Evaluator
    step: int


def train(config: TrainConfig) -> Trained | None:
    """Train one LoRA, from images to its files; the same command again resumes it. Every process calls this.

    Returns the parts of the run; None if it was stopped on request or had finished before. Raises the errors of
    sdxl_lora/errors.py.
    """
    config, said = settle_precision(config)
    accelerator = make_accelerator(config.compute, config.batch, config.logging, config.output_dir)
    trained = None
    # The context holds the folder's lock, writes status.json, heeds requests to stop, and explains errors.
    with open_run(accelerator, config) as run, RunLogger(accelerator, run) as logger:
        for line in (*in_short(accelerator.device, run.folder), *said):
            logger.info(line)

        # Before any work: errors that would otherwise come hours later.
        config, base = check_inputs(config, accelerator, logger.info)
        similarity = load_similarity(config, accelerator)
        repository = claim_hub_repository(config, accelerator, run, logger.info)
        wait_for_base_hash = run_in_background(lambda: base_sha256(base.path) if accelerator.is_main_process else "")

        # Encode once; VAE and text encoders leave the memory before the UNet is loaded.
        data = prepare_data(config, base, accelerator, run, logger)
        end_where_caching_was_asked_for(config, accelerator, run, logger)
        config, shape = choose_batch_shape(config, base, data, accelerator, logger.info)

        # Model and optimizer.
        model = build_model(config, base, data.text, accelerator, logger.info)
        optimizer = build_optimizer(config.optimizer, model, data.total_steps, accelerator)
        shown = published_weights(config.optimizer.ema_decay, model.adapter_parameters(), optimizer.optimizer)

        # Evaluation, samples, LoRA files and checkpoints.
        evaluator = Evaluator(config, accelerator, model, shown, data, run, logger)
        samples = SampleWriter(config, accelerator, base, model, shown, data, similarity, run, logger)
        run.end_if_asked(accelerator, "while loading")
        base_hash = on_main_and_broadcast(accelerator, wait_for_base_hash)
        confirm_prediction(config, base, base_hash, model, data, accelerator, run, logger.info)
        exporter = LoraExporter(config, base, base_hash, model, shown, data, samples)
        stateful: list[Checkpointable] = [AdapterState(model.components), exporter, shown, evaluator, data]
        facts = {**config.fingerprint(), **model.fingerprint(), **data.fingerprint(), **name_of(base, base_hash)}
        checkpointer = Checkpointer(accelerator, run, config.checkpoint, stateful, facts)

        # Resume and train.
        with rates_kept(optimizer):
            step = checkpointer.restore(logger.info)
        end_if_finished(config, accelerator, run, data, evaluator.best, samples, repository, logger, step)
        run.update(best_checkpoint=evaluator.best.checkpoint)
        cadence = Cadence(config, data)
        logger.open(config, step, data.total_steps, plan_in_numbers(config, accelerator, data, model, cadence, step))
        timesteps, device = model.num_train_timesteps, accelerator.device
        metrics = StepMetrics(device, config.logging.loss_bins, timesteps, step, logger.pace.waiting)
        train_step = TrainStep(config, accelerator, model, optimizer, shape, metrics, run, logger)
        step = fit(
            config, accelerator, run, logger, data, cadence, train_step, shown, evaluator, samples, checkpointer, step
        )
        on_main_and_broadcast(
            accelerator, lambda: finish(config, run, exporter, data, evaluator.best, repository, logger, step)
        )
        trained = Trained(config, run, data, train_step, model, optimizer, evaluator, step)
    accelerator.end_training()
    return trained


def end_where_caching_was_asked_for(config: TrainConfig, accelerator, run: Run, logger: RunLogger) -> None:
    """Raise Stopped if a stop was requested while caching, or only a part of the caches was asked for."""
    run.end_if_asked(accelerator, "while caching")
    if config.cache.cache_part:
        logger.info(f"part {config.cache.cache_part} of the caches is filled")
        raise Stopped(f"part {config.cache.cache_part} of the caches is filled")


def fit(
    config, accelerator, run, logger, data, cadence, train_step, shown, evaluator, samples, checkpointer, step
) -> int:
    """Step, log, evaluate, save and draw, until all steps are done, nothing improves, or a stop is requested.

    Args:
        step: steps done before.
    Returns:
        The number of steps done.
    Raises:
        Stopped: on request, with everything saved.
        NonFiniteError: NaN or infinity in a step; no weight has changed since.
    """
    if config.batch.train_batch_size == "auto":
        train_step.fit_to_memory(data, step)
    catch_up(step, cadence, evaluator, samples)
    tells_host = accelerator.device.type != "cpu" and accelerator.scaler is None  # fp16's scaler waits by itself
    logger.pace.open(step, cadence.to_come, data.advice_for_speed, tells_host)
    run.end_if_asked(accelerator, f"before step {step + 1}")
    with closing(data.batches(step, train_step.shape)) as batches:
        for batch in logger.pace.each(batches):
            if evaluator.should_stop:
                break
            learning_rate = learning_rate_of(config.optimizer, step, data.total_steps, data.images_per_step)
            train_step(batch, step, learning_rate)
            step += 1
            shown.update(step)
            due = cadence.after(step)
            if not (due or (run.is_alone and (run.stop_requested() or any(run.asked())))):
                continue  # nothing is read back from the device

            numbers = train_step.metrics.flush()  # requests to all processes come with the loss
            check_finite(numbers, run)
            asked = run.take_asked(numbers.asked)
            due = due.with_asked(asked)
            epoch = data.sampler.passes(step)
            rate = own_learning_rate(train_step.optimizer) if learning_rate is None else learning_rate
            logger.step(step, numbers.images, epoch, numbers.loss, rate, numbers.grad_norm, **numbers.parts)
            stopping = numbers.stop_requested or (run.is_alone and bool(run.stop_requested()))
            is_best = False
            if due.sample:
                train_step.make_room()
            if due.evaluate:
                is_best = not stopping and (evaluator.evaluate(step) or evaluator.judge(step, samples.write))
                # After a stop during validation the next start validates again.
                stopping = run.stop_agreed(accelerator) or stopping
            if stopping:
                save_and_end(run, checkpointer, step, evaluator.best.checkpoint)
            if due.checkpoint or is_best or evaluator.should_stop:
                with logger.pace.aside("saving"):
                    checkpointer.save(step, due.checkpoint, evaluator.best.checkpoint)
            if due.sample and not (due.evaluate and evaluator.by_similarity):
                samples.write(step, asked.sample)
                if run.stop_agreed(accelerator):  # after a stop while drawing the next start draws the rest
                    save_and_end(run, checkpointer, step, evaluator.best.checkpoint)
    return step


def save_and_end(run: Run, checkpointer: Checkpointer, step: int, best: str | None) -> NoReturn:
    """Save the step and raise Stopped."""
    if run.status["last_checkpoint"] != f"checkpoint-{step}":
        checkpointer.save(step, best=best)
    run.end(f"at step {step}, saved {run.status['last_checkpoint']}")


def name_of(base: Base, base_hash: str) -> dict[str, str]:
    """Return the base's name that a resumed run must find: its hash, or its id on the Hub."""
    return {"base": base_hash or public_name(base.path)}


def plan_in_numbers(
    config: TrainConfig, accelerator, data: TrainingData, model: LoraModel, cadence: Cadence, step: int
) -> dict:
    """Return the plan's numbers for the log's first line and the event `started`."""
    return {
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "step": step,
        "total_steps": data.total_steps,
        "pictures": data.sampler.images,
        "held_out": len(data.held_out),
        "sizes": len(data.sampler.members),
        "images_per_step": data.images_per_step,
        "evaluates": str(cadence.evaluation) if cadence.has_evaluation else "never",
        "draws": len(data.prompts) * config.evaluation.num_validation_images,
        "parameters": sum(parameter.numel() for parameter in model.adapter_parameters().values()),
    }


def catch_up(step: int, cadence: Cadence, evaluator: Evaluator, samples: SampleWriter) -> None:
    """Evaluate before the first step, and catch up on an evaluation that was interrupted."""
    if (step and not cadence.after(step).evaluate) or not cadence.has_evaluation:
        return
    is_unmeasured = step == 0 or evaluator.best.measured_step != step
    if is_unmeasured:
        evaluator.evaluate(step)
        evaluator.judge(step, samples.write)
    has_drawn = is_unmeasured and evaluator.by_similarity
    if not (has_drawn or (step and samples.are_written(step))):
        samples.write(step)


def main(config: TrainConfig) -> int:
    """Run the command and return its exit code, 0 for a run that is done or was stopped on request.

    Errors that a user can cause are printed in one line.
    """
    try:
        if config.dry_run:
            said = dry_run(config)
            if int(os.environ.get("RANK", 0)) == 0:
                print(said)
        else:
            train(config)
        return 0
    except RUN_ERRORS as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        tell_launcher(os.environ, f"error: {error}")
        if isinstance(error, LostProcessError):
            os._exit(error.exit_code)  # a normal exit would wait for the lost process
        return error.exit_code


if __name__ == "__main__":
    gc.freeze()  # imported objects stay, so later collections can skip them
    gc.enable()
    sys.exit(main(CONFIG))

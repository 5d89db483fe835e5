"""Results of a finished training: LoRA files, a model card, a summary, an upload."""

import contextlib
import shlex
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from sdxl_lora.config.cli import to_yaml
from sdxl_lora.config.fields import flat_fields, flat_values
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.data.dataset import trigger_words_of
from sdxl_lora.distributed.collectives import on_main_and_broadcast
from sdxl_lora.errors import Stopped
from sdxl_lora.lora.formats.metadata import public_name
from sdxl_lora.publish.hub import UploadError, published_files, upload
from sdxl_lora.publish.results import best_lora, deliver, summary, write_card
from sdxl_lora.run.events import read_events
from sdxl_lora.run.logger import RunLogger
from sdxl_lora.run.session import Run
from sdxl_lora.run.trackers import log_lora
from sdxl_lora.training.data import TrainingData
from sdxl_lora.training.evaluator import EarlyStopping
from sdxl_lora.training.export import LoraExporter
from sdxl_lora.training.samples import SampleWriter

MAIN_SETTINGS = (
    "resolution", "rank", "lora_alpha", "learning_rate", "optimizer_name", "lr_scheduler", "mixed_precision",
)  # fmt: skip


def finish(
    config: TrainConfig,
    run: Run,
    exporter: LoraExporter,
    data: TrainingData,
    best: EarlyStopping,
    repository: str | None,
    logger: RunLogger,
    step: int,
) -> None:
    """Write the LoRA files and the model card, print a summary, upload. Main process only, without a time limit."""
    folder, base, name = run.folder, exporter.base.path, config.lora_name
    trigger_word = ", ".join(trigger_words_of(config.data))
    of_best = best_lora(folder, best.checkpoint, name, logger.info)
    loras = exporter.write(folder, step) + of_best
    files = loras + deliver(loras[0], base, trigger_word, step, config.output.save_side_files, config.output.loras_dir)
    settings = {**settings_to_show(config), "steps": step, "pictures": len(data.examples)}
    if of_best:
        settings[best.name] = f"{best.value}: {of_best[0].name}"
    write_card(folder, name, base, trigger_word, data.prompts, step, settings, repository)
    about = {**settings, "trigger_word": trigger_word, "base_model": public_name(base), "best_step": best.step}
    log_lora(logger.accelerator.trackers, name, loras, about)
    run.event("finished", step=step, best_step=best.step, files=[str(path) for path in files])
    if best.should_stop:
        logger.info(f"ended at step {step}: {best.why_stopped}")
    logger.close()
    print(summary(files, name, trigger_word, folder / "samples", best.name, best.value))
    if repository:
        publish(run, repository, logger)


def end_if_finished(
    config: TrainConfig,
    accelerator,
    run: Run,
    data: TrainingData,
    best: EarlyStopping,
    samples: SampleWriter,
    repository: str | None,
    logger: RunLogger,
    step: int,
) -> None:
    """Raise Stopped if this same command has finished the run before; nothing is written then. Every process calls it.

    Args:
        step: steps done before.
    """
    if step < data.total_steps and not best.should_stop:
        return
    finished = on_main_and_broadcast(
        accelerator, lambda: finished_files(config, run, step, repository) if run.was_done else []
    )
    if finished and not (data.prompts and not samples.are_written(step)):
        files = ", ".join(finished)
        logger.info(f"nothing to do: this run is finished, all {step} steps are done, and its files are there: {files}")
        raise Stopped("finished before")


def finished_files(config: TrainConfig, run: Run, step: int, repository: str | None) -> list[str]:
    """Return the LoRA files that a run of the same config left after `step` steps; [] if one of them is missing."""
    folder = run.folder
    if read_settings(folder) != to_yaml(config) or not (folder / "README.md").is_file():
        return []
    last = deque(
        (event for event in read_events(folder / "events.jsonl") if event["event"] in ("finished", "published")),
        maxlen=2 if repository else 1,
    )
    if [event["event"] for event in last] != ["finished", "published"][: last.maxlen] or last[0].get("step") != step:
        return []
    files = last[0].get("files", [])
    return files if all(Path(file).is_file() for file in files) else []


def read_settings(folder: Path) -> str:
    """Return config.yaml as text; "" if it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (folder / "config.yaml").read_text(encoding="utf-8")
    return ""


def publish(run: Run, repository: str, logger: RunLogger) -> None:
    """Upload to the Hub. A failure is logged and costs nothing but the upload."""
    try:
        address = upload(run.folder, repository)
    except UploadError as error:
        again = f"python -m sdxl_lora.publish.hub {shlex.quote(str(run.folder))} {repository}"
        logger.info(f"{error}. The files are in {run.folder}; try again with: {again}")
        return
    run.event("published", address=address, files=published_files(run.folder))
    print(f"uploaded to {address}")


def settings_to_show(config: TrainConfig) -> Mapping:
    """Return the settings worth showing with a LoRA: the main ones, and others that differ from their defaults."""
    fields, values = flat_fields(TrainConfig), flat_values(config) | {"optimizer_name": config.optimizer.name}
    shown = {name: values[name] for name in MAIN_SETTINGS} | config.same_on_resume()
    shown["train_unet"] = values["train_unet"]
    shown["lora_alpha"] = shown["lora_alpha"] or shown["rank"]
    return {
        name: value
        for name, value in shown.items()
        if name in MAIN_SETTINGS or (name in fields and values[name] != fields[name].default)
    }

"""TensorBoard, W&B and Trackio: opening them so that a resumed run continues its curves, and logging images and files.

Numbers go through accelerator.log.
"""

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sdxl_lora.config.checks import raise_all
from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.images.decode import open_own_png
from sdxl_lora.run.status import replace_text

ID_NAME = "wandb-id.txt"  # in the run's folder
UPLOAD_SECONDS = 1800  # W&B's wait for a lost connection at the end; unsent data stays in the folder
TABLE_COLUMNS = ["step", "prompt", "negative prompt", "size", "seed", "guidance", "denoising steps", "picture"]


def check_wandb(environment: Mapping[str, str]) -> None:
    """Raise ConfigError if W&B would reject its variables; they are named without their values, which may be keys."""
    import wandb

    problems = []
    for name in sorted(name for name in environment if name.startswith("WANDB_")):
        try:
            wandb.Settings().update_from_env_vars({name: environment[name]})
        except (ValueError, wandb.errors.Error) as error:  # pydantic's has its sentences in a list
            said = getattr(error, "errors")()[0]["msg"] if hasattr(error, "errors") else str(error)  # noqa: B009
            problems.append(f"W&B does not accept {name} in the environment: {said}; correct it, or unset it")
    raise_all(problems)


def start_trackers(
    accelerator,
    project: str,
    run_name: str,
    folder: Path,
    values: Mapping,
    done_steps: int,
    report: Callable[[str], None],
) -> None:
    """Open the accelerator's trackers, with `values` as the run's configuration. Every process calls this.

    A run resumed after `done_steps` keeps its W&B id; TensorBoard's later steps are purged. If W&B cannot be reached,
    it records the run offline, because a lost connection must not end a training; `report` is told.
    """
    kwargs: dict[str, dict] = {
        "tensorboard": {"purge_step": done_steps + 1 if done_steps else 0},
        "trackio": {"name": run_name, "resume": "allow" if done_steps else "never"},
    }
    unreachable: tuple[type[Exception], ...] = ()
    if "wandb" in map(str, accelerator.log_with):
        import wandb  # takes a second, and is optional

        unreachable = (wandb.errors.Error,)
        settings = wandb.Settings(finish_timeout=UPLOAD_SECONDS)
        kwargs["wandb"] = {"name": run_name, "dir": str(folder), "resume": "allow", "settings": settings}
        if accelerator.is_main_process:
            kwargs["wandb"]["id"] = wandb_id(folder, done_steps)
    try:
        accelerator.init_trackers(project, init_kwargs=kwargs)
    except unreachable as error:
        report(f"W&B cannot be reached ({error}): this run is recorded offline, upload it later with `wandb sync`")
        accelerator.trackers.clear()
        wandb.teardown()  # otherwise its service says that the id is in use,
        os.environ.pop("WANDB_SERVICE", None)  # as does one started before this process
        kwargs["wandb"]["mode"] = "offline"
        accelerator.init_trackers(project, init_kwargs=kwargs)
    plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in values.items()}
    for tracker in accelerator.trackers:
        if not (done_steps and tracker.name == "tensorboard"):  # it would add a run each time
            tracker.store_init_configuration(plain)


def wandb_id(folder: Path, done_steps: int) -> str:
    """Return the run's W&B id: its former one on a resume, else a new one."""
    path = folder / ID_NAME
    if not (done_steps and path.exists()):
        replace_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()


def log_samples(
    trackers, step: int, prompts: Sequence[SamplePrompt], samples: Sequence[Sequence[Image.Image]], grid: Path | None
) -> None:
    """Log the images of a step by prompt, and the grid of all steps; in W&B also a table with their settings."""
    titled = {f"{number} {prompt.text}": samples[number] for number, prompt in enumerate(prompts) if samples[number]}
    if grid:
        titled["grid"] = [open_own_png(grid)]
    arrays = {title: np.stack([np.asarray(image) for image in images]) for title, images in titled.items()}
    for tracker in trackers:
        if tracker.name == "tensorboard":
            tracker.log_images(arrays, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images(arrays, step=step)
            tracker.log_table("samples", TABLE_COLUMNS, table_rows(step, prompts, samples), step=step)
        elif tracker.name == "trackio":
            import trackio

            shown = {title: [trackio.Image(image) for image in images] for title, images in titled.items()}
            tracker.log({title: images[0] for title, images in shown.items()}, step=step)


def table_rows(step: int, prompts: Sequence[SamplePrompt], images: Sequence[Sequence[Image.Image]]) -> list[list]:
    import wandb

    return [
        [
            step,
            prompt.text,
            prompt.negative,
            f"{prompt.width}x{prompt.height}",
            prompt.seed_of(number),
            prompt.guidance_scale,
            prompt.steps,
            wandb.Image(image),
        ]
        for prompt, of_prompt in zip(prompts, images, strict=True)
        for number, image in enumerate(of_prompt)
    ]


def log_lora(trackers, name: str, files: Sequence[Path], about: Mapping) -> None:
    """Log the LoRA as a W&B artifact with its metadata; its files are read in place, not copied."""
    for tracker in trackers:
        if tracker.name == "wandb":
            import wandb

            artifact = wandb.Artifact(name, type="model", metadata=dict(about))
            for file in files:
                artifact.add_file(str(file), policy="immutable")
            tracker.run.log_artifact(artifact)

"""Turn a config into a job, and into the equivalent command line for a person.

A job's arguments are a list, and its settings a file that was read back and found equal. No gradio.
"""

import contextlib
import dataclasses
import io
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from sdxl_lora.config.cli import load_config, to_yaml
from sdxl_lora.config.fields import flat_values
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.status import replace_text
from webui.runs.jobs import Job, Jobs, new_id
from webui.settings.fields import fields_of

_parsing = threading.Lock()  # the parser and its output streams belong to the whole process


def gpu_gib() -> list[float]:
    """Return the memory of each of this machine's NVIDIA GPUs in GiB; empty without a GPU or driver."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace", timeout=20).stdout
    return [float(line) / 1024 for line in map(str.strip, listed.splitlines()) if line.isdecimal()]


def launcher(processes: int) -> list[str]:
    """Return accelerate launch's arguments for a number of processes, each with a GPU of its own if there is one."""
    if processes == 1:
        return ["--config_file", "accelerate_configs/single_gpu.yaml"]
    return ["--config_file", "accelerate_configs/multi_gpu.yaml", "--num_processes", str(processes)]


def prepare_job(jobs: Jobs, config: PreprocessConfig) -> Job:
    return configured(jobs, new_job("prepare", config.output_dir, "preprocess"), config)


def train_job(jobs: Jobs, config: TrainConfig, processes: int = 1, after: Job | None = None) -> Job:
    words = ["accelerate.commands.launch", *launcher(processes), "train_sdxl_lora.py"]
    return configured(jobs, new_job("train", config.output_dir, *words, after=after), config)


def caption_job(dataset: Path, file_name: str, place: int = 0) -> Job:
    """Return a job that makes a new caption for one row of an image."""
    return new_job("caption", dataset, "webui.runs.recaption", str(dataset), file_name, str(place))


def draw_job(jobs: Jobs, run: Path, request: dict[str, Any]) -> Job:
    """Return a job that draws with a run's LoRA; `request` is read by compare.py."""
    job = new_job("draw", run, "webui.runs.compare")
    folder = jobs.folder_of(job.id)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "config.yaml", yaml.safe_dump(request, sort_keys=False, allow_unicode=True))
    return dataclasses.replace(job, command=[*job.command, str(folder / "config.yaml"), str(folder)])


def select_job(run: Path, similarity_model: str, clip_model: str) -> Job:
    """Return a job that compares checkpoints and strengths; empty names mean the run's own model and no CLIP."""
    models = {"--similarity_model": similarity_model, "--clip_model": clip_model}
    return new_job("select", run, "sdxl_lora.select", str(run), *(f"{f}={name}" for f, name in models.items() if name))


def new_job(kind: str, target: str | Path, *words: str, after: Job | None = None) -> Job:
    """Return a new job that runs `python -m` with these words."""
    command = [sys.executable, "-m", *words]
    return Job(new_id(), kind, str(target), command, time.time(), after.id if after else None)


def configured(jobs: Jobs, job: Job, config: Any) -> Job:
    """Return the job with a command that reads this config, from a file in its folder."""
    path = write_config(config, jobs.folder_of(job.id))
    return dataclasses.replace(job, command=[*job.command, "--config", str(path)])


def write_config(config: Any, folder: Path) -> Path:
    """Write the config to a file in the folder, which the command line reads as an equal config.

    Raises:
        ConfigError: it would not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    replace_text(path, to_yaml(config))
    if read_config(type(config), path) != config:
        raise ConfigError(f"the settings change when written to {path}: this is a bug in the page")
    return path


def read_config(config_class: type, path: Path) -> Any:
    """Return the config in a YAML file, read by the command line's own parser.

    Raises:
        ConfigError: with the command line's message.
    """
    said = io.StringIO()
    try:
        with _parsing, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return load_config(config_class, ["--config", str(path)])
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    except SystemExit:
        raise ConfigError(plain(said.getvalue()).replace(f"{path}:", "line ")) from None


def plain(boxed: str) -> str:
    """Return a terminal's text without colours, frames and line ends."""
    text = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", " ", boxed)
    return " ".join(text.split())


def flags_of_config(config: Any) -> list[str]:
    """Return the shortest list of flags that gives this config."""
    flags = []
    values = flat_values(config)
    for name, field in fields_of(config.__class__).items():
        value = values[name]
        if value == field.default:
            continue
        if field.kind == "bool":
            flags.append(f"--{name}" if value else f"--no_{name}")
        elif field.kind in ("lines", "numbers"):
            flags += [f"--{name}", *map(str, value)]
        elif str(value).startswith("-"):
            flags.append(f"--{name}={value}")
        else:
            flags += [f"--{name}", str(value)]
    return flags


def command_line(config: Any, processes: int = 1) -> str:
    """Return the command to type in a shell, in the project's folder."""
    if isinstance(config, PreprocessConfig):
        words = ["python", "-m", "preprocess"]
    else:
        words = ["accelerate", "launch", *launcher(processes), "train_sdxl_lora.py"]
    return shlex.join([*words, *flags_of_config(config)])

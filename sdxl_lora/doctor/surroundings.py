"""Checks of folders, disk, environment, accelerate's own config, the Hub, and a base."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sdxl_lora.distributed.launcher import set_aside
from sdxl_lora.doctor.findings import Finding
from sdxl_lora.errors import ConfigError

GB = 10**9
ROOM_FOR_A_BASE = 14  # GB, of SDXL in float32
ROOM_FOR_A_RUN = 2  # GB, of caches and checkpoints


def huggingface_home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_HOME") or Path(cache) / "huggingface").expanduser()


def look_at_folder(topic: str, folder: Path, setting: str, room: int, stops: bool) -> Iterator[Finding]:
    """Check that a folder can be made and written, and the free space of its disk.

    Args:
        setting: the setting that chooses another folder. room: GB needed. stops: less than that ends a training.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        text = f"cannot write to {there}: {error.strerror}"
        yield Finding(topic, text, f"choose another folder with {setting}, or fix its permissions", stops=True)
        return
    text = f"{folder}, {free / GB:.0f} GB free"
    if free < room * GB:
        remedy = f"make room, or choose another disk with {setting}: about {room} GB are needed"
        yield Finding(topic, text, remedy, stops)
    else:
        yield Finding(topic, text)


def look_at_environment() -> Iterator[Finding]:
    """Check the variables of launchers, some of which may be left over."""
    environment = dict(os.environ)
    if environment.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes", "on"):
        yield Finding("environment", "ACCELERATE_USE_CPU asks for the CPU", "unset it to train on a GPU")
    try:
        for text in set_aside(environment, "auto", 1):
            yield Finding("environment", text, "unset it, or ignore this")
    except ConfigError as error:
        yield Finding("environment", str(error), "unset them in this terminal", stops=True)


def look_at_accelerate() -> Iterator[Finding]:
    """Check accelerate's own config for features that this training lacks."""
    folder = huggingface_home() / "accelerate"
    path = next(
        (path for path in (folder / "default_config.yaml", folder / "default_config.yml") if path.exists()), None
    )
    if path is None:
        yield Finding("accelerate", "no config of its own, none is needed")
        return
    try:
        import yaml

        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no lines of `name: value`")
    except Exception as error:
        yield Finding("accelerate", f"cannot read {path}: {error}", "remove it, or run `accelerate config` again")
        return
    away = f"start with `python train_sdxl_lora.py`, which ignores it, or remove {path}"
    said = [text.split(": ", 1)[1] for text in set_aside(variables_of(config), "auto", 1)]
    if config.get("use_cpu") or config.get("distributed_type") == "MULTI_CPU":
        said.insert(0, "use_cpu: every `accelerate launch` trains on the CPU")
    yield from [Finding("accelerate", f"{path}: {text}", away) for text in said] or [
        Finding("accelerate", f"{path}, {config.get('num_processes', 1)} processes")
    ]


def variables_of(config: dict) -> dict[str, str]:
    """Return the variables that `accelerate launch` makes from its config, of those that `set_aside` reads."""
    kind = str(config.get("distributed_type", "NO")).upper()
    variables = {f"ACCELERATE_USE_{name}": "true" for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM") if kind == name}
    variables["ACCELERATE_DYNAMO_BACKEND"] = str((config.get("dynamo_config") or {}).get("dynamo_backend", "no"))
    variables["ACCELERATE_MIXED_PRECISION"] = str(config.get("mixed_precision", "no"))
    variables["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(config.get("gradient_accumulation_steps", 1))
    return variables


def look_at_hub() -> Iterator[Finding]:
    try:
        from huggingface_hub import constants, get_token
    except ImportError as error:
        yield Finding("Hub", f"huggingface_hub is missing: {error}", "pip install -r requirements.txt", stops=True)
        return
    token = "a token is here" if get_token() else "no token; `hf auth login` gives one, for uploads and gated bases"
    yield Finding("Hub", f"{token}{'; HF_HUB_OFFLINE: nothing is downloaded' if constants.HF_HUB_OFFLINE else ''}")


def look_at_base(path: str, variant: str | None = None) -> Iterator[Finding]:
    """Check by its configs and headers that a base can be trained."""
    try:
        from sdxl_lora.models.base_report import look_at
        from sdxl_lora.models.base_source import Base

        report = look_at(Base(path, variant=variant))
    except ConfigError as error:
        first, *more = str(error).splitlines()
        yield Finding("base", first, " ".join(more) or "see docs/base_models.md", stops=True)
        return
    except Exception as error:  # a package is missing or incompatible
        yield Finding("base", f"{path} cannot be looked at: {error}", "fix what is listed above first", stops=True)
        return
    problem = report.refusal or (f"weights of {', '.join(report.bare)} are missing" if report.bare else "")
    if problem:
        yield Finding("base", f"{path}: {problem}", "give another base; docs/base_models.md says which", stops=True)
    else:
        yield Finding("base", f"{path}: {report.kind}, {report.layout}, {report.prediction or 'prediction unknown'}")
    yield from (Finding("base", note) for note in report.notes)

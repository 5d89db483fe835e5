"""Two runs or more side by side: the settings that differ, and the newest picture that each has drawn of a prompt."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from sdxl_lora.config.fields import flat_fields
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from webui.figures.run_table import settings_of
from webui.runs.launch import read_config
from webui.runs.listing import samples_of
from webui.runs.run_history import History, history_of

OF_ITSELF = ("output_dir", "output_name", "resume_from_checkpoint", "dry_run")  # these differ between any two runs


def differing(runs: list[Path]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, in the order of the config, with each run's value."""
    fields = flat_fields(TrainConfig)
    defaults = {name: list(f.default) if isinstance(f.default, tuple) else f.default for name, f in fields.items()}
    settings = [settings_of(run) for run in runs]
    told = {name: [one.get(name, defaults[name]) for one in settings] for name in fields if name not in OF_ITSELF}
    return {name: values for name, values in told.items() if any(value != values[0] for value in values)}


def newest_samples(runs: list[Path]) -> dict[str, list[tuple[int, Path] | None]]:
    """By prompt, the step and the file of each run's newest picture of it; None where a run has none."""
    rows: dict[str, list[tuple[int, Path] | None]] = {}
    for place, run in enumerate(runs):
        prompts, _ = prompts_of(run, history_of(run))
        for (prompt, image), by_step in samples_of(run).items():
            if image == 0 and by_step:
                name = prompts[prompt] if prompt < len(prompts) else str(prompt)
                rows.setdefault(name, [None] * len(runs))[place] = (max(by_step), by_step[max(by_step)])
    return rows


def prompts_of(run: Path, history: History) -> tuple[tuple[str, ...], int]:
    """The prompts that a run draws, and the seed of the first picture."""
    path = run / "config.yaml"
    config = config_at(path, path.stat().st_mtime_ns) if path.exists() else None
    told = [event["prompts"] for event in history.messages if event["event"] == "samples" and is_list(event, "prompts")]
    prompts = tuple(map(str, told[-1])) if told else config.evaluation.validation_prompt if config else ()
    return prompts, config.seed if config else 0


def is_list(event: dict, name: str) -> bool:
    return isinstance(event.get(name), list) and bool(event[name])


@lru_cache(maxsize=64)
def config_at(path: Path, changed: int) -> TrainConfig | None:
    """None where another version of the trainer wrote it."""
    try:
        return read_config(TrainConfig, path)
    except ConfigError:
        return None

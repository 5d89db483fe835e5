"""Turn a form's values into a config inside the chosen project, with problems beside the fields."""

import dataclasses
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import gradio as gr

from sdxl_lora.config.fields import flat_fields, flat_values, replace_flat
from sdxl_lora.config.preprocess import PreprocessConfig
from sdxl_lora.config.sources import check_source
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.errors import ConfigError
from webui.locale.i18n import in_page_words, say_label
from webui.runs.base_look import base_problem
from webui.runs.listing import has_run
from webui.settings.fields import config_of, entered_value, fields_of, named_fields
from webui.settings.workspace import Workspace, check_folder_name
from webui.widgets import templates


@dataclasses.dataclass
class Form:
    """A config's widgets; their values arrive as a list: the project's name, then those of the widgets in order."""

    config_class: type
    project: gr.Dropdown
    widgets: dict[str, gr.components.Component]
    build: Callable[[str, dict[str, Any]], Any]

    @property
    def inputs(self) -> list[gr.components.Component]:
        return [self.project, *self.widgets.values()]

    def config(self, project: str, *entered) -> Any:
        """Return the config of the form's values.

        Raises:
            ConfigError: lists all problems at once.
        """
        return self.build(project, self.values(project, *entered))

    def values(self, project: str, *entered) -> dict[str, Any]:
        """Return the widgets' values by name."""
        return dict(zip(self.widgets, entered, strict=True))

    def complaint(self, project: str, *entered, expected: Collection[str] = ()) -> str:
        """Return the problems as HTML: a list for the button, and a mark beside each field; "" if there are none.

        Args:
            expected: folders that queued jobs will have made by then.
        """
        try:
            problems = source_problems(self.config(project, *entered), expected)
        except ConfigError as error:
            problems = list(error.problems)
        told = [(self.named(problem), self.ids(problem)) for problem in problems]
        by_field: dict[str, list[str]] = {}
        for words, ids in told:
            for elem_id in ids:
                by_field.setdefault(elem_id, []).append(words)
        return (
            templates.parts.complaint(told, {name: " ".join(words) for name, words in by_field.items()}) if told else ""
        )

    def ids(self, problem: str) -> list[str]:
        """Return the ids of the widgets that a problem concerns."""
        return [
            str(self.widgets[name].elem_id) for name in named_fields(self.config_class, problem) if name in self.widgets
        ]

    def named(self, problem: str) -> str:
        """Return the problem with its first field's label in front."""
        words = in_page_words(self.config_class, problem)
        names = named_fields(self.config_class, problem)
        label = say_label(self.config_class, names[0]) if names else ""
        return words if words.startswith(label) else f"{label}: {words}"

    def shown(self, config: Any) -> list[Any]:
        """Return the widgets' values for a config, with names in place of folders."""
        settings = flat_values(config)
        values = {name: entered_value(field, settings[name]) for name, field in fields_of(config.__class__).items()}
        values["output_dir"] = str(config.output_dir).replace("\\", "/").rstrip("/").split("/")[-1]
        run = Path(config.output_dir)
        if values.get("output_name") == numbered_name(run.parent.parent.name, values["output_dir"]):
            values["output_name"] = ""  # made by the page for this run alone
        if "auto_caption" in self.widgets:
            values["auto_caption"] = bool(config.captioner.models)
            if not values["auto_caption"]:  # off; when ticked again, there must be a captioner
                values["caption_model"] = "\n".join(flat_fields(type(config))["caption_model"].default)
        return [
            values[name].splitlines() if getattr(component, "multiselect", False) else values[name]
            for name, component in self.widgets.items()
        ]


def source_problems(config: Any, expected: Collection[str] = ()) -> list[str]:
    """Return the sources of the config that are missing.

    They are reported on the click, not when the job's turn comes, which may be hours later.
    """
    if isinstance(config, PreprocessConfig):
        return folder_problems("input_dir", config.input_dir)
    dataset = config.data.train_data_dir
    problems = folder_problems("train_data_dir", dataset) if dataset and dataset not in expected else []
    base = "pretrained_model_name_or_path"
    try:
        check_source(config.model.pretrained_model_name_or_path, base, "base model")
        refusal = base_problem(config.model)
    except ConfigError as error:
        return [*problems, str(error)]
    if refusal is not None:
        names_a_field = refusal.split()[0].rstrip(":") in fields_of(TrainConfig)
        problems.append(refusal if names_a_field else f"{base}: {refusal}")
    return problems


def folder_problems(setting: str, folder: str) -> list[str]:
    return [] if Path(folder).is_dir() else [f"{setting} {folder!r} is not a folder on this machine"]


def preprocess_config(places: Workspace, project: str, entered: dict[str, Any]) -> PreprocessConfig:
    """Return the config of a preparation.

    Raises:
        ConfigError: lists all problems at once.
    """
    problems, folder = place_of(places.dataset_folder, project, entered["output_dir"])
    entered = {**entered, "output_dir": folder}
    if not entered.pop("auto_caption", True):
        entered["caption_model"] = ("none",)
    return config_or_all_problems(PreprocessConfig, entered, problems)


def train_config(places: Workspace, project: str, entered: dict[str, Any]) -> TrainConfig:
    """Return the config of a training.

    Raises:
        ConfigError: lists all problems at once; also if an earlier run has that name.
    """
    problems, folder = place_of(places.run_folder, project, entered["output_dir"])
    if not problems and has_run(places.run_folder(project, entered["output_dir"])):
        name = entered["output_dir"]
        problems.append(f"output_dir {name!r} is taken by an earlier run: choose another name, or resume it under Runs")
    config = config_or_all_problems(TrainConfig, {**entered, "output_dir": folder}, problems)
    if config.output.output_name is None and NUMBERED.fullmatch(entered["output_dir"]):
        config = replace_flat(config, output_name=numbered_name(project, entered["output_dir"]))
    if config.output.loras_dir is None:
        return config
    copy = Path(config.output.loras_dir) / f"{config.lora_name}.safetensors"
    if copy.exists():
        problem = (
            f"output_name: {copy.name} of another run is already in {config.output.loras_dir}: choose another name"
        )
        raise ConfigError(problem)
    return config


NUMBERED = re.compile(r"run-\d+")  # names that the page itself gives, the same in every project


def numbered_name(project: str, run: str) -> str:
    """Return the LoRA's name for such a run, with the project in it: clients list LoRAs of all projects together."""
    return f"{project[: 64 - len(run) - 1]}-{run}"


def place_of(folder_of: Callable, project: str, name: str) -> tuple[list[str], str]:
    """Return problems with the two names, and the folder they mean; a placeholder if they are invalid."""
    problems = []
    for value, what in ((project, "project"), (name, "output_dir")):
        try:
            check_folder_name(value, what)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        return problems, "unnamed"
    try:
        return [], str(folder_of(project, name))
    except ConfigError as error:
        return [f"output_dir: {error}"], "unnamed"


def config_or_all_problems(config_class: type, entered: dict[str, Any], problems: list[str]) -> Any:
    try:
        config = config_of(config_class, entered)
    except ConfigError as error:
        problems = [*problems, *error.problems]
    if problems:
        raise ConfigError("; ".join(problems), problems)
    return config

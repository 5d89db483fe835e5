"""The page's folders: a small settings file, overridden by environment variables, and names inside them.

LORA_PROJECTS_DIR: LoRA_Projects_Internal           every project is a folder here: dataset/, runs/<name>/
LORAS_DIR: models/loras                             finished LoRA files are copied here
MODELS_DIR: models                                  base models to choose from
IMAGES_DIR: pictures                                image folders to choose from, beside those of the projects
DEFAULT_SDXL_MODEL_FOR_LORA: sdxl.safetensors       one of the models, a path, or a Hub id
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from sdxl_lora.config.names import NAME
from sdxl_lora.config.paths import pasted_path
from sdxl_lora.config.sections.model import ModelConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.operating_system import is_reserved_name

SETTINGS_FILE = Path("ui.yaml")
DEFAULT_PROJECTS, FORMER_PROJECTS = Path("LoRA_Projects_Internal"), Path("projects")
DEFAULT_LORAS = Path("models/loras")
NAMES = ("LORA_PROJECTS_DIR", "LORAS_DIR", "MODELS_DIR", "DEFAULT_SDXL_MODEL_FOR_LORA", "IMAGES_DIR")


@dataclass(frozen=True)
class Workspace:
    projects: Path
    loras: Path | None = None
    models: Path | None = None
    default_base: str = ModelConfig.pretrained_model_name_or_path
    images: Path | None = None

    def make_folders(self) -> None:
        """Create the default folders. One that a person has named may be a disk that is not mounted today."""
        self.projects.mkdir(parents=True, exist_ok=True)
        if self.loras == DEFAULT_LORAS.absolute():
            self.loras.mkdir(parents=True, exist_ok=True)

    def dataset_folder(self, project: str, name: str) -> Path:
        if name == "runs":
            raise ConfigError("name 'runs' is taken: the project's runs are there; choose another name")
        return inside(self.projects, project, name)

    def run_folder(self, project: str, name: str) -> Path:
        return inside(self.projects, project, "runs", name)

    def project_names(self) -> list[str]:
        """Return the existing projects, or a name to begin with."""
        found = self.projects.iterdir() if self.projects.is_dir() else ()
        return sorted(path.name for path in found if path.is_dir() and NAME.fullmatch(path.name)) or ["my-lora"]

    def datasets(self) -> list[str]:
        """Return the folders that preprocess has filled."""
        return sorted(str(path.parent) for path in self.projects.glob("*/*/metadata.jsonl"))

    def bases(self) -> list[str]:
        """Return the default base, and the .safetensors files and diffusers folders in MODELS_DIR."""
        found = []
        if self.models is not None and self.models.is_dir():
            found = [
                *self.models.glob("*.safetensors"),
                *(path.parent for path in self.models.glob("*/model_index.json")),
            ]
        return list(dict.fromkeys([self.default_base, *sorted(map(str, found))]))


def load_workspace(file: Path | None = None, environment: Mapping[str, str] = os.environ) -> Workspace:
    """Return the folders that the file and the environment name; SETTINGS_FILE is read if it exists.

    Raises:
        ConfigError: no such file, no YAML, or an unknown name.
    """
    path = file or SETTINGS_FILE
    values: dict = {}
    if file is not None or path.exists():
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from None
        if not isinstance(values, dict) or (unknown := sorted(set(values) - set(NAMES))):
            what = (
                f"unknown {', '.join(map(str, unknown))}" if isinstance(values, dict) else "no lines of `name: value`"
            )
            raise ConfigError(f"{path} has {what}: it may set {', '.join(NAMES)}")
    given = (environment.get(name) or values.get(name) for name in NAMES)
    projects, loras, of_models, base, images = (pasted_path(str(value)) if value else None for value in given)
    models = Path(of_models) if of_models else None
    if base and models and (models / base).exists():
        base = str(models / base)
    return Workspace(
        Path(projects or default_projects()).absolute(),
        Path(loras or DEFAULT_LORAS).absolute(),
        models,
        base or ModelConfig.pretrained_model_name_or_path,
        Path(images).absolute() if images else None,
    )


def default_projects() -> Path:
    """Return the default folder of projects, or that of earlier versions if it is in use."""
    is_former = (FORMER_PROJECTS / ".page").is_dir() and not DEFAULT_PROJECTS.exists()
    return FORMER_PROJECTS if is_former else DEFAULT_PROJECTS


def check_folder_name(name: str | None, what: str) -> str:
    """Return the name if every system accepts it for a folder.

    Raises:
        ConfigError: it is invalid.
    """
    if name is None or not NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r} is an invalid name: use letters, digits, dot, dash and underscore, at most 64, starting "
            "with a letter or digit"
        )
    if is_reserved_name(name):
        raise ConfigError(f"{what} {name!r} is a device name on Windows: choose another")
    return name


def inside(base: Path, *names: str) -> Path:
    """Return base/names..., checked to lie inside base.

    Raises:
        ConfigError: an invalid name, or a link that leads out.
    """
    path = base.joinpath(*(check_folder_name(name, "name") for name in names))
    if not path.resolve().is_relative_to(base.resolve()):
        raise ConfigError(f"{path} leads out of {base}")
    return path

"""The workspace and its jobs, shared by all parts of the page. No gradio."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdxl_lora.errors import ConfigError
from webui.runs.jobs import Jobs
from webui.runs.listing import stages
from webui.settings.workspace import Workspace


@dataclass(frozen=True)
class Context:
    places: Workspace
    jobs: Jobs

    def run_of(self, name: str | None) -> Path | None:
        """Return the folder of "project/run"; None if that cannot be a name."""
        return self._folder(self.places.run_folder, name)

    def need_run(self, name: str | None, saved: bool = False) -> Path:
        """Return the folder of a run.

        Args:
            saved: it must have saved a LoRA.
        Raises:
            ConfigError: there is no such run.
        """
        run = self.run_of(name)
        if saved and (run is None or not stages(run)):
            raise ConfigError("choose a run that has saved something first")
        if run is None:
            raise ConfigError("choose a run first")
        return run

    def dataset_of(self, name: str | None) -> Path | None:
        """Return the folder of "project/dataset"; None if there is no such dataset."""
        folder = self._folder(self.places.dataset_folder, name)
        return folder if folder is not None and (folder / "metadata.jsonl").exists() else None

    def need_dataset(self, name: str | None) -> Path:
        """Return the folder of a dataset.

        Raises:
            ConfigError: there is no such dataset.
        """
        folder = self.dataset_of(name)
        if folder is None:
            raise ConfigError("choose a dataset first")
        return folder

    def _folder(self, folder_of: Callable, name: str | None) -> Path | None:
        project, _, own_name = (name or "").partition("/")
        try:
            return folder_of(project, own_name)
        except ConfigError:
            return None


def run_name(run: Path) -> str:
    return f"{run.parent.parent.name}/{run.name}"


def dataset_name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"

"""Image folders on the machine that serves the page. No gradio."""

import os
from pathlib import Path
from typing import Any

from preprocess.editing.prepared import read_report
from preprocess.jobs.state import is_list_of_texts
from sdxl_lora.config.paths import pasted_path
from sdxl_lora.errors import ConfigError
from sdxl_lora.folders.folder_names import why_passed_over
from sdxl_lora.images.decode import is_image_name
from webui.settings.workspace import Workspace

MOST_FOLDERS, MOST_LOOKED_AT, DEEPEST = 200, 3000, 3
MOST_FILES = 20_000  # most files of a folder that is scanned at once; / has more


def roots(places: Workspace) -> list[Path]:
    """Return the existing folders of the settings file below which the page lists folders and shows images."""
    return [path for path in (places.projects, places.images) if path is not None and path.is_dir()]


def is_below_roots(places: Workspace, folder: Path) -> bool:
    return any(folder.resolve().is_relative_to(root.resolve()) for root in roots(places))


def is_same_folder(one: str | None, other: str | None) -> bool:
    """Return whether two typed paths name the same folder."""
    first, second = (Path(pasted_path(typed)).absolute() if typed else None for typed in (one, other))
    return first == second


def last_left_out(places: Workspace, project: str, dataset: str, folder: str) -> str | None:
    """Return the images that the dataset was last prepared without, one name a line.

    None if there is no such dataset, or it was prepared from another folder.
    """
    try:
        settings = read_report(places.dataset_folder(project, dataset)).get("settings")
    except ConfigError:  # no name of a dataset: the form reports it
        return None
    if not isinstance(settings, dict) or not folder or not is_same_folder(str(settings.get("input_dir")), folder):
        return None
    names: Any = settings.get("leave_out")
    return "\n".join(names) if is_list_of_texts(names) else ""


def has_few_files(folder: Path) -> bool:
    """Return whether the folder has few enough files below it to scan without a wait."""
    count = 0
    for _, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        if count > MOST_FILES:
            return False
    return True


def image_folders(places: Workspace) -> list[str]:
    """Return the first MOST_FOLDERS folders with images below the roots, without datasets and runs."""
    found: list[str] = []
    looked_at = 0
    for root in roots(places):
        for where, folders, files in os.walk(root):
            path, looked_at = Path(where), looked_at + 1
            depth = len(path.relative_to(root).parts)
            if looked_at > MOST_LOOKED_AT or len(found) >= MOST_FOLDERS:
                return found
            if "metadata.jsonl" in files or ".preprocess" in folders:
                folders[:] = []
                continue
            is_project = root == places.projects and depth == 1
            folders[:] = sorted(
                name
                for name in folders
                if depth < DEEPEST and not why_passed_over(name) and not (is_project and name == "runs")
            )
            if any(map(is_image_name, files)):
                found.append(str(path))
    return found

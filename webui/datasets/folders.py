"""Folders of images on the machine that the page runs on: to choose from, and what is in one. No gradio."""

import os
from pathlib import Path

from sdxl_lora.folders.folder_names import why_passed_over
from sdxl_lora.images.decode import is_image_name
from webui.settings.workspace import Workspace

MOST_FOLDERS, MOST_LOOKED_AT, DEEPEST = 200, 3000, 3
MOST_FILES = 20_000  # of a folder that is looked into at once; / has more


def roots(places: Workspace) -> list[Path]:
    """The folders below which the page lists what there is, and shows images: those of the settings file."""
    return [path for path in (places.projects, places.images) if path is not None and path.is_dir()]


def is_below_roots(places: Workspace, folder: Path) -> bool:
    return any(folder.resolve().is_relative_to(root.resolve()) for root in roots(places))


def has_few_files(folder: Path) -> bool:
    """Return whether all below the folder can be looked at without a wait."""
    count = 0
    for _, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        if count > MOST_FILES:
            return False
    return True


def image_folders(places: Workspace) -> list[str]:
    """Folders with images below the roots, but for datasets and runs; the first MOST_FOLDERS of them."""
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

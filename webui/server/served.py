"""The only files that leave the machine: those linked or copied into the folder that Gradio serves, and thumbnails.

No gradio.
"""

import os
import secrets
import shutil
import tempfile
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

from sdxl_lora.errors import ConfigError
from sdxl_lora.images.decode import ImageError, open_image

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif")  # formats that browsers show and that cannot hold a script
THUMBNAIL_PIXELS = 384
_broken: set[Path] = set()  # thumbnails that cannot be made, which every look would try again


def private_temporary_folder() -> Path:
    """Make a folder for what this process serves through Gradio; the user's Gradio pages share one by default."""
    folder = Path(tempfile.mkdtemp(prefix="sdxl-lora-ui-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def served_folder() -> Path:
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio").absolute()


def publish(path: Path, folder: Path) -> str:
    """Make a run's file available and return its served path.

    Args:
        folder: of the run; a file outside it is not published.
    Raises:
        ConfigError: the file is not the run's own.
    """
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise ConfigError(f"{path} is not a file of {folder}")
    return str(linked(path, served_folder() / secrets.token_hex(8) / path.name))


def publish_image(path: Path, folder: Path) -> str:
    """Make an image available as it is, always under the same name, and return its served path.

    Args:
        folder: of all projects; files outside it or without an image's suffix are not published.
    Raises:
        ConfigError: it is not published, or is gone.
    """
    if path.suffix.lower() not in IMAGES or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise ConfigError(f"{path.name} no longer exists, or is not an image that can be shown")
    to = served_image(path, path.stat().st_mtime_ns, path.suffix.lower())
    return str(to if to.exists() else linked(path, to))


def served_image(path: Path, changed: int, suffix: str) -> Path:
    """Return the path that serves the image of this name and time, once it is put there."""
    name = blake2b(f"{path} {changed}".encode(errors="replace"), digest_size=16).hexdigest()
    return served_folder() / "sdxl-lora-images" / f"{name}{suffix}"


def linked(path: Path, to: Path) -> Path:
    """Link the file to `to`, or copy it if it cannot be linked; return `to`."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), to)
    except FileExistsError:
        pass
    except OSError:
        shutil.copyfile(path, to)
    return to


def thumbnail_url(path: Path) -> str:
    """Return the URL of an image's thumbnail, relative to the page; "" if the image cannot be opened."""
    try:
        file = served_image(path, path.stat().st_mtime_ns, ".jpg")
    except OSError:  # gone, or not readable
        return ""
    if file in _broken:
        return ""
    if not file.exists():
        try:
            image = open_image(path)
        except ImageError:
            _broken.add(file)
            return ""
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        image.convert("RGB").save(part, "JPEG", quality=85)
        os.replace(part, file)
    return f"gradio_api/file={quote(file.as_posix(), safe='/:')}"

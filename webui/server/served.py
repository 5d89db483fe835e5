"""The only files that leave the machine: those linked or copied into the folder that Gradio serves, and small images
made there. No gradio.
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

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif")  # what browsers show and no script can stand in
THUMBNAIL_PIXELS = 384
_broken: set[Path] = set()  # where no small one can be made, which would be tried again at every look


def private_temporary_folder() -> Path:
    """A folder of this process alone for what Gradio serves; else all of the user's Gradio pages would share one."""
    folder = Path(tempfile.mkdtemp(prefix="sdxl-lora-ui-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def served_folder() -> Path:
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio").absolute()


def publish(path: Path, folder: Path) -> str:
    """Let a file that a run has written be fetched; return where it then is.

    Args:
        folder: of the run; a file outside it is not published.
    Raises:
        ConfigError: the file is not the run's own.
    """
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise ConfigError(f"{path} is not a file of {folder}")
    return str(linked(path, served_folder() / secrets.token_hex(8) / path.name))


def publish_image(path: Path, folder: Path) -> str:
    """Let an image be fetched as it is, always under the same name; return where it then is.

    Args:
        folder: of all projects; what lies outside it, or is no image by its name, is not published.
    Raises:
        ConfigError: it is not published; or it has gone.
    """
    if path.suffix.lower() not in IMAGES or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise ConfigError(f"{path.name} is not there any more, or no image that can be shown")
    to = served_image(path, path.stat().st_mtime_ns, path.suffix.lower())
    return str(to if to.exists() else linked(path, to))


def served_image(path: Path, changed: int, suffix: str) -> Path:
    """Return where the image of this name and time is served from, once it is put there."""
    name = blake2b(f"{path} {changed}".encode(errors="replace"), digest_size=16).hexdigest()
    return served_folder() / "sdxl-lora-images" / f"{name}{suffix}"


def linked(path: Path, to: Path) -> Path:
    """A link to the file, or a copy where there can be none."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), to)
    except FileExistsError:
        pass
    except OSError:
        shutil.copyfile(path, to)
    return to


def thumbnail_url(path: Path) -> str:
    """Return where the browser finds a small one of this image, relative to the page; "" where it cannot be opened."""
    try:
        file = served_image(path, path.stat().st_mtime_ns, ".jpg")
    except OSError:  # gone, or not for us to read
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

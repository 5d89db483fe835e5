"""Small images as files that a browser fetches; images.js opens the whole one at a press."""

import os
from pathlib import Path
from urllib.parse import quote

from sdxl_lora.images.decode import ImageError, open_image
from webui.server.served import served_image

THUMBNAIL_PIXELS = 384
_broken: set[Path] = set()  # where no small one can be made, which would be tried again at every look


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

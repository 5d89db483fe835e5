"""Foreground masks by the optional package rembg.

It is no dependency: it brings onnxruntime, and downloads a model at first use.
"""

import functools
import importlib.util

from PIL import Image

from sdxl_lora.errors import ConfigError


def check_remover() -> None:
    """Check that rembg is installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("rembg") is None:
        raise ConfigError('--masks remover needs the package rembg: pip install "rembg[cpu]", or use masks/ or alpha')


@functools.cache
def session():
    """Load rembg's model once in each worker process."""
    import rembg

    return rembg.new_session()


def foreground_mask(image: Image.Image) -> Image.Image:
    """Return a mask in mode L, white on the image's subject.

    Raises:
        ValueError: the remover failed on this image, or could not get its model.
    """
    import rembg

    try:
        return rembg.remove(image, session=session(), only_mask=True).convert("L")
    except Exception as error:  # onnxruntime and its downloader raise many classes
        raise ValueError(f"the background remover failed ({type(error).__name__}: {error})") from None

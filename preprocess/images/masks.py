"""Masks from the optional package rembg, which finds what stands in front of a background.

It is no requirement: it brings onnxruntime, and downloads a model of its own at first use.
"""

import functools
import importlib.util

from PIL import Image

from sdxl_lora.errors import ConfigError


def check_remover() -> None:
    """
    Raises:
        ConfigError: rembg is not installed.
    """
    if importlib.util.find_spec("rembg") is None:
        raise ConfigError('--masks remover needs the package rembg: pip install "rembg[cpu]", or use masks/ or alpha')


@functools.cache
def session():
    """Loaded once in each worker process."""
    import rembg

    return rembg.new_session()


def foreground_mask(image: Image.Image) -> Image.Image:
    """Mode L, white where the picture's subject is.

    Raises:
        ValueError: the remover failed on this picture, or could not get its model.
    """
    import rembg

    try:
        return rembg.remove(image, session=session(), only_mask=True).convert("L")
    except Exception as error:  # onnxruntime's and its downloader's are of many classes
        raise ValueError(f"the background remover failed ({type(error).__name__}: {error})") from None

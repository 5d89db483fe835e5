"""Images whose pixels tell their places."""

import numpy as np
import pytest
from PIL import Image


def ramp(width, height):
    """Return an image whose pixels tell their places: red is x, green is y."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


@pytest.fixture
def ramps(tmp_path):
    for number, size in enumerate([(200, 100), (100, 200), (64, 64)]):
        ramp(*size).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"ramp {number}")
    return tmp_path

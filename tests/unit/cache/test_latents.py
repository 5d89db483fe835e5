"""Latents on disk: no record of what is not finite, and workers that die."""

import pytest
import torch

from sdxl_lora.cache.latents import LatentCache
from sdxl_lora.cache.records import Workers
from sdxl_lora.data.dataset import open_dataset
from sdxl_lora.data.image_dataset import ImageDataset
from sdxl_lora.errors import DataError, NonFiniteError
from sdxl_lora.models.loading import Base, load_vae
from tests.helpers.caches import fill, records
from tests.helpers.dying_worker import FaultyImages


def test_nan_latents_name_the_picture_and_leave_no_record(tmp_path, tiny_base, images):
    vae = load_vae(Base(str(tiny_base)))
    with torch.no_grad():
        vae.encoder.conv_in.weight.fill_(1e38)
    with pytest.raises(NonFiniteError, match="astronaut"):
        LatentCache(tmp_path, images, "key").fill(vae, (False,), 0, Workers())
    assert not records(tmp_path)


def test_a_damaged_picture_ends_the_filling_with_its_name(tmp_path, tiny_base, captioned_photographs):
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in captioned_photographs.iterdir():
        (raw / path.name).write_bytes(path.read_bytes()[: 5000 if path.suffix == ".jpg" else None])
    images = ImageDataset(open_dataset(str(raw)), resolution=64)
    for num_workers in (0, 1):
        with pytest.raises(DataError, match=r"chelsea\.jpg: truncated JPEG"):
            fill(tmp_path / "cache", tiny_base, images, num_workers=num_workers)


@pytest.mark.parametrize("fault", ["die", "hang"])
def test_a_worker_that_dies_or_hangs_is_reported_with_its_picture(tmp_path, images, tiny_base, monkeypatch, fault):
    decoded = []

    def lose_patience_at_the_third():
        decoded.append(True)
        if len(decoded) == 2:
            monkeypatch.setattr("sdxl_lora.cache.latents.WORKER_TIMEOUT_SECONDS", 1)
        return False

    latents = LatentCache(tmp_path, FaultyImages(images, fault), "key")
    with pytest.raises(DataError, match=r"decodes .*coffee\.png died or hangs: no answer for 1 s"):
        latents.fill(load_vae(Base(str(tiny_base))), (False,), 1, Workers(should_stop=lose_patience_at_the_third))
    assert len(records(tmp_path)) == 2, "what was encoded before is kept"

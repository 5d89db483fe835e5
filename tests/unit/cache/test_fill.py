"""Cached records equal live encoding, and only what changed is encoded again."""

import shutil
import weakref

import pytest
import torch

from sdxl_lora.cache import fill as filling
from sdxl_lora.cache.fill import weights_key
from sdxl_lora.cache.latents import LatentCache
from sdxl_lora.cache.records import Workers, read_record
from sdxl_lora.data.dataset import open_dataset
from sdxl_lora.data.image_dataset import ImageDataset
from sdxl_lora.errors import CheckpointError
from sdxl_lora.io.memo import FileMemo
from sdxl_lora.models.loading import Base, load_text_parts, load_vae
from sdxl_lora.models.text_encoders import encode_prompts
from sdxl_lora.training import model
from tests.helpers.caches import fill, records


def test_records_are_what_the_encoders_give(tmp_path, tiny_base, images):
    latents, texts = fill(tmp_path, tiny_base, images, num_workers=1)
    vae, (tokenizers, encoders) = load_vae(Base(str(tiny_base))), load_text_parts(Base(str(tiny_base)), torch.float32)
    for index, example in enumerate(images.examples):
        for flip in (False, True):
            image, record = images.load(index, flip), latents.read(index, flip)
            with torch.no_grad():
                posterior = vae.encode(image["pixels"][None]).latent_dist
            torch.testing.assert_close(record["mean"], posterior.mean[0] * vae.config.scaling_factor)
            torch.testing.assert_close(record["std"], posterior.std[0] * vae.config.scaling_factor)
            assert torch.equal(record["original_size"], image["original_size"])
        embeds, pooled = encode_prompts([example.caption], tokenizers, encoders)
        record = texts.read(example.caption)
        torch.testing.assert_close((record["prompt_embeds"], record["pooled_embeds"]), (embeds[0], pooled[0]))
    assert texts.read("")["prompt_embeds"].shape == (77, 24 + 32)


def test_a_second_run_encodes_nothing_and_a_changed_caption_only_itself(tmp_path, tiny_base, images):
    fill(tmp_path, tiny_base, images)
    before = records(tmp_path)
    assert len(before) == 4 * 2 + 4 + 1
    fill(tmp_path, tiny_base, images)
    assert records(tmp_path) == before
    object.__setattr__(images.examples[1], "caption", "another caption")
    fill(tmp_path, tiny_base, images)
    after = records(tmp_path)
    assert len(after) == len(before) + 1 and before.items() <= after.items()


def test_two_workers_fill_what_one_does(tmp_path, tiny_base, images):
    fill(tmp_path / "one", tiny_base, images)
    for rank, filled in ((0, 4 + 3), (1, 8 + 5)):  # of 8 pictures and mirrored ones and 5 prompts
        fill(tmp_path / "two", tiny_base, images, workers=Workers(rank, 2))
        assert len(records(tmp_path / "two")) == filled, "each does its share alone"
    one, two = ({path.relative_to(folder): read_record(path) for path in records(folder)} for folder in
                (tmp_path / "one", tmp_path / "two"))  # fmt: skip
    assert one.keys() == two.keys()
    for path, record in one.items():
        for name, tensor in record.items():
            assert torch.equal(two[path][name], tensor)


def test_other_weights_have_other_records(tmp_path, tiny_base, images):
    vae = load_vae(Base(str(tiny_base)))
    first = weights_key(vae)
    with torch.no_grad():
        vae.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    assert weights_key(vae) != first != weights_key(vae.to(torch.bfloat16))
    assert LatentCache(tmp_path, images, first).path(0, False) != LatentCache(tmp_path, images, "x").path(0, False)


def test_a_second_start_loads_no_encoder_and_reads_no_picture(tmp_path, tiny_base, captioned_photographs, monkeypatch):
    raw = tmp_path / "raw"
    shutil.copytree(captioned_photographs, raw)

    def start():
        memo = FileMemo(tmp_path / "cache" / "memo.json")
        opened = ImageDataset(open_dataset(str(raw)), resolution=64, memo=memo)
        caches = fill(tmp_path / "cache", tiny_base, opened, memo=memo)
        memo.save()
        return opened, caches

    first, (latents, texts) = start()

    def forbidden(*_):
        raise AssertionError("nothing has changed")

    with monkeypatch.context() as patch:
        for name in ("load_vae", "load_text_encoders"):
            patch.setattr(filling, name, forbidden)
        patch.setattr(ImageDataset, "_digests", forbidden)
        second, (again, texts_again) = start()
    assert second.examples == first.examples
    assert (again.vae_key, texts_again.encoders_key) == (latents.vae_key, texts.encoders_key)
    changed = raw / "coffee.png"
    changed.write_bytes((raw / "astronaut.png").read_bytes())
    before = records(tmp_path / "cache")
    third, _ = start()
    assert [a.key != b.key for a, b in zip(first.examples, third.examples, strict=True)].count(True) == 1
    assert before.items() <= records(tmp_path / "cache").items()


@pytest.mark.parametrize("cache_latents", [True, False])
def test_a_training_encodes_as_its_settings_say_and_keeps_the_precision(train, cache_latents):
    settings = {"max_train_steps": 1, "cache_latents": cache_latents}
    train(**settings, vae_precision="bf16", vae_batch_size=3)
    latents = train.trained.data.latents
    assert latents.vae_key.endswith("bfloat16") and latents.batch_size == 3
    assert (latents.live is None) == cache_latents
    assert cache_latents or latents.live.quick.dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match=r"\bvae\b"):
        train(**settings, vae_precision="fp32")


def test_encoders_are_gone_before_the_unet_arrives(train, monkeypatch):
    loaded, at_arrival = [], []

    def watched(load):
        def call(*arguments):
            models = load(*arguments)
            loaded.extend(weakref.ref(loaded_one) for loaded_one in (models if isinstance(models, list) else [models]))
            return models

        return call

    def arrive(*arguments, load_unet=model.load_unet):
        at_arrival.append([reference() for reference in loaded])
        return load_unet(*arguments)

    for name in ("load_vae", "load_text_encoders"):
        monkeypatch.setattr(filling, name, watched(getattr(filling, name)))
    monkeypatch.setattr(model, "load_unet", arrive)
    train(max_train_steps=1)
    assert at_arrival == [[None, None, None]], "the VAE and two text encoders"

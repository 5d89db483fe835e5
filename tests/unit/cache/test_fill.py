"""Cached records equal live encoding, and only what changed is encoded again."""

import shutil
import weakref

import pytest
import torch

from sdxl_lora.cache import fill as filling
from sdxl_lora.cache.fill import fill_caches, weights_key
from sdxl_lora.cache.latents import LatentCache
from sdxl_lora.cache.records import Workers, read_record, write_record
from sdxl_lora.cache.text_embeddings import TextCache
from sdxl_lora.data.dataset import open_dataset
from sdxl_lora.data.image_dataset import ImageDataset
from sdxl_lora.errors import DataError, NonFiniteError
from sdxl_lora.io.memo import FileMemo
from sdxl_lora.models.loading import Base, load_text_parts, load_vae
from sdxl_lora.models.text_encoders import encode_prompts
from sdxl_lora.training import model
from tests.conftest import CAPTIONS
from tests.helpers.dying_worker import FaultyPictures


@pytest.fixture
def pictures(captioned_photographs):
    return ImageDataset(open_dataset(str(captioned_photographs)), resolution=64)


def fill(folder, base, pictures, **settings):
    return fill_caches(
        folder, Base(str(base)), pictures, [""], (False, True), torch.device("cpu"), torch.float32, **settings
    )


def records(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_records_are_what_the_encoders_give(tmp_path, tiny_base, pictures):
    latents, texts = fill(tmp_path, tiny_base, pictures, num_workers=1)
    vae, (tokenizers, encoders) = load_vae(Base(str(tiny_base))), load_text_parts(Base(str(tiny_base)), torch.float32)
    for index, example in enumerate(pictures.examples):
        for flip in (False, True):
            picture, record = pictures.load(index, flip), latents.read(index, flip)
            with torch.no_grad():
                posterior = vae.encode(picture["pixels"][None]).latent_dist
            torch.testing.assert_close(record["mean"], posterior.mean[0] * vae.config.scaling_factor)
            torch.testing.assert_close(record["std"], posterior.std[0] * vae.config.scaling_factor)
            assert torch.equal(record["original_size"], picture["original_size"])
        embeds, pooled = encode_prompts([example.caption], tokenizers, encoders)
        record = texts.read(example.caption)
        torch.testing.assert_close((record["prompt_embeds"], record["pooled_embeds"]), (embeds[0], pooled[0]))
    assert texts.read("")["prompt_embeds"].shape == (77, 24 + 32)


def test_a_second_run_encodes_nothing_and_a_changed_caption_only_itself(tmp_path, tiny_base, pictures):
    fill(tmp_path, tiny_base, pictures)
    before = records(tmp_path)
    assert len(before) == 4 * 2 + 4 + 1
    fill(tmp_path, tiny_base, pictures)
    assert records(tmp_path) == before
    object.__setattr__(pictures.examples[1], "caption", "another caption")
    fill(tmp_path, tiny_base, pictures)
    after = records(tmp_path)
    assert len(after) == len(before) + 1 and before.items() <= after.items()


def test_two_workers_fill_what_one_does(tmp_path, tiny_base, pictures):
    fill(tmp_path / "one", tiny_base, pictures)
    for rank, filled in ((0, 4 + 3), (1, 8 + 5)):  # of 8 pictures and mirrored ones and 5 prompts
        fill(tmp_path / "two", tiny_base, pictures, workers=Workers(rank, 2))
        assert len(records(tmp_path / "two")) == filled, "each does its share alone"
    one, two = ({path.relative_to(folder): read_record(path) for path in records(folder)} for folder in
                (tmp_path / "one", tmp_path / "two"))  # fmt: skip
    assert one.keys() == two.keys()
    for path, record in one.items():
        for name, tensor in record.items():
            assert torch.equal(two[path][name], tensor)


def test_other_weights_have_other_records(tmp_path, tiny_base, pictures):
    vae = load_vae(Base(str(tiny_base)))
    first = weights_key(vae)
    with torch.no_grad():
        vae.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    assert weights_key(vae) != first != weights_key(vae.to(torch.bfloat16))
    assert LatentCache(tmp_path, pictures, first).path(0, False) != LatentCache(tmp_path, pictures, "x").path(0, False)


def test_nan_latents_name_the_picture_and_leave_no_record(tmp_path, tiny_base, pictures):
    vae = load_vae(Base(str(tiny_base)))
    with torch.no_grad():
        vae.encoder.conv_in.weight.fill_(1e38)
    with pytest.raises(NonFiniteError, match="astronaut"):
        LatentCache(tmp_path, pictures, "key").fill(vae, (False,), 0, Workers())
    assert not records(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "missing", "rubbish"])
def test_a_damaged_record_is_found_and_made_again(tmp_path, tiny_base, pictures, damage):
    latents, texts = fill(tmp_path, tiny_base, pictures)
    for path, read in (
        (latents.path(1, True), lambda: latents.read(1, True)),
        (texts.path(CAPTIONS["coffee"]), lambda: texts.read(CAPTIONS["coffee"])),
    ):
        whole, before = path.read_bytes(), read()
        spoilt = {
            "cut": whole[:-50],
            "rubbish": b"rubbish",
            "flipped bit": whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:],
        }
        path.unlink()  # tensors that were read map the old file
        if damage in spoilt:
            path.write_bytes(spoilt[damage])
        if damage != "missing":
            with pytest.warns(UserWarning, match=f"{path.name} is damaged and is made again"):
                after = read()
        else:
            fill(tmp_path, tiny_base, pictures)
            after = read()
        torch.testing.assert_close(after, before)
        assert path.read_bytes() == whole
    kept = records(tmp_path)
    latents.path(0, False).write_bytes(b"half")  # a start finds what is not whole without reading it all
    fill(tmp_path, tiny_base, pictures)
    assert {path for path, time in records(tmp_path).items() if kept[path] != time} == {latents.path(0, False)}


def test_without_encoders_a_damaged_record_is_named(tmp_path):
    texts = TextCache(tmp_path, "key")
    write_record(texts.path("a cat"), {"prompt_embeds": torch.ones(77, 8)})
    path = texts.path("a cat")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=f"{path.name} is a damaged cache record"):
        texts.read("a cat")


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


def test_a_damaged_picture_ends_the_filling_with_its_name(tmp_path, tiny_base, captioned_photographs):
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in captioned_photographs.iterdir():
        (raw / path.name).write_bytes(path.read_bytes()[: 5000 if path.suffix == ".jpg" else None])
    pictures = ImageDataset(open_dataset(str(raw)), resolution=64)
    for num_workers in (0, 1):
        with pytest.raises(DataError, match=r"chelsea\.jpg: truncated JPEG"):
            fill(tmp_path / "cache", tiny_base, pictures, num_workers=num_workers)


def test_prompts_are_stored_once(tmp_path, tiny_base):
    parts = load_text_parts(Base(str(tiny_base)), torch.float32)
    assert TextCache(tmp_path, "key").fill(["a", "b", "a"], *parts, Workers()) == 2


@pytest.mark.parametrize("fault", ["die", "hang"])
def test_a_worker_that_dies_or_hangs_is_reported_with_its_picture(tmp_path, pictures, tiny_base, monkeypatch, fault):
    monkeypatch.setattr("sdxl_lora.cache.latents.WORKER_TIMEOUT_SECONDS", 3)
    latents = LatentCache(tmp_path, FaultyPictures(pictures, fault), "key")
    with pytest.raises(DataError, match=r"decodes .*coffee\.png died or hangs: no answer for 3 s"):
        latents.fill(load_vae(Base(str(tiny_base))), (False,), 1, Workers())
    assert len(records(tmp_path)) == 2, "what was encoded before is kept"


@pytest.mark.parametrize("content", ["[1]", "5", "{half", '"text"'])
def test_a_damaged_memo_is_made_anew_and_named(content, tmp_path):
    (tmp_path / "memo.json").write_text(content)
    with pytest.warns(UserWarning, match=r"memo\.json is damaged and is made anew"):
        memo = FileMemo(tmp_path / "memo.json")
    assert memo.get_or_compute(["facts"], lambda: "made") == "made"
    memo.save()
    assert FileMemo(tmp_path / "memo.json").get_or_compute(["facts"], lambda: "again") == "made"


def test_what_does_not_fit_is_made_again(tmp_path):
    (tmp_path / "memo.json").write_text('{"facts": 5}')
    memo = FileMemo(tmp_path / "memo.json")
    assert memo.get_or_compute(["facts"], lambda: "made", lambda found: isinstance(found, str)) == "made"
    memo.save()
    assert FileMemo(tmp_path / "memo.json").get_or_compute(["facts"], lambda: "again") == "made"

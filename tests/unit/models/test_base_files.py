"""Places of a base's weights: one file, shards, variants, the Hub's cache; and files that are no weights."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

from sdxl_lora.errors import ConfigError
from sdxl_lora.models.loading import Base, check_base, load_unet
from tests.helpers.bases import notes_of, one_line


def test_what_is_no_safetensors_is_refused_unopened(folder, tmp_path):
    for name in ("model.gguf", "model.CKPT", "model.pt"):
        (tmp_path / name).write_bytes(b"GGUF")
        assert "is not a .safetensors file" in one_line(Base(str(tmp_path / name)))
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "not a readable .safetensors" in one_line(Base(str(tmp_path / "pointer.safetensors")))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "cut short" in one_line(Base(str(folder)))


def test_a_folder_that_is_no_base_is_named_for_what_it_is(tiny_base, tmp_path):
    (tmp_path / "files").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "files" / "model.safetensors")
    assert "a folder of single files" in one_line(Base(str(tmp_path / "files")))
    assert "one part of a base" in one_line(Base(str(tiny_base / "unet")))
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert "a LoRA's folder" in one_line(Base(str(tmp_path / "lora")))
    for path in ("/no/such/folder", "./no such/base", "C:\\models\\base"):
        assert "no such base model here" in one_line(Base(path))


def test_shards_and_variants_are_read_like_one_file(folder, tmp_path):
    whole = load_unet(Base(str(folder)), torch.float32).state_dict()
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.unet.save_pretrained(tmp_path / "sharded" / "unet", max_shard_size="100KB")
    shutil.copy(folder / "unet" / "config.json", tmp_path / "sharded" / "unet")
    for other in folder.iterdir():
        if other.name != "unet":
            copy = shutil.copytree if other.is_dir() else shutil.copy
            copy(other, tmp_path / "sharded" / other.name)
    assert len(list((tmp_path / "sharded" / "unet").glob("*-of-*.safetensors"))) > 2
    pipeline.save_pretrained(tmp_path / "fp16", variant="fp16")

    fp16 = str(tmp_path / "fp16")
    [note] = notes_of(Base(fp16))
    assert note == f"{fp16} only has weights of variant fp16: they are used"
    for base in (Base(str(tmp_path / "sharded")), Base(fp16, variant="fp16"), Base(fp16)):
        assert base == Base(fp16) or notes_of(base) == []
        ours = load_unet(base, torch.float32).state_dict()
        assert all(torch.equal(ours[name], tensor) for name, tensor in whole.items())
    with pytest.raises(ConfigError, match=r"holds no \.safetensors weights of unet, text_encoder, text_encoder_2, vae"):
        check_base(Base(str(folder), variant="fp16"))
    with pytest.raises(ConfigError, match=r"no \.safetensors weights of variant fp16"):
        load_unet(Base(str(folder), variant="fp16"), torch.float32)


def test_a_hub_id_is_looked_at_and_loaded_from_the_hubs_cache(folder, tmp_path, monkeypatch):
    cache = tmp_path / "hub" / "models--someone--base"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("1" * 40)
    shutil.copytree(folder, cache / "snapshots" / ("1" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base, whole = Base("someone/base"), Base(str(folder))
    lines = "\n".join(check_base(base).lines())
    assert "an SDXL base, on the Hub" in lines and "values; F32 in" in lines
    theirs = load_unet(whole, torch.float32).state_dict()
    ours = load_unet(base, torch.float32).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())

"""Downloads from a Hub on this machine: predicted, and announced before they start."""

import huggingface_hub
import pytest

from sdxl_lora.errors import ConfigError
from sdxl_lora.io import hub_files
from sdxl_lora.io.hub_files import Download, announce, described, downloads_of_model, weights_among
from tests.helpers.hub_server import Hub

TOKEN, COMMIT = "hf_" + "canary" * 5, 40 * "0"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub(tmp_path / "hub", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


def test_weights_are_whole_or_in_shards_with_the_variant_in_either_place():
    names = {"unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/x.bin"}
    assert weights_among(names, "unet", "") == ["unet/diffusion_pytorch_model.safetensors"]
    assert weights_among(names, "unet", "fp16") == ["unet/diffusion_pytorch_model.fp16.safetensors"]
    assert weights_among(names, "unet", "bf16") == weights_among(names, "vae", "") == []
    for pattern in ("model.fp16-0000{}-of-00002.safetensors", "model-0000{}-of-00002.fp16.safetensors"):
        shards = [pattern.format(number) for number in (1, 2)]
        assert weights_among({*shards, "model.fp16.index.json"}, "", "fp16") == shards
        assert weights_among(shards, "", "") == []


def test_sizes_are_told_of_what_this_disk_has_not(hub, tmp_path, capsys):
    folder = hub.folder / "me" / "captioner"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(2_500_000))
    (folder / "config.json").write_text("{}")
    downloads = downloads_of_model("me/captioner")
    assert downloads == [Download("me/captioner", "model.safetensors", 2_500_000)]
    announce(downloads)
    assert capsys.readouterr().err == (
        f"downloads 2.5 MB of me/captioner (1 files, the largest model.safetensors) into {tmp_path / 'cache'}\n"
    )
    cached = tmp_path / "cache" / "models--me--captioner"
    (cached / "snapshots" / COMMIT).mkdir(parents=True)
    (cached / "snapshots" / COMMIT / "model.safetensors").touch()
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    assert downloads_of_model("me/captioner") == [] and described([]) == []
    assert downloads_of_model(str(folder)) == [], "a folder is not downloaded"


def test_a_hub_that_does_not_answer_leaves_it_to_the_loading_to_say_so(hub, monkeypatch):
    assert downloads_of_model("me/nothing") == []
    hub.close()
    assert downloads_of_model("me/captioner") == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("nobody is asked offline"))
    assert downloads_of_model("me/captioner") == []


def test_a_disk_without_room_is_said_before_the_download(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(hub_files.shutil, "disk_usage", lambda folder: type("", (), {"free": 3_000_000_000}))
    announce([Download("me/base", "unet.safetensors", 2_000_000_000)])
    with pytest.raises(ConfigError, match=r"5\.1 GB must be downloaded into .*3\.0 GB free: make room, or .*HF_HOME"):
        announce([Download("me/base", "unet.safetensors", 5_000_000_000)])

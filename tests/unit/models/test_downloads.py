"""Choice of a base's weights where no variant is named."""

import pytest
from huggingface_hub import constants

from sdxl_lora.errors import ConfigError
from sdxl_lora.models import downloads
from sdxl_lora.models.base_report import look_at
from sdxl_lora.models.base_source import MODELS, Base, part_files, weight_files
from sdxl_lora.models.downloads import downloads_of, settled_variant

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


def names_of(variants, parts=MODELS):
    dots = ["." + variant if variant else "" for variant in variants]
    return {f"{part}/{STEMS.get(part, 'model')}{dot}.safetensors": len(dot) + 10 for part in parts for dot in dots}


@pytest.mark.parametrize(
    ("listed", "cached", "expected"),
    [
        (["", "fp16"], [], ("fp16", "half the size")),
        (["", "fp16"], [""], (None, "which is on this disk")),
        (["", "fp16"], ["", "fp16"], ("fp16", "which is on this disk")),
        ([""], [], (None, "there is no fp16")),
        ([], [], (None, "no fp16 is known of")),
    ],
)
def test_of_a_hub_id_it_is_fp16_unless_the_disk_has_the_other(monkeypatch, listed, cached, expected):
    monkeypatch.setattr(downloads, "hub_files", lambda *_: names_of(listed))
    monkeypatch.setattr(downloads, "is_cached", lambda source, revision, name: name in names_of(cached))
    assert settled_variant(Base("me/base")) == expected


@pytest.mark.parametrize(
    ("parts", "vae_path", "expected"),
    [
        (MODELS, None, "fp16"),
        (["unet", "text_encoder", "text_encoder_2"], None, None),
        (["unet", "text_encoder", "text_encoder_2"], "me/vae", "fp16"),
    ],
)
def test_of_a_folder_it_is_fp16_where_every_part_has_it(tmp_path, parts, vae_path, expected):
    for name in [*names_of([""]), *names_of(["fp16"], parts)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert settled_variant(Base(str(tmp_path), vae_path))[0] == expected


def test_only_the_files_in_use_stand_for_a_part(tmp_path):
    for name in names_of(["", "fp16"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for variant, name in ((None, "model.safetensors"), ("fp16", "model.fp16.safetensors")):
        base = Base(str(tmp_path), variant=variant)
        assert [path.name for path in part_files(base, "text_encoder")] == [name], "else caches would mix them up"


def test_a_vae_of_its_own_need_not_have_the_bases_variant(tmp_path):
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    base = Base("me/base", vae_path=str(tmp_path), variant="fp16")
    assert weight_files(base, "vae") == [tmp_path / "diffusion_pytorch_model.safetensors"]
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").touch()
    assert weight_files(base, "vae") == [tmp_path / "diffusion_pytorch_model.fp16.safetensors"]


def test_downloads_are_the_weights_that_will_be_read(monkeypatch):
    listings = {"me/base": names_of(["", "fp16"]), "me/vae": {"diffusion_pytorch_model.safetensors": 7, "README.md": 1}}
    monkeypatch.setattr(downloads, "hub_files", lambda source, revision: listings[source])
    monkeypatch.setattr("sdxl_lora.io.hub_files.is_cached", lambda source, revision, name: name.startswith("text_"))
    found = downloads_of(Base("me/base", vae_path="me/vae", variant="fp16"))
    assert [(one.source, one.name, one.bytes) for one in found] == [
        ("me/base", "unet/diffusion_pytorch_model.fp16.safetensors", 15),
        ("me/vae", "diffusion_pytorch_model.safetensors", 7),
    ]
    whole = downloads_of(Base("me/base"))
    assert [one.name for one in whole] == [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]


def test_a_base_that_only_the_hub_has_is_said_to_be_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as refused:
        look_at(Base("me/base"))
    assert str(refused.value).startswith(
        "cannot load the configs of me/base: it is missing from this disk, or incomplete, and the Hub cannot be "
        "reached (HF_HUB_OFFLINE is set)\nWithout a connection, give local paths"
    )

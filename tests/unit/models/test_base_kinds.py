"""Bases of another objective, another task or another size are named for what they are."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderTiny, EDMEulerScheduler, EulerAncestralDiscreteScheduler, UNet2DConditionModel

from sdxl_lora.config.sections.objective import ObjectiveConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.models.loading import Base, load_schedulers, load_unet
from tests.helpers.bases import FIRST_CONVOLUTION, UNET, notes_of, one_line, set_config


@pytest.mark.parametrize(
    "scheduler, settings, found",
    [
        (EDMEulerScheduler(), {}, "was trained by EDM"),
        (None, {"_class_name": "EDMDPMSolverMultistepScheduler"}, "was trained by EDM"),
        (None, {"timestep_type": "continuous", "prediction_type": "v_prediction"}, "was trained by EDM"),
        (None, {"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_bases_of_another_objective_are_refused_whatever_the_settings_say(folder, scheduler, settings, found):
    if scheduler is not None:
        scheduler.save_pretrained(folder / "scheduler")
    set_config(folder / "scheduler" / "scheduler_config.json", **settings)
    assert f"{folder} {found}, which is not supported yet" in one_line(Base(str(folder)))
    for prediction_type in (None, "epsilon", "v_prediction", "flow"):
        with pytest.raises(ConfigError, match="not supported yet"):
            load_schedulers(Base(str(folder)), ObjectiveConfig(prediction_type))


def test_a_scheduler_without_betas_is_not_taken_for_ddpms_own(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "CMStochasticIterativeScheduler"}')
    assert "has CMStochasticIterativeScheduler, which has no betas" in one_line(Base(str(folder)))


@pytest.mark.parametrize(
    "marks, metadata, found",
    [
        (["edm_mean", "edm_std"], None, "was trained by EDM"),  # Playground 2.5
        (["edm_vpred.sigma_max", "edm_vpred.sigma_min"], None, "was trained by EDM"),  # CosXL
    ],
)
def test_single_files_of_another_objective_say_so_by_their_marks(original, base_of, marks, metadata, found):
    base = base_of(original | {mark: torch.zeros(1) for mark in marks}, metadata=metadata)
    assert found in one_line(base)


def test_a_file_that_says_v_by_its_metadata_is_trained_so_and_that_is_said(original, base_of):
    base = base_of(original, metadata={"modelspec.prediction_type": "v"})
    assert "metadata modelspec.prediction_type what it predicts: v_prediction" in notes_of(base)[0]
    assert load_schedulers(base)[0].config.prediction_type == "v_prediction"
    base = base_of(original, metadata={"modelspec.prediction_type": "epsilon"})
    assert notes_of(base) == [] and load_schedulers(base)[0].config.prediction_type == "epsilon"


@pytest.mark.parametrize("channels, kind", [(9, "inpainting"), (8, "pix2pix"), (5, "another kind")])
def test_unets_of_other_tasks_are_refused_for_what_they_are(original, base_of, folder, channels, kind):
    wide = torch.zeros(16, channels, 3, 3)
    assert kind in one_line(base_of(original | {FIRST_CONVOLUTION: wide}))
    set_config(folder / "unet" / "config.json", in_channels=channels)
    assert kind in one_line(Base(str(folder)))


def test_a_smaller_unet_is_pointed_to_its_own_configs(original, base_of):
    small = {name: tensor for name, tensor in original.items() if "transformer_blocks" not in name}
    assert "SSD-1B" in one_line(base_of(small)) and "--pretrained_config_name_or_path" in one_line(base_of(small))


@pytest.mark.parametrize("mid_block_type", ["UNetMidBlock2D", None])
def test_a_smaller_unet_with_configs_of_its_own_is_a_base(folder, tmp_path, mid_block_type):
    """As SSD-1B's and Vega's: other numbers of transformers in each place, less in the middle or nothing."""
    config = json.loads((folder / "unet" / "config.json").read_text())
    few = {"transformer_layers_per_block": [1, [1, 1], [2, 1]], "mid_block_type": mid_block_type}
    few["reverse_transformer_layers_per_block"] = [[1, 1, 2], [1, 1, 1], 1]
    unet = UNet2DConditionModel.from_config(config | few)
    unet.save_pretrained(folder / "unet")
    assert notes_of(Base(str(folder))) == []
    ours, theirs = load_unet(Base(str(folder)), torch.float32).state_dict(), unet.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weights_of_another_size_and_foreign_configs_are_named(original, base_of, folder):
    base = base_of(original | {UNET + "time_embed.0.weight": torch.zeros(32, 64)})
    assert "does not fit the configs" in one_line(base) and "time_embed.0.weight is [32, 64]" in one_line(base)
    set_config(folder / "unet" / "config.json", cross_attention_dim=768, addition_embed_type=None)
    assert "is not an SDXL base" in one_line(Base(str(folder)))


def test_a_vae_of_another_kind_is_named(folder, tmp_path):
    AutoencoderTiny(latent_channels=4).save_pretrained(tmp_path / "tiny")
    assert "has AutoencoderTiny for its vae" in one_line(Base(str(folder), vae_path=str(tmp_path / "tiny")))
    (tmp_path / "wide").mkdir()
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "wide")
    config = json.loads((folder / "vae" / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config | {"latent_channels": 16}))
    assert "has a VAE of 16 channels, the UNet takes 4" in one_line(Base(str(folder), vae_path=str(tmp_path / "wide")))


def test_a_base_distilled_to_few_steps_is_a_base_and_its_name_tells_how_to_draw(folder, tmp_path):
    """As SDXL-Turbo's folder: the architecture of the base, another sampler."""
    turbo = shutil.copytree(folder, tmp_path / "sdxl-turbo")
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    scheduler.save_pretrained(turbo / "scheduler")
    [note] = notes_of(Base(str(turbo)))
    assert "sdxl-turbo is, by its name, distilled to few steps" in note and "--validation_guidance_scale 1" in note
    schedule, _ = load_schedulers(Base(str(turbo)))
    assert schedule.config.prediction_type == "epsilon"

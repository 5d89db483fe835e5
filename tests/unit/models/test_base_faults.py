"""Bases with damaged configs or weights nobody can compute with: one line before any work, for the right culprit."""

import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdxl_lora.errors import ConfigError
from sdxl_lora.models.base_faults import schedule_fault
from sdxl_lora.models.loading import Base, check_base, load_text_encoders, load_unet
from tests.helpers.bases import UNET, notes_of, one_line, set_config

SDXL_SCHEDULE = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"}
SDXL_SCHEDULE |= {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


@pytest.mark.parametrize(
    "config, words",
    [
        ({"trained_betas": [0.1, 0.2, 0.3]}, "has 3 trained_betas, there must be one for each of its 1000 timesteps"),
        ({"trained_betas": "x"}, "gives no noise schedule with beta_schedule 'scaled_linear', beta_start 0.00085"),
        ({"beta_schedule": "exponential"}, "exponential is not implemented"),
        ({"beta_start": "a"}, "beta_start 'a'"),
        ({"beta_end": math.nan}, "betas that are not a noise schedule: each must be from 0 to 1"),
        ({"beta_schedule": "linear", "beta_start": -1}, "betas that are not a noise schedule"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps '1000', it must be a whole number above 0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0, it must be"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_its_numbers(config, words):
    fault = schedule_fault(SDXL_SCHEDULE | config)
    assert words in fault and "\n" not in fault


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"_class_name": "LCMScheduler"},
        {"_class_name": "TCDScheduler", "timestep_spacing": "trailing"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"num_train_timesteps": 500},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.001] * 1000},
        {"beta_schedule": None, "_class_name": "FlowMatchHeunDiscreteScheduler"},
    ],
)
def test_schedules_that_people_have_are_taken(config):
    assert schedule_fault(SDXL_SCHEDULE | config) is None


def test_a_schedule_is_looked_at_with_its_base(folder):
    set_config(folder / "scheduler" / "scheduler_config.json", beta_end=math.nan)
    assert f"the scheduler's config of {folder} has betas that are not a noise schedule" in one_line(Base(str(folder)))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"scaling_factor": 0}, "scaling_factor 0, it must be a number above 0: SDXL's is 0.13025"),
        ({"scaling_factor": None}, "scaling_factor None"),
        ({"scaling_factor": "x"}, "scaling_factor 'x'"),
        ({"scaling_factor": math.nan}, "scaling_factor nan"),
        ({"shift_factor": "x"}, "shift_factor 'x', it must be a number, or null"),
        ({"latents_mean": ["a"] * 4, "latents_std": [1] * 4}, "both must have 4 numbers"),
        ({"latents_mean": 1.0, "latents_std": 2.0}, "both must have 4 numbers"),
        ({"latents_mean": [0] * 4, "latents_std": [1, 0, 1, 1]}, "those of latents_std must be above 0"),
    ],
)
def test_a_vae_that_would_divide_by_nothing_is_refused_by_its_own_path(folder, config, words):
    set_config(folder / "vae" / "config.json", **config)
    said = one_line(Base(str(folder)))
    assert words in said and said.startswith(f"{folder}: the VAE's config has ")


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("model_index.json", "[]", "cannot load the configs of"),
        ("model_index.json", "{", "is not a valid JSON file"),
        ("unet/config.json", "[1]", "cannot load the config of unet of"),
        ("text_encoder_2/config.json", '{"hidden_size": "x"}', "Field 'hidden_size' expected int"),
        ("scheduler/scheduler_config.json", "", "cannot load the scheduler's config of"),
        ("unet/diffusion_pytorch_model.safetensors.index.json", "[]", "is not an index of .safetensors files"),
        ("unet/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": 3}', "is not an index of .safetensors"),
    ],
)
def test_a_config_of_this_disk_that_is_damaged_is_one_line_that_blames_no_connection(folder, name, text, words):
    if name.endswith("index.json") and "/" in name:
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / name).write_text(text)
    said = one_line(Base(str(folder)))
    assert words in said and "connection" not in said


def test_whole_numbers_without_a_scale_are_no_weights(original, base_of):
    """As nf4, GGUF's and int8's packings have them: trained on, they would be other weights than meant."""
    packed = {
        name: tensor.to(torch.uint8) if name.startswith(UNET) and tensor.dim() == 2 else tensor
        for name, tensor in original.items()
    }
    base = base_of(packed | {UNET + "time_embed.0.weight.absmax": torch.ones(4)})
    assert "has whole numbers without a scale for weights of unet" in one_line(base)
    with pytest.raises(ConfigError, match="time_embed"):
        load_unet(base, torch.float32)
    scales = {
        f"{name.removesuffix('weight')}scale_weight": torch.tensor(0.5)
        for name in packed
        if packed[name].dtype == torch.uint8
    }
    assert notes_of(base_of(packed | scales)) == []


def test_scales_of_all_types_are_applied(original, base_of):
    """fp8 of either kind, with the scales of activations beside them, and bf16: the product counts."""
    name = UNET + "time_embed.0.weight"
    for dtype in (torch.float8_e5m2, torch.float8_e4m3fn, torch.bfloat16):
        packed = (original[name] / 0.25).to(dtype)
        more = {
            UNET + "time_embed.0.scale_weight": torch.tensor(0.25),
            UNET + "time_embed.0.scale_input": torch.ones(1),
        }
        base = base_of(original | {name: packed} | more)
        assert notes_of(base) == []
        ours = load_unet(base, torch.float32).state_dict()["time_embedding.linear_1.weight"]
        assert torch.equal(ours, packed.float() * 0.25)


@pytest.mark.parametrize("value, dtype", [(math.nan, torch.float32), (math.inf, torch.float32), (1e6, torch.float16)])
def test_nan_and_infinity_in_a_base_are_named_and_not_blamed_on_pictures(folder, value, dtype):
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("final_layer_norm.bias"))
    tensors[name][3] = value
    save_file(tensors, path)
    with pytest.raises(ConfigError, match=r"has NaN or infinity in .*final_layer_norm\.bias, read as F"):
        load_text_encoders(Base(str(folder)), dtype)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("lora.safetensors", {"lora_unet_x.lora_up.weight": torch.zeros(1)}, "is a LoRA, it must be a VAE"),
        ("unet.safetensors", {UNET + "out.2.bias": torch.zeros(4)}, "is a UNet without its text encoders, it must"),
        ("half.safetensors", {"first_stage_model.encoder.conv_in.bias": torch.zeros(16)}, "lacks weights, 179 of vae"),
        ("vae.ckpt", {"x": torch.zeros(1)}, "is not a .safetensors file; pickles"),
    ],
)
def test_a_file_that_is_no_vae_is_the_culprit_and_not_the_base(tiny_base, tmp_path, name, content, words):
    save_file(content, tmp_path / name)
    said = one_line(Base(str(tiny_base), vae_path=str(tmp_path / name)))
    assert words in said and said.startswith(str(tmp_path / name))


def test_a_file_without_its_second_text_encoder_is_told_so(original, base_of):
    first_alone = {name: tensor for name, tensor in original.items() if "embedders.1." not in name}
    assert "an SDXL checkpoint without its second text encoder" in one_line(base_of(first_alone))


def test_weights_of_another_variant_are_pointed_to(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.bf16.safetensors"))
    with pytest.raises(ConfigError, match="weights of unet, but those of variant bf16: give --variant bf16"):
        check_base(Base(str(folder)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_pipes_and_missing_configs_are_no_base(tiny_base, original, base_of, tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for base in (Base(str(tmp_path / "pipe.safetensors")), Base(str(tiny_base), vae_path=os.devnull)):
        assert "is a pipe or a device, it must be a file, a folder or a Hub id" in one_line(base)
    path = base_of(original).path
    assert "pretrained_config_name_or_path '/none/x': no such" in one_line(Base(path, config_path="/none/x"))

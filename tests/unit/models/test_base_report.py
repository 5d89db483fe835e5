"""Report on a base from headers and configs: bases as they are shared, each described before any work."""

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from sdxl_lora.errors import ConfigError
from sdxl_lora.models.base_report import look_at
from sdxl_lora.models.loading import Base, load_unet, load_vae
from sdxl_lora.tools.__main__ import main
from tests.helpers.bases import FIRST_CONVOLUTION, UNET, notes_of, one_line


def test_a_whole_base_has_nothing_missing_unknown_or_odd(original, base_of, tiny_base):
    for base in (base_of(original), Base(str(tiny_base))):
        report = look_at(base)
        assert (report.kind, report.prediction, report.channels) == ("an SDXL base", "epsilon", 4)
        assert (report.unknown, report.refusal, report.notes) == ([], None, [])
        assert report.vae["scaling_factor"] == 0.13025 and set(report.parts["unet"].dtypes) == {torch.float32}
        assert all(part.fit.missing == [] for part in report.parts.values())


def test_missing_weights_of_a_file_are_named_in_one_line_and_unknown_ones_too(original, base_of):
    lacking = [
        FIRST_CONVOLUTION,
        UNET + "out.0.bias",
        "conditioner.embedders.1.model.text_projection",
        "first_stage_model.quant_conv.weight",
    ]
    base = base_of({name: tensor for name, tensor in original.items() if name not in lacking})
    words = one_line(base)
    assert all(name in words for name in lacking)
    with pytest.raises(ConfigError, match="input_blocks"):
        load_unet(base, torch.float32)

    base = base_of(original | {UNET + "another.weight": torch.zeros(2), "more": torch.zeros(1)})
    [note] = notes_of(base)
    assert "2 weights that are not used" in note and UNET + "another.weight" in note and "more" in note


def test_missing_weights_of_a_folder_are_not_made_up(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["mid_block.resnets.0.conv1.weight"]
    save_file(tensors, path)
    assert "lacks weights, 1 of unet: mid_block.resnets.0.conv1.weight" in one_line(Base(str(folder)))
    (folder / "scheduler" / "scheduler_config.json").unlink()
    assert "it lacks scheduler/scheduler_config.json" in one_line(Base(str(folder)))


def test_averages_position_ids_marks_and_schedules_are_known_as_harmless(original, base_of):
    more = {
        "model_ema.diffusion_modelout2weight": torch.zeros(3),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77),
        "conditioner.embedders.1.model.attn_mask": torch.zeros(1),
        "denoiser.sigmas": torch.zeros(1000),
        "alphas_cumprod": torch.zeros(1000),
        "first_stage_model.loss.logvar": torch.zeros(1),
        "global_step": torch.zeros(1),
    }
    base = base_of(original | more)
    scale_of_clip = "conditioner.embedders.1.model.logit_scale"
    assert notes_of(base) == [] and look_at(base).harmless == len(more) + (scale_of_clip in original)


def test_plain_fp8_half_and_capital_letters_load(original, base_of, tiny_base):
    unet = load_unet(Base(str(tiny_base)), torch.float32).state_dict()
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16):
        base = base_of({name: tensor.to(dtype) for name, tensor in original.items()}, "UPPER.SAFETENSORS")
        assert notes_of(base) == []
        ours = load_unet(base, torch.float32).state_dict()
        assert all(torch.equal(ours[name], tensor.to(dtype).float()) for name, tensor in unet.items())


@pytest.mark.parametrize("layout", ["original", "original in a checkpoint", "diffusers", "diffusers before 2023"])
def test_a_vae_comes_from_one_file_and_completes_a_checkpoint(original, base_of, tiny_base, tmp_path, layout):
    vae = AutoencoderKL.from_pretrained(tiny_base / "vae")
    with torch.no_grad():
        vae.decoder.conv_in.weight.add_(1)
    tensors = dict(vae.state_dict())
    if layout.startswith("original"):
        prefix = "first_stage_model."
        tensors = {name: tensor for name, tensor in original.items() if name.startswith(prefix)}
        tensors[prefix + "decoder.conv_in.weight"] = tensors[prefix + "decoder.conv_in.weight"] + 1
        if layout == "original":
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        else:
            tensors |= {UNET + "out.2.bias": torch.zeros(4)}
    elif layout == "diffusers before 2023":
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for name in [name for name in tensors if "attentions.0.to_" in name]:
            before, after = name.split("attentions.0.")
            module, kind = after.rsplit(".", 1)
            tensors[f"{before}attentions.0.{old[module]}.{kind}"] = tensors.pop(name)
    save_file(tensors, tmp_path / "vae.safetensors")
    without = {name: tensor for name, tensor in original.items() if not name.startswith("first_stage_model.")}
    assert "without its VAE: give one with --pretrained_vae_model_name_or_path" in one_line(base_of(without))
    path = str(tmp_path / "vae.safetensors")
    for base in (base_of(without, vae_path=path), base_of(original, vae_path=path), Base(str(tiny_base), path)):
        assert notes_of(base) == []
        theirs = vae.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in load_vae(base).state_dict().items())


def test_show_says_what_a_base_is(original, base_of, tiny_base, capsys):
    base = base_of(original | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    assert main(["show", base.path, "--configs", str(tiny_base)]) == 0
    shown = capsys.readouterr().out
    assert "an SDXL base, one file in the original layout" in shown
    assert "v_prediction, zero terminal SNR (tensor v_pred and ztsnr)" in shown
    assert "scaling_factor 0.13025" in shown and "F32 in" in shown and "training       yes" in shown
    assert main(["show", str(tiny_base)]) == 0
    assert "diffusers folder" in capsys.readouterr().out
    save_file({"cond_stage_model.x": torch.zeros(1)}, base.path)
    assert main(["show", base.path]) == 0
    assert "training       no: " in capsys.readouterr().out

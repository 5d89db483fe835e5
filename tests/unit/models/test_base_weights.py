"""A base's weights one by one: their hash, and fp8 at its scale."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.formats.metadata import lora_metadata
from sdxl_lora.models.base_report import look_at
from sdxl_lora.models.base_weights import BaseWeights, base_sha256
from sdxl_lora.models.loading import Base, load_text_encoders, load_unet
from sdxl_lora.tools.__main__ import main
from tests.helpers.adapters import tiny_with_lora
from tests.helpers.bases import UNET


def test_a_bases_hash_is_its_files_or_its_unets(bases, tmp_path):
    single = hashlib.sha256(bases["single"].read_bytes()).hexdigest()
    assert base_sha256(bases["single"]) == single
    unet = bases["folder"] / "unet" / "diffusion_pytorch_model.safetensors"
    assert base_sha256(bases["folder"]) == hashlib.sha256(unet.read_bytes()).hexdigest()
    (tmp_path / ("ab" * 32)).write_bytes(b"as the Hub's cache names its files")
    (tmp_path / "sdxl.safetensors").symlink_to(tmp_path / ("ab" * 32))
    assert base_sha256(tmp_path / "sdxl.safetensors") == "ab" * 32
    assert base_sha256("stabilityai/stable-diffusion-xl-base-1.0") == ""


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("rows", [False, True])
def test_scaled_fp8_counts_at_its_scale(original, base_of, tiny_base, scale, rows):
    """As ComfyUI's files have it: one scale for each layer, or one for each row; the encoders' layers too."""
    packed, meant = {}, {}
    for name, tensor in original.items():
        if not (name.endswith(".weight") and tensor.dim() == 2 and not name.startswith("first_stage_model")):
            packed[name] = meant[name] = tensor
            continue
        factor = (tensor.abs().amax(1) if rows else tensor.abs().amax()) / 448
        packed[name] = (tensor / (factor[:, None] if rows else factor)).to(torch.float8_e4m3fn)
        packed[name.removesuffix("weight") + scale] = factor
        meant[name] = packed[name].float() * (factor[:, None] if rows else factor)
    packed[UNET + "scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    base = base_of(packed)
    report = look_at(base)
    assert (report.refusal, report.unknown) == (None, []) and report.parts["unet"].scaled > 10

    plain = Base(str(base.path).replace("model.", "plain."), config_path=str(tiny_base))
    save_file(meant, plain.path)
    for ours, theirs in [
        (load_unet(base, torch.float32), load_unet(plain, torch.float32)),
        *zip(load_text_encoders(base, torch.float32), load_text_encoders(plain, torch.float32), strict=True),
    ]:
        theirs = theirs.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())


def test_the_tools_read_scaled_fp8_at_its_scale_and_merge_nothing_into_it(original, base_of, tmp_path, capsys):
    layer = UNET + "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    scale = original[f"{layer}.weight"].abs().amax() / 448
    packed = (original[f"{layer}.weight"] / scale).to(torch.float8_e4m3fn)
    base = base_of(original | {f"{layer}.weight": packed, f"{layer}.scale_weight": scale})
    key = ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    with BaseWeights(base.path) as weights:
        assert torch.equal(weights.weight(key), packed.float() * scale)
    lora, _ = write_lora_files(
        tmp_path, "cat", tiny_with_lora(rank=2, alpha=2, layers=1)[1], "fp32", lora_metadata("cat")
    )
    assert main(["merge", str(lora), base.path, str(tmp_path / "merged.safetensors")]) == 2
    assert "holds scaled fp8, 1 weights such as" in capsys.readouterr().err

"""Shapes of SDXL's layers against the real classes, and LoRAs of other models, which only shapes tell."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from examples.full_sdxl import full_sdxl
from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.errors import ConfigError
from sdxl_lora.lora.formats.keys import canonical
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.lora.formats.shapes import SDXL, TINY, layer_shape, why_not_sdxl
from sdxl_lora.lora.warm_start import layers_of, read_warm_start
from sdxl_lora.tools.__main__ import main
from tests.helpers.key_map import KEY_MAP

TO_K = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def tiny_models():
    pipeline = tiny_sdxl(depth=2)
    return {name: getattr(pipeline, name) for name in ("unet", "text_encoder", "text_encoder_2")}


@pytest.mark.parametrize(("models", "widths", "count"), [(full_sdxl, SDXL, 794), (tiny_models, TINY, None)])
def test_the_rule_gives_the_shapes_of_the_real_classes(models, widths, count):
    seen = set()
    for component, model in models().items():
        for module, layer in model.named_modules():
            if not isinstance(layer, (nn.Linear, nn.Conv2d)):
                continue
            name = canonical(component, module)
            assert layer_shape((component, name), widths) == (layer.weight.shape[0], layer.weight[0].numel()), name
            seen.add((component, name))
    if count:
        assert sum(component == "unet" for component, _ in seen) == count
    for name in KEY_MAP:  # what the smaller model lacks has no shape
        assert (layer_shape(("unet", name), widths) is not None) == (("unet", name) in seen), name


def lora(path, out, width, name=TO_K, rank=4):
    stem = "lora_unet_" + name.replace(".", "_")
    tensors = {"lora_down.weight": torch.randn(rank, width), "lora_up.weight": torch.randn(out, rank)}
    save_file({f"{stem}.{part}": t for part, t in tensors.items()} | {f"{stem}.alpha": torch.tensor(4.0)}, path)
    return path


@pytest.mark.parametrize(
    ("out", "width", "name", "said"),
    [
        (640, 768, TO_K, "it is a LoRA for SD 1.5, not SDXL"),
        (640, 1024, TO_K, "it is a LoRA for SD 2, not SDXL"),
        (640, 1280, TO_K, "it is a LoRA for SDXL's refiner, not SDXL"),
        (640, 2000, TO_K, "changes 640x2000, SDXL's weight is 640x2048"),
        (600, 2048, TO_K, "changes 600x2048, SDXL's weight is 640x2048"),
        (32, 2048, TO_K, "it is a LoRA for another model, not SDXL"),  # half the demo's width
        (320, 320, "down_blocks.0.attentions.0.proj_in", "it is a LoRA for SD 1.5, SD 2 or SDXL's refiner, not SDXL"),
        (1280, 1280, "up_blocks.1.attentions.0.proj_in", "SDXL's weight is 640x640"),
        (640, 640, TO_K.replace("blocks.0.attn2", "blocks.2.attn1"), "SDXL has no such module"),
    ],
)
def test_a_lora_of_another_model_fails_in_every_tool(tmp_path, tiny_base, capsys, out, width, name, said):
    file, output = lora(tmp_path / "x.safetensors", out, width, name), tmp_path / "new.safetensors"
    assert main(["check", str(file)]) == 3
    assert said in capsys.readouterr().out
    assert main(["show", str(file)]) == 0
    assert "ComfyUI: not with SDXL" in (page := capsys.readouterr().out) and said in page
    for command in (
        ["convert", file, output],
        ["resize", file, output, "--rank", 2],
        ["combine", output, "--loras", file, file, "--weights", 1, 1],
    ):
        assert main([str(word) for word in command]) == 2
        assert said in capsys.readouterr().err and not output.exists()
    assert main(["merge", str(file), str(tiny_base), str(tmp_path / "merged")]) == 2
    assert not (tmp_path / "merged").exists()


def test_what_fits_sdxl_or_the_demo_passes(tmp_path):
    for out, width in ((640, 2048), (32, 56)):
        assert not why_not_sdxl(read_lora(lora(tmp_path / "x.safetensors", out, width)).adapters)
    inpainting = lora(tmp_path / "x.safetensors", 320, 9 * 9, "conv_in")
    assert not why_not_sdxl(read_lora(inpainting).adapters)


def test_init_lora_is_compared_with_the_base_before_its_weights_are_loaded(tmp_path, train):
    file = lora(tmp_path / "x.safetensors", 640, 768)
    start = read_warm_start(file, "lora", ["unet"])
    with pytest.raises(ValueError, match=r"this base's weight is 640x2048: it is a LoRA for SD 1.5, not SDXL"):
        layers_of(full_sdxl()["unet"], "unet", start.adapters["unet"])
    with pytest.raises(ConfigError, match=r"init_lora: .*it is a LoRA for SD 1.5, not SDXL"):
        train(init_lora=str(file), max_train_steps=1)


def test_a_lora_with_another_models_names_is_called_by_that_model(tmp_path):
    path, one = tmp_path / "x.safetensors", torch.ones(4, 4)
    for key, model in {
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": "Flux",
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": "Flux",
        "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight": "Stable Diffusion 3",
        "transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight": "Stable Diffusion 3",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight": "Stable Diffusion 3",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "SD 1.5",
        "unet.up_blocks.3.attentions.0.proj_in.lora_A.weight": "SD 1.5",
        "lora_unet_output_blocks_11_1_proj_in.lora_down.weight": "SD 1.5",
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": "a transformer",
    }.items():
        save_file({key: one}, path)
        with pytest.raises(ValueError, match=f"is not a LoRA for SDXL: .*it is one for {model}"):
            read_lora(path)

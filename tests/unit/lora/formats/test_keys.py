"""Names of LoRA modules against two clients' tables (tests/data/sdxl_key_map.json: diffusers -> sgm)."""

import pytest

from sdxl_lora.lora.formats.keys import KOHYA_PREFIX, canonical, from_sgm, kohya_name, parse_kohya_name, to_sgm
from tests.helpers.key_map import KEY_MAP


def test_all_794_unet_modules_translate_both_ways():
    assert len(KEY_MAP) == 794
    for name, sgm in KEY_MAP.items():
        assert to_sgm(name) == sgm
        assert from_sgm(sgm) == name
        assert parse_kohya_name(kohya_name("unet", name)) == ("unet", name)
        assert parse_kohya_name(f"lora_unet_{name.replace('.', '_')}") == ("unet", name)


def test_text_encoder_names_always_get_their_prefix():
    parts = [f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
    for component, layers in (("text_encoder", 12), ("text_encoder_2", 32)):
        for name in (f"encoder.layers.{i}.{part}" for i in range(layers) for part in parts):
            assert canonical(component, name) == canonical(component, f"text_model.{name}") == f"text_model.{name}"
            key = kohya_name(component, f"text_model.{name}")
            assert key == KOHYA_PREFIX[component] + f"text_model.{name}".replace(".", "_")
            assert parse_kohya_name(key) == (component, f"text_model.{name}")


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_double_blocks_0_img_attn_qkv",  # Flux
        "lora_te_text_model_encoder_layers_0_mlp_fc1",  # SD 1.5
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_x",
        "lora_unet_down_blocks_1_resnets_0_norm1",
        "lora_unet_",
        "lora_te1_text_model_embeddings_token_embedding",
        "lora_unet_input_blocks_3_1_proj_in",
        "model.diffusion_model.out.2.weight",
    ],
)
def test_a_foreign_module_is_refused_by_name(key):
    with pytest.raises(ValueError, match=r"is not a (LoRA )?module of"):
        parse_kohya_name(key)

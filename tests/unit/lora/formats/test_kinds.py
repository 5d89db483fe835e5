"""LoRA files of other tools: float8, their names, what they hold beside layers; at the right strength or refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdxl_lora.lora.formats.adapter import delta
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.tools.__main__ import main

STEM, KEY = "lora_unet_input_blocks_4_1_proj_in", ("unet", "down_blocks.1.attentions.0.proj_in")
DOTTED = "unet.down_blocks.1.attentions.0.proj_in"


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DOWN, UP = randn(4, 640), randn(640, 4, seed=1)
PLAIN = {f"{STEM}.lora_down.weight": DOWN, f"{STEM}.lora_up.weight": UP, f"{STEM}.alpha": torch.tensor(2.0)}


@pytest.fixture
def lora(tmp_path):
    def write(tensors):
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
        return tmp_path / "x.safetensors"

    return write


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz])
def test_float8_reads_as_what_it_says_and_every_tool_takes_it(lora, tmp_path, dtype):
    low = {name: tensor if "alpha" in name else tensor.to(dtype) for name, tensor in PLAIN.items()}
    file = lora(low)
    expected = low[f"{STEM}.lora_up.weight"].float() @ low[f"{STEM}.lora_down.weight"].float() / 2
    torch.testing.assert_close(delta(read_lora(file).adapters[KEY]), expected)
    assert main(["check", str(file)]) == main(["show", str(file)]) == 0
    for command in (["convert"], ["resize", "--rank", "4"]):
        output = tmp_path / f"{command[0]}.safetensors"
        assert main([command[0], str(file), str(output), *command[1:]]) == 0
        torch.testing.assert_close(delta(read_lora(output).adapters[KEY]), expected, atol=0.05, rtol=1e-3)


def test_every_value_of_float8_is_one_of_float16():
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz):
        values = torch.arange(256, dtype=torch.uint8).view(dtype)
        assert torch.equal(values.half().float().nan_to_num(7), values.float().nan_to_num(7))


@pytest.mark.parametrize("scale", [f"{STEM}.lora_down.scale_weight", f"{STEM}.lora_up.weight_scale", "scaled_fp8"])
def test_scaled_float8_is_refused_by_name(lora, scale):
    with pytest.raises(ValueError, match="is in scaled float8"):
        read_lora(lora({**PLAIN, scale: torch.ones(1)}))
    with pytest.raises(ValueError, match="holds integers"):
        read_lora(lora({**PLAIN, f"{STEM}.lora_up.weight": UP.to(torch.int8)}))


@pytest.mark.parametrize(
    "names",
    [
        (f"{DOTTED}.lora_A.weight", f"{DOTTED}.lora_B.weight"),
        (f"{DOTTED}.lora_A.default.weight", f"{DOTTED}.lora_B.default.weight"),
        (f"{DOTTED}.lora_A.cat.weight", f"{DOTTED}.lora_B.cat.weight"),
        (f"base_model.model.{DOTTED}.lora_A.cat.weight", f"base_model.model.{DOTTED}.lora_B.cat.weight"),
        (f"{DOTTED}.lora_A", f"{DOTTED}.lora_B"),
        *(
            (f"{prefix}input_blocks.4.1.proj_in.lora_down.weight", f"{prefix}input_blocks.4.1.proj_in.lora_up.weight")
            for prefix in ("diffusion_model.", "model.diffusion_model.", "unet.")
        ),
        tuple(f"lycoris_down_blocks_1_attentions_0_proj_in.lora_{part}.weight" for part in ("down", "up")),
    ],
)
def test_other_spellings_of_a_module_say_the_same(lora, names):
    torch.testing.assert_close(
        delta(read_lora(lora(dict(zip(names, (DOWN, UP), strict=True)))).adapters[KEY]), UP @ DOWN
    )


@pytest.mark.parametrize(
    "prefix",
    ["text_encoders.clip_{}.transformer.text_model", "clip_{}.transformer.text_model", "clip_{}.text_model"],
)
def test_comfyui_s_and_omi_s_names_of_the_text_encoders_are_read(lora, prefix):
    tensors, expected = {}, {}
    for letter, component, width in (("l", "text_encoder", 768), ("g", "text_encoder_2", 1280)):
        for layer, out in (("self_attn.q_proj", width), ("mlp.fc1", 4 * width)):
            stem = f"{prefix.format(letter)}.encoder.layers.3.{layer}"
            down, up = randn(2, width), randn(out, 2)
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            tensors[f"{stem}.alpha"] = torch.tensor(1.0)
            expected[component, f"text_model.encoder.layers.3.{layer}"] = up @ down / 2
    file = read_lora(lora(tensors))
    assert file.layout == "comfyui" and file.adapters.keys() == expected.keys()
    for key, change in expected.items():
        torch.testing.assert_close(delta(file.adapters[key]), change)


def test_a_text_encoder_without_prefix_is_told_by_its_width_alpha_too(lora):
    stem = "text_model.encoder.layers.3.mlp.fc1"
    tensors = {"lora_A.weight": randn(2, 1280), "lora_B.weight": randn(5120, 2), "alpha": torch.tensor(1.0)}
    (key, adapter) = next(iter(read_lora(lora({f"{stem}.{n}": t for n, t in tensors.items()})).adapters.items()))
    assert key == ("text_encoder_2", stem) and adapter.scale == 0.5


def test_several_adapters_in_one_file_are_refused_by_name(lora):
    with pytest.raises(ValueError, match=r"several adapters \(cat, dog\)"):
        read_lora(
            lora({f"{DOTTED}.lora_{f}.{n}.weight": t for n in ("cat", "dog") for f, t in (("A", DOWN), ("B", UP))})
        )
    with pytest.raises(ValueError, match="gives unet down_blocks"):
        read_lora(lora({**PLAIN, f"{DOTTED}.lora_A.weight": DOWN, f"{DOTTED}.lora_B.weight": UP}))


def test_what_is_known_is_read_and_the_rest_named_with_what_it_costs(lora, tmp_path, capsys):
    norm = "lora_unet_input_blocks_4_0_in_layers_0"
    extra = {
        "bundle_emb.sks.clip_l": randn(2, 768),
        "bundle_emb.sks.clip_g": randn(2, 1280),
        f"{norm}.w_norm": torch.zeros(320),
        f"{norm}.b_norm": torch.zeros(320),
        f"{norm}.alpha": torch.tensor(1.0),
        f"{STEM}.diff_b": randn(640),
        "lora_te1_text_model_embeddings_token_embedding.lora_down.weight": randn(1, 9),
        f"base_model.model.{DOTTED}.modules_to_save.default.weight": randn(2, 2),
    }
    file = lora({**PLAIN, **extra})
    read = read_lora(file)
    torch.testing.assert_close(delta(read.adapters[KEY]), UP @ DOWN / 2)
    assert len(read.adapters) == 1 and len(read.left_out) == 5
    said = "\n".join(read.left_out)
    assert "1 embedding bundled in it (sks); prompts with its word need it" in said
    assert "trained norms (2 tensors, such as lora_unet_input_blocks_4_0_in_layers_0" in said
    assert "they are zero, so nothing is lost" in said
    assert f"trained biases ({STEM}.diff_b); images differ" in said and "layers trained as a whole" in said
    assert "token embeddings" in said
    for command in (["show"], ["check"], ["convert", tmp_path / "a.safetensors"],
                    ["resize", tmp_path / "b.safetensors", "--rank", 2]):  # fmt: skip
        assert main([str(word) for word in (command[0], file, *command[1:])]) == 0
        assert "left out: trained biases" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds no LoRA layers"):
        read_lora(lora({"bundle_emb.sks.clip_l": randn(2, 768)}))


def test_a_whole_change_is_read_merged_and_made_a_lora(lora, tmp_path):
    change = randn(640, 4) @ randn(4, 640, seed=2)
    file = lora({f"{STEM}.diff": change, "lora_unet_input_blocks_4_0_in_layers_0.diff": randn(320)})
    adapter = read_lora(file).adapters[KEY]
    assert adapter.kind == "full" and "trained norms" in read_lora(file).left_out[0]
    torch.testing.assert_close(delta(adapter), change)
    assert main(["show", str(file)]) == main(["check", str(file)]) == 0
    assert main(["resize", str(file), str(tmp_path / "y.safetensors"), "--rank", "2"]) == 2
    assert main(["convert", str(file), str(tmp_path / "y.safetensors"), "--precision", "fp32"]) == 0
    torch.testing.assert_close(delta(read_lora(tmp_path / "y.safetensors").adapters[KEY]), change, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="is changed by diff and lora at once"):
        read_lora(lora({**PLAIN, f"{STEM}.diff": change}))


def test_a_lokr_of_whole_factors_passes_whatever_its_alpha(lora, tmp_path):
    first, second = randn(8, 8), randn(80, 80)
    file = lora({f"{STEM}.lokr_w1": first, f"{STEM}.lokr_w2": second, f"{STEM}.alpha": torch.tensor(1e10).half()})
    assert main(["check", str(file)]) == 0
    assert main(["convert", str(file), str(tmp_path / "y.safetensors"), "--precision", "fp32"]) == 0
    alphas = [tensor for name, tensor in load_file(tmp_path / "y.safetensors").items() if name.endswith("alpha")]
    assert all(torch.isfinite(alpha) for alpha in alphas)
    torch.testing.assert_close(delta(read_lora(tmp_path / "y.safetensors").adapters[KEY]), torch.kron(first, second))


@pytest.mark.parametrize(
    "ending",
    ["dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.cat.weight"],
)
@pytest.mark.parametrize("shape", [(640,), (640, 1)])
def test_doras_lengths_are_read_in_every_spelling(lora, ending, shape):
    weight, lengths = randn(640, 640, seed=3), randn(640, seed=4).abs()
    names = (f"{DOTTED}.lora_A.cat.weight", f"{DOTTED}.lora_B.cat.weight")
    file = lora({**dict(zip(names, (DOWN, UP), strict=True)), f"{DOTTED}.{ending}": lengths.reshape(shape)})
    changed = weight + UP @ DOWN
    expected = lengths[:, None] * changed / changed.norm(dim=1, keepdim=True) - weight
    torch.testing.assert_close(delta(read_lora(file).adapters[KEY], weight), expected, atol=1e-4, rtol=1e-4)


def test_lengths_of_a_lokr_count_too(lora, tmp_path, capsys):
    first, second = randn(8, 8), randn(80, 80)
    weight, lengths = randn(640, 640, seed=3), randn(640, 1, seed=4).abs()
    file = lora({f"{STEM}.lokr_w1": first, f"{STEM}.lokr_w2": second, f"{STEM}.dora_scale": lengths})
    changed = weight + torch.kron(first, second)
    expected = lengths * changed / changed.norm(dim=1, keepdim=True) - weight
    torch.testing.assert_close(delta(read_lora(file).adapters[KEY], weight), expected, atol=1e-4, rtol=1e-4)
    assert main(["convert", str(file), str(tmp_path / "y.safetensors"), "--to", "diffusers"]) == 2
    assert "name it with --base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"{STEM}.a1.weight", "a GLoRA"),
        (f"{STEM}.oft_blocks", "an OFT or BOFT"),
        (f"{DOTTED}.oft_R.default.weight", "an OFT or BOFT"),
        (f"{STEM}.on_input", r"an \(IA\)\^3"),
        (f"base_model.model.{DOTTED}.ia3_l", r"an \(IA\)\^3"),
        (f"base_model.model.{DOTTED}.vera_lambda_b", "of a PEFT method"),
        ("lora_controlnet", "a Control-LoRA"),
        (f"{STEM}.set_weight", "a file of whole weights"),
        ("clip_l", "an embedding"),
    ],
)
def test_other_kinds_of_files_are_refused_by_name(lora, key, kind):
    with pytest.raises(ValueError, match=f"is {kind}"):
        read_lora(lora({key: torch.ones(4)}))

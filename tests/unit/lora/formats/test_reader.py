"""Every layout says the same change, for all 794 UNet and 264 text encoder modules of the full-size SDXL."""

import json
import re

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from examples.full_sdxl import full_sdxl
from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.lora.formats.adapter import delta
from sdxl_lora.lora.formats.keys import canonical
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.lora.formats.writer import save_diffusers, save_kohya, save_peft
from tests.helpers.adapters import model_adapters, tiny_with_lora
from tests.helpers.key_map import KEY_MAP
from tests.helpers.marks import slow

TEXT_LAYERS = r".*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
CASES = {
    "conv alpha and encoders' own": {
        "unet": {"r": 2, "lora_alpha": 3, "alpha_pattern": {r"conv\w*|.*samplers.0.conv": 1}},
        "text_encoder": {"r": 2, "lora_alpha": 5},
        "text_encoder_2": {"r": 3, "lora_alpha": 1.5},
    },
    "rsLoRA with a rank per block": {
        "unet": {
            "r": 2,
            "lora_alpha": 3,
            "use_rslora": True,
            "rank_pattern": {r"up_blocks\.0.*": 4, r"down_blocks\.2.*": 1},
        },
        "text_encoder": {"r": 2, "lora_alpha": 1, "use_rslora": True},
        "text_encoder_2": {"r": 2, "lora_alpha": 1, "rank_pattern": {r"encoder\.layers\.31.*": 3}},
    },
}


@pytest.fixture(scope="module", params=["rsLoRA with a rank per block", *slow("conv alpha and encoders' own")])
def trained(request):
    """({key: Adapter}, {key: (up, down) of PEFT's own layers, strength multiplied into up}) at full size."""
    generator = torch.Generator().manual_seed(3)
    adapters, peft_factors = {}, {}
    for component, model in full_sdxl().items():
        names = list(KEY_MAP) if component == "unet" else TEXT_LAYERS
        model.add_adapter(LoraConfig(target_modules=names, **CASES[request.param][component]), adapter_name="default")
        layers = {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
        for name, layer in layers.items():
            for factor in (layer.lora_A.default, layer.lora_B.default):
                factor.weight = torch.nn.Parameter(torch.randn(factor.weight.shape, generator=generator))
            scale = layer.scaling["default"]
            factors = (layer.lora_B.default.weight.detach() * scale, layer.lora_A.default.weight.detach())
            peft_factors[component, canonical(component, name)] = factors
        adapters |= {(component, name): adapter for name, adapter in model_adapters(model, component).items()}
    assert sum(component == "unet" for component, _ in adapters) == 794
    assert sum(component != "unet" for component, _ in adapters) == 264
    return adapters, peft_factors


def distance(left, right):
    """Relative Frobenius distance of two products up @ down, exactly, without forming 5 GB of them."""
    (up, down), (other_up, other_down) = ([t.flatten(1).double() for t in pair] for pair in (left, right))
    q_up, _ = torch.linalg.qr(torch.cat([up, other_up], 1))
    q_down, _ = torch.linalg.qr(torch.cat([down, other_down]).T)
    here, there = ((q_up.T @ u) @ (d @ q_down) for u, d in ((up, down), (other_up, other_down)))
    return ((here - there).norm() / here.norm()).item()


def assert_same_changes(found, expected):
    assert set(found) == set(expected)
    assert max(distance(found[key], expected[key]) for key in expected) < 1e-6


def of_adapters(adapters):
    return {
        key: (a.tensors["lora_up"].float() * a.scale, a.tensors["lora_down"].float()) for key, a in adapters.items()
    }


def kohya_key(component, name, sgm=True):
    if component == "unet":
        return "lora_unet_" + (KEY_MAP[name] if sgm else name).replace(".", "_")
    return {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[component] + name.replace(".", "_")


@pytest.mark.parametrize("sgm", [True, *slow(False)])
def test_kohyas_container_gives_peft_s_change_for_every_module(tmp_path, trained, sgm):
    adapters, expected = trained
    path = tmp_path / "x.safetensors"
    save_kohya(path, adapters, "fp32", diffusers_names=not sgm)
    tensors = load_file(path)
    found = {}
    for key in expected:  # as kohya's clients read it, with names from two clients' tables
        stem = kohya_key(*key, sgm)
        down, up, alpha = (tensors.pop(f"{stem}.{part}") for part in ("lora_down.weight", "lora_up.weight", "alpha"))
        found[key] = (up * (alpha / down.shape[0]), down)
    assert not tensors
    assert_same_changes(found, expected)
    read = read_lora(path)
    assert read.layout == ("kohya-sgm" if sgm else "kohya-diffusers")
    assert_same_changes(of_adapters(read.adapters), expected)


def test_diffusers_keys_give_peft_s_change_for_every_module(tmp_path, trained):
    adapters, expected = trained
    path = tmp_path / "x.safetensors"
    save_diffusers(path, adapters, "fp32")
    tensors = load_file(path)
    assert all(re.fullmatch(r"(unet|text_encoder(_2)?\.text_model)\..*\.lora_[AB]\.weight", key) for key in tensors)
    found = {
        (component, name): tuple(tensors[f"{component}.{name}.lora_{factor}.weight"] for factor in "BA")
        for component, name in expected
    }
    assert_same_changes(found, expected)
    read = read_lora(path)
    assert read.layout == "diffusers"
    assert_same_changes(of_adapters(read.adapters), expected)


def test_peft_folders_and_old_diffusers_names_read_the_same(tmp_path, trained):
    adapters, expected = trained
    found = {}
    for path in save_peft(tmp_path, adapters, "fp32"):
        read = read_lora(path.parent)
        assert read.layout == "peft"
        found |= of_adapters(read.adapters)
    assert_same_changes(found, expected)

    old = {}
    for (component, name), (up, down) in expected.items():
        stem = f"{component}.{name}"
        if attention := re.fullmatch(r"(.*\.attn\d)\.(to_[a-z]+)(\.0)?", stem):
            stem = f"{attention[1]}.processor.{attention[2]}_lora"
        elif component == "unet":
            stem = f"{stem}.lora"
        else:
            stem = f"{stem}.lora_linear_layer"
        old |= {f"{stem}.down.weight": down.contiguous(), f"{stem}.up.weight": up.contiguous()}
    save_file(old, tmp_path / "old.safetensors")
    read = read_lora(tmp_path / "old.safetensors")
    assert read.layout == "diffusers-old"
    assert_same_changes(of_adapters(read.adapters), expected)


def test_alpha_in_a_diffusers_header_counts(tmp_path):
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.{}.lora_{}.weight"
    config = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {"to_k": 6}, "unet.use_rslora": False}
    tensors = {key.format(part, f): torch.ones(4, 4) for part in ("to_q", "to_k") for f in "AB"}
    for rslora, expected in ((False, [0.5, 1.5]), (True, [1.0, 3.0])):
        header = {"lora_adapter_metadata": json.dumps({**config, "unet.use_rslora": rslora})}
        save_file(tensors, tmp_path / "x.safetensors", header)
        adapters = read_lora(tmp_path / "x.safetensors").adapters
        assert sorted(a.scale for a in adapters.values()) == expected
    save_file(tensors, tmp_path / "x.safetensors")
    assert {a.scale for a in read_lora(tmp_path / "x.safetensors").adapters.values()} == {1.0}


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=3, lora_alpha=2, use_dora=True),
        LoHaConfig(r=3, alpha=2),
        LoHaConfig(r=3, alpha=2, use_effective_conv2d=True),
        LoKrConfig(r=2, alpha=3),
        LoKrConfig(r=2, alpha=3, decompose_both=True, use_effective_conv2d=True),
        LoKrConfig(r=64, alpha=3),
    ],
    ids=["dora", "loha", "loha tucker", "lokr", "lokr both tucker", "lokr whole"],
)
def test_what_peft_saves_reads_as_the_change_that_peft_makes(tmp_path, config):
    unet = tiny_sdxl().unet
    before = {name.removesuffix(".weight"): w.detach().clone() for name, w in unet.state_dict().items()}
    config.target_modules = ["attn1.to_q", "ff.net.2", "conv1", "conv_shortcut"]
    model = get_peft_model(unet, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path)
    adapters = read_lora(tmp_path).adapters
    merged = model.merge_and_unload().state_dict()
    assert len(adapters) > 20
    for (_, name), adapter in adapters.items():
        change = (merged[f"{name}.weight"] - before[name]).flatten(1)
        assert torch.allclose(delta(adapter, before[name]), change, atol=1e-5)


def test_what_diffusers_saves_reads_at_its_strength(tmp_path):
    pipeline, models = tiny_with_lora(4, 1, "attention", rank_pattern={"to_k|k_proj": 2}, use_rslora=True)
    layers, metadata = {}, {}
    for component, model in models.items():
        layers[f"{component}_lora_layers"] = get_peft_model_state_dict(model)
        metadata[f"{component}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    pipeline.save_lora_weights(tmp_path, **layers, **metadata)
    read = read_lora(tmp_path)
    assert read.layout == "diffusers"
    for component, model in models.items():
        for name, adapter in model_adapters(model, component).items():
            assert torch.allclose(delta(read.adapters[component, name]), delta(adapter), atol=1e-6)


def lycoris_file(path, **tensors):
    stem = "lora_unet_input_blocks_1_0_in_layers_2"
    save_file({f"{stem}.{name.replace('__', '.')}": t.contiguous() for name, t in tensors.items()}, path)
    return read_lora(path).adapters["unet", "down_blocks.0.resnets.0.conv1"]


def test_lycoris_convolutions_give_what_its_formulas_say(tmp_path):
    path, rank, out, inner = tmp_path / "x.safetensors", 3, 8, 6
    randn = torch.Generator().manual_seed(1)

    def r(*shape):
        return torch.randn(*shape, generator=randn)

    down, mid, up = r(rank, inner, 1, 1), r(rank, rank, 3, 3), r(out, rank, 1, 1)
    locon = lycoris_file(
        path, lora_down__weight=down, lora_mid__weight=mid, lora_up__weight=up, alpha=torch.tensor(1.5)
    )
    x = r(1, inner, 5, 5)
    steps = torch.conv2d(torch.conv2d(torch.conv2d(x, down), mid), up) * 0.5
    assert torch.allclose(torch.conv2d(x, delta(locon).view(out, inner, 3, 3)), steps, atol=1e-4)

    weight, lora_down, lora_up = r(out, inner, 3, 3), r(rank, inner, 3, 3), r(out, rank, 1, 1)
    changed = weight + torch.einsum("or,rihw->oihw", lora_up[..., 0, 0], lora_down)
    for magnitude, over in ((r(out, 1, 1, 1), (1, 2, 3)), (r(1, inner, 1, 1), (0, 2, 3))):
        dora = lycoris_file(path, lora_down__weight=lora_down, lora_up__weight=lora_up, dora_scale=magnitude)
        expected = magnitude * changed / changed.square().sum(over, keepdim=True).sqrt() - weight
        assert torch.allclose(delta(dora, weight), expected.flatten(1), atol=1e-5)
    with pytest.raises(ValueError, match="name the base model"):
        delta(dora)

    whole = lycoris_file(path, lokr_w1=r(2, 3), lokr_w2=r(4, 2, 3, 3), alpha=torch.tensor(7.0))
    expected = torch.einsum("ab,cdhw->acbdhw", whole.tensors["lokr_w1"], whole.tensors["lokr_w2"])
    assert torch.allclose(delta(whole), expected.reshape(8, 6 * 9))  # alpha says nothing of whole factors


def test_what_is_no_lora_for_sdxl_is_refused_by_name(tmp_path):
    path = tmp_path / "x.safetensors"
    one = torch.ones(1, 1)
    to_q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    wrong = {
        "is not a LoRA for SDXL: lora_te_text_model": {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": one},
        "is not a LoRA for SDXL: lora_unet_double": {"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": one},
        "is a base model": {"model.diffusion_model.input_blocks.0.0.weight": one},
        "what is string_to_param": {"string_to_param": one},
        r"lacks lora_up: the file is damaged": {f"{to_q}.lora_A.weight": one},
        r"lacks lokr_w2_b": {f"{to_q}.lokr_w1": one, f"{to_q}.lokr_w2_a": one},
        r"do not fit together: lora_down \(1, 1\), lora_up \(1, 2\)": {
            f"{to_q}.lora_A.weight": one,
            f"{to_q}.lora_B.weight": torch.ones(1, 2),
        },
        r"do not fit together: lokr_w1 \(1,\)": {f"{to_q}.lokr_w1": torch.ones(1), f"{to_q}.lokr_w2": torch.ones(1)},
        r"neither 768 nor 1280": {"base_model.model.encoder.layers.0.mlp.fc1.lora_A.weight": one},
        "holds no tensors": {},
    }
    for message, tensors in wrong.items():
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
        with pytest.raises(ValueError, match=message):
            read_lora(path)


def test_what_is_no_whole_safetensors_is_refused_by_name(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    whole = path.read_bytes()
    wrong = {
        "cut short or damaged": whole[:-1],
        "its header is not valid": whole[:8] + b"[" * (len(whole) - 8),
        "not a .safetensors file": b"hello",
        "is a pickle": b"PK\x03\x04" + bytes(100),
    }
    for message, content in wrong.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_lora(path)
    with pytest.raises(ValueError, match="not there"):
        read_lora(tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="folder without a LoRA"):
        read_lora(tmp_path)

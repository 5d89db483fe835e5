"""An adapter that begins as the base's main directions, or otherwise."""

import pytest
import torch
from safetensors.torch import load_file

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.errors import CheckpointError, ConfigError
from sdxl_lora.lora.export import write_lora_files
from sdxl_lora.lora.formats.adapter import delta
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.state import adapter_layers, load_lora_state, lora_state
from tests.helpers.adapters import COMPONENTS, largest_difference, model_adapters, outputs, tiny_with_lora
from tests.helpers.configs import flat_train_config


@pytest.mark.parametrize(
    "init, options",
    [("pissa", {}), ("pissa_niter_4", {"rank_pattern": {"to_k": 3}}), ("olora", {"use_rslora": True})],
)
def test_what_began_as_a_part_of_the_base_is_saved_as_a_change_of_the_whole_base(tmp_path, init, options):
    untrained = outputs(tiny_sdxl())
    begun = tiny_sdxl()
    base = {name: tensor.clone() for name, tensor in begun.unet.state_dict().items()}
    for component in COMPONENTS:
        add_lora(getattr(begun, component), 4, 2, targets="attention+ff", init=init, **options)
    assert largest_difference(outputs(begun), untrained) < 1e-5
    layer = adapter_layers(begun.unet, "unet")["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    original = base["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    lost = (original - layer.get_base_layer().weight).norm() / original.norm()
    assert lost > 0.1, "the base has really given something up"

    trained, models = tiny_with_lora(4, 2, "attention+ff", init=init, **options)
    expected = outputs(trained)
    assert largest_difference(expected, untrained) > 1e-2
    pipeline = tiny_sdxl()
    for path in write_lora_files(tmp_path, "cat", models, "fp32"):
        pipeline.load_lora_weights(tmp_path, weight_name=path.name)
        assert largest_difference(outputs(pipeline), expected) < 1e-4
        pipeline.unload_lora_weights()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_in_half_precision_the_change_is_right_to_the_rounding_of_the_base(init):
    unet = tiny_sdxl().unet.to(torch.bfloat16)
    base = {name: tensor.clone().float() for name, tensor in unet.state_dict().items()}
    add_lora(unet, 4, 2, init=init)
    for name, layer in adapter_layers(unet, "unet").items():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        down.data += 0.01 * torch.randn(down.shape, generator=torch.Generator().manual_seed(0))
        trained = layer.get_base_layer().weight.float() + layer.scaling["default"] * up @ down
        saved = base[f"{name}.weight"] + delta(model_adapters(unet, "unet")[name])
        assert (trained - saved).norm() < 0.003 * base[f"{name}.weight"].norm(), name


def test_another_machines_decomposition_gives_way_to_the_saved_one():
    trained = tiny_sdxl()
    add_lora(trained.unet, 4, 2, init="pissa")
    state = lora_state(trained.unet)
    signs = {name: tensor * (-1 if name.endswith((".lora_down", ".lora_up")) else 1) for name, tensor in state.items()}
    halves = {name: tensor / 2 if name.endswith("lora_up") else tensor for name, tensor in signs.items()}
    for saved, part in ((signs, 1.0), (halves, 0.5)):
        model = tiny_sdxl().unet
        add_lora(model, 4, 2, init="pissa")
        load_lora_state(model, saved)
        for name, layer in adapter_layers(model, "unet").items():
            there = adapter_layers(trained.unet, "unet")[name]
            given_up = there.scaling["default"] * there.lora_B["default"].weight @ there.lora_A["default"].weight
            expected = there.get_base_layer().weight + (1 - part) * given_up
            torch.testing.assert_close(layer.get_base_layer().weight, expected, atol=1e-5, rtol=1e-4)


def test_a_run_of_pissa_resumes_exactly_and_its_file_is_the_change(train, tmp_path):
    settings = {"init_lora_weights": "pissa_niter_2", "learning_rate": 1e-2}
    whole = train(**settings, max_train_steps=2, output_dir=str(tmp_path / "whole"))
    train(**settings, max_train_steps=1)
    parts = train(**settings, max_train_steps=2)
    one, two = (load_file(run / "checkpoint-2" / "lora_state.safetensors") for run in (whole, parts))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    pipeline = tiny_sdxl()
    untrained = outputs(pipeline)[0]
    pipeline.load_lora_weights(parts, weight_name="run.safetensors")
    here = tiny_sdxl()
    here.unet = train.trained.model.unet
    assert largest_difference(outputs(pipeline)[:1], outputs(here)[:1]) < 1e-4
    assert largest_difference(outputs(pipeline)[:1], [untrained]) > 1e-2
    with pytest.raises(CheckpointError, match="init_lora_weights"):
        train(max_train_steps=3)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_other_starts_are_no_change(init):
    begun = tiny_sdxl()
    first = add_lora(begun.unet, 4, 2, init=init)[0]
    assert largest_difference(outputs(begun), outputs(tiny_sdxl())) < 1e-4
    assert not torch.equal(first, add_lora(tiny_sdxl().unet, 4, 2)[0])


def test_an_unknown_start_is_refused():
    for init in ("pisa", "pissa_niter_0", "eva", "True"):
        with pytest.raises(ConfigError, match="kaiming, gaussian, orthogonal, pissa"):
            flat_train_config(output_dir="x", train_data_dir="y", init_lora_weights=init)
    with pytest.raises(ConfigError, match="does not go with use_dora"):
        flat_train_config(output_dir="x", train_data_dir="y", init_lora_weights="olora", use_dora=True)
    with pytest.raises(ConfigError, match=r"lora_dropout \(use rank_dropout\), use_dora belong to adapter lora"):
        flat_train_config(output_dir="x", train_data_dir="y", adapter="loha", lora_dropout=0.1, use_dora=True)

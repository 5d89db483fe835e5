"""Names of the UNet's blocks, and ranks and learning rates that differ between them."""

import pytest
import torch
from safetensors.torch import load_file

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.config.cli import load_config
from sdxl_lora.config.train import TrainConfig
from sdxl_lora.config.unet_blocks import block_of, check_blocks, parse_blocks, value_of
from sdxl_lora.errors import CheckpointError, ConfigError
from sdxl_lora.lora.formats.adapter import delta
from sdxl_lora.lora.formats.reader import read_lora
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.state import adapter_layers
from sdxl_lora.lora.targets import exactly, layers_with_ranks, target_modules
from tests.helpers.adapters import model_adapters
from tests.helpers.configs import flat_train_config

TO_Q = "transformer_blocks.0.attn1.to_q"


def test_every_module_lies_in_the_block_it_is_named_after():
    for module in target_modules(tiny_sdxl().unet, "all-linear+conv"):
        part, *numbers = block_of(module).split(".")
        expected = [word for word in module.split(".")[:4] if word.isdigit()]
        if "sample" in module:  # up- and downsamplers are the level's own
            expected = expected[:1]
        assert module.startswith(part) and numbers == expected, module
    assert block_of("conv_in") == block_of("time_embedding.linear_1") == ""


def test_the_longest_name_counts():
    values = {"up": 1, "up.1": 2, "up.1.2": 3, "mid": 4}
    modules = {
        f"up_blocks.0.attentions.0.{TO_Q}": 1,
        f"up_blocks.1.attentions.0.{TO_Q}": 2,
        f"up_blocks.1.attentions.2.{TO_Q}": 3,
        "up_blocks.1.resnets.2.conv1": 3,
        "up_blocks.1.upsamplers.0.conv": 2,
        f"mid_block.attentions.0.{TO_Q}": 4,
        f"down_blocks.1.attentions.0.{TO_Q}": 9,
    }
    assert {module: value_of(module, values, 9) for module in modules} == modules


@pytest.mark.parametrize(
    "text, words",
    [
        ("left=1", "a block is down, mid, up"),
        ("up.3=1", "a block is"),
        ("mid.2=1", "a block is"),
        ("up", "must be block=number"),
        ("up=fast", "must be block=number"),
        ("up=-1", "0 or more"),
        ("up=nan", "0 or more"),
        ("up=inf", "0 or more"),
    ],
)
def test_a_block_that_is_none_and_a_number_that_is_none_are_refused_by_the_config(text, words):
    with pytest.raises(ConfigError, match=f"block_lr_factors: .*{words}"):
        flat_train_config(output_dir="x", train_data_dir="y", block_lr_factors=(text,))
    with pytest.raises(ValueError, match="twice"):
        parse_blocks(["up=1", "up=2"], float)


def test_a_block_without_modules_is_refused_with_those_that_have_some():
    names = target_modules(tiny_sdxl().unet, "attention")
    with pytest.raises(ValueError, match=r"down\.0, up\.2: no module.*down, down\.1, down\.1\.0, .*mid, mid\.0, up"):
        check_blocks({"down.0": 1, "up.1": 1, "up.2": 1}, names)
    with pytest.raises(ValueError, match="leaves nothing of the UNet"):
        layers_with_ranks(names, 4, 4, {"down": 0, "mid": 0, "up": 0})


@pytest.mark.parametrize("use_rslora", [False, True])
def test_each_module_gets_its_blocks_rank_at_the_strength_of_all(use_rslora):
    unet = tiny_sdxl().unet
    names = target_modules(unet, "all-linear")
    layers = layers_with_ranks(names, 4, 2, {"down": 6, "mid": 0, "up.1.2": 3}, use_rslora)
    add_lora(unet, **exactly(layers), use_rslora=use_rslora)
    adapters = model_adapters(unet, "unet")
    assert set(adapters) == {name for name in names if not name.startswith("mid_block")}
    for name, adapter in adapters.items():
        rank = 6 if name.startswith("down") else 3 if block_of(name) == "up.1.2" else 4
        assert adapter.rank == rank, name
        assert adapter.scale == pytest.approx(2 / rank**0.5 if use_rslora else 0.5), name


def test_a_yaml_file_may_name_blocks_in_a_mapping(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "output_dir: x\ntrain_data_dir: y\nblock_ranks: {down: 4, up.0.1: 8}\nblock_lr_factors:\n  mid: 2\n"
    )
    config = load_config(TrainConfig, ["--config", str(file)])
    assert config.adapter.block_ranks == ("down=4", "up.0.1=8") and config.optimizer.block_lr_factors == ("mid=2",)
    for text in ("rank: {a: 1}", "block_ranks: {a: [1]}", "block_ranks: [[1]]"):
        file.write_text(text)
        with pytest.raises(SystemExit):
            load_config(TrainConfig, ["--config", str(file)])


def test_blocks_learn_at_their_own_rate_and_rank_and_the_file_says_so(train):
    """Adam's first step moves every weight that has a gradient by the learning rate."""
    settings = {"block_ranks": ("down=2", "mid=0"), "lora_alpha": 2.0, "lora_plus_ratio": 2.0, "adam_epsilon": 1e-12}
    factors = ("down=0", "up=2", "up.0=0.5")
    run = train(**settings, block_lr_factors=factors, max_train_steps=1, adam_weight_decay=0.0)
    moved = load_file(run / "checkpoint-1" / "lora_state.safetensors")
    expected = {"down": 0.0, "up.0": 1e-3, "up.1": 4e-3}  # lora_B begins as 0; LoRA+ doubles
    for name, tensor in moved.items():
        if ".lora_B." in name:
            block = block_of(name.removeprefix("unet."))
            rate = next(rate for start, rate in expected.items() if block.startswith(start))
            torch.testing.assert_close(tensor.abs().median().item(), rate, rtol=0.02, atol=0)
            assert tensor.shape[1] == (2 if block.startswith("down") else 4), name
    layers = {("unet", name): layer for name, layer in adapter_layers(train.trained.model.unet, "unet").items()}
    for file in ("run.safetensors", "pytorch_lora_weights.safetensors"):
        adapters = read_lora(run / file).adapters
        assert adapters.keys() == layers.keys() and not any("mid_block" in name for _, name in adapters)
        for key, adapter in adapters.items():
            torch.testing.assert_close(delta(adapter), layers[key].get_delta_weight("default"), atol=1e-7, rtol=1e-4)
    with pytest.raises(CheckpointError, match=r"block_lr_factors +\['down=0', 'up=2', 'up.0=0.5'\] +\[\]"):
        train(**settings, max_train_steps=2)


def test_an_empty_block_ends_the_run_before_it_trains(train, tmp_path):
    for name in ("block_ranks", "block_lr_factors"):
        with pytest.raises(ConfigError, match=r"up\.2: no module is trained there"):
            train(**{name: ("up.2=1",)})
    assert not list((tmp_path / "run").glob("checkpoint-*"))

"""Ranks and modules that drop out, by hand and through a resumed run."""

import pytest
import torch
from safetensors.torch import load_file

from sdxl_lora.errors import ConfigError
from sdxl_lora.lora.state import adapter_layers
from sdxl_lora.run.events import read_events
from sdxl_lora.training.checks import check_device
from tests.helpers.adapters import tiny_with_lora
from tests.helpers.configs import flat_train_config
from tests.helpers.marks import slow


@pytest.mark.parametrize("targets", [*slow("attention"), "all-linear+conv"])
def test_dropped_ranks_and_modules_by_hand(targets):
    """With half of the ranks dropped a layer gives twice the sum over the others, for each picture its own."""
    unet = tiny_with_lora(4, 4, targets, ("unet",), rank_dropout=0.5)[1]["unet"].train()
    for layer in adapter_layers(unet, "unet").values():
        down, up = layer.lora_A["default"], layer.lora_B["default"]
        shape = (64, down.weight.shape[1], *([5, 5] if down.weight.dim() == 4 else []))
        inputs = torch.randn(shape)
        whole, kept = down.eval()(inputs), down.train()(inputs)
        ratio = (kept / whole).flatten(2) if down.weight.dim() == 4 else (kept / whole)[..., None]
        assert torch.isclose(ratio, ratio[..., :1]).all(), "a rank is dropped as a whole"
        ratio = ratio[..., 0].round(decimals=3)
        assert set(ratio.unique().tolist()) == {0.0, 2.0} and 0.3 < (ratio == 0).float().mean() < 0.7
        assert len(ratio.unique(dim=0)) > 5 and up(kept) is not None
    unet = tiny_with_lora(4, 4, targets, ("unet",), module_dropout=0.3)[1]["unet"].train()
    torch.manual_seed(0)
    dropped = []
    for layer in adapter_layers(unet, "unet").values():
        up = layer.lora_B["default"]
        inputs = torch.randn(2, up.weight.shape[1], *([5, 5] if up.weight.dim() == 4 else []))
        whole = up.eval()(inputs)
        up.train()
        for _ in range(20):
            result = up(inputs)
            assert torch.equal(result, whole) or not result.any()
            dropped.append(not result.any())
    assert abs(sum(dropped) / len(dropped) - 0.3) < 4 * (0.21 / len(dropped)) ** 0.5


@pytest.mark.parametrize("settings", [*slow({"adapter": "lokr"}), {"gradient_checkpointing": True}], ids=str)
def test_a_run_that_drops_resumes_exactly(train, tmp_path, settings):
    settings |= {"rank_dropout": 0.2, "module_dropout": 0.2, "train_batch_size": 2}
    whole = train(**settings, max_train_steps=2, output_dir=str(tmp_path / "whole"))
    train(**settings, max_train_steps=1)
    parts = train(**settings, max_train_steps=2)
    one, two = (load_file(run / "checkpoint-2" / "lora_state.safetensors") for run in (whole, parts))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    if "adapter" in settings:
        return
    losses = [[step["loss"] for step in read_events(whole / "events.jsonl", "step")]]
    for dropout in ({"rank_dropout": 0.0}, {"module_dropout": 0.0}):
        plain = train(**{**settings, **dropout, "max_train_steps": 2}, output_dir=str(tmp_path / next(iter(dropout))))
        losses.append([step["loss"] for step in read_events(plain / "events.jsonl", "step")])
    assert len({tuple(of_run) for of_run in losses}) == 3, "each has its effect"


def test_layers_that_drop_out_in_a_branch_are_not_for_several_processes():
    config = flat_train_config(output_dir="x", train_data_dir="y", adapter="loha", module_dropout=0.1)
    check_device(config, 1, "cpu")
    with pytest.raises(ConfigError, match="module_dropout of a loha is for one process"):
        check_device(config, 2, "cpu")

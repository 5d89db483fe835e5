"""Layers that keep less give the very bits of torch's own, forward and backward, and keep less."""

import copy

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.lora.inject import add_lora
from sdxl_lora.performance.activation_memory import step_bytes
from sdxl_lora.performance.frozen_layers import FrozenConv2d, LeanGEGLU, use_memory_saving_layers


def kept_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """Of what a forward keeps beside the layer's parameters and its input."""
    known = {tensor.untyped_storage()._cdata for tensor in (*layer.parameters(), x)}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage()._cdata not in known:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x.sin())  # what a layer gets is no leaf: somebody has to keep it
    return sum(storage.nbytes() for storage in kept.values()) - x.nbytes  # sin keeps x, its output is the layer's


def results(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
    return [out, x.grad]


CONVOLUTIONS = {"3x3": (3, 1, 1), "strided": (3, 2, 1), "1x1": (1, 1, 0), "grouped": (3, 1, 1, 1, 2)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_frozen_convolution_gives_the_same_bits(settings, dtype):
    plain = nn.Sequential(nn.Conv2d(16, 32, *settings, dtype=dtype)).requires_grad_(False)
    lean, x = copy.deepcopy(plain), torch.randn(2, 16, 24, 17, dtype=dtype)
    use_memory_saving_layers(lean)
    assert type(lean[0]) is FrozenConv2d and lean.state_dict().keys() == plain.state_dict().keys()
    for ours, theirs in zip(results(lean, x), results(plain, x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_geglu_gives_the_same_bits(dtype):
    plain = nn.Sequential(GEGLU(24, 40)).to(dtype).requires_grad_(False)
    lean, x = copy.deepcopy(plain), torch.randn(2, 7, 24, dtype=dtype)
    use_memory_saving_layers(lean)
    assert type(lean[0]) is LeanGEGLU
    for ours, theirs in zip(results(lean, x), results(plain, x), strict=True):
        assert torch.equal(ours, theirs)


def test_they_keep_nothing_but_what_the_backward_pass_reads():
    x = torch.randn(1, 16, 24, 24, requires_grad=True)
    plain = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)).requires_grad_(False)
    lean = copy.deepcopy(plain)
    use_memory_saving_layers(lean)
    assert kept_bytes(plain, x) - kept_bytes(lean, x) == x.nbytes
    x = torch.randn(3, 8, requires_grad=True)
    plain = nn.Sequential(GEGLU(8, 40)).requires_grad_(False)
    lean = copy.deepcopy(plain)
    use_memory_saving_layers(lean)
    assert kept_bytes(plain, x) - kept_bytes(lean, x) == 3 * 40 * 4  # the GELU of the gate


def test_a_convolution_that_trains_or_casts_is_torch_s_own():
    trains = nn.Sequential(nn.Conv2d(4, 4, 1))
    use_memory_saving_layers(trains)
    assert type(trains[0]) is nn.Conv2d
    frozen = nn.Sequential(nn.Conv2d(4, 4, 1, dtype=torch.bfloat16)).requires_grad_(False)
    use_memory_saving_layers(frozen)
    with torch.autocast("cpu", torch.bfloat16):
        out = frozen(torch.randn(1, 4, 2, 2, requires_grad=True))
    assert out.dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="should be the same"):
        frozen(torch.randn(1, 4, 2, 2, requires_grad=True))


def test_a_step_of_the_unet_holds_less():
    unet = tiny_sdxl().unet.to("meta").requires_grad_(False)
    add_lora(unet, 4, 4)
    unet.train()
    before = step_bytes(unet, torch.float32, 1, (512, 512))
    use_memory_saving_layers(unet)
    assert step_bytes(unet, torch.float32, 1, (512, 512)) < 0.95 * before


def test_the_timestep_is_activated_once_with_the_same_bits():
    """But where a block does something else with it, or a gradient goes through it."""
    torch.manual_seed(0)
    plain = tiny_sdxl().unet.requires_grad_(False)
    lean, other = copy.deepcopy(plain), copy.deepcopy(plain)
    use_memory_saving_layers(lean)
    other.mid_block.resnets[0].nonlinearity = nn.GELU()
    use_memory_saving_layers(other)
    assert isinstance(lean.time_embed_act, nn.SiLU) and other.time_embed_act is None
    use_memory_saving_layers(trains := copy.deepcopy(plain).requires_grad_(True))
    use_memory_saving_layers(of_text := copy.deepcopy(plain), trains_text=True)
    assert trains.time_embed_act is None and of_text.time_embed_act is None
    assert all(layer.skip_time_act for layer in lean.modules() if isinstance(layer, ResnetBlock2D))
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 56)
    conditions = {"text_embeds": torch.randn(2, 32), "time_ids": torch.ones(2, 6)}
    predictions = [
        unet(x, torch.tensor([500, 20]), text, added_cond_kwargs=conditions).sample for unet in (plain, lean)
    ]
    assert torch.equal(*predictions) and not predictions[0].isnan().any()

"""Adapters that are cast at once compute the bits of those that each layer casts, and leave nothing behind."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.state import ADAPTER, adapter_parameters
from sdxl_lora.models.loading import Base, load_unet
from sdxl_lora.performance.cast_adapters import cast_at_once, cast_into_one
from sdxl_lora.performance.fused_lora import FusedLinear, fuse_lora


class Blocks(nn.Module):
    """Two feed-forward layers of the tiny UNet, recomputed in the backward pass or not."""

    def __init__(self, base, dtype, recomputes=False):
        super().__init__()
        unet = load_unet(Base(str(base)), dtype)
        add_lora(unet, 4, 6, targets=r".*mid_block.*ff\.net\.(0\.proj|2)")
        found = [module for name, module in unet.named_modules() if name.endswith(".ff") and "mid_block" in name]
        self.layers, self.recomputes = nn.ModuleList(found), recomputes
        generator = torch.Generator().manual_seed(0)
        for parameter in adapter_parameters(self).values():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 20

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.recomputes else layer(x)
        return x


def twice(blocks, autocast=None):
    """The output, and what two forwards and backwards add to the gradients."""
    for number in (1, 2):
        x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(number)).to(blocks.layers[0].net[2].weight)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            out = blocks(x.requires_grad_())
        out.float().square().sum().backward()
    return [out, x.grad, *(parameter.grad for parameter in adapter_parameters(blocks).values())]


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(("base", "autocast"), [(torch.bfloat16, None), (torch.float32, torch.float16)], ids=str)
def test_the_bits_are_those_of_layers_that_cast_by_themselves(tiny_base, base, autocast, recomputes):
    apart = Blocks(tiny_base, base, recomputes)
    at_once = copy.deepcopy(apart)
    assert not fuse_lora(apart, compiles=True) and not fuse_lora(at_once)
    of_each, of_all = twice(apart, autocast), twice(at_once, autocast)
    assert [result.dtype for result in of_all] == [result.dtype for result in of_each]
    assert all(torch.equal(one, other) for one, other in zip(of_each, of_all, strict=True))
    assert {parameter.dtype for parameter in adapter_parameters(at_once).values()} == {torch.float32}


def test_no_cast_outlives_its_use(tiny_base):
    """The backward pass forgets it, and so does a forward that has none; in float32 there is none at all."""
    blocks = Blocks(tiny_base, torch.bfloat16)
    fuse_lora(blocks)
    layers = [layer for layer in blocks.modules() if isinstance(layer, FusedLinear)]
    x = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    out = blocks(x)
    assert layers and all(layer.cast[0].dtype == torch.bfloat16 for layer in layers)
    out.sum().backward()
    assert all(layer.cast is None for layer in layers)
    with torch.no_grad():
        assert torch.equal(blocks(x), out)
        layers[-1].lora_B[ADAPTER].weight.add_(1)
        assert not torch.equal(blocks(x), out), "what changed is cast anew"
    assert all(layer.cast is None for layer in layers)
    in_full = Blocks(tiny_base, torch.float32)
    fuse_lora(in_full)
    in_full(x.float())
    assert all(layer.cast is None for layer in in_full.modules() if isinstance(layer, FusedLinear))


def test_tensors_are_cast_into_one_piece_of_memory_and_divided_anew():
    tensors = [torch.randn(2, 3), torch.randn(1, 3), torch.randn(4)]
    above, other = cast_into_one(tensors, torch.float64, [(3, 3), (4,)])
    assert torch.equal(above, torch.cat(tensors[:2]).double()) and torch.equal(other, tensors[2].double())
    assert above.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_a_gradient_that_is_missing_is_zero():
    """A layer that a forward passes over trains on: autograd hands on what the others have."""

    class Half(nn.Module):
        cast = None

        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Parameter(torch.ones(1, 2)), nn.Parameter(torch.ones(2, 1))

        def factors(self):
            return [self.down], [self.up]

        def forget(self):
            self.cast = None

        def forward(self, x):
            return x @ self.cast[0].t()

    half = Half()
    cast_at_once(half, [half])
    half(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    assert torch.equal(half.down.grad, torch.ones(1, 2)) and torch.equal(half.up.grad, torch.zeros(2, 1))

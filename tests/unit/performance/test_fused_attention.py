"""Projections of one input as one function give what they give one by one; other attention stays as it is."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.state import ADAPTER, adapter_parameters
from sdxl_lora.lora.switch import adapters_off
from sdxl_lora.models.loading import Base, load_unet
from sdxl_lora.performance.fused_attention import (
    FusedAttention,
    SharedInput,
    fuse_attention,
    join_weights,
    joined_weight,
)
from sdxl_lora.performance.fused_lora import FusedLinear, fuse_lora
from sdxl_lora.performance.quantization import quantize_linears


def unet_of(base, dtype, kind=None, rank=4):
    """The tiny UNet with LoRA that does something, on all that a preset can ask for."""
    unet = load_unet(Base(str(base)), torch.float32)
    if kind:
        quantize_linears(unet, kind)
    add_lora(unet, rank, 6, targets="all-linear")
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter_parameters(unet).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 20
    adapters = {name: parameter.data for name, parameter in adapter_parameters(unet).items()}
    unet.to(dtype)
    for name, parameter in adapter_parameters(unet).items():
        parameter.data = adapters[name]
    return unet.train()


def gradients(unet, dtype):
    """Of the adapters and the input, and the output, as float64."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    x = normal(2, 4, 8, 8).requires_grad_()
    conditions = {"text_embeds": normal(2, 32), "time_ids": torch.ones(2, 6)}
    out = unet(x, torch.tensor([500, 20]), normal(2, 77, 56), added_cond_kwargs=conditions).sample
    out.float().square().sum().backward()
    of_adapters = [parameter.grad for parameter in adapter_parameters(unet).values()]
    return [result.detach().double() for result in (out, x.grad, *of_adapters)]


def error(results, exact):
    ours, true = (torch.cat([result.flatten() for result in each]) for each in (results, exact))
    return ((ours - true).norm() / true.norm()).item()


@pytest.mark.parametrize("recomputes", [False, True])
def test_half_precision_is_as_near_to_float32_as_layer_by_layer(tiny_base, recomputes):
    exact = unet_of(tiny_base, torch.bfloat16).float()  # the rounded weights
    apart, shared = unet_of(tiny_base, torch.bfloat16), unet_of(tiny_base, torch.bfloat16)
    assert not fuse_lora(apart, compiles=True) and not fuse_lora(shared)
    kinds = [type(module) for module in shared.modules() if isinstance(module, Attention)]
    assert kinds and set(kinds) == {FusedAttention}
    if recomputes:
        shared.enable_gradient_checkpointing()
    true = gradients(exact, torch.float32)
    errors = [error(gradients(unet, torch.bfloat16), true) for unet in (apart, shared)]
    assert 1e-4 < errors[1] < 1.2 * errors[0] < 0.1


class Layers(nn.Module):
    """Layers of one input, as an attention's."""

    def __init__(self, count, bias, kind):
        super().__init__()
        torch.manual_seed(0)
        self.attentions = nn.ModuleList(nn.Linear(24, 40, bias=bias) for _ in range(count))
        if kind:
            quantize_linears(nn.ModuleDict({"attentions": self.attentions}), kind)
        names = [f"attentions.{number}" for number in range(count)]
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, target_modules=names), self, adapter_name=ADAPTER)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("lora_" in name)
            parameter.data = torch.randn(parameter.shape) / 4
        assert not fuse_lora(self, compiles=True)


@pytest.mark.parametrize(
    ("count", "bias", "kind", "joins"),
    [(3, False, None, False), (3, False, None, True), (2, True, None, False), (3, True, "int8", False)],
)
@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24)])
def test_the_algebra_is_that_of_the_layers(count, bias, kind, joins, shape):
    """In float32, where both ways round alike little."""
    layers = Layers(count, bias, kind)
    shared = SharedInput(list(layers.attentions))
    if joins:
        join_weights([layer.base_layer for layer in layers.attentions])
    assert (joined_weight([layer.base_layer for layer in layers.attentions]) is not None) == joins
    x = torch.randn(shape, requires_grad=True)
    weights = [torch.randn(*shape[:-1], 40) for _ in range(count)]
    apart = [layer(x) for layer in layers.attentions]
    sum((out * weight).sum() for out, weight in zip(apart, weights, strict=True)).backward()
    parameters = [parameter for parameter in layers.parameters() if parameter.requires_grad]
    expected = [x.grad, *(parameter.grad for parameter in parameters)]
    x.grad = None
    for parameter in parameters:
        parameter.grad = None
    downs, ups = shared.factors()
    shared.cast = torch.cat(downs), torch.cat(ups)
    assert shared.computes()
    together = shared(x)
    sum((out * weight).sum() for out, weight in zip(together, weights, strict=True)).backward()
    for ours, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip([x.grad, *(p.grad for p in parameters)], expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    layers.attentions[0].scaling[ADAPTER] = 9.0
    assert not shared.computes()


def test_float32_keeps_its_bits(tiny_base):
    """Nothing is cast there, so each layer computes by itself."""
    apart, shared = unet_of(tiny_base, torch.float32), unet_of(tiny_base, torch.float32)
    fuse_lora(apart, compiles=True)
    fuse_lora(shared)
    for one, other in zip(gradients(apart, torch.float32), gradients(shared, torch.float32), strict=True):
        assert torch.equal(one, other)


def test_what_has_more_than_projections_or_unlike_layers_stays_diffusers_own(tiny_base):
    unet = unet_of(tiny_base, torch.bfloat16)
    fuse_lora(unet, compiles=True)
    attentions = [module for module in unet.modules() if type(module) is Attention]
    normed, scaled, mixed, other = attentions[:4]
    normed.norm_q = nn.Identity()
    scaled.to_k.scaling[ADAPTER] = 7.0
    mixed.to_v = copy.deepcopy(mixed.to_v.base_layer)
    assert len(fuse_attention(unet, FusedLinear)) == len(attentions) - 3
    assert {type(module) for module in (normed, scaled, mixed)} == {Attention} and type(other) is FusedAttention
    with torch.no_grad():
        x = torch.randn(1, 6, other.query_dim, dtype=torch.bfloat16)
        context = x if not other.is_cross_attention else torch.randn(1, 77, 56, dtype=torch.bfloat16)
        mask = torch.zeros(1, 1, context.shape[1], dtype=torch.bfloat16)
        given = {"encoder_hidden_states": context} if other.is_cross_attention else {}
        torch.testing.assert_close(other(x, **given), other(x, attention_mask=mask, **given), atol=1e-2, rtol=1e-2)


def test_joined_weights_are_the_layers_own_until_they_are_moved_apart():
    layers = [nn.Linear(3, 2, bias=False) for _ in range(3)]
    before = torch.cat([layer.weight.detach() for layer in layers])
    join_weights(layers)
    joined = joined_weight(layers)
    assert torch.equal(joined, before) and torch.equal(layers[1].weight, before[2:4])
    with torch.no_grad():
        layers[2].weight.add_(1)
    assert torch.equal(joined[4:], layers[2].weight), "it is the same memory"
    assert joined_weight(layers[::-1]) is None and joined_weight([*layers, nn.Linear(3, 2, bias=False)]) is None
    layers[1].double().float()
    assert joined_weight(layers) is None and torch.equal(layers[1].weight, before[2:4])
    biased = [nn.Linear(3, 2), nn.Linear(3, 2)]
    join_weights(biased)
    assert joined_weight(biased) is None


def test_the_text_is_projected_once_ahead_of_all_attention(tiny_base):
    """And let go of after the backward pass, or after a forward that has none; not at all without the adapters."""
    unet = unet_of(tiny_base, torch.bfloat16)
    fuse_lora(unet)
    attentions = [
        module for module in unet.modules() if isinstance(module, FusedAttention) and module.is_cross_attention
    ]
    texts = {id(shared): shared for shared, _ in (attention.shared for attention in attentions)}
    assert sum(len(text.layers) for text in texts.values()) == 2 * len(attentions) and len(texts) < len(attentions)
    inputs = torch.randn(1, 4, 8, 8).bfloat16(), torch.tensor([500]), torch.randn(1, 77, 56).bfloat16()
    conditions = {"text_embeds": torch.randn(1, 32).bfloat16(), "time_ids": torch.ones(1, 6)}

    def predict():
        return unet(*inputs, added_cond_kwargs=conditions).sample

    out = predict()
    ahead = [text.ahead for text in texts.values()]
    assert all(len(outputs) == len(text.layers) for outputs, text in zip(ahead, texts.values(), strict=True))
    with torch.no_grad(), adapters_off([unet]):
        assert not torch.equal(predict(), out)
    with torch.no_grad():
        assert torch.equal(predict(), out)
    assert [text.ahead for text in texts.values()] == ahead, "a forward in between leaves it to the backward"
    out.float().sum().backward()
    assert all(text.ahead is None and text.cast is None for text in texts.values())
    with torch.no_grad():
        predict()
    assert all(text.ahead is None for text in texts.values())

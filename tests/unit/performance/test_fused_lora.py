"""LoRA as one function gives PEFT's forward and backward, and what it does not cover stays PEFT's."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from sdxl_lora.lora.inject import add_lora
from sdxl_lora.lora.state import ADAPTER, adapter_parameters
from sdxl_lora.models.loading import Base, load_unet
from sdxl_lora.performance.compute import without_autocast
from sdxl_lora.performance.fused_lora import FusedLinear, fuse_lora


class Layer(nn.Module):
    """A linear layer with LoRA whose second matrix is not zero."""

    def __init__(self, dtype=torch.float32, bias=True, **lora):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(48, 32, bias=bias, dtype=dtype)
        options = {"r": 4, "lora_alpha": 6, "target_modules": ["linear"], **lora}
        inject_adapter_in_model(LoraConfig(**options), self, adapter_name=ADAPTER)
        for name, parameter in self.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape) / 4
            else:
                parameter.requires_grad_(False)

    def forward(self, x):
        return self.linear(x)


def results(layer, x, autocast=False):
    """Output and the gradients of the input and of both matrices."""
    x = x.clone().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(x)
    (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out, x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 48), (2, 7, 48), (2, 3, 5, 48)])
def test_float32_equals_peft(bias, shape):
    plain, x = Layer(bias=bias), torch.randn(shape)
    fused = copy.deepcopy(plain)
    assert fuse_lora(fused) == {} and isinstance(fused.linear, FusedLinear)
    for ours, theirs in zip(results(fused, x), results(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bf16_base_with_float32_adapters_is_as_near_to_float32_as_peft(autocast):
    exact, plain = Layer(), Layer(torch.bfloat16)
    exact.linear.base_layer.load_state_dict(plain.linear.base_layer.state_dict())
    fused = copy.deepcopy(plain)
    assert not fuse_lora(fused)
    x = torch.randn(4, 64, 48).bfloat16()
    true = results(exact, x.float())
    ours, theirs = results(fused, x, autocast), results(plain, x, autocast)
    assert [r.dtype for r in ours] == [r.dtype for r in theirs] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for one, other, exactly in zip(ours, theirs, true, strict=True):
        error, other_error = ((r.float() - exactly).abs().mean() / exactly.abs().mean() for r in (one, other))
        assert error < 5e-3 and (error < 1.5 * other_error or autocast is False)


def test_no_gradient_is_computed_for_an_input_that_needs_none():
    layer = Layer()
    fuse_lora(layer)
    x = torch.randn(3, 48)
    layer(x).sum().backward()
    assert x.grad is None and all(p.grad is not None for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("lora, reason", [
    ({"lora_dropout": 0.5}, "dropout"), ({"use_dora": True}, "DoraLinearVariant"), ({"lora_bias": True}, "a bias"),
])  # fmt: skip
def test_what_is_not_covered_stays_as_peft_made_it(lora, reason):
    layer = Layer(**lora)
    kind = type(layer.linear)
    left = fuse_lora(layer)
    assert list(left) == ["linear"] and reason in left["linear"] and type(layer.linear) is kind


def test_a_disabled_or_merged_adapter_is_peft_s_too():
    layer, x = Layer(), torch.randn(3, 48)
    base = layer.linear.base_layer(x)
    fuse_lora(layer)
    with_lora = layer(x)
    assert (with_lora - base).abs().max() > 0.1
    layer.linear.enable_adapters(False)
    torch.testing.assert_close(layer(x), base)
    layer.linear.enable_adapters(True)
    layer.linear.merge()
    torch.testing.assert_close(layer(x), with_lora, atol=1e-4, rtol=1e-4)


def unet_losses(base, prepare, steps=6):
    """Losses of a few steps of training at a high rate on one batch in bfloat16."""
    unet = load_unet(Base(str(base)), torch.bfloat16)
    parameters = add_lora(unet, 4, 4)
    prepare(unet)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    noisy, target = torch.randn(2, 2, 4, 8, 8, generator=generator)
    conditions = {"text_embeds": torch.randn(2, 32, generator=generator), "time_ids": torch.full((2, 6), 1023.0)}
    states, losses = torch.randn(2, 77, 56, generator=generator), []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            out = unet(noisy, torch.tensor([10, 900]), states, added_cond_kwargs=conditions).sample
        loss = (out.float() - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_bf16_without_autocast_learns_as_with_it_and_peft(tiny_base):
    def ours(unet):
        assert not fuse_lora(unet)
        without_autocast(unet, torch.bfloat16)

    plain, fused = unet_losses(tiny_base, lambda unet: None), unet_losses(tiny_base, ours)
    assert plain[-1] < 0.97 * plain[0], "it must learn for this to mean anything"
    assert fused == pytest.approx(plain, rel=5e-3)


def test_the_whole_unet_has_peft_s_gradients(tiny_base):
    gradients = []
    for fuse in (False, True):
        unet = load_unet(Base(str(tiny_base)), torch.float32)
        add_lora(unet, 4, 4, targets="all-linear")
        named = adapter_parameters(unet)
        generator = torch.Generator().manual_seed(0)
        for parameter in named.values():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 20
        assert not (fuse and fuse_lora(unet))
        torch.manual_seed(1)
        conditions = {"text_embeds": torch.randn(1, 32), "time_ids": torch.ones(1, 6)}
        out = unet(torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 56), added_cond_kwargs=conditions)
        out.sample.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in named.items()})
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).abs().max() < 1e-5 * largest, name

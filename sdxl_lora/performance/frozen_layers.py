"""Layers that compute the same values as torch's and diffusers' but keep less for the backward pass.

The input gradient of a frozen convolution needs only its weight, but torch also keeps its input. That of GEGLU needs
only the projection, but torch also keeps the gate's GELU, which is recomputed here. Diffusers' blocks divide their
output by a number that is 1 in SDXL; the division is left out. Each of them takes the SiLU of the same timestep
embedding; here it is taken once. Independent of LoRA and config.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from torch import Tensor, nn
from torch.nn import functional


def use_memory_saving_layers(model: nn.Module, compiles: bool = False, trains_text: bool = False) -> None:
    """Let the model's frozen convolutions and GEGLUs keep less, and leave out operations that are idle or repeated.

    Names, parameters and results stay the same.

    Args:
        compiles: change only convolutions; the compiler chooses by itself what to recompute.
        trains_text: gradients reach the text through the timestep embedding too, so its SiLU is not shared.
    """
    for layer in model.modules():
        if type(layer) is nn.Conv2d and not layer.weight.requires_grad and pads_with_zeros(layer):
            layer.__class__ = FrozenConv2d
        elif type(layer) is GEGLU and not compiles:
            layer.__class__ = LeanGEGLU
        elif type(layer) in DIVISORS and not compiles and getattr(layer, DIVISORS[type(layer)]) == 1:
            setattr(layer, DIVISORS[type(layer)], NoDivisor())
    if isinstance(model, UNet2DConditionModel) and not (compiles or trains_text):
        activate_time_once(model)


def activate_time_once(unet: Any) -> None:
    """Apply the SiLU to the timestep embedding in the UNet instead of in each block, by diffusers' own switches.

    Skipped where a gradient flows through the embedding: its sum would be rounded differently.
    """
    made_by = [module for module in (unet.time_embedding, unet.add_embedding) if module is not None]
    if any(parameter.requires_grad for module in made_by for parameter in module.parameters()):
        return
    resnets: list[Any] = [layer for layer in unet.modules() if isinstance(layer, READ_TIME)]
    if unet.time_embed_act is None and all(takes_silu_of_time(layer) for layer in resnets):
        unet.time_embed_act = nn.SiLU()
        for layer in resnets:
            layer.skip_time_act = True


def takes_silu_of_time(layer: Any) -> bool:
    """Return whether a block takes the SiLU of the timestep embedding by itself."""
    is_silu = type(layer) is ResnetBlock2D and isinstance(layer.nonlinearity, nn.SiLU)
    return is_silu and not layer.skip_time_act and layer.time_emb_proj is not None


class NoDivisor:
    """Stand-in for a divisor of 1 that returns the dividend itself."""

    def __rtruediv__(self, dividend: Tensor) -> Tensor:
        return dividend


READ_TIME = (ResnetBlock2D, ResnetBlockCondNorm2D)
DIVISORS = {ResnetBlock2D: "output_scale_factor", Attention: "rescale_output_factor"}  # of their outputs


def pads_with_zeros(layer: nn.Conv2d) -> bool:
    """Return whether a layer pads with a given number of zeros, not by a mode such as "same"."""
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


class FrozenConv2d(nn.Conv2d):
    """Frozen convolution made by `use_memory_saving_layers`: (B, C, H, W) -> (B, D, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad or x.dtype != self.weight.dtype:  # nothing to keep, or autocast must cast
            return super().forward(x)
        settings = self.stride, self.padding, self.dilation, self.groups
        return _FrozenConvolution.apply(x, self.weight, self.bias, *settings)


class _FrozenConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, *settings):
        ctx.save_for_backward(weight)
        ctx.shape, ctx.settings = x.shape, settings
        return functional.conv2d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        shape_of_x = gradient.new_empty(1).expand(ctx.shape)  # the values of x are not read
        x_gradient, _, _ = torch.ops.aten.convolution_backward(
            gradient, shape_of_x, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )
        return x_gradient, None, None, None, None, None, None


class LeanGEGLU(GEGLU):
    """Diffusers' GEGLU (arXiv:2002.05202) as changed by `use_memory_saving_layers`."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        return _GatedGELU.apply(self.proj(x))


class _GatedGELU(torch.autograd.Function):
    """Product of the first half and the GELU of the second: (..., 2n) -> (..., n)."""

    @staticmethod
    def forward(ctx, both):
        ctx.save_for_backward(both)
        value, gate = both.chunk(2, dim=-1)
        return functional.gelu(gate).mul_(value)

    @staticmethod
    def backward(ctx, gradient):
        (both,) = ctx.saved_tensors
        value, gate = both.chunk(2, dim=-1)
        both_gradient = torch.empty_like(both)  # filled by halves: three times n at once, not four
        value_gradient, gate_gradient = both_gradient.chunk(2, dim=-1)
        torch.mul(gradient, functional.gelu(gate), out=value_gradient)
        torch.ops.aten.gelu_backward.grad_input(gradient * value, gate, grad_input=gate_gradient)
        return both_gradient

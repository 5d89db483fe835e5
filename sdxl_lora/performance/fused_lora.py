"""Linear layer with LoRA as one function: PEFT's result in fewer operations and with fewer copies.

PEFT keeps its modules and parameters; only their forward is replaced. Under autocast with float32 adapter weights,
PEFT casts the input to float32 and back; here the adapter is cast to the input's precision and its gradients back to
float32, for all layers at once (cast_adapters.py). The base's weight may be quantized (quantization.py): a dense copy
is made for each product, forward and backward, and never kept.
"""

import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from sdxl_lora.performance.cast_adapters import cast_at_once
from sdxl_lora.performance.fused_attention import fuse_attention
from sdxl_lora.performance.quantization import PackedWeight, packed_weight, product_dtype


def lora_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return x W^T + bias + scale * x down^T up^T (..., out) in x's precision, or in autocast's where that is on.

    Args:
        x: (..., in). weight: (out, in), frozen. bias: (out,) or None, frozen.
        down: (rank, in), up: (out, rank): float32 or the precision of x.
    """
    return _LoraLinear.apply(x.to(product_dtype(x)), down, up, scale, bias, *weight)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, down, up, scale, bias, codes, scales, *how):
        rows = x.reshape(-1, x.shape[-1])
        low_down, low_up = down.to(x.dtype), up.to(x.dtype)
        inner = linear(rows, low_down)
        out = PackedWeight(codes, scales, *how).product(rows, bias, len(up))
        out.addmm_(inner, low_up.t(), alpha=scale)  # in place, or torch would copy `out` first
        ctx.save_for_backward(rows, inner, codes, scales, low_down, low_up)
        ctx.how, ctx.scale, ctx.adapter_dtype = how, scale, down.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient):
        rows, inner, codes, scales, low_down, low_up = ctx.saved_tensors
        out_gradient = gradient.reshape(-1, gradient.shape[-1])
        up_gradient, inner_gradient = out_gradient.t().mm(inner), out_gradient.mm(low_up)
        if ctx.scale != 1:
            up_gradient *= ctx.scale
            inner_gradient *= ctx.scale
        down_gradient = inner_gradient.t().mm(rows)
        x_gradient = None
        if ctx.needs_input_grad[0]:  # not for text embeddings with no adapter before them
            weight = PackedWeight(codes, scales, *ctx.how)
            x_gradient = weight.input_gradient(out_gradient, rows.shape[1]).addmm_(inner_gradient, low_down)
            x_gradient = x_gradient.view(*gradient.shape[:-1], -1)
        down_gradient, up_gradient = down_gradient.to(ctx.adapter_dtype), up_gradient.to(ctx.adapter_dtype)
        return x_gradient, down_gradient, up_gradient, *[None] * 6


class FusedLinear(Linear):
    """PEFT's LoRA of a linear layer as changed by `fuse_lora`."""

    cast: tuple[Tensor, Tensor] | None = None  # see cast_adapters.py

    def factors(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the first factor (rank, in) and the second factor (out, rank)."""
        (name,) = self.active_adapters
        return [self.lora_A[name].weight], [self.lora_B[name].weight]

    def forget(self) -> None:
        """Drop `cast`."""
        self.cast = None

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        if self.disable_adapters or self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base = self.base_layer
        if self.cast:
            down, up = self.cast
        else:
            (down,), (up,) = self.factors()
        weight = packed_weight(base)
        assert weight is not None, "fuse_lora looked"
        return lora_linear(x, weight, base.bias, down, up, self.scaling[name])


def fuse_lora(
    model: nn.Module, compiles: bool = False, streams: bool = False, device: torch.device | None = None
) -> dict[str, str]:
    """Let the model's LoRA layers compute by `lora_linear` where its result is PEFT's.

    Args:
        compiles: each layer casts and multiplies by itself, for the compiler to fuse.
        streams: the weights of blocks arrive one after the other, so no product may span several blocks.
        device: where the model will compute; None for where it is.
    Returns:
        The reasons of the layers that stay unchanged, by name.
    """
    left, fused = {}, []
    for name, layer in model.named_modules():
        if not (isinstance(layer, BaseTunerLayer) and hasattr(layer, "base_layer")):
            continue
        if reason := why_not(layer):
            left[name] = reason
        else:
            layer.__class__ = FusedLinear
            fused.append(layer)
    if fused and not compiles:
        sharing = fuse_attention(model, FusedLinear, not streams and attends_to_one_text(model), device)
        shared = {layer for of_input in sharing for layer in of_input.layers}
        cast_at_once(model, [*sharing, *(layer for layer in fused if layer not in shared)])
    return left


def attends_to_one_text(model: nn.Module) -> bool:
    """Return whether a model is a UNet whose attention reads encoder_hidden_states unprojected."""
    return isinstance(model, UNet2DConditionModel) and model.encoder_hid_proj is None


def why_not(layer: BaseTunerLayer) -> str:
    """Return the reason why a PEFT layer cannot be fused; "" if it can."""
    if type(layer) is not Linear:
        return f"{type(layer).__name__} of {type(layer).__module__} is not LoRA of a linear layer"
    if len(layer.active_adapters) != 1:
        return f"{len(layer.active_adapters)} adapters are active"
    (name,) = layer.active_adapters
    if name in layer.lora_variant:
        return type(layer.lora_variant[name]).__name__
    if not isinstance(layer.lora_dropout[name], nn.Identity):
        return "dropout"
    if layer.lora_A[name]._forward_hooks or layer.lora_B[name]._forward_hooks:
        return "dropout of ranks or modules"
    if layer.lora_bias[name]:
        return "a bias in the adapter"
    return "" if packed_weight(layer.base_layer) is not None else f"a base layer {type(layer.base_layer).__name__}"

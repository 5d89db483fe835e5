"""Attention whose projections of one input, each with its LoRA, are one function: query, key and value in
self-attention, key and value of the text in cross-attention.

Their first factors are one product, their second factors one batch of products, and their input's gradient is added up
where it arises. Half precision rounds fewer times so; in float32, where nothing is cast, layers compute one by one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

from sdxl_lora.performance.quantization import PackedWeight, packed_weight


class SharedInput:
    """LoRA layers of one input, of equal shape, rank and scale; `Adapted` of cast_adapters.py."""

    def __init__(self, layers: Sequence[Any]):
        self.layers = list(layers)
        self.cast: tuple[Tensor, Tensor] | None = None

    def factors(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return all first factors and all second ones."""
        downs, ups = zip(*(layer.factors() for layer in self.layers), strict=True)
        return [down for (down,) in downs], [up for (up,) in ups]

    def computes(self) -> bool:
        """Return whether the adapters are cast, none is switched off or merged, and their scale is one still."""
        if self.cast is None or any(layer.disable_adapters or layer.merged for layer in self.layers):
            return False
        return len({tuple(layer.scaling.values()) for layer in self.layers}) == 1

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """Each layer's output (..., out) of x (..., in)."""
        assert self.cast is not None
        downs, ups = self.cast
        frozen: list[Any] = []
        for layer in self.layers:
            weight = packed_weight(layer.base_layer)
            assert weight is not None
            frozen += [*weight, layer.base_layer.bias]
        (scale,) = self.layers[0].scaling.values()
        return _SharedInput.apply(
            x.to(downs.dtype), downs, ups.view(len(self.layers), -1, ups.shape[1]), scale, *frozen
        )


class _SharedInput(torch.autograd.Function):
    """x (..., in), downs (n * rank, in), ups (n, out, rank), and of each of n layers its PackedWeight and its bias."""

    @staticmethod
    def forward(ctx, x, downs, ups, scale, *frozen):
        count, width, rank = ups.shape
        layers = [(PackedWeight(*frozen[at : at + 4]), frozen[at + 4]) for at in range(0, 5 * count, 5)]
        rows = x.reshape(-1, x.shape[-1])
        inner = rows.mm(downs.t()).view(-1, count, rank).transpose(0, 1)
        out = rows.new_empty(count, len(rows), width)
        for into, (weight, bias) in zip(out, layers, strict=True):
            weight.product(rows, bias, width, into)
        out.baddbmm_(inner, ups.transpose(1, 2), alpha=scale)
        ctx.save_for_backward(rows, inner, downs, ups, *(tensor for weight, _ in layers for tensor in weight[:2]))
        ctx.how, ctx.scale = [weight[2:] for weight, _ in layers], scale
        return tuple(each.view(*x.shape[:-1], width) for each in out)

    @staticmethod
    def backward(ctx, *gradients):
        rows, inner, downs, ups, *packed = ctx.saved_tensors
        count, width, rank = ups.shape
        out_gradients = torch.stack([gradient.reshape(-1, width) for gradient in gradients])
        up_gradients = out_gradients.transpose(1, 2).bmm(inner)
        inner_gradient = rows.new_empty(len(rows), count * rank)
        torch.bmm(out_gradients, ups, out=inner_gradient.view(-1, count, rank).transpose(0, 1))
        if ctx.scale != 1:
            up_gradients *= ctx.scale
            inner_gradient *= ctx.scale
        down_gradients = inner_gradient.t().mm(rows)
        x_gradient = None
        if ctx.needs_input_grad[0]:  # not for text embeddings, which no adapter stands before
            x_gradient = inner_gradient.mm(downs)
            for gradient, codes, scales, how in zip(out_gradients, packed[::2], packed[1::2], ctx.how, strict=True):
                PackedWeight(codes, scales, *how).add_input_gradient(gradient, x_gradient)
            x_gradient = x_gradient.view(*gradients[0].shape[:-1], -1)
        return x_gradient, down_gradients, up_gradients, None, *[None] * (5 * count)


class FusedAttention(Attention):
    """Diffusers' attention, as `fuse_attention` makes it: (B, S, in) -> (B, S, out)."""

    shared: SharedInput

    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs) -> Tensor:
        if attention_mask is not None or kwargs or not self.shared.computes():
            return super().forward(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        if encoder_hidden_states is None:
            query, key, value = self.shared(hidden_states)
        else:
            query, (key, value) = self.to_q(hidden_states), self.shared(encoder_hidden_states)
        heads = [projected.unflatten(-1, (self.heads, -1)).transpose(1, 2) for projected in (query, key, value)]
        attended = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        for layer in self.to_out:
            attended = layer(attended)
        return attended / self.rescale_output_factor


def fuse_attention(model: nn.Module, kind: type) -> list[SharedInput]:
    """Let the model's attention project what layers share by one function, where all of these are of that kind.

    Returns:
        The layers of each attention that share their input.
    """
    found: list[SharedInput] = []
    for attention in model.modules():
        if not (isinstance(attention, Attention) and is_plain(attention)):
            continue
        sharing = [attention.to_k, attention.to_v]
        if not attention.is_cross_attention:
            sharing.insert(0, attention.to_q)
        if all(type(layer) is kind for layer in sharing) and len({description(layer) for layer in sharing}) == 1:
            found.append(SharedInput(sharing))
            attention.__class__ = FusedAttention
            attention.shared = found[-1]  # type: ignore[assignment] # it is no module
    return found


def is_plain(attention: Attention) -> bool:
    """Return whether it is attention as SDXL's transformers have it, with nothing but projections."""
    without = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross", "residual_connection")
    return (
        type(attention) is Attention
        and type(attention.processor) is AttnProcessor2_0
        and not any(getattr(attention, name) for name in without)
        and attention.to_out is not None
    )


def description(layer: Any) -> tuple:
    """What layers have to have in common."""
    (down,), (up,) = layer.factors()
    return down.shape, up.shape, tuple(layer.scaling.values())

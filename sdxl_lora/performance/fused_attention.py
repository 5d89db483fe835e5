"""Attention that computes all projections of one input, each with its LoRA, in one function.

These are query, key and value in self-attention, and keys and values of the text in all cross-attention of a model.
Their frozen weights are stacked and multiplied at once, as are their first factors; their second factors are one
batched product. Half precision rounds fewer times this way. In float32, where nothing is cast, layers compute one by
one.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

from sdxl_lora.performance.quantization import PackedWeight, packed_weight


class SharedInput:
    """LoRA layers of one input, of equal shape, rank and scale; an `Adapted` (cast_adapters.py)."""

    def __init__(self, layers: Sequence[Any]):
        self.layers = list(layers)
        self.cast: tuple[Tensor, Tensor] | None = None
        self.ahead: Sequence[Tensor] | None = None  # outputs computed at the start of the model's forward

    def factors(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return all first factors and all second factors."""
        downs, ups = zip(*(layer.factors() for layer in self.layers), strict=True)
        return [down for (down,) in downs], [up for (up,) in ups]

    def forget(self) -> None:
        """Drop what was computed for a forward and its backward."""
        self.cast = self.ahead = None

    def computes(self) -> bool:
        """Return whether the adapters are cast, none is disabled or merged, and all still have the same scale."""
        if self.cast is None or any(layer.disable_adapters or layer.merged for layer in self.layers):
            return False
        return len({tuple(layer.scaling.values()) for layer in self.layers}) == 1

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """Return each layer's output (..., out) for x (..., in)."""
        if self.ahead is not None:
            return self.ahead
        assert self.cast is not None
        downs, ups = self.cast
        (scale,) = self.layers[0].scaling.values()
        return _SharedInput.apply(
            x.to(downs.dtype), downs, ups.view(len(self.layers), -1, ups.shape[1]), scale, *self._frozen(downs.dtype)
        )

    def _frozen(self, dtype: torch.dtype) -> list[Any]:
        """Return each layer's PackedWeight and bias in one flat list; joined weights in `dtype` count as one layer."""
        bases = [layer.base_layer for layer in self.layers]
        if (joined := joined_weight(bases)) is not None and joined.dtype == dtype:  # else their copy would be large
            return [joined, None, "dense", False, None]
        frozen: list[Any] = []
        for base in bases:
            weight = packed_weight(base)
            assert weight is not None
            frozen += [*weight, base.bias]
        return frozen


class _SharedInput(torch.autograd.Function):
    """Outputs of n LoRA layers for x (..., in), with downs (n * rank, in), ups (n, out, rank) and `frozen` weights."""

    @staticmethod
    def forward(ctx, x, downs, ups, scale, *frozen):
        count, width, rank = ups.shape
        layers = [(PackedWeight(*frozen[at : at + 4]), frozen[at + 4]) for at in range(0, len(frozen), 5)]
        rows = x.reshape(-1, x.shape[-1])
        inner = rows.mm(downs.t()).view(-1, count, rank).transpose(0, 1)
        if len(layers) == 1:
            out = layers[0][0].product(rows, None, count * width).view(-1, count, width).transpose(0, 1)
        else:
            out = rows.new_empty(count, len(rows), width)
            for into, (weight, bias) in zip(out, layers, strict=True):
                weight.product(rows, bias, width, into)
        out.baddbmm_(inner, ups.transpose(1, 2), alpha=scale)
        ctx.save_for_backward(rows, inner, downs, ups, *(tensor for weight, _ in layers for tensor in weight[:2]))
        ctx.how, ctx.scale, ctx.frozen = [weight[2:] for weight, _ in layers], scale, len(frozen)
        return tuple(each.view(*x.shape[:-1], width) for each in out)

    @staticmethod
    def backward(ctx, *gradients):
        rows, inner, downs, ups, *packed = ctx.saved_tensors
        count, width, rank = ups.shape
        joined = torch.cat([gradient.reshape(-1, width) for gradient in gradients], dim=1)
        out_gradients = joined.view(-1, count, width).transpose(0, 1)
        up_gradients = out_gradients.transpose(1, 2).bmm(inner)
        inner_gradient = rows.new_empty(len(rows), count * rank)
        torch.bmm(out_gradients, ups, out=inner_gradient.view(-1, count, rank).transpose(0, 1))
        if ctx.scale != 1:
            up_gradients *= ctx.scale
            inner_gradient *= ctx.scale
        down_gradients = inner_gradient.t().mm(rows)
        x_gradient = None
        if ctx.needs_input_grad[0]:  # not for text embeddings with no adapter before them
            x_gradient = inner_gradient.mm(downs)
            of_layers = [joined] if len(ctx.how) == 1 else out_gradients
            for gradient, codes, scales, how in zip(of_layers, packed[::2], packed[1::2], ctx.how, strict=True):
                PackedWeight(codes, scales, *how).add_input_gradient(gradient, x_gradient)
            x_gradient = x_gradient.view(*gradients[0].shape[:-1], -1)
        return x_gradient, down_gradients, up_gradients, None, *[None] * ctx.frozen


def join_weights(layers: Sequence[Any], device: torch.device | None = None) -> None:
    """Stack the weights of frozen linear layers in one piece of memory, where all are dense and have no bias.

    The layers keep their weights: names and values stay the same.

    Args:
        device: where they go now, since a later move would separate them; None to stay.
    """
    if all(type(layer) is nn.Linear and layer.bias is None for layer in layers):
        joined = torch.cat([layer.weight.detach() for layer in layers]).to(device)
        for layer, part in zip(layers, joined.chunk(len(layers)), strict=True):
            layer.weight.data = part


def joined_weight(layers: Sequence[Any]) -> Tensor | None:
    """Return the weights (n * out, in) of n layers as `join_weights` stacked them; None where they are separate."""
    if not all(type(layer) is nn.Linear and layer.bias is None for layer in layers):
        return None
    weights = [layer.weight.detach() for layer in layers]
    first = weights[0]
    places = [(weight.untyped_storage()._cdata, weight.storage_offset()) for weight in weights]
    storage, offset = places[0]
    if places != [(storage, offset + number * first.numel()) for number in range(len(weights))]:
        return None
    return first.as_strided((len(weights) * first.shape[0], first.shape[1]), (first.shape[1], 1))


class FusedAttention(Attention):
    """Diffusers' attention as changed by `fuse_attention`: (B, S, in) -> (B, S, out).

    Attributes:
        shared: the layers that share the input of this attention's key and value, and the index of its first layer.
    """

    shared: tuple[SharedInput, int]

    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs) -> Tensor:
        shared, place = self.shared
        if attention_mask is not None or kwargs or not shared.computes():
            return super().forward(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        if encoder_hidden_states is None:
            query, key, value = shared(hidden_states)
        else:
            query, (key, value) = self.to_q(hidden_states), shared(encoder_hidden_states)[place : place + 2]
        heads = [projected.unflatten(-1, (self.heads, -1)).transpose(1, 2) for projected in (query, key, value)]
        attended = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        for layer in self.to_out:
            attended = layer(attended)
        return attended / self.rescale_output_factor


def fuse_attention(
    model: nn.Module, kind: type, of_one_text: bool = False, device: torch.device | None = None
) -> list[SharedInput]:
    """Let the model's attention compute the projections of one input at once, where all are layers of `kind`.

    Args:
        of_one_text: all cross-attention reads the text given to the model's forward, so that all keys and values are
            computed together, first.
        device: where joined weights go, see `join_weights`.
    Returns:
        The groups of layers that share their input.
    """
    found: list[SharedInput] = []
    of_text: dict[tuple, list[tuple[Attention, list]]] = {}
    for attention in model.modules():
        if not (isinstance(attention, Attention) and is_plain(attention)):
            continue
        sharing = [attention.to_k, attention.to_v]
        if not attention.is_cross_attention:
            sharing.insert(0, attention.to_q)
        if not all(type(layer) is kind for layer in sharing) or len({description(layer) for layer in sharing}) != 1:
            continue
        place = (description(sharing[0]),) if of_one_text else (len(found), len(of_text))
        if attention.is_cross_attention:
            of_text.setdefault(place, []).append((attention, sharing))
        else:
            found.append(_share([(attention, sharing)], device))
    texts = [_share(group, device) for group in of_text.values()]
    if of_one_text and texts:
        project_ahead(model, texts)
    return [*found, *texts]


def _share(group: Sequence[tuple[Attention, list]], device: torch.device | None) -> SharedInput:
    shared = SharedInput([layer for _, layers in group for layer in layers])
    join_weights([layer.base_layer for layer in shared.layers], device)
    place = 0
    for attention, layers in group:
        attention.__class__ = FusedAttention
        attention.shared = shared, place  # type: ignore[assignment] # it is no module
        place += len(layers)
    return shared


def project_ahead(model: nn.Module, texts: Sequence[SharedInput]) -> None:
    """Let the model's forward begin with the projections that depend on its text alone."""
    forward = model.forward

    @functools.wraps(forward)
    def project_first(sample, timestep, encoder_hidden_states, *args, **kwargs):
        before = [text.ahead for text in texts]
        for text in texts:
            text.ahead = None
            text.ahead = text(encoder_hidden_states) if text.computes() else None
        out = forward(sample, timestep, encoder_hidden_states, *args, **kwargs)
        if not torch.is_grad_enabled():
            for text, ahead_before in zip(texts, before, strict=True):
                text.ahead = ahead_before
        return out

    model.forward = project_first


def is_plain(attention: Attention) -> bool:
    """Return whether an attention is that of SDXL's transformers: projections and nothing else."""
    without = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross", "residual_connection")
    return (
        type(attention) is Attention
        and type(attention.processor) is AttnProcessor2_0
        and not any(getattr(attention, name) for name in without)
        and attention.to_out is not None
    )


def description(layer: Any) -> tuple:
    """Return what layers must have in common to be fused: shapes and scales."""
    (down,), (up,) = layer.factors()
    return down.shape, up.shape, tuple(layer.scaling.values())

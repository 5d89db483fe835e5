"""Frozen weights in 8 or 4 bits: each output's row, or each block of 64 values, with a scale of its own.

int8 and fp8 (e4m3) hold a byte per value and a float32 scale per row; nf4 (arXiv:2305.14314, by bitsandbytes) half a
byte and a bfloat16 scale per block. Products are computed in the input's precision from a dense copy of the weight,
which is made anew in the backward pass: autograd would keep it. Knows no LoRA.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

KINDS = ("int8", "fp8", "nf4")
BLOCK = 64  # values that share a scale in nf4
LARGEST = {"int8": 127.0, "fp8": 448.0}  # of the codes
CODE_DTYPE = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class PackedWeight(NamedTuple):
    """A frozen (out, in) weight: as it is (kind "dense", no scales), or as codes and scales."""

    codes: Tensor
    scales: Tensor | None
    kind: str

    def dense(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """(out, in), in `dtype`."""
        if self.scales is None:
            return self.codes.to(dtype)
        if self.kind == "nf4":
            import bitsandbytes  # noqa: F401 - registers the operation; takes a second

            scales = self.scales.float()
            return torch.ops.bitsandbytes.dequantize_4bit(self.codes, scales, BLOCK, "nf4", shape, dtype)
        return self.codes.to(dtype) * self.scales.to(dtype)


def pack(weight: Tensor, kind: str) -> PackedWeight:
    """Codes and scales of a (out, in) weight. Rows of zeros stay zeros."""
    if kind == "nf4":
        import bitsandbytes  # noqa: F401

        codes, scales = torch.ops.bitsandbytes.quantize_4bit(weight.contiguous(), BLOCK, "nf4", torch.uint8)
        return PackedWeight(codes, scales.bfloat16(), kind)
    values = weight.float()
    scales = values.abs().amax(1, keepdim=True).clamp(min=1e-12) / LARGEST[kind]
    values = values / scales
    codes = (values.round() if kind == "int8" else values).to(CODE_DTYPE[kind])
    return PackedWeight(codes, scales, kind)


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is packed. `weight` is a dense copy in `dtype`, made when it is asked for."""

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, kind: str, device: torch.device | None = None):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = linear.in_features, linear.out_features, kind
        self.dtype = linear.weight.dtype
        packed = pack(linear.weight.detach().to(device), kind)
        self.register_buffer("codes", packed.codes)
        self.register_buffer("scales", packed.scales)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override] # nn.Linear's parameter is what is packed
        return self.packed.dense((self.out_features, self.in_features), self.dtype)

    @property
    def packed(self) -> PackedWeight:
        return PackedWeight(self.codes, self.scales, self.kind)

    def forward(self, x: Tensor) -> Tensor:
        return _FrozenProduct.apply(
            x.to(product_dtype(x)), self.codes, self.scales, self.kind, self.out_features, self.bias
        )


def product_dtype(x: Tensor) -> torch.dtype:
    """The precision of products with x: autocast's where that is on."""
    device = x.device.type
    is_cast = not x.is_meta and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_cast else x.dtype


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, codes, scales, kind, out_features, bias):
        ctx.save_for_backward(codes, scales)
        ctx.kind, ctx.shape = kind, (out_features, x.shape[-1])
        dense = PackedWeight(codes, scales, kind).dense(ctx.shape, x.dtype)
        return nn.functional.linear(x, dense, bias if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, gradient):
        codes, scales = ctx.saved_tensors
        dense = PackedWeight(codes, scales, ctx.kind).dense(ctx.shape, gradient.dtype)
        return gradient @ dense, None, None, None, None, None


def packed_weight(layer: nn.Module) -> PackedWeight | None:
    """The weight of a frozen linear layer; None for other layers."""
    if isinstance(layer, QuantizedLinear):
        return layer.packed
    return PackedWeight(layer.weight, None, "dense") if type(layer) is nn.Linear else None


def packable(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Linear layers inside the model's attention modules, each with its parent and its name there.

    That is nine tenths of SDXL's weights; convolutions and what carries the timestep stay as they are. Those that
    adapters train go by the adapter's layer.
    """
    return [
        (parent, child_name, child)
        for name, parent in model.named_modules()
        if ".attentions." in f".{name}." and ".lora_" not in name
        for child_name, child in parent.named_children()
        if type(child) is nn.Linear
    ]


def quantize_linears(model: nn.Module, kind: str, device: torch.device | None = None) -> int:
    """Pack all layers that are `packable`. Returns their number.

    Args:
        device: where each is brought and packed.
    """
    found = packable(model)
    for parent, child_name, child in found:
        setattr(parent, child_name, QuantizedLinear(child, kind, device))
    return len(found)


def packed_bytes(shape: tuple[int, int], kind: str) -> int:
    """Return the bytes of a packed (out, in) weight."""
    values = shape[0] * shape[1]
    return values // 2 + 2 * -(-values // BLOCK) if kind == "nf4" else values + 4 * shape[0]
